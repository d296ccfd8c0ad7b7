//! One lease, from its grant to its end: when it is renewed, how long it can be relied on, and why it ended.
//!
//! A state machine without input and output. It reads no clock and waits for nothing: callers tell it the time and what
//! the masters said. [`engine::renew`](crate::engine::renew) acts on it, and so does the binding for clients that are
//! called by their own methods.

use std::time::Duration;

use crate::clock::Instant;
use crate::planted::{self, Bug};
use crate::quorum;

/// Renewals begin when this part of the TTL is over.
const RENEWAL_PART: u32 = 3;

/// The pause before another try is the TTL divided by this, and no longer than [`LONGEST_PAUSE`].
const RETRY_PART: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The holder is told of the loss a twentieth of the TTL before validity ends, and at least so long before.
const NOTICE_PART: u32 = 20;
const LEAST_NOTICE: Duration = Duration::from_millis(50);

/// A TTL, and how much of it the masters' clocks may differ by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    /// Milliseconds that the masters keep the lock.
    pub ms: u64,
    /// How much of that is for the drift between the clocks, in milliseconds.
    pub drift_ms: u64,
}

impl Ttl {
    /// The TTL as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.ms)
    }

    /// When the validity ends of what is asked for at `start`.
    #[must_use]
    pub const fn expires_at(self, start: Instant) -> Instant {
        quorum::expires_at(start, self.ms, self.drift_ms)
    }
}

/// Why a lease cannot be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its time is over, or the masters no longer have it.
    Expired,
    /// Another holder has it.
    TakenOver,
    /// No quorum of masters extended it in time.
    Unavailable,
    /// It was released.
    Released,
}

/// What is to be done for a lease that is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing until then.
    Wait(Instant),
    /// Ask the masters to extend it by this TTL.
    Renew(Ttl),
    /// Tell the holder that it is lost.
    Lose(Reason),
    /// Give it back at this moment: it was held as long as it may be.
    GiveBackAt(Instant),
    /// Nothing more.
    Over,
}

/// A lease.
#[derive(Debug, Clone)]
pub struct Lease {
    ttl: Ttl,
    validity: Duration,
    expires_at: Instant,
    renewal: Option<Renewal>,
    end: Option<Reason>,
    is_told: bool,
    release: Option<bool>,
    is_given_back: bool,
}

/// The plan of a lease that is renewed.
#[derive(Debug, Clone, Copy)]
struct Renewal {
    renew_at: Instant,
    lost_at: Instant,
    hold_until: Option<Instant>,
}

impl Lease {
    /// A lease that was granted just `now`, and can be relied on until `expires_at`.
    #[must_use]
    pub const fn new(now: Instant, ttl: Ttl, expires_at: Instant) -> Self {
        Self {
            ttl,
            validity: expires_at.since(now),
            expires_at,
            renewal: None,
            end: None,
            is_told: false,
            release: None,
            is_given_back: false,
        }
    }

    /// Renew it from now on: for `max_hold`, if that is given. It ends at that moment.
    pub fn renew(&mut self, now: Instant, max_hold: Option<Duration>) {
        let hold_until = max_hold.map(|longest| now.after(longest));
        self.renewal = Some(Renewal { renew_at: now, lost_at: now, hold_until });
        self.plan(self.ttl, self.expires_at);
    }

    /// The TTL that was set last.
    #[must_use]
    pub const fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// How long it could be relied on when it was granted or last extended.
    #[must_use]
    pub const fn validity(&self) -> Duration {
        self.validity
    }

    /// When its validity ends, unless it is extended.
    #[must_use]
    pub const fn expires_at(&self) -> Instant {
        self.expires_at
    }

    /// Why it cannot be relied on; `None` while it can.
    #[must_use]
    pub fn why_not(&self, now: Instant) -> Option<Reason> {
        self.end.or_else(|| (now >= self.expires_at).then_some(Reason::Expired))
    }

    /// How long it can be relied on.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Duration {
        if self.end.is_some() { Duration::ZERO } else { self.expires_at.since(now) }
    }

    /// Whether it has ended: it is lost or was released.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether its holder was told that it is lost.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        self.is_told
    }

    /// Whether it was released.
    #[must_use]
    pub const fn is_released(&self) -> bool {
        self.release.is_some()
    }

    /// Whether the masters have answered its release.
    #[must_use]
    pub const fn is_given_back(&self) -> bool {
        self.is_given_back
    }

    /// Whether it could still be relied on when it was released; `None` before.
    #[must_use]
    pub const fn released_in_time(&self) -> Option<bool> {
        self.release
    }

    /// What is to be done, and when.
    #[must_use]
    pub fn next(&self, now: Instant) -> Step {
        let Some(renewal) = self.renewal else { return Step::Over };
        if self.end.is_some() {
            // The masters would keep it for longer than it may be held.
            let is_kept = self.is_told && self.release.is_none() && renewal.hold_until == Some(self.expires_at);
            return if is_kept { Step::GiveBackAt(self.expires_at) } else { Step::Over };
        }
        if now >= renewal.lost_at {
            return Step::Lose(self.why_lost(now, renewal));
        }
        // What has run out is not asked for again: it can only be lost.
        match self.renewal_ttl(now, renewal).filter(|_| now < self.expires_at) {
            Some(ttl) if now >= renewal.renew_at => Step::Renew(ttl),
            Some(_) => Step::Wait(renewal.renew_at.min(renewal.lost_at)),
            None => Step::Wait(renewal.lost_at),
        }
    }

    fn why_lost(&self, now: Instant, renewal: Renewal) -> Reason {
        if now >= self.expires_at || self.renewal_ttl(now, renewal).is_none() {
            Reason::Expired
        } else {
            Reason::Unavailable
        }
    }

    /// The TTL of the next renewal: what is left until it may be held no longer, if that is less than usual. `None` if
    /// it would not be longer.
    fn renewal_ttl(&self, now: Instant, renewal: Renewal) -> Option<Ttl> {
        let Some(end) = renewal.hold_until else { return Some(self.ttl) };
        let at = now.max(renewal.renew_at);
        if at >= end {
            return None;
        }
        let left = u64::try_from(end.since(at).as_millis()).unwrap_or(u64::MAX);
        let ttl = Ttl { ms: self.ttl.ms.min(left), ..self.ttl };
        (ttl.expires_at(at) > self.expires_at.after(Duration::from_millis(1))).then_some(ttl)
    }

    /// When the holder is told, unless it is extended before: a little before validity ends, so that there is time to
    /// stop. Of one that is not renewed, when validity ends.
    #[must_use]
    pub fn lost_at(&self) -> Instant {
        self.renewal.map_or(self.expires_at, |renewal| renewal.lost_at)
    }

    /// An extension is about to be asked for. It may take effect though it seems to fail: if it sets an earlier end than
    /// there is, that is the end from now on.
    ///
    /// Returns until when the extension may go on: what succeeds later comes too late. `Err` if it has ended.
    pub fn extension_sent(&mut self, now: Instant, ttl: Ttl) -> Result<Instant, Reason> {
        if let Some(reason) = self.why_not(now) {
            return Err(reason);
        }
        let worst = ttl.expires_at(now);
        if worst < self.expires_at && !planted::is(Bug::DeadlineForgotten) {
            let before = self.renewal;
            self.plan(ttl, worst);
            if let (Some(renewal), Some(before)) = (&mut self.renewal, before) {
                renewal.renew_at = renewal.renew_at.min(before.renew_at);
            }
        }
        Ok(self.lost_at())
    }

    /// A quorum of masters has extended it. `Err` if it had ended by then.
    pub fn extended(&mut self, now: Instant, ttl: Ttl, expires_at: Instant) -> Result<(), Reason> {
        if let Some(reason) = self.why_not(now) {
            return Err(reason);
        }
        (self.ttl, self.validity) = (ttl, expires_at.since(now));
        self.plan(ttl, expires_at);
        Ok(())
    }

    /// The plan after a renewal: the TTL that later ones set is the one that was asked for by hand.
    fn plan(&mut self, ttl: Ttl, expires_at: Instant) {
        self.expires_at = expires_at;
        if let Some(renewal) = &mut self.renewal {
            let end = renewal.hold_until.map_or(expires_at, |end| end.min(expires_at));
            self.expires_at = end;
            let full = ttl.duration();
            let notice = (full / NOTICE_PART).max(LEAST_NOTICE).min(full / RENEWAL_PART);
            renewal.lost_at = if planted::is(Bug::LateLoss) { end.after(notice) } else { end.before(notice) };
            renewal.renew_at = expires_at.before(full.saturating_sub(full / RENEWAL_PART));
        }
    }

    /// No quorum of masters extended it. After [`Reason::Unavailable`] there is another try; any other reason is final.
    ///
    /// Returns whether the holder has to be told.
    pub fn extension_failed(&mut self, now: Instant, reason: Reason) -> bool {
        if reason != Reason::Unavailable {
            return self.lose(reason);
        }
        let pause = (self.ttl.duration() / RETRY_PART).min(LONGEST_PAUSE);
        if let Some(renewal) = &mut self.renewal {
            renewal.renew_at = now.after(pause);
        }
        false
    }

    /// It is lost, and its holder is told. Returns whether that is new: it may have ended before.
    pub fn lose(&mut self, reason: Reason) -> bool {
        let is_new = self.end.is_none();
        if is_new {
            self.end = Some(reason);
            self.is_told = true;
        }
        is_new
    }

    /// It is about to be released. Returns whether that is to be done: not twice.
    pub fn begin_release(&mut self, now: Instant) -> bool {
        if self.release.is_some() {
            return false;
        }
        let reason = self.why_not(now).unwrap_or(Reason::Released);
        self.end = Some(reason);
        self.release = Some(reason == Reason::Released);
        true
    }

    /// What the masters said to the release: whether a quorum had it until then.
    pub fn end_release(&mut self, was_held: bool) {
        self.release = self.release.map(|in_time| in_time && was_held);
        self.is_given_back = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(100);

    /// This many milliseconds after the lease was granted.
    fn at(ms: u64) -> Instant {
        Instant::from_zero(START + Duration::from_millis(ms))
    }

    const fn ttl(ms: u64) -> Ttl {
        Ttl { ms, drift_ms: 0 }
    }

    /// One that was granted for so many milliseconds, and is renewed.
    fn renewed(ms: u64, max_hold: Option<u64>) -> Lease {
        let mut lease = Lease::new(at(0), ttl(ms), ttl(ms).expires_at(at(0)));
        lease.renew(at(0), max_hold.map(Duration::from_millis));
        lease
    }

    #[test]
    fn it_is_renewed_when_a_third_of_its_ttl_has_passed() {
        let lease = renewed(9000, None);
        assert_eq!(lease.next(at(0)), Step::Wait(at(3000)));
        assert_eq!(lease.next(at(2999)), Step::Wait(at(3000)));
        assert_eq!(lease.next(at(3000)), Step::Renew(ttl(9000)));
    }

    #[test]
    fn a_renewal_counts_from_the_moment_it_was_asked_for() {
        let mut lease = renewed(9000, None);
        lease.extended(at(3500), ttl(9000), ttl(9000).expires_at(at(3000))).unwrap();
        assert_eq!(lease.next(at(3500)), Step::Wait(at(6000)));
        assert_eq!(lease.validity(), Duration::from_millis(8500));
    }

    #[test]
    fn one_that_is_not_renewed_has_nothing_to_be_done() {
        let lease = Lease::new(at(0), ttl(9000), at(9000));
        assert_eq!(lease.next(at(10_000)), Step::Over);
        assert_eq!(lease.why_not(at(9000)), Some(Reason::Expired));
    }

    #[test]
    fn another_try_comes_after_a_twentieth_of_the_ttl_but_a_second_at_most() {
        for (ms, pause) in [(9000, 450), (60_000, 1000)] {
            let mut lease = renewed(ms, None);
            let now = ms / 3;
            assert!(!lease.extension_failed(at(now), Reason::Unavailable));
            assert_eq!(lease.next(at(now)), Step::Wait(at(now + pause)));
            assert_eq!(lease.next(at(now + pause)), Step::Renew(ttl(ms)));
        }
    }

    #[test]
    fn the_holder_has_notice_of_the_loss() {
        for (ms, notice) in [(10_000, 500), (600, 50), (90, 30)] {
            let mut lease = renewed(ms, None);
            assert_eq!(lease.lost_at(), at(ms - notice));
            lease.extension_failed(at(ms - notice - 1), Reason::Unavailable);
            assert_eq!(lease.next(at(ms - notice - 1)), Step::Wait(at(ms - notice)));
            assert_eq!(lease.next(at(ms - notice)), Step::Lose(Reason::Unavailable));
            assert_eq!(lease.next(at(ms)), Step::Lose(Reason::Expired));
        }
    }

    #[test]
    fn what_may_be_held_only_so_long_ends_on_time() {
        let mut lease = renewed(9000, Some(10_000));
        assert_eq!(lease.next(at(3000)), Step::Renew(ttl(7000)));
        lease.extended(at(3000), ttl(7000), at(10_000)).unwrap();
        assert_eq!(lease.expires_at(), at(10_000));
        // No renewal would make it longer.
        assert_eq!(lease.next(at(9000)), Step::Wait(lease.lost_at()));
        assert_eq!(lease.next(lease.lost_at()), Step::Lose(Reason::Expired));
        assert!(lease.lose(Reason::Expired));
        assert_eq!(lease.next(at(9800)), Step::GiveBackAt(at(10_000)));
        assert_eq!(lease.remaining(at(9800)), Duration::ZERO);
        assert!(lease.begin_release(at(10_000)));
        assert_eq!(lease.next(at(10_000)), Step::Over);
    }

    #[test]
    fn one_that_may_be_held_for_less_than_its_ttl_is_given_back() {
        let mut lease = renewed(9000, Some(2000));
        assert_eq!(lease.remaining(at(0)), Duration::from_secs(2));
        assert_eq!(lease.next(at(0)), Step::Wait(at(1550)));
        lease.lose(Reason::Expired);
        assert_eq!(lease.next(at(1550)), Step::GiveBackAt(at(2000)));
    }

    #[test]
    fn one_that_is_lost_before_is_not_given_back() {
        let mut lease = renewed(9000, Some(60_000));
        lease.lose(Reason::TakenOver);
        assert_eq!(lease.next(at(1)), Step::Over);
    }

    #[test]
    fn an_extension_for_a_shorter_time_may_take_effect_though_it_fails() {
        let mut lease = renewed(9000, None);
        let until = lease.extension_sent(at(1000), ttl(2000)).unwrap();
        assert_eq!(lease.expires_at(), at(3000));
        assert_eq!(until, at(2900));
        assert!(!lease.extension_failed(at(1500), Reason::Unavailable));
        assert_eq!(lease.remaining(at(1500)), Duration::from_millis(1500));
    }

    #[test]
    fn an_extension_that_fails_leaves_the_later_end() {
        let mut lease = renewed(9000, None);
        lease.extension_sent(at(3000), ttl(9000)).unwrap();
        lease.extension_failed(at(3500), Reason::Unavailable);
        assert_eq!(lease.expires_at(), at(9000));
    }

    #[test]
    fn the_first_reason_stays() {
        let mut lease = renewed(9000, None);
        assert!(lease.extension_failed(at(3000), Reason::TakenOver));
        assert!(!lease.lose(Reason::Unavailable));
        assert_eq!(lease.why_not(at(10_000)), Some(Reason::TakenOver));
        assert_eq!(lease.extended(at(3000), ttl(9000), at(12_000)), Err(Reason::TakenOver));
        assert_eq!(lease.extension_sent(at(3000), ttl(9000)), Err(Reason::TakenOver));
        assert!(lease.is_told());
    }

    #[test]
    fn a_release_is_in_time_or_it_is_not() {
        let released = |now, was_held| {
            let mut lease = renewed(9000, None);
            assert_eq!(lease.released_in_time(), None);
            assert!(lease.begin_release(at(now)) && !lease.begin_release(at(now)));
            lease.end_release(was_held);
            assert!(!lease.is_told());
            (lease.released_in_time().unwrap(), lease.why_not(at(now)).unwrap())
        };
        assert_eq!(released(8999, true), (true, Reason::Released));
        assert_eq!(released(8999, false), (false, Reason::Released));
        assert_eq!(released(9000, true), (false, Reason::Expired));
    }

    proptest! {
        /// Nothing but an extension that a quorum granted makes it last longer.
        #[test]
        fn it_lasts_longer_only_when_extended(
            max_hold in proptest::option::of(1_u64..20_000),
            steps in prop::collection::vec((0_u64..3000, 1_u64..12_000, 0..4), 1..40),
        ) {
            let mut lease = renewed(9000, max_hold);
            let mut now = 0;
            for (pause, ms, what) in steps {
                let end = |lease: &Lease, now| at(now).after(lease.remaining(at(now)));
                let before = end(&lease, now);
                now += pause;
                match what {
                    0 => _ = lease.extension_sent(at(now), ttl(ms)),
                    1 => _ = lease.extension_failed(at(now), Reason::Unavailable),
                    2 if lease.lose(Reason::TakenOver) => prop_assert_eq!(lease.remaining(at(now)), Duration::ZERO),
                    2 => {}
                    _ => {
                        let granted = lease.extended(at(now), ttl(ms), ttl(ms).expires_at(at(now)));
                        prop_assert_eq!(granted.is_ok(), before > at(now));
                        prop_assert!(lease.remaining(at(now)) <= ttl(ms).duration());
                        let longest = max_hold.map_or(Instant::from_zero(Duration::MAX), at);
                        prop_assert!(lease.expires_at() <= longest);
                        continue;
                    }
                }
                prop_assert!(end(&lease, now) <= before.max(at(now)));
            }
        }
    }
}

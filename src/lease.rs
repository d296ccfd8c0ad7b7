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
        match self.renewal_ttl(now, renewal) {
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
            renewal.renew_at = expires_at.before(full - full / RENEWAL_PART);
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

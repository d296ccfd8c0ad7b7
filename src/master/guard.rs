//! Doubts about a master: one that has forgotten, or whose clock jumps, may grant a lock that is still held.
//!
//! Source: "Performance, crash recovery and fsync" in the Redis documentation: a master that restarts is to stay out for
//! longer than the longest TTL in use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Instant;

/// How far clocks may run apart, as a share of the time: redlock-py's `clock_drift_factor`.
const DRIFT: f64 = 0.01;

/// The precision of what servers and we call a millisecond, on both sides.
const PRECISION: Duration = Duration::from_millis(2);

/// What the masters of one manager are guarded against.
#[derive(Debug, Default)]
pub struct Guards {
    /// A master that may have forgotten gives no vote for as long as a lock may be held.
    pub restart: bool,
    /// Neither does one whose clock cannot be relied on.
    pub clock: bool,
    /// The longest TTL that others ask for, as the caller says, in milliseconds.
    others_ttl_ms: u64,
    /// The longest TTL that was asked for, or that the caller says others ask for, in milliseconds.
    longest_ttl_ms: AtomicU64,
}

/// Where no lock was asked for yet, as in a process that only releases, others may have asked for this.
const LEAST_LONGEST: Duration = Duration::from_secs(10);

impl Guards {
    /// Guards as the caller chose; `ttl_ms` is the longest TTL in use anywhere, as far as known.
    #[must_use]
    pub const fn new(restart: bool, clock: bool, ttl_ms: u64) -> Self {
        Self { restart, clock, others_ttl_ms: ttl_ms, longest_ttl_ms: AtomicU64::new(ttl_ms) }
    }

    /// Whether the caller chose the same.
    #[must_use]
    pub fn are_as(&self, other: &Self) -> bool {
        (self.restart, self.clock, self.others_ttl_ms) == (other.restart, other.clock, other.others_ttl_ms)
    }

    /// A lock is asked for, for so long.
    pub fn note_ttl(&self, ttl_ms: u64) {
        if ttl_ms > self.longest_ttl_ms.load(Ordering::Relaxed) {
            self.longest_ttl_ms.fetch_max(ttl_ms, Ordering::Relaxed);
        }
    }

    /// The longest time for which a lock was asked for, as far as known.
    #[must_use]
    pub fn longest_ttl(&self) -> Duration {
        Duration::from_millis(self.longest_ttl_ms.load(Ordering::Relaxed)).max(LEAST_LONGEST)
    }

    /// How long any lock may be held that a master does not know of any more.
    fn memory(&self) -> Duration {
        let ttl = Duration::from_millis(self.longest_ttl_ms.load(Ordering::Relaxed));
        ttl.saturating_add(allowance(ttl))
    }
}

/// How far two clocks may differ after this time, and neither be wrong.
fn allowance(time: Duration) -> Duration {
    time.mul_f64(DRIFT).saturating_add(PRECISION)
}

/// What a server says of itself when a connection to it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Another for every start of a server.
    pub run_id: String,
    /// Whole seconds since that start.
    pub uptime: Duration,
    /// It has on disk what it granted: AOF with `appendfsync always`.
    pub is_durable: bool,
}

/// Why a master is not relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Cause {
    /// Without having kept everything on disk.
    #[error("it restarted, and may have forgotten locks")]
    Restarted,
    /// A failover: what was not replicated is lost.
    #[error("another server has taken its place, and may not know of all locks")]
    Replaced,
    /// It was told to follow another, and so to forget.
    #[error("it was a replica in between, and may have forgotten locks")]
    Demoted,
    /// Its clock differs from ours by this many milliseconds more than it did, or less.
    #[error("its clock moved by {0} ms against ours")]
    Clock(i64),
}

/// A doubt, and since when no lock can have been granted that is not known there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// Why.
    pub cause: Cause,
    since: Instant,
}

impl Doubt {
    /// Whether a lock that was granted before may still be held.
    #[must_use]
    pub fn stands(&self, guards: &Guards, now: Instant) -> bool {
        let is_guarded = if matches!(self.cause, Cause::Clock(_)) { guards.clock } else { guards.restart };
        is_guarded && now < self.since.after(guards.memory())
    }
}

/// What is known of one master's past.
#[derive(Debug, Default)]
pub struct Past {
    seen: Option<(String, Instant)>,
    clock: Option<Reading>,
    doubt: Option<Doubt>,
}

impl Past {
    /// The latest doubt.
    #[must_use]
    pub const fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// A reason for doubt, found now.
    pub fn raise(&mut self, cause: Cause, since: Instant) -> Doubt {
        let doubt = Doubt { cause, since };
        self.doubt = Some(doubt);
        doubt
    }

    /// A server introduces itself; the doubt it raises, if any.
    pub fn introduce(&mut self, server: &Introduction, now: Instant) -> Option<Doubt> {
        let started = Instant::from_zero(now.since_zero().saturating_sub(server.uptime));
        let before = self.seen.replace((server.run_id.clone(), now));
        let is_new = before.as_ref().is_none_or(|(run_id, _)| *run_id != server.run_id);
        let was_running = before.is_some_and(|(_, seen_at)| started < seen_at);
        match (is_new, was_running) {
            (false, _) => None,
            (true, true) => Some(self.raise(Cause::Replaced, now)),
            (true, false) if server.is_durable => None,
            (true, false) => Some(self.raise(Cause::Restarted, started)),
        }
    }

    /// A master's clock was read; the doubt that raises, if any.
    pub fn read_clock(&mut self, reading: Reading) -> Option<Doubt> {
        let before = self.clock.replace(reading)?;
        let moved_ms = reading.moved_since(&before)?;
        Some(self.raise(Cause::Clock(moved_ms), reading.received))
    }
}

/// What a master's clock showed at some time between two of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Since 1970, as the master has it.
    pub shown: Duration,
    /// Before it was asked.
    pub sent: Instant,
    /// After it had answered.
    pub received: Instant,
}

impl Reading {
    /// By how many milliseconds more than clocks may differ it went ahead of ours since another reading; less than none if
    /// it fell behind. `None` if it may have kept time.
    #[must_use]
    pub fn moved_since(&self, before: &Self) -> Option<i64> {
        let went = ms(self.shown) - ms(before.shown);
        let (least, most) = (self.sent.since(before.received), self.received.since(before.sent));
        let ahead = went.saturating_sub(ms(most.saturating_add(allowance(most))));
        let behind = went.saturating_sub(ms(least.saturating_sub(allowance(least))));
        if ahead > 0 { Some(ahead) } else { Some(behind).filter(|&behind| behind < 0) }
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_show_anything() {
        let reading = |shown| Reading { shown, sent: at(1), received: at(2) };
        let (least, most) = (reading(Duration::ZERO), reading(Duration::MAX));
        assert!(least.moved_since(&most).is_some_and(|moved| moved < 0));
        assert!(most.moved_since(&least).is_some_and(|moved| moved > 0));
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_zero(Duration::from_secs(seconds))
    }

    fn server(run_id: &str, uptime: u64, is_durable: bool) -> Introduction {
        Introduction { run_id: run_id.into(), uptime: Duration::from_secs(uptime), is_durable }
    }

    fn guards(ttl_ms: u64) -> Guards {
        Guards::new(true, true, ttl_ms)
    }

    #[test]
    fn a_master_that_started_a_while_ago_is_not_doubted() {
        let doubt = Past::default().introduce(&server("a", 500, false), at(1000)).unwrap();
        assert!(!doubt.stands(&guards(10_000), at(1000)));
    }

    #[test]
    fn a_master_that_restarted_stays_out_for_the_longest_ttl() {
        let mut past = Past::default();
        past.introduce(&server("a", 500, false), at(1000));
        let doubt = past.introduce(&server("b", 2, false), at(1010)).unwrap();
        assert_eq!(doubt.cause, Cause::Restarted);
        assert!(doubt.stands(&guards(10_000), at(1010)));
        assert!(doubt.stands(&guards(10_000), at(1018)), "10 s and the drift after 1008");
        assert!(!doubt.stands(&guards(10_000), at(1019)));
        assert!(!doubt.stands(&Guards::default(), at(1010)), "nobody asked for it");
    }

    #[test]
    fn a_longer_ttl_keeps_it_out_for_longer() {
        let (guards, mut past) = (guards(1000), Past::default());
        let doubt = past.introduce(&server("a", 2, false), at(1000)).unwrap();
        assert!(!doubt.stands(&guards, at(1000)));
        guards.note_ttl(60_000);
        assert!(doubt.stands(&guards, at(1058)));
    }

    #[test]
    fn what_is_on_disk_is_not_forgotten() {
        let mut past = Past::default();
        past.introduce(&server("a", 500, true), at(1000));
        assert_eq!(past.introduce(&server("b", 2, true), at(1010)), None);
    }

    #[test]
    fn another_server_in_its_place_counts_as_forgetting_however_durable() {
        let mut past = Past::default();
        past.introduce(&server("a", 500, true), at(1000));
        let doubt = past.introduce(&server("b", 900, true), at(1010)).unwrap();
        assert_eq!(doubt.cause, Cause::Replaced);
        assert!(doubt.stands(&guards(10_000), at(1020)));
    }

    #[test]
    fn the_same_server_again_is_no_reason() {
        let mut past = Past::default();
        past.introduce(&server("a", 500, false), at(1000));
        assert_eq!(past.introduce(&server("a", 510, false), at(1010)), None);
    }

    fn reading(shown_ms: u64, sent_ms: u64, received_ms: u64) -> Reading {
        let at = |millis| Instant::from_zero(Duration::from_millis(millis));
        Reading { shown: Duration::from_millis(shown_ms), sent: at(sent_ms), received: at(received_ms) }
    }

    #[test]
    fn a_clock_may_drift_as_far_as_the_validity_allows_for() {
        let before = reading(5_000_000, 1000, 1001);
        for shown in [10_000 - 100, 10_000, 10_000 + 100] {
            assert_eq!(reading(5_000_000 + shown, 11_000, 11_001).moved_since(&before), None, "{shown}");
        }
    }

    #[test]
    fn a_clock_that_jumps_is_noticed_both_ways() {
        let before = reading(5_000_000, 1000, 1001);
        let moved = |shown_ms: u64| reading(shown_ms, 11_000, 11_001).moved_since(&before);
        assert_eq!(moved(5_000_000 + 10_000 + 3_600_000), Some(3_600_000 - 1 - 102));
        assert_eq!(moved(5_000_000 + 10_000 - 5_000), Some(-5_000 + 1 + 102));
    }

    #[test]
    fn a_slow_answer_says_less() {
        let before = reading(5_000_000, 1000, 1001);
        assert_eq!(reading(5_000_000 + 10_300, 11_000, 11_001).moved_since(&before), Some(300 - 1 - 102));
        assert_eq!(reading(5_000_000 + 10_300, 11_000, 11_500).moved_since(&before), None);
    }
}

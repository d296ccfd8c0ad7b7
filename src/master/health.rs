//! What is known of a master across sessions: is it worth waiting for, and what is there to log.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng;

use crate::clock::Instant;
use crate::error::Error;
use crate::master::guard::{Cause, Doubt, Guards, Introduction, Past, Reading};
use crate::planted::{self, Bug};
use crate::retry::jittered;
use crate::runtime::locked;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// How often a master's clock is compared with ours, at most: with and without the guard that acts on it.
const GUARDED_CLOCK: Duration = Duration::from_secs(1);
const CLOCK: Duration = Duration::from_secs(30);

/// How grave an event is; the values are those of Python's `logging`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A master is back.
    Info = 20,
    /// A master gives no votes.
    Warning = 30,
    /// A master never will, as things are configured.
    Error = 40,
}

/// What happened to the masters of one manager, until somebody logs it, and which servers they are.
#[derive(Debug, Default)]
pub struct Journal {
    any: AtomicBool,
    events: Mutex<Vec<(Level, String)>>,
    servers: Mutex<HashMap<String, String>>,
}

impl Journal {
    fn push(&self, level: Level, message: String) {
        locked(&self.events).push((level, message));
        self.any.store(true, Ordering::Release);
    }

    /// Several names or databases of one server add nothing to the safety of a lock.
    fn register(&self, run_id: String, name: &str) {
        let first = locked(&self.servers).entry(run_id).or_insert_with(|| name.to_owned()).clone();
        if first != name {
            let message =
                format!("masters {first} and {name} are one server: it counts twice in the quorum, and fails twice");
            self.push(Level::Warning, message);
        }
    }

    /// Whether there are events to take.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The events since the last call. Costs one atomic read when there are none.
    #[must_use]
    pub fn take(&self) -> Vec<(Level, String)> {
        if !self.any.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *locked(&self.events))
    }
}

/// The health of one master, shared by all sessions of a manager.
#[derive(Debug)]
pub struct Health {
    name: String,
    journal: Arc<Journal>,
    guards: Arc<Guards>,
    record: Mutex<Record>,
    past: Mutex<Past>,
}

#[derive(Debug, Default)]
struct Record {
    failures: u32,
    failed_at: Instant,
    retry_at: Instant,
    slow: bool,
    reported: Option<Error>,
    identified: bool,
    unwatchable: bool,
    clock_due: Instant,
    errors: u64,
    timeouts: u64,
}

/// What has become of a master's commands since its manager was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// What it failed with, unless it has mended since.
    pub failure: Option<Error>,
    /// How often it answered with an error, or could not be reached.
    pub errors: u64,
    /// How often it kept silent.
    pub timeouts: u64,
}

impl Health {
    /// A master not yet heard of, assumed to be well.
    #[must_use]
    pub fn new(name: String, journal: Arc<Journal>, guards: Arc<Guards>) -> Self {
        Self { name, journal, guards, record: Mutex::default(), past: Mutex::default() }
    }

    /// What it is guarded against.
    #[must_use]
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// Whether it answered when last asked, as far as is known. One that did not is suspect.
    #[must_use]
    pub fn is_well(&self) -> bool {
        locked(&self.record).failures == 0
    }

    /// Whether to wait for it where others make a quorum without it: if it is well, or its turn to be tried has come.
    /// The caller that takes the turn of a suspect is the only one for a while, or [gives it back](Self::give_back).
    pub fn is_due(&self, now: Instant, random: &mut impl Rng) -> bool {
        let mut record = locked(&self.record);
        let has_turn = record.failures > 0 && now >= record.retry_at;
        if has_turn {
            record.retry_at = now.after(backoff(record.failures, random));
        }
        has_turn || record.failures == 0
    }

    /// Nothing was sent to it after all: the turn is there for the next one.
    pub fn give_back(&self, now: Instant) {
        let mut record = locked(&self.record);
        record.retry_at = if planted::is(Bug::ShunHung) { record.retry_at } else { record.retry_at.min(now) };
    }

    /// Whether it kept silent when last asked.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        let record = locked(&self.record);
        record.failures > 0 && record.slow
    }

    /// It answered. That it executes other commands does not mend an error with which it answers a `SET`.
    pub fn answered(&self) {
        let mut record = locked(&self.record);
        record.failures = 0;
        if record.reported.take_if(|reported| !matches!(reported, Error::Reply(_))).is_some() {
            self.journal.push(Level::Info, format!("master {} answers again", self.name));
        }
    }

    /// It granted or refused a lock: all is well.
    pub fn voted(&self) {
        let mut record = locked(&self.record);
        if record.reported.take().is_some() {
            self.journal.push(Level::Info, format!("master {} answers again", self.name));
        }
    }

    /// It answered, but with an error: no vote, though nobody need wait for it.
    pub fn answered_with(&self, error: &Error) {
        let mut record = locked(&self.record);
        record.failures = 0;
        record.errors += 1;
        self.report(&mut record, error);
    }

    /// It did not answer, or could not be connected to, when asked at `since`. Logged once per change of state, not once
    /// per call.
    ///
    /// One silence is one failure, however many waited for its end: what was asked before the last failure was known
    /// tells nothing new of it.
    pub fn failed(&self, error: &Error, since: Instant, now: Instant, random: &mut impl Rng) {
        let mut record = locked(&self.record);
        record.slow = error.is_slow();
        *(if record.slow { &mut record.timeouts } else { &mut record.errors }) += 1;
        if record.failures == 0 || since >= record.failed_at || planted::is(Bug::ShunHung) {
            record.failures = record.failures.saturating_add(1);
            record.failed_at = now;
            record.retry_at = now.after(backoff(record.failures, random));
        }
        self.report(&mut record, error);
    }

    fn report(&self, record: &mut Record, error: &Error) {
        let same = |reported: &Error| std::mem::discriminant(reported) == std::mem::discriminant(error);
        if !record.reported.as_ref().is_some_and(same) {
            let level = if matches!(error, Error::Setup(_)) { Level::Error } else { Level::Warning };
            self.journal.push(level, format!("master {} gives no vote: {error}", self.name));
            record.reported = Some(error.clone());
        }
    }

    /// It will not say when a lock is released. Logged once.
    pub fn cannot_be_watched(&self, why: &Error) {
        if !std::mem::replace(&mut locked(&self.record).unwatchable, true) {
            let message =
                format!("master {} does not say when a lock is released, waiters have to ask: {why}", self.name);
            self.journal.push(Level::Info, message);
        }
    }

    /// What has become of its commands so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let record = locked(&self.record);
        Summary { failure: record.reported.clone(), errors: record.errors, timeouts: record.timeouts }
    }

    /// Whether this master has already said who it is, and need not say it again.
    #[must_use]
    pub fn is_identified(&self) -> bool {
        locked(&self.record).identified && !self.guards.restart
    }

    /// Remember who the server is (`None` where it may not be asked), and say so if another master is the same one.
    pub fn identify(&self, server: Option<&Introduction>, now: Instant) {
        locked(&self.record).identified = true;
        let Some(server) = server else { return };
        self.journal.register(server.run_id.clone(), &self.name);
        let doubt = locked(&self.past).introduce(server, now);
        self.publish(doubt, now);
    }

    /// There is a reason not to rely on it.
    pub fn raise(&self, cause: Cause, now: Instant) {
        let doubt = locked(&self.past).raise(cause, now);
        self.publish(Some(doubt), now);
    }

    /// Why its vote is not to be relied on now, if it is not.
    #[must_use]
    pub fn doubt(&self, now: impl FnOnce() -> Instant) -> Option<Error> {
        let doubt = locked(&self.past).doubt()?;
        doubt.stands(&self.guards, now()).then_some(Error::Doubtful(doubt.cause))
    }

    fn publish(&self, doubt: Option<Doubt>, now: Instant) {
        let Some(doubt) = doubt else { return };
        if doubt.stands(&self.guards, now) {
            let message =
                format!("master {} gives no vote for as long as a lock may be held: {}", self.name, doubt.cause);
            self.journal.push(Level::Warning, message);
        } else if let Cause::Clock(_) = doubt.cause {
            self.journal.push(Level::Warning, format!("master {} is not reliable: {}", self.name, doubt.cause));
        }
    }

    /// Whether it is time to look at its clock; whoever is told so is the only one for a while.
    pub fn clock_is_due(&self, now: Instant) -> bool {
        let mut record = locked(&self.record);
        let is_due = now >= record.clock_due;
        if is_due {
            record.clock_due = now.after(if self.guards.clock { GUARDED_CLOCK } else { CLOCK });
        }
        is_due
    }

    /// What its clock showed; `None` where it may not be asked.
    pub fn read_clock(&self, reading: Option<Reading>) {
        let Some(reading) = reading else {
            locked(&self.record).clock_due = Instant::from_zero(Duration::MAX);
            return;
        };
        let doubt = locked(&self.past).read_clock(reading);
        self.publish(doubt, reading.received);
    }
}

fn backoff(failures: u32, random: &mut impl Rng) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10));
    jittered(doubled.min(LONGEST_BACKOFF), random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    fn at(millis: u64) -> Instant {
        Instant::from_zero(Duration::from_millis(millis))
    }

    fn health() -> (Health, Arc<Journal>, StdRng) {
        let journal = Arc::new(Journal::default());
        (Health::new("a:1/0".into(), Arc::clone(&journal), Arc::default()), journal, StdRng::seed_from_u64(3))
    }

    #[test]
    fn a_change_of_state_is_logged_once() {
        let (health, journal, mut random) = health();
        for _ in 0..3 {
            health.failed(&Error::NoAnswer, at(0), at(0), &mut random);
        }
        assert_eq!(journal.take(), [(Level::Warning, "master a:1/0 gives no vote: no answer".to_owned())]);
        assert_eq!(journal.take(), []);
        health.answered();
        health.answered();
        assert_eq!(journal.take(), [(Level::Info, "master a:1/0 answers again".to_owned())]);
    }

    #[test]
    fn failures_are_counted() {
        let (health, _, mut random) = health();
        health.failed(&Error::NoAnswer, at(0), at(0), &mut random);
        health.failed(&Error::Closed, at(0), at(1), &mut random);
        health.answered_with(&Error::Reply("OOM".into()));
        let failure = Some(Error::Reply("OOM".into()));
        assert_eq!(health.summary(), Summary { failure, errors: 2, timeouts: 1 });
        health.voted();
        assert_eq!(health.summary(), Summary { failure: None, errors: 2, timeouts: 1 });
    }

    #[test]
    fn another_kind_of_failure_is_a_change() {
        let (health, journal, mut random) = health();
        health.failed(&Error::NoAnswer, at(0), at(0), &mut random);
        health.answered_with(&Error::Reply("OOM".into()));
        assert_eq!(journal.take().len(), 2);
    }

    #[test]
    fn only_a_vote_ends_an_error_that_was_answered() {
        let (health, journal, _) = health();
        health.answered_with(&Error::Reply("OOM".into()));
        health.answered();
        health.answered_with(&Error::Reply("OOM".into()));
        assert_eq!(journal.take().len(), 1);
        health.voted();
        assert_eq!(journal.take(), [(Level::Info, "master a:1/0 answers again".to_owned())]);
    }

    #[test]
    fn one_server_under_two_names_is_logged_once() {
        let (health, journal, _) = health();
        let server = Introduction { run_id: "run".into(), uptime: Duration::from_secs(9), is_durable: false };
        health.identify(Some(&server), at(0));
        health.identify(Some(&server), at(1));
        assert_eq!(journal.take(), []);
        let twin = Health::new("a:1/1".into(), Arc::clone(&journal), Arc::default());
        twin.identify(Some(&server), at(2));
        twin.identify(None, at(3));
        assert_eq!(journal.take().len(), 1);
        assert!(twin.is_identified());
    }

    #[test]
    fn one_caller_at_a_time_tries_a_suspect_again() {
        let (health, _, mut random) = health();
        assert!(health.is_well() && health.is_due(at(0), &mut random));
        health.failed(&Error::NoAnswer, at(0), at(0), &mut random);
        assert!(!health.is_well() && health.is_hung() && !health.is_due(at(1), &mut random));
        assert_eq!([101, 102].map(|millis| health.is_due(at(millis), &mut random)), [true, false]);
        health.failed(&Error::Closed, at(101), at(103), &mut random);
        assert!(!health.is_hung() && !health.is_due(at(104), &mut random));
        health.answered();
        assert!(health.is_well() && health.is_due(at(105), &mut random));
    }

    #[test]
    fn a_turn_that_was_not_used_is_given_back() {
        let (health, _, mut random) = health();
        health.failed(&Error::NoAnswer, at(0), at(0), &mut random);
        assert!(health.is_due(at(101), &mut random));
        health.give_back(at(102));
        assert!(health.is_due(at(102), &mut random));
        assert!(!health.is_due(at(103), &mut random));
    }

    #[test]
    fn one_silence_is_one_failure() {
        let (health, _, mut random) = health();
        for _ in 0..20 {
            health.failed(&Error::NoAnswer, at(0), at(500), &mut random);
        }
        assert!(health.is_due(at(601), &mut random));
        health.failed(&Error::NoAnswer, at(500), at(1000), &mut random);
        assert!(!health.is_due(at(1099), &mut random));
        assert_eq!(health.summary().timeouts, 21);
    }

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let mut random = StdRng::seed_from_u64(3);
        for (failures, bound) in [(1, 100), (2, 200), (3, 400), (7, 5000), (u32::MAX, 5000)] {
            let pause = backoff(failures, &mut random).as_millis();
            assert!((bound / 2..=bound).contains(&pause), "{failures}: {pause}");
        }
    }
}

//! Many seeds: on all processors, each in its own world.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redlock::clock::{BootClock, Clock};

use super::Bug;
use super::oracle::Rule;
use super::plan::{Broken, Plan};
use super::world::{Outcome, World};

/// Which seeds to run.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    first: u64,
    count: u64,
    lasting: Option<Duration>,
    /// How many failures are enough to stop.
    enough: usize,
}

impl Seeds {
    pub const fn range(first: u64, count: u64) -> Self {
        Self { first, count, lasting: None, enough: usize::MAX }
    }

    /// The same, as long as fewer than `enough` have failed.
    #[cfg(feature = "planted-bugs")]
    pub const fn until(self, enough: usize) -> Self {
        Self { enough, ..self }
    }

    /// Whether one failure is enough.
    #[cfg(feature = "planted-bugs")]
    pub const fn is_one_enough(&self) -> bool {
        self.enough == 1
    }

    /// `SEEDS` of them, or as many as `SECONDS` allow, or `count`; `FIRST_SEED` says where to start.
    pub fn from_environment(first: u64, count: u64) -> Self {
        let lasting = from_environment("SECONDS").map(Duration::from_secs);
        let count = if lasting.is_some() { u64::MAX / 2 } else { count };
        Self {
            first: from_environment("FIRST_SEED").unwrap_or(first),
            count: from_environment("SEEDS").unwrap_or(count),
            lasting,
            enough: if lasting.is_some() { 100 } else { usize::MAX },
        }
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FIRST_SEED={}", self.first)
    }
}

/// A number from the environment.
///
/// # Panics
///
/// If it is none.
pub fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Run {
    pub seeds: u64,
    pub events: u64,
    pub grants: u64,
    pub contended: u64,
    pub tokens: u64,
    pub tokens_at_once: u64,
    pub extensions: u64,
    pub took: Duration,
    /// The seeds in which something was violated, with what.
    pub failures: BTreeMap<u64, BTreeMap<Rule, String>>,
}

impl Run {
    pub fn two_holders(&self) -> usize {
        self.count(Rule::TwoHolders)
    }

    /// In how many seeds `rule` was violated.
    pub fn count(&self, rule: Rule) -> usize {
        self.failures.values().filter(|violations| violations.contains_key(&rule)).count()
    }

    /// How often each rule was violated, with the first few seeds.
    pub fn explain(&self) -> String {
        let mut text = format!("{} of {} seeds failed\n", self.failures.len(), self.seeds);
        let rules: BTreeSet<Rule> = self.failures.values().flat_map(BTreeMap::keys).copied().collect();
        for rule in rules {
            writeln!(text, "{rule:?}: {}", self.count(rule)).unwrap();
            let seeds = self.failures.iter().filter_map(|(seed, violations)| Some((seed, violations.get(&rule)?)));
            for (seed, what) in seeds.take(5) {
                writeln!(text, "    SEED={seed}: {what}").unwrap();
            }
        }
        text
    }

    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.grants += outcome.grants;
        self.contended += outcome.contended;
        self.tokens += outcome.tokens;
        self.tokens_at_once += outcome.tokens_at_once;
        self.extensions += outcome.extensions;
        if !outcome.violations.is_empty() {
            self.failures.insert(seed, outcome.violations);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.seeds += other.seeds;
        self.events += other.events;
        self.grants += other.grants;
        self.contended += other.contended;
        self.tokens += other.tokens;
        self.tokens_at_once += other.tokens_at_once;
        self.extensions += other.extensions;
        self.failures.extend(other.failures);
        self
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, events, grants, contended, tokens, tokens_at_once, extensions, took, failures } = self;
        let rate = *seeds as f64 / took.as_secs_f64();
        write!(f, "{seeds} seeds in {:.1} s ({rate:.0} seeds/s): ", took.as_secs_f64())?;
        write!(
            f,
            "{grants} locks granted, {contended} of them contended, {tokens} with a token, {tokens_at_once} of those at \
             once, {extensions} extensions, {events} events, {} seeds failed",
            failures.len()
        )
    }
}

/// One seed.
pub fn one(seed: u64, bug: Option<Bug>, broken: Option<Broken>, traced: bool) -> Outcome {
    #[cfg(feature = "planted-bugs")]
    redlock::planted::plant(bug);
    let world = || World::new(Plan::new(seed, broken), bug, traced).run();
    let outcome = catch_unwind(AssertUnwindSafe(world));
    #[cfg(feature = "planted-bugs")]
    redlock::planted::plant(None);
    outcome.unwrap_or_else(|panic| {
        println!("SEED={seed} panicked");
        std::panic::resume_unwind(panic)
    })
}

/// Many seeds, on every processor there is.
pub fn run(seeds: Seeds, bug: Option<Bug>, broken: Option<Broken>) -> Run {
    let next = AtomicU64::new(seeds.first);
    let began = BootClock.now();
    let is_over = || seeds.lasting.is_some_and(|lasting| BootClock.now().since(began) >= lasting);
    let work = || {
        let mut run = Run::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - seeds.first >= seeds.count || is_over() || run.failures.len() >= seeds.enough {
                return run;
            }
            run.add(seed, one(seed, bug, broken, false));
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut run = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Run::default(), Run::merge)
    });
    run.took = BootClock.now().since(began);
    run
}

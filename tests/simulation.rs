//! The whole stack, RESP included, in a simulated world: one thread, virtual time, one seed. See `docs/simulation.md`.
//!
//! `SEED=n` replays one seed with its trace, `BUG=name` plants a bug in it. `SEEDS=n` or `SECONDS=n` run that many or
//! that long.
#![allow(clippy::print_stdout, reason = "a report")]
#![allow(clippy::unwrap_used, reason = "a simulator that is wrong must stop")]
#![allow(clippy::cast_precision_loss, reason = "for people to read")]

#[allow(unreachable_pub, reason = "a test has no outside")]
mod simulation {
    pub mod extending;
    pub mod fencing;
    pub mod leases;
    pub mod line;
    pub mod master;
    pub mod network;
    pub mod oracle;
    pub mod plan;
    pub mod report;
    pub mod resp;
    pub mod runner;
    pub mod time;
    pub mod tracking;
    pub mod wire;
    pub mod worker;
    pub mod world;

    #[cfg(feature = "planted-bugs")]
    pub use redlock::planted::Bug;

    /// Without the feature there is no bug to plant.
    #[cfg(not(feature = "planted-bugs"))]
    #[derive(Debug, Clone, Copy)]
    pub enum Bug {}

    /// Whether the engine is given a clock that somebody sets.
    #[cfg(feature = "planted-bugs")]
    pub fn steps_wall_clock(bug: Option<Bug>) -> bool {
        bug == Some(Bug::WallClock)
    }

    /// Whether the protocol library forgets commands that waited too long.
    #[cfg(feature = "planted-bugs")]
    pub fn desyncs_replies(bug: Option<Bug>) -> bool {
        bug == Some(Bug::ReplyDesync)
    }

    /// Whether what is waited for is over only when the timer says so, whatever the clock shows.
    #[cfg(feature = "planted-bugs")]
    pub fn waits_uncut(bug: Option<Bug>) -> bool {
        bug == Some(Bug::UncutWait)
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub const fn waits_uncut(_: Option<Bug>) -> bool {
        false
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub const fn steps_wall_clock(_: Option<Bug>) -> bool {
        false
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub const fn desyncs_replies(_: Option<Bug>) -> bool {
        false
    }
}

use simulation::plan::Broken;
use simulation::report;
use simulation::runner::{self, Seeds};

/// Where seeds start: any other start is as good.
const FIRST: u64 = 1;

/// Seeds that once failed, with what they showed.
const FAILED: [(u64, &str); 36] = [
    (2073, "a crowd kept asking the master that is asked first, whose slow clock still held what a quorum had free"),
    (5624, "the same, in several processes"),
    (329_001_156, "the same, where a stall kept a release from that master"),
    (8495, "an unlock overtook the SET for which another thread's extension still waited"),
    (6263, "what lay in a full send buffer was taken for what the engine had written"),
    (329_001_681, "the same"),
    (329_003_491, "the same, in a send buffer filled by whole scripts"),
    (329_003_633, "of more than fifty releases that a connection was given up with, the rest was dropped"),
    (1019, "a SET that was on its way when its lock was extended by hand was taken for one that the extension revived"),
    (329_003_761, "a key was looked for while its release was on its way, byte by byte"),
    (
        1_795_000_000_001_000_407,
        "two round trips, to the master that is asked first and to the others, had the time of one",
    ),
    (
        1_795_824_897_519_395_437,
        "a driver that was away gave up the connections that it was making, and the release of a dropped lease with them",
    ),
    (
        1_795_824_897_519_407_245,
        "a machine slept, and its holder was told within a second of its waking, which is in time",
    ),
    (
        1_795_824_897_519_420_689,
        "a renewal counted a master from which the connection that took the lock released it, as it was given up",
    ),
    (
        1_795_824_897_519_412_672,
        "a lease that had been held for as long as it may was released while the loop still waited for its SET",
    ),
    (1_795_824_897_519_539_170, "the same"),
    (
        1_795_824_897_519_432_017,
        "each try waited for the one master that is asked first, which did not answer, and asked no other",
    ),
    (1_795_824_897_519_459_171, "the same"),
    (1_795_876_297_496_484_438, "a release waited for a connection that was made again, to a master that was frozen"),
    (
        1_795_876_297_496_485_744,
        "a lock that is no lease was extended after its release, which did not know of the extension",
    ),
    (1_795_876_297_496_488_272, "a master that was loading its data did not release, and was not told again"),
    (1_795_876_297_496_507_744, "an extension did not reach a master, which kept the lock for the old time"),
    (
        1_795_876_297_496_588_820,
        "a master was given a lock that a quorum had just extended, before its holder was told so",
    ),
    (1_795_878_983_447_802_968, "two whose names met in part asked different masters first, and split the votes"),
    (1_795_878_983_447_826_627, "the same"),
    (
        1_795_876_297_496_625_633,
        "a caller that was stopped found the answers to an extension after the lock had run out, and relied on them",
    ),
    (1_795_885_772_514_791_565, "a master was given a lock whose holder had dropped it"),
    (1_795_885_772_514_825_150, "a lock was released while it was extended, which was not heard to its end"),
    (1_795_885_645_374_393_902, "a key was looked for while the client that had to release it once more was stopped"),
    (
        1_795_889_896_969_925_396,
        "a fenced lock was given to a master that had just extended it, which shortened it there",
    ),
    (
        1_795_889_896_970_060_054,
        "a connection on which one of several names was sent was taken for one with all of them",
    ),
    (1_795_890_818_688_454_936, "a lock that may have run out was missed on a master where its key had expired"),
    (1_795_892_250_975_519_040, "a master was given a lock that had been held for as long as it may"),
    (1_795_892_250_975_849_757, "the same"),
    (
        1_795_906_643_434_179_379,
        "a session that had once waited for another was taken for one that is driven all the time: an extension asked the \
         masters that had not answered no more",
    ),
    (
        1_795_916_645_281_831_672,
        "a release waited for a frozen master, though with the one that the driver had told there was a quorum",
    ),
];

#[test]
fn what_once_failed_does_not() {
    for (seed, what) in FAILED {
        let violations = runner::one(seed, None, None, false).violations;
        assert!(violations.is_empty(), "SEED={seed}: {what}: {violations:#?}");
    }
}

#[test]
fn nothing_lies() {
    if let Some(seed) = runner::from_environment("SEED") {
        return report::replay(seed);
    }
    let seeds = Seeds::from_environment(FIRST, 2000);
    println!("{seeds}");
    let run = runner::run(seeds, None, None);
    println!("{run}");
    assert!(
        run.grants > 0 && run.contended > 0 && run.extensions > 0,
        "a world in which nothing happens proves nothing"
    );
    assert!(run.tokens_at_once > 0 && run.tokens > run.tokens_at_once, "{run}");
    assert!(run.failures.is_empty(), "{}", run.explain());
}

#[test]
fn a_seed_replays_exactly() {
    for seed in (FIRST..).take(20) {
        let (once, again) = (runner::one(seed, None, None, true), runner::one(seed, None, None, true));
        assert_eq!(once.trace, again.trace, "seed {seed}");
        assert_eq!(once.hash, again.hash, "seed {seed}");
    }
    assert_ne!(runner::one(FIRST, None, None, true).hash, runner::one(FIRST + 1, None, None, true).hash);
}

/// Where the tables start: from 2^40 on, worlds are as small as those of `make soak`.
fn first() -> u64 {
    runner::from_environment("FIRST_SEED").unwrap_or(FIRST)
}

#[cfg(feature = "planted-bugs")]
#[test]
fn every_planted_bug_is_found() {
    // Those that `nothing_lies` runs without a bug. A table counts all of them, a test is content with a few.
    let seeds = match runner::from_environment("PLANTED_SEEDS") {
        Some(count) => Seeds::range(first(), count),
        None => Seeds::range(FIRST, 2000).until(1),
    };
    let rows = report::planted(seeds);
    println!("{}", report::planted_table(&rows));
    for row in &rows {
        assert!(row.found() > 0, "{:?} was not found", row.bug);
    }
}

#[test]
fn broken_assumptions_show() {
    let rows = report::broken(Seeds::range(first(), runner::from_environment("BROKEN_SEEDS").unwrap_or(100)));
    println!("{}", report::broken_table(&rows));
    for (broken, run) in &rows {
        let expected = !matches!(broken, None | Some(Broken::ForgetsLong | Broken::ForgetsGuarded));
        assert_eq!(run.two_holders() > 0, expected, "{broken:?}: {}", run.explain());
    }
}

//! What the runs say, for people.

use std::fmt::Write;

use super::Bug;
use super::oracle::Rule;
use super::plan::{Broken, Plan};
use super::runner::{self, Run, Seeds};

/// Show one seed, event by event.
///
/// # Panics
///
/// If the seed fails.
pub fn replay(seed: u64) {
    let (bug, broken) = (bug_from_environment(), broken_from_environment());
    println!("{:#?}", Plan::new(seed, broken));
    let outcome = runner::one(seed, bug, broken, true);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("hash {:016x}, {} events, {} grants", outcome.hash, outcome.events, outcome.grants);
    assert!(outcome.violations.is_empty(), "SEED={seed}: {:#?}", outcome.violations);
}

/// Every assumption that can be broken, with its name in the table.
const BROKEN: [(Option<Broken>, &str); 7] = [
    (None, "none: masters that crash keep their data, clocks differ by less than 1 %"),
    (Some(Broken::Forgets), "a master that crashes keeps its data: it comes back at once without"),
    (Some(Broken::ForgetsLong), "the same, but it stays away for the longest TTL: the remedy"),
    (Some(Broken::ForgetsGuarded), "the same as the first, but clients have `restart_guard`: the other remedy"),
    (Some(Broken::ClockJumps), "a master's clock does not jump: one is set forward by an hour"),
    (Some(Broken::ClockCrawls), "clocks differ by less than the drift: a client's is 5 % slow"),
    (Some(Broken::ActsBlindly), "a holder looks at its validity when it acts: one is stopped in between"),
];

fn broken_from_environment() -> Option<Broken> {
    let name = std::env::var("BROKEN").ok()?;
    BROKEN.iter().find_map(|(broken, _)| broken.filter(|broken| format!("{broken:?}") == name))
}

#[cfg(not(feature = "planted-bugs"))]
const fn bug_from_environment() -> Option<Bug> {
    None
}

/// How often two clients held one lock when an assumption was broken.
pub fn broken(seeds: Seeds) -> Vec<(Option<Broken>, Run)> {
    BROKEN.iter().map(|&(broken, _)| (broken, runner::run(seeds, None, broken))).collect()
}

pub fn broken_table(rows: &[(Option<Broken>, Run)]) -> String {
    let mut table =
        "| assumption | seeds | with two holders | with tokens out of order |\n|---|---|---|---|\n".to_owned();
    for ((_, name), (_, run)) in BROKEN.iter().zip(rows) {
        let (two, tokens) = (run.two_holders(), run.count(Rule::TokenOrder));
        writeln!(table, "| {name} | {} | {two} | {tokens} |", run.seeds).unwrap();
    }
    into_docs("broken", &table);
    table
}

#[cfg(feature = "planted-bugs")]
mod planted_bugs {
    use super::{Bug, Rule, Run, Seeds, Write, into_docs, runner};

    const BUGS: [Bug; 33] = [
        Bug::QuorumOffByOne,
        Bug::WallClock,
        Bug::LateStart,
        Bug::NoDrift,
        Bug::NoRelease,
        Bug::ReleaseWhereGranted,
        Bug::ReplyDesync,
        Bug::LateSet,
        Bug::UnlockWithoutCompare,
        Bug::SilentGiveUp,
        Bug::Overtakes,
        Bug::AcceptEqual,
        Bug::NoWriteBack,
        Bug::ReviveByExtend,
        Bug::AbsentExtends,
        Bug::KeeperGoesOn,
        Bug::RenewsAbandoned,
        Bug::LateLoss,
        Bug::PartialRelease,
        Bug::TrustPushes,
        Bug::AskAgain,
        Bug::NoLine,
        Bug::DeadlineForgotten,
        Bug::HastyVerdict,
        Bug::ShunHung,
        Bug::Incomplete,
        Bug::CompletesReleased,
        Bug::CompletesLost,
        Bug::FullTtl,
        Bug::ToldOnce,
        Bug::AwaitsAll,
        Bug::ConnectAgain,
        Bug::UncutWait,
    ];

    /// A seed that shows a mistake that few seeds show: it is tried first where one is enough.
    const SHOWN_BY: [(Bug, u64); 1] = [(Bug::ToldOnce, 1_795_000_000_001_002_431)];

    pub fn bug_from_environment() -> Option<Bug> {
        let name = std::env::var("BUG").ok().filter(|name| !name.is_empty())?;
        Some(*BUGS.iter().find(|bug| format!("{bug:?}") == name).unwrap_or_else(|| panic!("BUG={name}: of {BUGS:?}")))
    }

    /// What became of the seeds with a bug planted.
    pub struct Row {
        pub bug: Bug,
        pub with: Run,
    }

    impl Row {
        pub fn found(&self) -> usize {
            self.with.failures.len()
        }
    }

    /// Every bug over the same seeds.
    pub fn planted(seeds: Seeds) -> Vec<Row> {
        let planted = |&bug: &Bug| {
            let known = SHOWN_BY.iter().find(|(shown, _)| seeds.is_one_enough() && *shown == bug);
            let known = known.map(|&(_, seed)| runner::run(Seeds::range(seed, 1), Some(bug), None));
            let with =
                known.filter(|run| !run.failures.is_empty()).unwrap_or_else(|| runner::run(seeds, Some(bug), None));
            println!("{bug:?}: {with}, first SEED={:?}", with.failures.keys().next());
            Row { bug, with }
        };
        let only = bug_from_environment();
        BUGS.iter().filter(|bug| only.is_none_or(|only| only == **bug)).map(planted).collect()
    }

    pub fn planted_table(rows: &[Row]) -> String {
        let mut table = "| planted | seeds | found in | two holders | found by |\n|---|---|---|---|---|\n".to_owned();
        for row in rows {
            let (seeds, two) = (row.with.seeds, row.with.two_holders());
            writeln!(table, "| {:?} | {seeds} | {} | {two} | {} |", row.bug, row.found(), rules(&row.with)).unwrap();
        }
        into_docs("planted", &table);
        table
    }

    fn rules(run: &Run) -> String {
        let counted = Rule::ALL.iter().map(|&rule| (rule, run.count(rule))).filter(|&(_, count)| count > 0);
        counted.map(|(rule, count)| format!("{rule:?} {count}")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(feature = "planted-bugs")]
pub use planted_bugs::{bug_from_environment, planted, planted_table};

/// With `WRITE_DOCS` set, put `table` into the documentation, between its markers.
fn into_docs(name: &str, table: &str) {
    if std::env::var_os("WRITE_DOCS").is_none() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/simulation.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    std::fs::write(path, format!("{before}{begin}\n{table}\n{end}{after}")).unwrap();
}

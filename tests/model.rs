//! Fencing tokens, model-checked: exhaustively within the bounds that each test names, or as far as [`MOST_STATES`] go.
//! See `docs/fencing.md`.
//!
//! `LARGE=1` takes the bounds that need minutes (`make model`).
#![allow(clippy::print_stdout, reason = "a report")]

#[allow(unreachable_pub, reason = "a test has no outside")]
mod model {
    pub mod protocol;
}

use std::ops::RangeInclusive;

use model::protocol::{GRANT_ORDER, Protocol, REAL_TIME, Rule, UNIQUE};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// The protocol as it is built, with proposals from anywhere, on a network that does what it likes.
const fn protocol(attempts: u8, hints: RangeInclusive<u8>) -> Protocol {
    Protocol { attempts, quorum: 2, hints, rule: Rule::Propose, timely: false, forgets: 0 }
}

fn is_large() -> bool {
    std::env::var_os("LARGE").is_some()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// So many states are looked at in one check: they fit in 4 GiB, and take minutes.
const MOST_STATES: usize = 200_000_000;

/// Look at every state there is, those that are reached in the fewest steps first, and see all properties hold in each.
fn holds(what: &str, protocol: &Protocol) {
    let checker = protocol.clone().checker().threads(threads()).target_state_count(MOST_STATES).spawn_bfs().join();
    let is_whole = checker.state_count() < MOST_STATES;
    let which = if is_whole { "all" } else { "the first" };
    println!("model: {what}: holds in {which} {} states ({protocol:?})", checker.unique_state_count());
    for property in checker.model().properties() {
        match property.expectation {
            // It may be farther away than the search went.
            Expectation::Sometimes if !is_whole => {}
            Expectation::Sometimes => _ = checker.assert_any_discovery(property.name),
            Expectation::Always | Expectation::Eventually => checker.assert_no_discovery(property.name),
        }
    }
}

/// See `property` fail.
fn is_refuted(what: &str, property: &'static str, protocol: &Protocol) {
    let only = HasDiscoveries::AllOf([property].into());
    let checker = protocol.clone().checker().threads(threads()).finish_when(only).spawn_bfs().join();
    let states = checker.unique_state_count();
    let steps = checker.discovery(property).map(|path| path.into_actions().len());
    assert!(steps.is_some(), "{what}: {property}, in all {states} states: {protocol:?}");
    println!("model: {what}: refuted in {} steps, {states} states: {property}", steps.unwrap_or_default());
}

#[test]
fn tokens_are_unique_and_grow_in_real_time() {
    holds("any expiry, two attempts", &protocol(2, 1..=2));
    if is_large() {
        holds("any expiry, three attempts", &protocol(3, 1..=3));
    }
}

#[test]
fn tokens_follow_the_order_of_the_grants() {
    let timely = |attempts, hints| Protocol { timely: true, ..protocol(attempts, hints) };
    holds("timely expiry, two attempts", &timely(2, 1..=3));
    holds("timely expiry, three attempts", &timely(3, 1..=2));
    if is_large() {
        holds("timely expiry, three attempts", &timely(3, 1..=3));
    }
}

#[test]
fn more_than_a_majority_bears_a_master_that_forgets() {
    let all_of_three = |attempts, hints| Protocol { quorum: 3, forgets: 1, ..protocol(attempts, hints) };
    holds("one of three forgets, all three asked", &all_of_three(2, 1..=1));
    if is_large() {
        holds("one of three forgets, all three asked", &all_of_three(3, 1..=1));
    }
}

/// What goes wrong without each of the protocol's rules.
#[test]
fn every_rule_is_needed() {
    let counting = |hints| Protocol { rule: Rule::MaximumOfCounters, ..protocol(2, hints) };
    is_refuted("INCR on each, maximum of a quorum", UNIQUE, &counting(0..=0));
    is_refuted("INCR on each, maximum of a quorum", REAL_TIME, &counting(0..=0));
    is_refuted("TIME and the maximum of a quorum, not written back", REAL_TIME, &counting(1..=2));
    let any = |rule| Protocol { rule, ..protocol(2, 1..=2) };
    is_refuted("accept what is equal", UNIQUE, &any(Rule::AcceptEqual));
    is_refuted("not a majority", UNIQUE, &Protocol { quorum: 1, ..any(Rule::Propose) });
    let unguarded = Protocol { timely: true, ..any(Rule::Unguarded) };
    is_refuted("a second round that does not ask for the lock", GRANT_ORDER, &unguarded);
}

#[test]
fn counters_do_not_bear_a_master_that_forgets() {
    let counter = Protocol { forgets: 1, ..protocol(2, 1..=1) };
    is_refuted("counter hints, one of three forgets", UNIQUE, &counter);
    is_refuted("counter hints, one of three forgets", REAL_TIME, &counter);
}

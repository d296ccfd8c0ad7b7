//! Masters that may say anything: the property that the fuzz target of the same name looks for, in a few seconds.

mod replies;

use std::path::Path;

use proptest::prelude::*;
use replies::{Act, Says, Step, decode, play};

/// What a master might say where it matters, right or wrong; and what has broken parsers before.
const TELLING: [&[u8]; 24] = [
    b"+OK\r\n",
    b"$2\r\nOK\r\n",
    b"+OKAY\r\n",
    b"+ok\r\n",
    b"$-1\r\n",
    b"_\r\n",
    b":1\r\n",
    b"#t\r\n",
    b"-OOM command not allowed\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-NOSCRIPT No matching script\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nr\r\n",
    b">2\r\n+message\r\n+OK\r\n",
    b">3\r\n$9\r\nsubscribe\r\n+OK\r\n:1\r\n",
    b"*1\r\n+OK\r\n",
    b"|1\r\n+ttl\r\n:1\r\n+OK\r\n",
    b"%1\r\n+OK\r\n+OK\r\n",
    b"*1000000000\r\n",
    b"$536870912\r\n",
    b"%9223372036854775807\r\n",
    b"=6\r\ntxt:OK\r\n",
    b"!-1\r\n",
    b"*1\r\n*1\r\n*1\r\n*1\r\n",
    b"+O",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let telling = prop::sample::select(TELLING.to_vec()).prop_map(<[u8]>::to_vec);
    prop_oneof![4 => telling, 1 => prop::collection::vec(any::<u8>(), 0..40)]
}

fn act() -> impl Strategy<Value = Act> {
    let says = prop_oneof![Just(Says::Yes), Just(Says::No), Just(Says::Error)];
    prop_oneof![
        12 => bytes().prop_map(Act::Send),
        12 => says.prop_map(Act::Answer),
        2 => any::<bool>().prop_map(Act::Sulk),
        2 => Just(Act::Close),
        1 => bytes().prop_map(Act::Flood),
        4 => (0..600u16).prop_map(Act::Pass),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..5u8, act()).prop_map(|(master, act)| Step { master, act }), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_grant_that_was_not_given((masters, steps) in (1..6usize, steps())) {
        play(masters, &steps);
    }
}

/// Every master does this, so many times.
fn all(masters: u8, times: usize, act: &Act) -> Vec<Step> {
    let once = (0..masters).map(|master| Step { master, act: act.clone() });
    std::iter::repeat_n(once, times).flatten().collect()
}

#[test]
fn a_plain_yes_of_everyone_is_a_grant() {
    assert_eq!(play(3, &all(3, 6, &Act::Answer(Says::Yes))), [true, true]);
}

#[test]
fn a_plain_no_of_everyone_is_none() {
    assert_eq!(play(3, &all(3, 9, &Act::Answer(Says::No))), [false, false]);
}

#[test]
fn only_an_exact_ok_is_a_grant() {
    for telling in &TELLING[1..] {
        assert_eq!(play(3, &all(3, 1, &Act::Send(telling.to_vec()))), [false, false], "{telling:?}");
    }
    assert_eq!(play(3, &all(3, 1, &Act::Send(TELLING[0].to_vec()))), [true, false]);
}

#[test]
fn a_flood_grants_nothing_and_ends() {
    for telling in &TELLING[1..] {
        assert_eq!(play(1, &all(1, 1, &Act::Flood(telling.to_vec()))), [false, false], "{telling:?}");
    }
}

#[test]
fn what_the_fuzzer_found_worth_keeping() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_corpus/replies");
    let mut played = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let (masters, steps) = decode(&std::fs::read(seed.unwrap().path()).unwrap());
        play(masters, &steps);
        played += 1;
    }
    assert!(played > 0);
}

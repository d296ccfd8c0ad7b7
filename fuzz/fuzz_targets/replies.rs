//! Any bytes from any number of masters: `tests/replies` says what must never happen.

#![no_main]

#[path = "../../tests/replies/mod.rs"]
mod replies;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (masters, steps) = replies::decode(data);
    replies::play(masters, &steps);
});

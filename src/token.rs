//! The key of a lock: 22 random letters and digits, as redlock-py's, but from the operating system's generator.

/// The length of a key in bytes.
pub const KEY_LEN: usize = 22;

/// The value a lock has on every master, and the proof of ownership: 131 bits that nobody can guess.
pub type Key = [u8; KEY_LEN];

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Draw a key from `fill`, which must be the operating system's generator: a seedable one gives two workers that both
/// call `random.seed(42)` the same keys, as redlock-py's does.
pub fn key(mut fill: impl FnMut(&mut [u8])) -> Key {
    let mut key = [0; KEY_LEN];
    let mut filled = 0;
    while filled < KEY_LEN {
        let mut bytes = [0; 32];
        fill(&mut bytes);
        // Two of 64 values are thrown away, so that each of the 62 letters is equally likely.
        let letters = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
        for (slot, &letter) in key[filled..].iter_mut().zip(letters) {
            *slot = letter;
            filled += 1;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::System;
    use crate::runtime::Effects;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::collections::HashSet;

    #[test]
    fn keys_are_22_letters_and_digits() {
        let key = key(|bytes| System::default().fill_random(bytes));
        assert_eq!(key.len(), 22);
        assert!(key.iter().all(u8::is_ascii_alphanumeric), "{key:?}");
    }

    #[test]
    fn keys_differ_and_use_every_letter() {
        let mut random = StdRng::seed_from_u64(1);
        let keys: HashSet<Key> = (0..1000).map(|_| key(|bytes| random.fill_bytes(bytes))).collect();
        assert_eq!(keys.len(), 1000);
        let letters: HashSet<u8> = keys.iter().flatten().copied().collect();
        assert_eq!(letters.len(), 62);
    }
}

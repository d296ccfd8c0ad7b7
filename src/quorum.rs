//! The arithmetic of the quorum: how many masters, how long a lock is valid, when a round is over.
//!
//! Source: "The Redlock algorithm" in the Redis documentation, with redlock-py's constants.

use std::time::Duration;

use crate::clock::Instant;

/// The strict majority of `masters`: the least number of which any two groups share a member.
#[must_use]
pub const fn majority(masters: usize) -> usize {
    masters / 2 + 1
}

/// How long a lock just taken is safe to use, in whole milliseconds; `None` when nothing is left of it.
///
/// `validity = int(ttl − elapsed − drift)`, as redlock-py computes it. `elapsed` counts from before the first byte was
/// sent: no master can have started its TTL earlier than that. `drift_ms` bounds how far apart the masters' clocks may
/// run within one TTL, plus 2 ms for the precision of Redis expiry.
#[must_use]
pub fn validity_ms(ttl_ms: u64, elapsed: Duration, drift_ms: u64) -> Option<u64> {
    let spent = elapsed.saturating_add(Duration::from_millis(drift_ms));
    let left = Duration::from_millis(ttl_ms).saturating_sub(spent);
    u64::try_from(left.as_millis()).ok().filter(|&left| left > 0)
}

/// When the validity of a lock ends, whose first byte was sent after `start`.
#[must_use]
pub const fn expires_at(start: Instant, ttl_ms: u64, drift_ms: u64) -> Instant {
    start.after(Duration::from_millis(ttl_ms.saturating_sub(drift_ms)))
}

/// The longest a round waits for masters that do not answer: half the TTL, at most 500 ms, or as long as the caller
/// allows the most patient of them.
#[must_use]
pub fn patience(ttl_ms: u64, allowed: Duration) -> Duration {
    Duration::from_millis(ttl_ms / 2).min(allowed.max(MAX_PATIENCE))
}

/// The longest anything waits for one answer of one master, unless the caller says otherwise.
pub const MAX_PATIENCE: Duration = Duration::from_millis(500);

/// What the votes so far come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Votes still to come may decide either way.
    Open,
    /// A quorum granted.
    Granted,
    /// A quorum can no longer grant.
    Denied,
}

/// The count of one round's votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    quorum: usize,
    granted: usize,
    open: usize,
}

impl Tally {
    /// A count that is granted at `quorum` grants and waits for the votes of `awaited` masters.
    #[must_use]
    pub const fn new(quorum: usize, awaited: usize) -> Self {
        Self { quorum, granted: 0, open: awaited }
    }

    /// A master that was waited for has answered, or never will.
    pub const fn close_one(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// A master granted.
    pub const fn grant(&mut self) {
        self.granted += 1;
    }

    /// Whether votes of masters that are waited for are still to come.
    #[must_use]
    pub const fn is_awaiting(&self) -> bool {
        self.open > 0
    }

    /// The verdict on the votes so far.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        if self.granted >= self.quorum {
            Verdict::Granted
        } else if self.granted + self.open < self.quorum {
            Verdict::Denied
        } else {
            Verdict::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn majority_of_small_groups() {
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(majority), [1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn validity_is_what_redlock_py_computes() {
        assert_eq!(validity_ms(1000, ms(0), 12), Some(988));
        assert_eq!(validity_ms(1000, Duration::from_micros(1), 12), Some(987));
        assert_eq!(validity_ms(1000, ms(987), 12), Some(1));
        assert_eq!(validity_ms(1000, ms(988), 12), None);
    }

    #[test]
    fn a_ttl_of_three_or_less_can_never_be_granted() {
        for ttl in 0..=3 {
            assert_eq!(validity_ms(ttl, Duration::from_nanos(1), 2), None, "ttl {ttl}");
        }
        assert_eq!(validity_ms(4, Duration::from_nanos(1), 2), Some(1));
    }

    #[test]
    fn patience_is_half_the_ttl_capped() {
        assert_eq!(patience(100, ms(0)), ms(50));
        assert_eq!(patience(1000, ms(0)), ms(500));
        assert_eq!(patience(u64::MAX, ms(100)), ms(500));
        assert_eq!(patience(u64::MAX, ms(2000)), ms(2000));
        assert_eq!(patience(100, ms(2000)), ms(50));
    }

    #[test]
    fn a_round_is_over_as_soon_as_it_is_decided() {
        let mut round = Tally::new(2, 3);
        assert_eq!(round.verdict(), Verdict::Open);
        round.close_one();
        assert_eq!(round.verdict(), Verdict::Open);
        round.close_one();
        assert_eq!(round.verdict(), Verdict::Denied);
        round.grant();
        round.grant();
        assert_eq!(round.verdict(), Verdict::Granted);
    }

    proptest! {
        #[test]
        fn two_majorities_always_meet(masters in 1usize..10_000) {
            prop_assert!(2 * majority(masters) > masters);
            prop_assert!(2 * (majority(masters) - 1) <= masters);
        }

        #[test]
        fn validity_never_reaches_past_the_ttl(
            ttl in any::<u64>(),
            elapsed in any::<Duration>(),
            drift in any::<u64>(),
        ) {
            if let Some(validity) = validity_ms(ttl, elapsed, drift) {
                prop_assert!(validity > 0);
                let total = u128::from(validity) + u128::from(drift) + elapsed.as_millis();
                prop_assert!(total <= u128::from(ttl));
            }
        }

        #[test]
        fn a_later_reply_never_lengthens_validity(
            ttl in 1u64..1 << 40,
            a in any::<Duration>(),
            b in any::<Duration>(),
            drift in 0u64..1 << 40,
        ) {
            let (early, late) = (a.min(b), a.max(b));
            prop_assert!(validity_ms(ttl, late, drift) <= validity_ms(ttl, early, drift));
        }

        #[test]
        fn a_verdict_is_final_and_right(votes in prop::collection::vec(any::<bool>(), 1..12)) {
            let quorum = majority(votes.len());
            let mut tally = Tally::new(quorum, votes.len());
            let mut decided = Verdict::Open;
            for (seen, &grants) in votes.iter().enumerate() {
                tally.close_one();
                if grants {
                    tally.grant();
                }
                let granted = votes[..=seen].iter().filter(|&&vote| vote).count();
                let open = votes.len() - seen - 1;
                let expected = match granted {
                    _ if granted >= quorum => Verdict::Granted,
                    _ if granted + open < quorum => Verdict::Denied,
                    _ => Verdict::Open,
                };
                prop_assert_eq!(tally.verdict(), expected);
                prop_assert!(decided == Verdict::Open || decided == expected);
                decided = expected;
            }
            prop_assert_ne!(decided, Verdict::Open);
        }
    }
}

//! How often to try, and how long to pause in between.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The pauses between the tries of one call: one fewer than there are tries, each random between half the delay and the
/// delay.
///
/// redlock-py pauses for the whole delay each time, and once more after the last try; equal pauses keep contenders in
/// lock-step, so that they split the votes again and again ("Retry on failure" in the Redis documentation asks for a
/// random delay).
#[derive(Debug)]
pub struct Pauses<R> {
    left: u64,
    delay: Duration,
    random: R,
}

impl<R: Rng> Pauses<R> {
    /// The pauses between `tries` tries, at most `delay` long each.
    pub const fn new(tries: u64, delay: Duration, random: R) -> Self {
        Self { left: tries.saturating_sub(1), delay, random }
    }

    /// How long those take that are left, on average.
    pub fn rest(&self) -> Duration {
        u32::try_from(self.left).map_or(Duration::MAX, |left| self.mean().saturating_mul(left))
    }

    /// So long was waited in place of some of them.
    pub fn spend(&mut self, waited: Duration) {
        let pauses = waited.as_nanos() / self.mean().as_nanos().max(1);
        self.left = self.left.saturating_sub(u64::try_from(pauses).unwrap_or(u64::MAX));
    }

    fn mean(&self) -> Duration {
        self.delay * 3 / 4
    }
}

impl<R: Rng> Iterator for Pauses<R> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        Some(jittered(self.delay, &mut self.random))
    }
}

/// How long to hesitate when many may be told at once that a lock is free.
///
/// Servers tell them in an order that does not vary: without a moment of chance the same would always come first. A crowd
/// that asks all at once is in its own way, so whoever knows that others want it hesitates longer; but for one in six, since
/// the other may be one who releases and asks again in a loop.
pub fn moment(contended: bool, random: &mut impl Rng) -> Duration {
    match contended {
        false => Duration::from_micros(random.random_range(0..500)),
        true if random.random_ratio(1, 6) => Duration::ZERO,
        true => Duration::from_micros(random.random_range(0..3500)),
    }
}

/// A random duration between half of `delay` and `delay`.
pub fn jittered(delay: Duration, random: &mut impl Rng) -> Duration {
    delay.mul_f64(random.random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    fn pauses(tries: u64) -> Vec<Duration> {
        Pauses::new(tries, Duration::from_millis(200), StdRng::seed_from_u64(7)).collect()
    }

    #[test]
    fn there_is_no_pause_after_the_last_try() {
        assert_eq!([0, 1, 2, 3].map(|tries| pauses(tries).len()), [0, 0, 1, 2]);
    }

    #[test]
    fn a_seed_gives_an_exact_series() {
        assert_eq!(pauses(5), pauses(5));
        assert_ne!(pauses(3)[0], pauses(3)[1]);
    }

    #[test]
    fn time_may_be_spent_in_place_of_pauses() {
        let mut pauses = Pauses::new(11, Duration::from_millis(200), StdRng::seed_from_u64(7));
        assert_eq!(pauses.rest(), Duration::from_millis(10 * 150));
        pauses.spend(Duration::from_millis(449));
        assert_eq!(pauses.rest(), Duration::from_millis(8 * 150));
        pauses.spend(Duration::from_secs(60));
        assert_eq!((pauses.rest(), pauses.next()), (Duration::ZERO, None));
    }

    #[test]
    fn whoever_tries_for_ever_has_time_for_ever() {
        let mut pauses = Pauses::new(u64::MAX, Duration::from_millis(200), StdRng::seed_from_u64(7));
        pauses.spend(Duration::from_secs(3600));
        assert_eq!(pauses.rest(), Duration::MAX);
    }

    #[test]
    fn who_is_not_alone_hesitates_longer_but_for_one_in_six() {
        let mut random = StdRng::seed_from_u64(7);
        let mut moments = |contended| -> Vec<Duration> {
            let mut moments: Vec<_> = (0..6000).map(|_| moment(contended, &mut random)).collect();
            moments.sort();
            moments
        };
        let micros = |moments: &[Duration], index: usize| moments[index].as_micros();
        let (alone, crowd) = (moments(false), moments(true));
        assert!((240..=260).contains(&micros(&alone, 3000)) && micros(&alone, 5999) < 500);
        assert!(crowd[900].is_zero() && !crowd[1100].is_zero());
        assert!((1650..=1850).contains(&micros(&crowd, 3500)) && micros(&crowd, 5999) < 3500);
    }

    #[test]
    fn pauses_stay_within_the_delay() {
        for pause in pauses(1000) {
            assert!((100..=200).contains(&pause.as_millis()), "{pause:?}");
        }
    }
}

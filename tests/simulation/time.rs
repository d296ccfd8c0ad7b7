//! True time, which only the simulator knows, and the clocks of those who live in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// True time since the world began, in nanoseconds.
pub type Nanos = u64;

/// A millisecond.
pub const MS: Nanos = 1_000_000;
/// A second.
pub const SECOND: Nanos = 1000 * MS;

/// How fast a clock may run wrong: any two differ by less than the 1 % that the engine's drift allows for.
pub const RATE_BOUND_PPM: i64 = 5000;

const MILLION: i128 = 1_000_000;

/// A clock with a rate and a zero of its own.
#[derive(Debug)]
pub struct Clock {
    truth: Arc<AtomicU64>,
    ppm: i64,
    zero: Nanos,
    stepped: AtomicI64,
}

impl Clock {
    pub fn new(truth: &Arc<AtomicU64>, ppm: i64, zero: Nanos) -> Self {
        Self { truth: Arc::clone(truth), ppm, zero, stepped: AtomicI64::new(0) }
    }

    /// What it shows now, nobody ever having set it.
    pub fn steady(&self) -> Nanos {
        let truth = self.truth.load(Ordering::Relaxed);
        self.zero + truth.checked_add_signed((truth.cast_signed() * self.ppm).div_euclid(1_000_000)).unwrap()
    }

    /// What it shows now, all settings included.
    pub fn shown(&self) -> Nanos {
        self.steady().saturating_add_signed(self.stepped.load(Ordering::Relaxed))
    }

    /// Set it forward or back.
    pub fn step(&self, by: i64) {
        self.stepped.fetch_add(by, Ordering::Relaxed);
    }

    /// The first true time at which it reads `steady`, if nobody ever sets it.
    pub fn when_steady(&self, steady: Nanos) -> Nanos {
        let rate = MILLION + i128::from(self.ppm);
        nanos((i128::from(steady.saturating_sub(self.zero)) * MILLION + rate - 1) / rate)
    }

    /// The first true time at which it shows `reading`, if nobody sets it once more.
    pub fn when_shown(&self, reading: Nanos) -> Nanos {
        self.when_steady(reading.saturating_add_signed(self.stepped.load(Ordering::Relaxed).saturating_neg()))
    }
}

fn nanos(value: i128) -> Nanos {
    Nanos::try_from(value).unwrap_or(Nanos::MAX)
}

//! Time that cannot be set and does not stop while the machine sleeps.

use std::time::Duration;

use rustix::time::ClockId;

/// A point in time on the clock of one [`Clock`]; only differences mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(Duration);

impl Instant {
    /// The instant this long after the clock's own zero.
    #[must_use]
    pub const fn from_zero(since: Duration) -> Self {
        Self(since)
    }

    /// How long after the clock's own zero this is.
    #[must_use]
    pub const fn since_zero(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this instant; zero if `earlier` is the later one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The instant this much earlier, or the clock's own zero.
    #[must_use]
    pub const fn before(self, lead: Duration) -> Self {
        Self(self.0.saturating_sub(lead))
    }

    /// The instant `delay` later, or the last there is.
    #[must_use]
    pub const fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(delay))
    }
}

/// Where the engine takes the time from; the simulation hands in its own.
pub trait Clock {
    /// The time now. Never goes back.
    fn now(&self) -> Instant;
}

/// The machine's clock since boot, suspends included.
///
/// Redis counts TTLs down while a laptop or a virtual machine sleeps; `CLOCK_MONOTONIC`, and so `std::time::Instant` on
/// Linux, does not. `CLOCK_BOOTTIME` does; on Apple systems `CLOCK_MONOTONIC` is the one that runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Instant {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: ClockId = ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: ClockId = ClockId::Monotonic;
        Instant(read(CLOCK))
    }
}

/// The wall clock: the time since 1970 began. It may be set at any time: no more than a hint.
#[must_use]
pub fn since_epoch() -> Duration {
    read(ClockId::Realtime)
}

fn read(clock: ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_saturate() {
        let early = Instant::from_zero(Duration::from_millis(5));
        let late = Instant::from_zero(Duration::from_millis(8));
        assert_eq!(late.since(early), Duration::from_millis(3));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.after(Duration::MAX).since_zero(), Duration::MAX);
    }

    #[test]
    fn the_boot_clock_goes_forward() {
        let first = BootClock.now();
        assert!(BootClock.now() >= first);
        assert!(first.since_zero() > Duration::ZERO);
    }
}

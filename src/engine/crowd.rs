//! Who else wants a lock, as far as this process knows: somebody who has just come cannot tell from the masters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::Instant;
use crate::runtime::locked;

/// How long it is remembered that others wanted a lock, who may be in other processes.
const LATELY: Duration = Duration::from_secs(10);

/// Those who wait, by the resource they wait for. The sessions of one manager share it.
#[derive(Debug, Default)]
pub struct Crowds(Mutex<HashMap<Vec<u8>, Arc<Crowd>>>);

/// Until when it is remembered that others wanted a resource. The map has it, and everybody who waits.
#[derive(Debug, Default)]
struct Crowd(Mutex<Option<Instant>>);

impl Crowds {
    /// Wait for `resource`, until the returned place is dropped.
    #[must_use]
    pub fn join(&self, resource: &[u8], now: Instant) -> Place {
        let mut crowds = locked(&self.0);
        if crowds.len() == crowds.capacity() {
            crowds.retain(|_, crowd| Arc::strong_count(crowd) > 1 || crowd.is_remembered(now));
        }
        Place(Arc::clone(crowds.entry(resource.to_vec()).or_default()))
    }
}

impl Crowd {
    fn is_remembered(&self, now: Instant) -> bool {
        locked(&self.0).is_some_and(|until| now < until)
    }
}

/// A place among those who wait for a resource.
#[derive(Debug)]
pub struct Place(Arc<Crowd>);

impl Place {
    /// Whether others wait for it, or were in somebody's way lately.
    #[must_use]
    pub fn is_crowded(&self, now: Instant) -> bool {
        Arc::strong_count(&self.0) > 2 || self.0.is_remembered(now)
    }

    /// Others want it, too, and were in our way.
    pub fn was_contended(&self, now: Instant) {
        *locked(&self.0.0) = Some(now.after(LATELY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_zero(Duration::from_secs(100));

    #[test]
    fn two_are_a_crowd_and_one_is_none() {
        let crowds = Crowds::default();
        let first = crowds.join(b"r", START);
        let other = crowds.join(b"another", START);
        assert!(!first.is_crowded(START) && !other.is_crowded(START));
        let second = crowds.join(b"r", START);
        assert!(first.is_crowded(START) && second.is_crowded(START) && !other.is_crowded(START));
        drop(first);
        assert!(!second.is_crowded(START));
    }

    #[test]
    fn a_crowd_is_remembered_for_a_while_by_whoever_comes_next() {
        let crowds = Crowds::default();
        crowds.join(b"r", START).was_contended(START);
        let next = crowds.join(b"r", START);
        assert!(next.is_crowded(START) && next.is_crowded(START.after(LATELY * 99 / 100)));
        assert!(!next.is_crowded(START.after(LATELY)));
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let crowds = Crowds::default();
        for number in 0..10_000_u32 {
            drop(crowds.join(&number.to_le_bytes(), START));
        }
        assert!(locked(&crowds.0).capacity() < 100);
    }
}

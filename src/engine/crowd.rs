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
pub struct Crowds(Mutex<HashMap<Vec<u8>, Crowd>>);

#[derive(Debug, Default)]
struct Crowd {
    here: usize,
    until: Option<Instant>,
}

impl Crowds {
    /// Wait for `resource`, until the returned place is dropped.
    #[must_use]
    pub fn join(self: &Arc<Self>, resource: &[u8], now: Instant) -> Place {
        let mut crowds = locked(&self.0);
        if crowds.len() == crowds.capacity() {
            crowds.retain(|_, crowd| crowd.here > 0 || crowd.is_remembered(now));
        }
        crowds.entry(resource.to_vec()).or_default().here += 1;
        Place { crowds: Arc::clone(self), resource: resource.to_vec() }
    }
}

impl Crowd {
    fn is_remembered(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// A place among those who wait for a resource.
#[derive(Debug)]
pub struct Place {
    crowds: Arc<Crowds>,
    resource: Vec<u8>,
}

impl Place {
    /// Whether others wait for it, or were in somebody's way lately.
    #[must_use]
    pub fn is_crowded(&self, now: Instant) -> bool {
        self.with(|crowd| crowd.here > 1 || crowd.is_remembered(now))
    }

    /// Others want it, too, and were in our way.
    pub fn was_contended(&self, now: Instant) {
        self.with(|crowd| crowd.until = Some(now.after(LATELY)));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Crowd) -> T) -> T {
        look(locked(&self.crowds.0).entry(self.resource.clone()).or_default())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.with(|crowd| crowd.here = crowd.here.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_zero(Duration::from_secs(100));

    #[test]
    fn two_are_a_crowd_and_one_is_none() {
        let crowds = Arc::new(Crowds::default());
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
        let crowds = Arc::new(Crowds::default());
        crowds.join(b"r", START).was_contended(START);
        let next = crowds.join(b"r", START);
        assert!(next.is_crowded(START) && next.is_crowded(START.after(LATELY * 99 / 100)));
        assert!(!next.is_crowded(START.after(LATELY)));
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let crowds = Arc::new(Crowds::default());
        for number in 0..10_000_u32 {
            drop(crowds.join(&number.to_le_bytes(), START));
        }
        assert!(locked(&crowds.0).capacity() < 100);
    }
}

//! Those who wait: what they may rely on, and what they must not do.

use super::oracle::{Op, Rule};
use super::time::{MS, Nanos, SECOND};
use super::world::World;

impl World {
    /// Holders of what others wait for did something that may wake them.
    pub fn stir(&mut self, op: usize) {
        let resources = self.oracle.ops[op].resources.clone();
        let waiting = |other: &&mut Op| other.is_waiting && other.meets(&resources);
        self.oracle.ops.iter_mut().filter(waiting).for_each(|other| other.stirred += 1);
    }

    /// Whether the client has had no trouble at all so far, so that its waits are as short as they can be.
    fn is_untroubled(&self, op: &Op) -> bool {
        let client = &self.clients[op.client];
        let quiet = self.trouble[op.client].iter().all(|&trouble| trouble == 0) && self.plan.late_per_mille == 0;
        let longest = self.plan.longest_delay();
        let time_enough = op.ttl_ms * MS / 2 > 16 * longest && self.plan.is_patient() && !self.plan.is_crowded();
        quiet && time_enough && client.paused_in_all == 0 && client.paused_at == 0
    }

    /// One who waits asks again, or gives up.
    pub fn check_wait(&mut self, op: usize) {
        let entry = &self.oracle.ops[op];
        if entry.keys.is_empty() || entry.is_cancelled || !self.is_untroubled(entry) {
            return;
        }
        let (overslept, storm) = (self.overslept(entry), self.is_storm(entry));
        if overslept > 0 {
            self.violation(Rule::Overslept, &format!("op {op} comes {} ms late", overslept / MS));
        }
        if storm {
            let entry = &self.oracle.ops[op];
            let what = format!("op {op}: {} attempts, stirred {} times", entry.keys.len(), entry.stirred);
            self.violation(Rule::Storm, &what);
        }
    }

    /// How much later than a second and a pause after it was free somebody of this session takes it.
    fn overslept(&self, op: &Op) -> Nanos {
        let of_it = |(_, resource): &(usize, Vec<u8>)| op.resources.contains(resource);
        let free = self.oracle.busy.iter().filter(|(place, _)| of_it(place)).map(|(_, &until)| until).max();
        let ours = |other: &&Op| other.session == op.session && other.meets(&op.resources);
        let tried = self.oracle.ops.iter().filter(ours).map(|other| other.last_tried).max();
        let since = free.max(tried).unwrap_or(0);
        let allowed = (SECOND + self.plan.retry_delay) / 100 * 101 + 16 * self.plan.longest_delay();
        self.now().saturating_sub(since + allowed)
    }

    /// Whether it asks more often than its pauses and what its rivals do explain.
    fn is_storm(&self, op: &Op) -> bool {
        let waited = self.now() - op.began;
        let pauses = 2 * waited / self.plan.retry_delay;
        op.keys.len() as u64 > 8 * (op.stirred + 1) + pauses
    }

    /// A lock is granted: to nobody who came after another of the same session and waited as well.
    pub fn check_turn(&mut self, op: usize) {
        let entry = &self.oracle.ops[op];
        if entry.keys.len() < 2 || self.is_at_its_end(entry) || !self.is_untroubled(entry) {
            return;
        }
        let least = |op: &Op| op.resources.iter().min().cloned();
        let in_line = 24 * self.plan.longest_delay();
        let is_before = |other: &&Op| {
            let same = other.session == entry.session && least(other) == least(entry);
            let waits = other.is_waiting && !other.is_cancelled && !self.is_at_its_end(other);
            same && waits && other.began + in_line < entry.began
        };
        if let Some(other) = self.oracle.ops.iter().find(is_before) {
            let what = format!("op {op} before that of worker {}", other.worker);
            self.violation(Rule::OutOfTurn, &what);
        }
    }

    /// Whether its tries or its time may be used up, so that it leaves the line.
    fn is_at_its_end(&self, op: &Op) -> bool {
        let waited = self.clients[op.client].clock.steady() - op.began_local;
        let left = (self.plan.tries - 1).saturating_mul(self.plan.retry_delay) / 2;
        let timeout = self.plan.timeout.unwrap_or(Nanos::MAX);
        waited + 24 * self.plan.longest_delay() + SECOND / 100 > left.min(timeout)
    }
}

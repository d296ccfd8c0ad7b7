//! What an attempt claims, and how that stands with each master beside what it answered.

use std::sync::{Arc, Mutex};

use crate::clock::Instant;
use crate::planted::{self, Bug};
use crate::runtime::locked;
use crate::script::UnlockScript;

/// What one attempt claims, and all that is needed to release it again. All sessions that have to do with it share it.
#[derive(Debug)]
pub struct Claim {
    /// The names of the locks, one or several to be held together: the Redis keys.
    pub resources: Vec<Vec<u8>>,
    /// The proof of ownership: the value of each.
    pub key: Vec<u8>,
    /// How it is released.
    pub script: Arc<UnlockScript>,
    /// All commands that take it are known: it was made for the attempt that sends them.
    is_whole: bool,
    standings: Mutex<Standings>,
}

#[derive(Debug, Default)]
struct Standings {
    /// It is being released: nothing is sent any more that takes it.
    is_given_back: bool,
    /// Its key is in use again: nothing is done about it any more.
    is_forgotten: bool,
    /// Until when its holder may rely on it, once it is granted.
    until: Option<Instant>,
    /// Nor for longer than that, however often it is extended.
    ends_at: Option<Instant>,
    each: Vec<Standing>,
}

/// How a claim stands with one master.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// A command that takes it was sent there.
    was_sent: bool,
    /// How many of those have no answer yet.
    unanswered: usize,
    decision: Option<Decision>,
    presence: Presence,
    /// It is seen to that this master gets it, or keeps it.
    is_owed: bool,
}

/// What a master said last of a claim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Unknown,
    There,
    Released,
}

/// A connection that is given up carries the releases of all that is unanswered on it. An extension over another
/// connection may find the lock at that master before, and count it. Of the two, what comes first excludes the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// An extension has found it there: its holder relies on that, and only its holder releases it.
    Counted,
    /// Its release is on its way: its holder cannot rely on this master any more, whatever that answers.
    Withdrawn,
}

impl Standings {
    fn of(&mut self, master: usize) -> &mut Standing {
        if self.each.len() <= master {
            self.each.resize(master + 1, Standing::default());
        }
        &mut self.each[master]
    }
}

impl Claim {
    /// A claim that no master knows of yet.
    #[must_use]
    pub fn new(resources: Vec<Vec<u8>>, key: Vec<u8>, script: Arc<UnlockScript>) -> Self {
        Self { resources, key, script, is_whole: true, standings: Mutex::default() }
    }

    /// What was claimed before, as far as its key tells: any master may have it.
    #[must_use]
    pub fn of_key(resources: Vec<Vec<u8>>, key: Vec<u8>, script: Arc<UnlockScript>) -> Self {
        Self { is_whole: false, ..Self::new(resources, key, script) }
    }

    /// Whether this is the same claim, as far as its key tells: a caller may use one key for all its locks.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        // Thousands of names are compared only where that cannot be told otherwise.
        std::ptr::eq(self, other) || self.key == other.key && self.resources == other.resources
    }

    /// Whether the release of one would release some of the other.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.key == other.key && self.resources.iter().any(|resource| other.resources.contains(resource))
    }

    fn standing<T>(&self, master: usize, look: impl FnOnce(&mut Standing) -> T) -> T {
        look(locked(&self.standings).of(master))
    }

    /// Whether this is what holds for this master: it was decided before, or is now.
    pub fn decide(&self, master: usize, decision: Decision) -> bool {
        self.standing(master, |standing| *standing.decision.get_or_insert(decision) == decision)
    }

    /// Whether its release is on its way to this master, though its holder did not ask for it.
    #[must_use]
    pub fn is_withdrawn_at(&self, master: usize) -> bool {
        self.standing(master, |standing| standing.decision == Some(Decision::Withdrawn))
    }

    /// The master has lost it, and is about to be given it again.
    pub fn lost_at(&self, master: usize) {
        self.standing(master, |standing| {
            standing.presence = Presence::Unknown;
            standing.decision = standing.decision.filter(|&decision| decision == Decision::Withdrawn);
        });
    }

    /// A command that takes it is about to be sent to this master. Returns whether it may be: not once it is released.
    pub fn sent_to(&self, master: usize) -> bool {
        let mut standings = locked(&self.standings);
        if standings.is_given_back && !planted::is(Bug::CompletesReleased) {
            return false;
        }
        let standing = standings.of(master);
        standing.was_sent = true;
        standing.unanswered += 1;
        true
    }

    /// It is being released: from now on nothing is sent that takes it.
    pub fn give_back(&self) {
        locked(&self.standings).is_given_back = true;
    }

    /// Whether its release has begun.
    #[must_use]
    pub fn is_given_back(&self) -> bool {
        locked(&self.standings).is_given_back
    }

    /// Its holder may rely on it until then.
    pub fn extend_until(&self, until: Instant) {
        locked(&self.standings).until = Some(until);
    }

    /// However often it is extended, its holder may rely on it no longer than until then.
    pub fn end_at(&self, end: Instant) {
        locked(&self.standings).ends_at = Some(end);
    }

    /// Until when its holder may rely on it, if it is granted and that is known.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        let standings = locked(&self.standings);
        standings.until.map(|until| standings.ends_at.map_or(until, |end| end.min(until)))
    }

    /// Its key is about to be used again: no release of it may be sent any more.
    pub fn forget(&self) {
        locked(&self.standings).is_forgotten = true;
    }

    /// Whether its key is in use again.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        locked(&self.standings).is_forgotten
    }

    /// It is to be seen to that this master gets it, or keeps it. Returns whether that is not done already.
    pub fn owe(&self, master: usize) -> bool {
        self.standing(master, |standing| !std::mem::replace(&mut standing.is_owed, true))
    }

    /// It is seen to no longer.
    pub fn stop_owing(&self, master: usize) {
        self.standing(master, |standing| standing.is_owed = false);
    }

    /// It is not known any more whether this master has it.
    pub fn note_doubtful(&self, master: usize) {
        self.standing(master, |standing| standing.presence = Presence::Unknown);
    }

    /// This master has it.
    pub fn note_at(&self, master: usize) {
        self.standing(master, |standing| standing.presence = Presence::There);
    }

    /// Whether this master has said last that it has it.
    #[must_use]
    pub fn is_at(&self, master: usize) -> bool {
        self.presence(master) == Presence::There
    }

    /// This master has confirmed its release.
    pub fn note_released(&self, master: usize) {
        self.standing(master, |standing| standing.presence = Presence::Released);
    }

    /// Whether this master has confirmed its release.
    #[must_use]
    pub fn is_released_at(&self, master: usize) -> bool {
        self.presence(master) == Presence::Released
    }

    fn presence(&self, master: usize) -> Presence {
        locked(&self.standings).each.get(master).map(|standing| standing.presence).unwrap_or_default()
    }

    /// Whether this master cannot have it, since it was never sent there.
    #[must_use]
    pub fn cannot_be_at(&self, master: usize) -> bool {
        self.is_whole && !locked(&self.standings).each.get(master).is_some_and(|standing| standing.was_sent)
    }

    /// Such a command was answered, or nothing more comes of it.
    pub fn settled_at(&self, master: usize) {
        self.standing(master, |standing| standing.unanswered -= 1);
    }

    /// How many commands that take it this master has not answered yet, in whatever session.
    #[must_use]
    pub fn unanswered_at(&self, master: usize) -> usize {
        locked(&self.standings).each.get(master).map_or(0, |standing| standing.unanswered)
    }

    /// Whether there are such commands.
    #[must_use]
    pub fn is_unanswered_at(&self, master: usize) -> bool {
        self.unanswered_at(master) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_first_holds() {
        let claim = Claim::new(Vec::new(), Vec::new(), Arc::default());
        assert!(claim.decide(2, Decision::Counted));
        assert!(!claim.decide(2, Decision::Withdrawn));
        assert!(claim.decide(1, Decision::Withdrawn));
        assert!(!claim.decide(1, Decision::Counted));
    }

    #[test]
    fn what_was_lost_is_decided_once_more_unless_its_release_is_on_its_way() {
        let claim = Claim::new(Vec::new(), Vec::new(), Arc::default());
        assert!(claim.decide(0, Decision::Counted));
        claim.lost_at(0);
        assert!(claim.decide(0, Decision::Withdrawn));
        claim.lost_at(0);
        assert!(!claim.decide(0, Decision::Counted));
    }

    #[test]
    fn it_may_be_where_it_was_sent_or_where_that_is_not_known() {
        let claim = Claim::new(Vec::new(), Vec::new(), Arc::default());
        assert!(claim.sent_to(1));
        claim.settled_at(1);
        assert!(claim.cannot_be_at(0) && !claim.cannot_be_at(1) && claim.cannot_be_at(2));
        assert!(!Claim::of_key(Vec::new(), Vec::new(), Arc::default()).cannot_be_at(0));
    }

    #[test]
    fn it_is_unanswered_until_all_commands_are_settled() {
        let claim = Claim::new(Vec::new(), Vec::new(), Arc::default());
        assert!(!claim.is_unanswered_at(1));
        assert!(claim.sent_to(1));
        assert!(claim.sent_to(1));
        claim.settled_at(1);
        assert!(claim.is_unanswered_at(1) && !claim.is_unanswered_at(0));
        claim.settled_at(1);
        assert!(!claim.is_unanswered_at(1));
    }
}

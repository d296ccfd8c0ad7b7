//! Fencing tokens as three masters and a few clients make them, for a model checker.
//!
//! The network is as bad as networks are: whatever was once sent may arrive late, in any order, any number of times, or
//! never, and so may the answers. A client that crashes is one that does nothing more; a master that crashes and keeps
//! its memory is one that hears nothing for a while: the checker looks at both without being told. A master that
//! forgets needs an action of its own.

use std::ops::RangeInclusive;

use stateright::{Model, Property};

/// Three masters: two quorums of a majority share one, and one may be missing.
const MASTERS: usize = 3;

/// The most attempts there may be.
const MOST_ATTEMPTS: usize = 3;

/// The circumstances, and the rules by which tokens are made.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// How often a client tries to take the lock: each time as if it were another, for what clients remember only makes
    /// their proposals, and those are arbitrary.
    pub attempts: u8,
    /// How many masters must agree.
    pub quorum: usize,
    /// What may be proposed: anything that clocks which are wrong and memories which are old can come to.
    pub hints: RangeInclusive<u8>,
    /// How tokens are made.
    pub rule: Rule,
    /// Whether a master keeps a lock as long as its owner relies on it, which is what Redlock assumes of clocks. If
    /// not, any lock may be gone at any time.
    pub timely: bool,
    /// How often a master forgets all it knew.
    pub forgets: u8,
}

/// How tokens are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Propose, accept if greater, at a quorum; if that fails propose more than was seen, to masters we still hold.
    Propose,
    /// Wrong: accept what is equal, too.
    AcceptEqual,
    /// Wrong: the second round goes beyond the fences of all masters, and does not ask whether the lock is ours there.
    Unguarded,
    /// Wrong: each master counts on its own, from the proposal if that is more; the token is the maximum of a quorum.
    MaximumOfCounters,
}

/// What an attempt has heard from one master in the round under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heard {
    /// Nothing yet, or nothing of use: the lock is another's.
    #[default]
    Nothing,
    /// The lock is another's, and this is the fence: only asked for by those who do not ask for the lock.
    Refused(u8),
    /// The lock is ours; our proposal is not greater than this fence.
    Beaten(u8),
    /// The lock is ours, and our proposal is the fence.
    Accepted,
}

/// One master: the keys `L` and `F`; and what the attempts under way have heard from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Master {
    lock: Option<u8>,
    fence: u8,
    heard: [Heard; MOST_ATTEMPTS],
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Phase {
    #[default]
    Unborn,
    Acquiring,
    Bumping,
    Holding,
    Over,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Attempt {
    phase: Phase,
    proposal: u8,
    /// What the second round proposes, if there was one.
    bump: u8,
    /// The greatest token that had been granted when this attempt began.
    floor: u8,
}

/// All there is. Masters are alike, and so are kept in order: worlds that differ in their names alone are one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct State {
    masters: [Master; MASTERS],
    attempts: [Attempt; MOST_ATTEMPTS],
    forgotten: u8,
    /// The tokens granted so far: bit n for token n.
    tokens: u16,
    wrong: Wrong,
}

/// What must never be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "four theorems, each broken or not")]
struct Wrong {
    repeated: bool,
    overtaken: bool,
    out_of_order: bool,
    shared: bool,
}

/// What may happen next. `heard`: the answer reaches the client before it decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A client begins to take the lock and asks all masters.
    Begin { proposal: u8 },
    /// `ACQ` arrives.
    Acquire { attempt: u8, master: usize, heard: bool },
    /// `BUMP` arrives.
    Bump { attempt: u8, master: usize, heard: bool },
    /// The client makes of the answers what it can.
    Decide { attempt: u8 },
    /// The client gives up, unlocks, or its time is over: it relies on nothing any more.
    End { attempt: u8 },
    /// A release arrives, or the time to live is over.
    Free { master: usize },
    /// A master crashes without its memory.
    Forget { master: usize },
}

impl State {
    fn granted(&self) -> u8 {
        u8::try_from(self.tokens.checked_ilog2().unwrap_or(0)).unwrap_or(u8::MAX)
    }

    fn heard(&self, attempt: u8) -> impl Iterator<Item = Heard> {
        self.masters.iter().map(move |master| master.heard[usize::from(attempt)])
    }

    fn phase(&self, attempt: u8) -> Phase {
        self.attempts[usize::from(attempt)].phase
    }

    fn attempt(&mut self, attempt: u8) -> &mut Attempt {
        &mut self.attempts[usize::from(attempt)]
    }

    fn holders(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.phase == Phase::Holding).count()
    }

    /// The next phase hears answers of its own.
    fn enter(&mut self, attempt: u8, phase: Phase) {
        self.attempt(attempt).phase = phase;
        self.masters.iter_mut().for_each(|master| master.heard[usize::from(attempt)] = Heard::Nothing);
    }

    /// The first answer counts.
    fn hear(&mut self, attempt: u8, master: usize, during: Phase, answer: Heard) {
        let heard = &mut self.masters[master].heard[usize::from(attempt)];
        if *heard == Heard::Nothing && self.attempts[usize::from(attempt)].phase == during {
            *heard = answer;
        }
    }

    /// `attempt` holds the lock, with `token`; note whether that ought not to be.
    fn grant(&mut self, attempt: u8, token: u8) {
        self.wrong.repeated |= self.tokens & 1 << token != 0;
        self.wrong.overtaken |= token <= self.attempt(attempt).floor;
        self.wrong.out_of_order |= token <= self.granted();
        self.wrong.shared |= self.holders() > 0;
        self.tokens |= 1 << token;
        self.attempt(attempt).floor = 0;
        self.enter(attempt, Phase::Holding);
    }
}

impl Protocol {
    /// `ACQ`.
    fn acquire(&self, state: &mut State, attempt: u8, master: usize) -> Heard {
        let proposal = state.attempt(attempt).proposal;
        let Master { lock, fence, .. } = &mut state.masters[master];
        if lock.is_some_and(|owner| owner != attempt) {
            return if self.rule == Rule::Unguarded { Heard::Refused(*fence) } else { Heard::Nothing };
        }
        let first = lock.replace(attempt).is_none();
        if self.rule == Rule::MaximumOfCounters {
            *fence = if first { proposal.max(*fence + 1) } else { *fence };
            return Heard::Beaten(*fence);
        }
        self.propose(proposal, fence)
    }

    /// `BUMP`.
    fn bump(&self, state: &mut State, attempt: u8, master: usize) -> Heard {
        let bump = state.attempt(attempt).bump;
        let Master { lock, fence, .. } = &mut state.masters[master];
        let ours = *lock == Some(attempt) || self.rule == Rule::Unguarded;
        if ours { self.propose(bump, fence) } else { Heard::Nothing }
    }

    fn propose(&self, token: u8, fence: &mut u8) -> Heard {
        let accepted = token > *fence || self.rule == Rule::AcceptEqual && token == *fence;
        if !accepted {
            return Heard::Beaten(*fence);
        }
        *fence = token;
        Heard::Accepted
    }

    /// What a client makes of what it has heard.
    fn decide(&self, state: &mut State, attempt: u8) {
        let is_granted = |heard: &Heard| matches!(heard, Heard::Beaten(_) | Heard::Accepted);
        let granted = state.heard(attempt).filter(is_granted).count() >= self.quorum;
        let accepted = state.heard(attempt).filter(|&heard| heard == Heard::Accepted).count() >= self.quorum;
        let Attempt { phase, proposal, bump, .. } = *state.attempt(attempt);
        let fences = state.heard(attempt).map(|heard| match heard {
            Heard::Nothing => 0,
            Heard::Refused(fence) | Heard::Beaten(fence) => fence,
            Heard::Accepted => proposal,
        });
        let greatest = fences.max().unwrap_or(0);
        match phase {
            Phase::Acquiring if granted && self.rule == Rule::MaximumOfCounters => state.grant(attempt, greatest),
            Phase::Acquiring if accepted => state.grant(attempt, proposal),
            Phase::Acquiring if granted => {
                state.attempt(attempt).bump = greatest + 1;
                state.enter(attempt, Phase::Bumping);
            }
            Phase::Bumping if accepted => state.grant(attempt, bump),
            _ => {}
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let born = (0..self.attempts).take_while(|&attempt| state.phase(attempt) != Phase::Unborn).count();
        if born < self.attempts.into() {
            actions.extend(self.hints.clone().map(|proposal| Action::Begin { proposal }));
        }
        for attempt in (0..self.attempts).take(born) {
            actions.extend([Action::Decide { attempt }, Action::End { attempt }]);
            for (master, heard) in (0..MASTERS).flat_map(|master| [(master, false), (master, true)]) {
                actions.push(Action::Acquire { attempt, master, heard });
                actions.push(Action::Bump { attempt, master, heard });
            }
        }
        for master in 0..MASTERS {
            actions.extend([Action::Free { master }, Action::Forget { master }]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin { proposal } => {
                let born = state.attempts.iter_mut().find(|attempt| attempt.phase == Phase::Unborn)?;
                *born = Attempt { phase: Phase::Acquiring, proposal, bump: 0, floor: last.granted() };
            }
            Action::Acquire { attempt, master, heard } => {
                let answer = self.acquire(&mut state, attempt, master);
                heard.then(|| state.hear(attempt, master, Phase::Acquiring, answer));
            }
            Action::Bump { attempt, .. } if state.attempt(attempt).bump == 0 => return None,
            Action::Bump { attempt, master, heard } => {
                let answer = self.bump(&mut state, attempt, master);
                heard.then(|| state.hear(attempt, master, Phase::Bumping, answer));
            }
            Action::Decide { attempt } => self.decide(&mut state, attempt),
            // Where locks are lost at any time, nobody has to end for that.
            Action::End { .. } if !self.timely => return None,
            Action::End { attempt } => {
                state.attempt(attempt).floor = 0;
                state.enter(attempt, Phase::Over);
            }
            Action::Free { master } => {
                let owner = state.masters[master].lock?;
                let free = !self.timely || state.phase(owner) == Phase::Over;
                free.then(|| state.masters[master].lock = None)?;
            }
            Action::Forget { .. } if state.forgotten == self.forgets => return None,
            Action::Forget { master } => {
                state.forgotten += 1;
                (state.masters[master].lock, state.masters[master].fence) = (None, 0);
            }
        }
        state.masters.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(UNIQUE, |_, state: &State| !state.wrong.repeated),
            Property::always(REAL_TIME, |_, state: &State| !state.wrong.overtaken),
            Property::sometimes("a token in one round", |_, state: &State| state.holds(|attempt| attempt.bump == 0)),
            Property::sometimes("a token in two rounds", |_, state: &State| state.holds(|attempt| attempt.bump > 0)),
            Property::sometimes("a token for everybody", |protocol: &Self, state: &State| {
                state.tokens.count_ones() == u32::from(protocol.attempts)
            }),
        ];
        if self.timely {
            properties.push(Property::always(GRANT_ORDER, |_, state: &State| !state.wrong.out_of_order));
            properties.push(Property::always(ONE_HOLDER, |_, state: &State| !state.wrong.shared));
        }
        properties
    }
}

impl State {
    fn holds(&self, which: impl Fn(&Attempt) -> bool) -> bool {
        self.attempts.iter().any(|attempt| attempt.phase == Phase::Holding && which(attempt))
    }
}

/// No two grants have the same token.
pub const UNIQUE: &str = "T1: no token twice";
/// A grant that was there before an attempt began has a lesser token than that attempt's.
pub const REAL_TIME: &str = "T2: tokens grow in real time";
/// Tokens grow in the order of the grants, also where attempts overlap.
pub const GRANT_ORDER: &str = "T3: tokens grow in the order of the grants";
/// Redlock's own promise, without which there is no order of grants.
pub const ONE_HOLDER: &str = "one holder at a time";

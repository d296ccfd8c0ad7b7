//! What must hold, checked against true time and against what the masters really did.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use redlock::clock::Instant;
use redlock::engine::acquire::{self, Held, Token, Vote};
use redlock::engine::release::Answer;
use redlock::engine::renew::SharedLease;
use redlock::error::Error;
use redlock::quorum;
use redlock::script::{Grant, Release};

use super::leases::extending;
use super::master::{Did, Kind};
use super::network::{Conn, Taken, taking};
use super::plan::{Broken, Sharing};
use super::resp::Request;
use super::time::{MS, Nanos, SECOND};
use super::wire::open;
use super::world::{Event, World};

/// How often a lock is looked for until it is to be on every master.
const LOOKS: usize = 4;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// No two clients hold one lock at once that both believe valid.
    TwoHolders,
    /// Whoever believes to hold a lock has it on a quorum of masters.
    NoQuorum,
    /// What was released, or never held, is gone from every master within reach.
    LeftBehind,
    /// A `SET` that came to nothing is followed by its release on the same connection.
    NotFollowed,
    /// No release is sent on another connection than the `SET` that it undoes, while that has no answer.
    Overtaken,
    /// No key outlives its TTL.
    Outlived,
    /// A master that gets a lock later than the others keeps it no longer than they do.
    Overlong,
    /// No operation outlives its deadline.
    Overdue,
    /// Nothing is written for a round already decided, except its release.
    TooLate,
    /// A reply is never taken for another request's.
    WrongReply,
    /// Where nothing goes wrong and nobody competes, a lock is granted in one round trip.
    NotAtOnce,
    /// A fencing token is greater than all that were granted for its resource before.
    TokenOrder,
    /// An extension never brings back a lock that a quorum no longer has, nor one that has run out.
    Revived,
    /// How long a lock is safe to use is true when it is said.
    Overstated,
    /// Those of one session who wait for the same take their turns in the order in which they came.
    OutOfTurn,
    /// A lock that is free is taken by whoever waits for it, after a second and a pause at the latest.
    Overslept,
    /// Whoever waits asks again only when something has changed, or a pause is over.
    Storm,
    /// No lock is refused for want of masters while a quorum of them is well, and was asked for nothing.
    RefusedUnasked,
    /// An extension that fails tells that the lock is lost, if so many masters have lost it and can say so.
    Unheard,
    /// However far the masters are, a lock is had in the end where there are tries and time enough.
    OutOfReach,
    /// No extension of a lease is begun or written after its release has begun, or its holder has dropped it.
    GoesOn,
    /// The holder of a lease that is renewed is told of its loss before validity ends.
    ToldLate,
    /// A lease is not held for longer than it may be.
    HeldTooLong,
    /// A lock that is held is on every master that has been within reach for some time.
    Incomplete,
    /// A release does not wait for one master, while a quorum of them is well and near.
    HeldUp,
    /// A holder is told within a second that its lock has run out, also where its machine slept meanwhile.
    SleptThrough,
}

#[cfg(feature = "planted-bugs")]
impl Rule {
    pub const ALL: [Self; 26] = [
        Self::TwoHolders,
        Self::NoQuorum,
        Self::LeftBehind,
        Self::NotFollowed,
        Self::Overtaken,
        Self::Outlived,
        Self::Overlong,
        Self::Overdue,
        Self::TooLate,
        Self::WrongReply,
        Self::NotAtOnce,
        Self::TokenOrder,
        Self::Revived,
        Self::Overstated,
        Self::OutOfTurn,
        Self::Overslept,
        Self::Storm,
        Self::RefusedUnasked,
        Self::Unheard,
        Self::OutOfReach,
        Self::GoesOn,
        Self::ToldLate,
        Self::HeldTooLong,
        Self::HeldUp,
        Self::Incomplete,
        Self::SleptThrough,
    ];
}

/// A lock operation, from the call of lock to the end of unlock.
#[expect(clippy::struct_excessive_bools, reason = "facts about it, each true or not")]
pub struct Op {
    pub worker: usize,
    pub client: usize,
    pub session: usize,
    pub resources: Vec<Vec<u8>>,
    pub ttl_ms: u64,
    fenced: bool,
    pub began: Nanos,
    pub began_local: Nanos,
    paused_before: Nanos,
    bound: Nanos,
    pub is_running: bool,
    /// Neither granted nor refused yet.
    pub is_waiting: bool,
    pub is_cancelled: bool,
    is_contended: bool,
    is_linked: bool,
    pub keys: Vec<Vec<u8>>,
    /// How often the holders of its resources did something while it waited.
    pub stirred: u64,
    /// When its last attempt began, or it ended.
    pub last_tried: Nanos,
}

impl Op {
    pub fn meets(&self, resources: &[Vec<u8>]) -> bool {
        self.resources.iter().any(|resource| resources.contains(resource))
    }
}

/// One attempt: a key of its own.
#[derive(Default)]
struct Attempt {
    op: usize,
    began: Nanos,
    /// By master and resource.
    facts: BTreeMap<(usize, Vec<u8>), Facts>,
    conns: Vec<usize>,
    /// The session, and its turn, by whose end it was known to be decided.
    decided: Option<(usize, u64)>,
    granted: bool,
}

/// What a master really did with a key.
#[derive(Debug, Default, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each true or not yet")]
pub struct Facts {
    granted: bool,
    refused: bool,
    shown: bool,
    released: bool,
    absent: bool,
    pub extended: bool,
    pub taken: bool,
    pub not_there: bool,
}

/// Somebody believes to hold a lock.
struct Belief {
    client: usize,
    op: usize,
    resources: Vec<Vec<u8>>,
    key: Vec<u8>,
    /// It is believed in while anything remains of this.
    lease: Arc<SharedLease>,
    /// Unless a master changes, a quorum has it until then; and how many changes there had been when that was seen.
    safe_until: Nanos,
    changes: u64,
}

/// The books of the one who watches.
pub struct Oracle {
    pub violations: BTreeMap<Rule, String>,
    pub grants: u64,
    pub contended: u64,
    /// How many had a fencing token, and how many of those at the first proposal.
    pub tokens: u64,
    pub tokens_at_once: u64,
    pub extensions: u64,
    pub ops: Vec<Op>,
    attempts: BTreeMap<Vec<u8>, Attempt>,
    beliefs: Vec<Belief>,
    /// How often anything may have become of what masters have, but by time alone.
    pub changes: u64,
    /// The greatest token granted so far, by resource.
    greatest: BTreeMap<Vec<u8>, u64>,
    quiet_since: BTreeMap<Vec<u8>, Nanos>,
    /// When an operator last deleted a lock.
    deleted: BTreeMap<Vec<u8>, Nanos>,
    /// Until when a master keeps a key, and when it last had any of a resource.
    due: BTreeMap<(usize, Vec<u8>, Vec<u8>), Nanos>,
    pub busy: BTreeMap<(usize, Vec<u8>), Nanos>,
    /// Within a turn: releases written, and attempts that came to nothing.
    releases: Vec<(usize, Vec<u8>)>,
    failed: BTreeSet<Vec<u8>>,
}

impl Oracle {
    pub fn new() -> Self {
        Self {
            violations: BTreeMap::new(),
            grants: 0,
            contended: 0,
            tokens: 0,
            tokens_at_once: 0,
            extensions: 0,
            ops: Vec::new(),
            attempts: BTreeMap::new(),
            beliefs: Vec::new(),
            changes: 0,
            greatest: BTreeMap::new(),
            quiet_since: BTreeMap::new(),
            deleted: BTreeMap::new(),
            due: BTreeMap::new(),
            busy: BTreeMap::new(),
            releases: Vec::new(),
            failed: BTreeSet::new(),
        }
    }

    /// How many have begun so far.
    pub fn operations(&self) -> usize {
        self.ops.len()
    }

    pub fn ttl_ms(&self, op: usize) -> u64 {
        self.ops[op].ttl_ms
    }

    /// It may take so much longer.
    pub fn allow(&mut self, op: usize, longer: Nanos) {
        self.ops[op].bound += longer;
    }

    fn owner(&self, session: usize, resource: &[u8], ttl_ms: u64) -> usize {
        let owns = |op: &Op| {
            let wants = op.resources.iter().any(|wanted| wanted == resource);
            op.is_running && op.session == session && op.ttl_ms == ttl_ms && wants
        };
        self.ops.iter().rposition(owns).unwrap_or(usize::MAX)
    }
}

impl World {
    /// The longest a release may take: over a connection that has to be made, by the last of three commands, and all
    /// that once more.
    pub fn release_bound(&self) -> Nanos {
        let patience = self.plan.socket_timeout;
        2 * (patience + 3 * patience)
    }

    /// The longest a lock may take: each try its patience, with one master and then with all others, and the release of
    /// what came to nothing, and the pauses between.
    pub fn lock_bound(&self, ttl_ms: u64) -> Nanos {
        let patience = (ttl_ms * MS / 2).min(2 * self.plan.socket_timeout.max(500 * MS));
        if let Some(timeout) = self.plan.timeout {
            return timeout + if self.is_quick(ttl_ms) { 16 * self.plan.longest_delay() } else { self.release_bound() };
        }
        self.plan.tries * (patience + self.release_bound()) + (self.plan.tries - 1) * self.plan.retry_delay
    }

    /// Whether nothing ever goes wrong, and there is time enough for everything.
    pub fn is_quick(&self, ttl_ms: u64) -> bool {
        let time_enough = ttl_ms * MS / 2 > 16 * self.plan.longest_delay() && self.plan.is_patient();
        self.is_calm() && time_enough && !self.plan.is_crowded()
    }

    pub fn begin_operation(
        &mut self,
        worker: usize,
        session: usize,
        request: &acquire::Request,
        bound: Nanos,
    ) -> usize {
        let (resources, ttl_ms, fenced) = (request.resources.clone(), request.ttl_ms, request.fencing);
        let op = self.oracle.ops.len();
        let client = self.seats[session].client;
        let others = self.oracle.ops.iter_mut().filter(|other| other.is_running && other.meets(&resources));
        let competing = others.map(|other| other.is_contended = true).count() > 0;
        let is_held = |resource: &Vec<u8>| self.nodes.iter().any(|node| node.master.holder(resource).is_some());
        let held = resources.iter().any(is_held);
        let quiet = resources.iter().filter_map(|resource| self.oracle.quiet_since.get(resource)).max();
        let quiet = quiet.copied().unwrap_or(0);
        let restless = quiet > 0 && self.now() < quiet + 4 * self.plan.longest_delay();
        let is_contended = competing || held || restless;
        let is_linked = self.is_linked(session);
        self.oracle.ops.push(Op {
            worker,
            client,
            session,
            resources,
            ttl_ms,
            fenced,
            began: self.now(),
            began_local: self.clients[client].clock.steady(),
            paused_before: self.clients[client].paused_in_all,
            bound,
            is_running: true,
            is_waiting: true,
            is_cancelled: false,
            is_contended,
            is_linked,
            keys: Vec::new(),
            stirred: 0,
            last_tried: self.now(),
        });
        self.say(|| format!("worker {worker} locks, op {op}"));
        op
    }

    /// Whether a session has sent a lock to every master over the connection that it has now.
    fn is_linked(&self, session: usize) -> bool {
        let is_used = |conn: &Conn| conn.session == session && conn.is_held && !conn.set.is_empty();
        (0..self.nodes.len()).all(|master| self.conns.iter().any(|conn| conn.master == master && is_used(conn)))
    }

    /// Whether a release in this session need not wait for a connection, nor for a server that may not know the script.
    fn is_ready(&self, session: usize) -> bool {
        let compares = |conn: &Conn| matches!(self.nodes[conn.master].master.kind, Kind::Redis8 | Kind::Valkey9);
        // Those of a session that is not shared come one after another, and so do their answers.
        let is_answered = |conn: &Conn| !conn.released.is_empty() && conn.answered.len() > conn.released.len();
        let is_shared = self.clients[self.seats[session].client].plan.sharing == Sharing::Loop;
        let mut conns = self.conns.iter().filter(|conn| conn.session == session && conn.is_held);
        self.is_linked(session) && conns.all(|conn| compares(conn) || (!is_shared && is_answered(conn)))
    }

    /// What `op` locked is about to be unlocked in `session`.
    pub fn note_unlocking(&mut self, op: usize, session: usize) {
        self.oracle.ops[op].is_linked = self.is_ready(session);
    }

    /// The unlock of what `op` locked begins.
    pub fn restart_operation(&mut self, op: usize, bound: Nanos) {
        let (now, client) = (self.now(), self.oracle.ops[op].client);
        let (began_local, paused_before) = (self.clients[client].clock.steady(), self.clients[client].paused_in_all);
        let entry = &mut self.oracle.ops[op];
        (entry.began, entry.began_local, entry.paused_before, entry.bound) = (now, began_local, paused_before, bound);
        let worker = entry.worker;
        self.stir(op);
        self.say(|| format!("worker {worker} unlocks, op {op}"));
    }

    /// The caller has given up: its answer comes when what it may have taken is released.
    pub fn note_cancelled(&mut self, op: usize) {
        let release_bound = self.release_bound();
        let entry = &mut self.oracle.ops[op];
        let clock = &self.clients[entry.client].clock;
        entry.is_cancelled = true;
        entry.bound = entry.bound.min(clock.steady() - entry.began_local + release_bound);
    }

    fn check_deadline(&mut self, op: usize) {
        let Op { worker, began_local, paused_before, bound, .. } = self.oracle.ops[op];
        self.check_duration(worker, began_local, paused_before, bound, "an operation");
    }

    pub fn check_duration(&mut self, worker: usize, began: Nanos, paused_before: Nanos, bound: Nanos, what: &str) {
        let client = &self.clients[self.workers[worker].client];
        let took = client.clock.steady() - began;
        let paused = (client.paused_in_all - paused_before) / 100 * 101;
        if took > bound + paused + MS {
            let what = format!("{what} of worker {worker} took {} ms of {} ms", took / MS, (bound + paused) / MS);
            self.violation(Rule::Overdue, &what);
        }
    }

    /// The engine wrote a command.
    pub fn note_written(&mut self, conn: usize, request: &Request) {
        if let Some((resource, key, ttl_ms)) = taking(request) {
            return self.note_set(conn, resource, key, ttl_ms);
        }
        if let Some(key) = extending(request) {
            return self.note_extending(conn, key);
        }
        let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
        let ([b"DELIFEQ", resource, key]
        | [b"DELEX", resource, _, key]
        | [b"EVAL" | b"EVALSHA", _, b"1", resource, key]) = *words
        else {
            return;
        };
        if !self.undoes_retake(conn, resource, key) {
            self.check_overtaken(conn, resource, key);
        }
        self.conns[conn].released.push((resource.to_vec(), key.to_vec()));
        self.oracle.releases.push((conn, key.to_vec()));
    }

    fn check_overtaken(&mut self, conn: usize, resource: &[u8], key: &[u8]) {
        // Of several connections that it was sent on, each carries a release behind it.
        let is = |(name, done): &(Vec<u8>, Vec<u8>)| name == resource && done == key;
        let here = &self.conns[conn];
        if here.set.iter().any(is) && !here.answered.iter().any(is) {
            return;
        }
        let there = |here: &Conn| (here.client, here.master);
        let slower = self.oracle.attempts.get(key).into_iter().flat_map(|attempt| &attempt.conns).find(|&&other| {
            let here = &self.conns[other];
            other != conn
                && there(here) == there(&self.conns[conn])
                && here.set.iter().any(is)
                && here.is_held
                && !self.is_held_back(other)
                && !open(&here.wire).is_over()
                && !here.answered.iter().chain(&here.released).any(|(name, done)| name == resource && done == key)
        });
        if let Some(&other) = slower {
            let what = format!("SET {} on connection {other}, by its release on {conn}", key.escape_ascii());
            self.violation(Rule::Overtaken, &what);
        }
    }

    fn note_set(&mut self, conn: usize, resource: &[u8], key: &[u8], ttl_ms: u64) {
        let session = self.conns[conn].session;
        if !self.oracle.attempts.contains_key(key) {
            self.begin_attempt(conn, self.oracle.owner(session, resource, ttl_ms), key);
        }
        let turn = self.seats[session].turns;
        let attempt = self.oracle.attempts.get_mut(key).unwrap();
        attempt.conns.push(conn);
        let (op, granted) = (attempt.op, attempt.granted);
        let is_after = |(at, decided)| at != session || decided < turn;
        let late = attempt.decided.is_some_and(is_after) && !self.is_held_back(conn);
        self.conns[conn].set.push((resource.to_vec(), key.to_vec()));
        let is_given_up = self.is_given_up(op);
        if late && !(granted && self.may_retake(op) && !is_given_up) {
            let rule = match granted {
                true if is_given_up => Rule::GoesOn,
                true => Rule::Revived,
                false => Rule::TooLate,
            };
            self.violation(rule, &format!("SET {} on connection {conn}", key.escape_ascii()));
        } else if late && ttl_ms > self.left_of(op) {
            let what = format!("SET {} for {ttl_ms} ms on connection {conn}", key.escape_ascii());
            self.violation(Rule::Overlong, &what);
        }
    }

    /// A new key: the attempt before it came to nothing.
    fn begin_attempt(&mut self, conn: usize, op: usize, key: &[u8]) {
        let attempt = Attempt { op, began: self.now(), ..Attempt::default() };
        self.oracle.attempts.insert(key.to_vec(), attempt);
        if op == usize::MAX {
            if !self.is_held_back(conn) {
                self.violation(Rule::TooLate, &format!("SET {} for nobody", key.escape_ascii()));
            }
            return;
        }
        self.check_wait(op);
        self.oracle.ops[op].last_tried = self.now();
        let keys = &mut self.oracle.ops[op].keys;
        let before = keys.last().cloned();
        keys.push(key.to_vec());
        if let Some(before) = before {
            self.note_failed(before);
        }
    }

    fn note_failed(&mut self, key: Vec<u8>) {
        let at = self.now() + 12 * self.plan.longest_delay();
        self.schedule(at, Event::LookForKey { key: key.clone() });
        let at = self.now() + SECOND + 2 * self.completion_bound();
        self.schedule(at, Event::LookForRelease { key: key.clone() });
        self.oracle.failed.insert(key);
    }

    /// After a turn: what was decided in it, and whether what came to nothing is being cleaned up.
    pub fn end_turn(&mut self, session: usize) {
        let turn = self.seats[session].turns;
        let releases = std::mem::take(&mut self.oracle.releases);
        let failed = std::mem::take(&mut self.oracle.failed);
        // A release just before the connection is given up says nothing of the round.
        let decided = releases.into_iter().filter(|(conn, _)| self.conns[*conn].is_held).map(|(_, key)| key);
        for key in decided.chain(failed.iter().cloned()) {
            if let Some(attempt) = self.oracle.attempts.get_mut(&key) {
                attempt.decided.get_or_insert((session, turn));
            }
        }
        for key in &failed {
            self.check_followed(key);
        }
    }

    fn check_followed(&mut self, key: &[u8]) {
        for conn in self.oracle.attempts[key].conns.clone() {
            let here = &self.conns[conn];
            let could = here.is_held && !open(&here.wire).is_over() && !self.is_held_back(conn);
            let is_followed = |taken: &Taken| taken.1 != key || here.released.contains(taken);
            if could && !here.set.iter().all(is_followed) {
                self.violation(Rule::NotFollowed, &format!("SET {} on connection {conn}", key.escape_ascii()));
            }
        }
    }

    /// Whether its send buffer is so small, or was so full, that what is decided may be written only much later, or never.
    pub fn is_held_back(&self, conn: usize) -> bool {
        self.plan.is_crowded() || open(&self.conns[conn].wire).was_full
    }

    /// The engine closes a connection: what is unanswered on it must be followed by its release.
    pub fn check_hang_up(&mut self, conn: usize) {
        let here = &self.conns[conn];
        if self.is_held_back(conn) || open(&here.wire).is_over() {
            return;
        }
        let count = |list: &[Taken], taken: &Taken| list.iter().filter(|one| *one == taken).count();
        let is_answered = |taken: &Taken| count(&here.answered, taken) >= count(&here.set, taken);
        // Found by an extension over another connection: its holder relies on that.
        let is_counted = |(resource, key): &Taken| {
            let facts = |attempt: &Attempt| {
                attempt.facts.get(&(here.master, resource.clone())).is_some_and(|facts| facts.extended)
            };
            self.oracle.attempts.get(key).is_some_and(facts)
        };
        let is_left = |taken: &&Taken| !is_answered(taken) && !here.released.contains(taken) && !is_counted(taken);
        let left = here.set.iter().find(is_left);
        if let Some((_, key)) = left {
            let what = format!("SET {} on connection {conn}, given up", key.escape_ascii());
            self.violation(Rule::NotFollowed, &what);
        }
    }

    /// A master carried out a command.
    pub fn note_done(&mut self, conn: usize, did: &Did) {
        let master = self.conns[conn].master;
        let (resource, key, note): (_, _, fn(&mut Facts)) = match did {
            Did::Set { resource, key, granted: true, ttl_ms } => {
                self.note_kept(master, resource, key, *ttl_ms);
                (resource, key, |facts| facts.granted = true)
            }
            Did::Set { resource, key, granted: false, .. } => (resource, key, |facts| facts.refused = true),
            Did::Got { resource, value: Some(key) } => (resource, key, |facts| facts.shown = true),
            Did::Extended { resource, key, found: Some(found), ttl_ms } if found == key => {
                self.note_kept(master, resource, key, *ttl_ms);
                (resource, key, |facts| facts.extended = true)
            }
            Did::Extended { resource, key, found: Some(_), .. } => (resource, key, |facts| facts.taken = true),
            Did::Extended { resource, key, found: None, .. } => (resource, key, |facts| facts.not_there = true),
            Did::Released { resource, key, gone: true } => {
                self.oracle.busy.insert((master, resource.clone()), self.now());
                (resource, key, |facts| facts.released = true)
            }
            Did::Released { resource, key, gone: false } => (resource, key, |facts| facts.absent = true),
            Did::Got { value: None, .. } | Did::Refused | Did::Other => return,
        };
        if let Some(attempt) = self.oracle.attempts.get_mut(key) {
            note(attempt.facts.entry((master, resource.clone())).or_default());
        }
    }

    /// A master keeps a key from now on, for as long as it was told.
    fn note_kept(&mut self, master: usize, resource: &[u8], key: &[u8], ttl_ms: u64) {
        // The slowest clock there is, and 2 ms for its milliseconds.
        let at = self.now() + ttl_ms * MS / 1000 * 1006 + 2 * MS;
        self.oracle.due.insert((master, resource.to_vec(), key.to_vec()), at);
        self.oracle.busy.insert((master, resource.to_vec()), at);
        self.schedule(at, Event::Outlived { master, resource: resource.to_vec(), key: key.to_vec() });
    }

    pub fn check_outlived(&mut self, master: usize, resource: &[u8], key: &[u8]) {
        let is_due = self.oracle.due[&(master, resource.to_vec(), key.to_vec())] <= self.now();
        if is_due && self.nodes[master].master.holder(resource) == Some(key) {
            self.violation(Rule::Outlived, &format!("{} on master {master}", key.escape_ascii()));
        }
    }

    /// A lock was granted: somebody believes in it from now on.
    pub fn note_granted(&mut self, op: usize, held: &Held, lease: &Arc<SharedLease>) {
        let key = &held.claim.key;
        self.remember(&(op, held.validity_ms, key));
        self.say(|| format!("op {op}: GRANTED {} for {} ms", key.escape_ascii(), held.validity_ms));
        self.oracle.grants += 1;
        let entry = &mut self.oracle.ops[op];
        entry.is_waiting = false;
        self.oracle.contended += u64::from(entry.is_contended);
        self.check_turn(op);
        self.stir(op);
        self.check_deadline(op);
        self.check_votes(op, key, &held.votes);
        self.check_at_once(op, true);
        self.check_token(op, held.token);
        if let Some(attempt) = self.oracle.attempts.get_mut(key) {
            attempt.granted = true;
            let session = self.oracle.ops[op].session;
            attempt.decided.get_or_insert((session, self.seats[session].turns));
        }
        self.check_validity(op, held.validity_ms, held.expires_at);
        self.schedule(self.now(), Event::LookForLock { op, lacking: Vec::new() });
        self.begin_belief(op, lease);
    }

    /// The client of `op` believes to hold its lock for as long as its lease says.
    pub fn begin_belief(&mut self, op: usize, lease: &Arc<SharedLease>) {
        let (lease, key) = (Arc::clone(lease), lease.claim().key.clone());
        let Op { client, ref resources, .. } = self.oracle.ops[op];
        let resources = resources.clone();
        if self.was_deleted(&resources, &key) {
            return;
        }
        let rivals = |other: &&Belief| other.resources.iter().any(|resource| resources.contains(resource));
        let rival = self.oracle.beliefs.iter().filter(rivals).find(|other| self.believes(other));
        if let Some(rival) = rival {
            let what = format!("clients {} and {client} hold what op {op} wanted", rival.client);
            self.violation(Rule::TwoHolders, &what);
        }
        self.oracle.beliefs.push(Belief { client, op, resources, key, lease, safe_until: 0, changes: 0 });
    }

    pub fn check_validity(&mut self, op: usize, validity_ms: u64, expires_at: Instant) {
        let clock = &self.clients[self.oracle.ops[op].client].clock;
        let left = expires_at.since_zero().saturating_sub(Duration::from_nanos(clock.shown()));
        if Duration::from_millis(validity_ms) > left {
            self.violation(Rule::Overstated, &format!("op {op}: {validity_ms} ms, with {left:?} left"));
        }
    }

    fn check_token(&mut self, op: usize, token: Option<Token>) {
        let number = token.map(|token| token.number);
        self.remember(&number);
        self.oracle.tokens += u64::from(token.is_some());
        self.oracle.tokens_at_once += u64::from(token.is_some_and(|token| token.at_once));
        let resources = self.oracle.ops[op].resources.clone();
        let last = resources.iter().filter_map(|resource| self.oracle.greatest.get(resource)).max();
        let last = last.copied().unwrap_or(0);
        if token.is_some() != self.oracle.ops[op].fenced || number.is_some_and(|number| number <= last) {
            self.violation(Rule::TokenOrder, &format!("op {op}: {token:?} after {last}"));
        }
        for resource in resources {
            let greatest = self.oracle.greatest.entry(resource).or_default();
            *greatest = (*greatest).max(number.unwrap_or(0));
        }
    }

    /// A lock was not granted.
    pub fn note_refused(&mut self, op: usize, votes: &[Vote]) {
        self.remember(&(op, votes.len()));
        self.say(|| format!("op {op}: refused {votes:?}"));
        self.check_wait(op);
        self.oracle.ops[op].is_waiting = false;
        self.check_deadline(op);
        self.check_asked(op, votes);
        if let Some(key) = self.oracle.ops[op].keys.last().cloned() {
            // With small send buffers the key of the last try may not have been written to the end; where a timeout cut
            // that try short, the votes are of the one before.
            let session = self.oracle.ops[op].session;
            let is_held_back = |conn: usize| self.conns[conn].session == session && self.is_held_back(conn);
            if !(0..self.conns.len()).any(is_held_back) && self.plan.timeout.is_none() {
                self.check_votes(op, &key, votes);
            }
            self.note_failed(key);
        }
        self.check_at_once(op, false);
        self.end_operation(op);
    }

    /// A caller that is refused, and by no rival, has asked a quorum of masters if as many were well and near enough.
    fn check_asked(&mut self, op: usize, votes: &[Vote]) {
        let (entry, quorum) = (&self.oracle.ops[op], quorum::majority(self.nodes.len()));
        let client = &self.clients[entry.client];
        let paused = client.paused_in_all > entry.paused_before || client.paused_at >= entry.began;
        let enough = 16 * self.plan.longest_delay();
        let had_time = entry.ttl_ms * MS / 2 > enough && self.plan.timeout.is_none_or(|timeout| timeout > enough);
        if entry.is_cancelled
            || paused
            || !had_time
            || self.plan.broken.is_some()
            || votes.contains(&Ok(Grant::Refused))
        {
            return;
        }
        let conns =
            entry.keys.iter().filter_map(|key| self.oracle.attempts.get(key)).flat_map(|attempt| &attempt.conns);
        let asked: BTreeSet<usize> = conns.map(|&conn| self.conns[conn].master).collect();
        let well = (0..votes.len()).filter(|&master| self.was_within_reach(entry.client, master, entry.began)).count();
        if well >= quorum && asked.len() < quorum {
            let what = format!("op {op} asked {asked:?}, and {well} masters were well: {votes:?}");
            self.violation(Rule::RefusedUnasked, &what);
        }
    }

    /// A lock was given back.
    pub fn note_unlocked(&mut self, op: usize, key: &[u8], answers: &[Answer]) {
        self.remember(&(op, answers.len()));
        self.say(|| format!("op {op}: unlocked {answers:?}"));
        self.check_deadline(op);
        self.check_held_up(op);
        for (master, answer) in answers.iter().enumerate() {
            if !self.oracle.attempts.contains_key(key) {
                continue;
            }
            let facts = self.facts_of(op, key, master);
            let is_true = match answer {
                Ok(Release::Released) => facts.iter().all(|facts| facts.released),
                Ok(Release::Absent) => facts.iter().any(|facts| facts.absent),
                Err(error) => !is_foreign(error),
            };
            if !is_true {
                let what = format!("master {master} is said to answer a release with {answer:?}: {facts:?}");
                self.violation(Rule::WrongReply, &what);
            }
        }
        self.end_operation(op);
        // What its caller did not wait for is left to the driver.
        let is_left = answers.iter().any(Result::is_err);
        let at = self.now() + if is_left { self.time_to_tidy() } else { 12 * self.plan.longest_delay() };
        self.schedule(at, Event::LookForKey { key: key.to_vec() });
        // Nor does it come back.
        self.schedule(at + self.plan.ttl_ms * MS / 2, Event::LookForKey { key: key.to_vec() });
        let at = self.now() + SECOND + 2 * self.completion_bound();
        self.schedule(at, Event::LookForRelease { key: key.to_vec() });
    }

    /// A quorum that is well and near confirms a release at once. That of a lease may wait for an extension, and any for a
    /// connection over which it can be sent.
    fn check_held_up(&mut self, op: usize) {
        let entry = &self.oracle.ops[op];
        let client = &self.clients[entry.client];
        let paused = client.paused_in_all > entry.paused_before || client.paused_at >= entry.began;
        if paused
            || self.plan.broken.is_some()
            || self.plan.late_per_mille > 0
            || self.lateness() > 0
            || self.is_extended(op)
            || !entry.is_linked
        {
            return;
        }
        let near = (0..self.nodes.len()).filter(|&master| self.was_within_reach(entry.client, master, entry.began));
        let (near, took) = (near.count(), self.now() - entry.began);
        if near >= quorum::majority(self.nodes.len()) && took > 16 * self.plan.longest_delay() {
            self.violation(Rule::HeldUp, &format!("op {op}: a release took {} µs, and {near} are near", took / 1000));
        }
    }

    /// How soon a master gets a lock that was not there when it was granted: the pause before it is tried again, and a
    /// connection.
    fn completion_bound(&self) -> Nanos {
        SECOND + 200 * MS + 16 * self.plan.longest_delay()
    }

    /// A lock that its holder believes in is on every master that has been within reach for long enough, unless another
    /// has it there. `lacking` is how often in a row it was found missing on each.
    pub fn look_for_lock(&mut self, op: usize, mut lacking: Vec<usize>) {
        let Some(belief) = self.oracle.beliefs.iter().find(|belief| belief.op == op) else { return };
        let (client, resources, key) = (belief.client, belief.resources.clone(), belief.key.clone());
        let bound = self.completion_bound();
        let since = self.now().saturating_sub(bound);
        let was_away = self.was_away(client, since);
        lacking.resize(self.nodes.len(), 0);
        for (master, times) in lacking.iter_mut().enumerate() {
            let node = &self.nodes[master].master;
            let is_missing = resources.iter().any(|resource| node.holder(resource).is_none())
                && !was_away
                && self.was_within_reach(client, master, since)
                && !self.is_excused(op, &key, master);
            *times = if is_missing { *times + 1 } else { 0 };
        }
        // A thread that is scheduled late may be so again and again.
        if self.plan.broken.is_none()
            && !self.plan.sleeps()
            && self.lateness() == 0
            && let Some(master) = lacking.iter().position(|&times| times > LOOKS)
        {
            self.violation(Rule::Incomplete, &format!("op {op}: {} is not on master {master}", key.escape_ascii()));
        }
        let at = self.now() + bound / LOOKS as Nanos;
        self.schedule(at, Event::LookForLock { op, lacking });
    }

    /// Whether a lock may be missing at a master that is well. An answer that comes after the grant is read when the
    /// session is used again; and a connection that is given up carries the release of what is unanswered on it.
    fn is_excused(&self, op: usize, key: &[u8], master: usize) -> bool {
        let sent = self.oracle.attempts.get(key).into_iter().flat_map(|attempt| &attempt.conns);
        let of_idle = |conn: &Conn| conn.master == master && !self.seats[conn.session].attended;
        // Where a lock that is extended late had run out, it stays away if its deadline was not known.
        let is_kept = self.is_kept(op);
        sent.map(|&conn| &self.conns[conn]).any(of_idle)
            || self.facts_of(op, key, master).iter().any(|facts| facts.released || facts.not_there && !is_kept)
    }

    /// What a master really did with a key, for each of its resources.
    pub fn facts_of(&self, op: usize, key: &[u8], master: usize) -> Vec<Facts> {
        let facts = self.oracle.attempts.get(key).map(|attempt| &attempt.facts);
        let fact = |resource: &Vec<u8>| facts?.get(&(master, resource.clone())).cloned();
        self.oracle.ops[op].resources.iter().map(|resource| fact(resource).unwrap_or_default()).collect()
    }

    /// Which masters have carried out the `SET` of all resources with this key.
    pub fn masters_set(&self, op: usize, key: &[u8]) -> Vec<bool> {
        (0..self.nodes.len()).map(|master| self.facts_of(op, key, master).iter().all(|facts| facts.granted)).collect()
    }

    /// How many masters have all resources with this key.
    pub fn masters_with(&self, resources: &[Vec<u8>], key: &[u8]) -> usize {
        let has = |node: &super::world::Node, resource: &Vec<u8>| node.master.holder(resource) == Some(key);
        self.nodes.iter().filter(|node| resources.iter().all(|resource| has(node, resource))).count()
    }

    /// Until when each master that has all resources with this key keeps them.
    fn ends_at_masters(&self, resources: &[Vec<u8>], key: &[u8]) -> Vec<Nanos> {
        let end = |node: &super::world::Node, resource: &Vec<u8>| {
            (node.master.holder(resource) == Some(key)).then(|| node.master.held_until(resource)).flatten()
        };
        let first_end = |node| resources.iter().map(|resource| end(node, resource).unwrap_or(0)).min().unwrap_or(0);
        self.nodes.iter().map(first_end).filter(|&end| end > 0).collect()
    }

    fn end_operation(&mut self, op: usize) {
        let now = self.now();
        let entry = &mut self.oracle.ops[op];
        (entry.is_running, entry.last_tried) = (false, now);
        for resource in &entry.resources {
            self.oracle.quiet_since.insert(resource.clone(), now);
        }
    }

    fn check_votes(&mut self, op: usize, key: &[u8], votes: &[Vote]) {
        for (master, vote) in votes.iter().enumerate() {
            let facts = self.facts_of(op, key, master);
            let is_true = match vote {
                Ok(Grant::Granted) => facts.iter().all(|facts| facts.granted),
                Ok(Grant::Refused) => facts.iter().any(|facts| facts.refused),
                Err(error) => !is_foreign(error),
            };
            if !is_true {
                self.violation(Rule::WrongReply, &format!("master {master} is said to vote {vote:?}: {facts:?}"));
            }
        }
    }

    /// One round trip on connections that are there; a few more for those to be made.
    fn check_at_once(&mut self, op: usize, granted: bool) {
        let entry = &self.oracle.ops[op];
        let longest = self.plan.longest_delay();
        // A token may take another wait of the same length, and a second round with a script not sent before.
        let for_token = if entry.fenced { 3 } else { 0 };
        let round_trips = for_token + if entry.is_linked { 1 } else { 7 };
        if entry.is_contended || !self.is_quick(entry.ttl_ms) {
            return;
        }
        let took = self.now() - entry.began;
        if !granted || entry.keys.len() != 1 || took > round_trips * 2 * longest {
            let what = format!("op {op}: granted {granted}, {} tries, {} µs", entry.keys.len(), took / 1000);
            self.violation(Rule::NotAtOnce, &what);
        }
    }

    fn believes(&self, belief: &Belief) -> bool {
        // Who is stopped between looking and acting acts on what it saw.
        let blind = self.plan.broken == Some(Broken::ActsBlindly) && self.is_paused(belief.client);
        belief.lease.with(|state| state.remaining(self.shown(belief.client))) > Duration::ZERO || blind
    }

    /// An operator deletes a lock: a client that had it, or was about to, believes in it in vain.
    pub fn note_deleted(&mut self, resource: Vec<u8>) {
        self.oracle.beliefs.retain(|belief| !belief.resources.contains(&resource));
        let waits = |op: &Op| op.is_waiting && op.resources.contains(&resource);
        // All of them try at once, and each that fails wakes the others.
        let count = self.oracle.ops.iter().filter(|op| waits(op)).count() as u64;
        self.oracle.ops.iter_mut().filter(|op| waits(op)).for_each(|op| op.stirred += count);
        self.oracle.deleted.insert(resource, self.now());
    }

    fn was_deleted(&self, resources: &[Vec<u8>], key: &[u8]) -> bool {
        let deleted = resources.iter().filter_map(|resource| self.oracle.deleted.get(resource)).max();
        let began = self.oracle.attempts.get(key).map(|attempt| attempt.began);
        deleted.is_some_and(|&deleted| began.is_none_or(|began| began <= deleted))
    }

    pub fn end_belief(&mut self, key: &[u8]) {
        self.oracle.beliefs.retain(|belief| belief.key != key);
    }

    /// On every step: whoever believes has a quorum.
    pub fn check_beliefs(&mut self) {
        if self.oracle.beliefs.is_empty() {
            return;
        }
        let mut beliefs = std::mem::take(&mut self.oracle.beliefs);
        for belief in beliefs.extract_if(.., |belief| !self.believes(belief)).collect::<Vec<_>>() {
            if !self.was_told(belief.op) {
                self.check_told(belief.op);
            }
        }
        let (now, changes, quorum) = (self.now(), self.oracle.changes, quorum::majority(self.nodes.len()));
        for belief in beliefs.iter_mut().filter(|belief| belief.changes != changes || now >= belief.safe_until) {
            let mut ends = self.ends_at_masters(&belief.resources, &belief.key);
            let count = ends.len();
            ends.sort_unstable();
            (belief.changes, belief.safe_until) = (changes, if count < quorum { 0 } else { ends[count - quorum] });
            if count < quorum && self.plan.broken.is_none() {
                let what = format!("client {} has {} on {count} masters", belief.client, belief.key.escape_ascii());
                self.violation(Rule::NoQuorum, &what);
            }
        }
        self.oracle.beliefs = beliefs;
    }

    pub fn look_for_key(&mut self, key: &[u8]) {
        let Some(attempt) = self.oracle.attempts.get(key) else { return };
        let Some(op) = self.oracle.ops.get(attempt.op) else { return };
        let (client, resources, began) = (op.client, op.resources.clone(), attempt.began);
        if self.was_released_late(attempt.op) {
            return;
        }
        // What its caller did not wait for is seen to by a client that runs.
        let paused_until = self.clients[client].paused_until;
        let tidy_at = paused_until + self.time_to_tidy();
        if paused_until > began && tidy_at > self.now() {
            return self.schedule(tidy_at, Event::LookForKey { key: key.to_vec() });
        }
        // A slow network may still carry what was written long before.
        let sent = attempt.conns.iter().map(|&conn| self.conns[conn].last_up).max().unwrap_or(0);
        if sent >= self.now() {
            return self.schedule(sent + 1, Event::LookForKey { key: key.to_vec() });
        }
        for master in 0..self.nodes.len() {
            let is_there = |resource: &Vec<u8>| self.nodes[master].master.holder(resource) == Some(key);
            let there = resources.iter().any(is_there);
            if there && self.was_within_reach(client, master, began) {
                self.violation(Rule::LeftBehind, &format!("{} on master {master}", key.escape_ascii()));
            }
        }
    }

    /// How long it may take until a release is sent again to a master within reach.
    fn time_to_tidy(&self) -> Nanos {
        12 * self.plan.longest_delay() + self.lateness() + 100 * MS
    }

    /// A release that a master did not confirm, since its connection died, is sent there once more.
    pub fn look_for_release(&mut self, key: &[u8]) {
        let Some(op) = self.oracle.attempts.get(key).and_then(|attempt| self.oracle.ops.get(attempt.op)) else {
            return;
        };
        let (client, resources) = (op.client, op.resources.clone());
        let since = self.now().saturating_sub(self.completion_bound());
        if self.was_away(client, since) || self.plan.broken.is_some() || self.plan.sleeps() || self.lateness() > 0 {
            return;
        }
        for master in 0..self.nodes.len() {
            let is_there = |resource: &Vec<u8>| self.nodes[master].master.holder(resource) == Some(key);
            if resources.iter().any(is_there) && self.was_within_reach(client, master, since) {
                self.violation(Rule::LeftBehind, &format!("{} on master {master} for long", key.escape_ascii()));
            }
        }
    }

    /// Whether a client did not run for some time since then, or shortly before.
    fn was_away(&self, client: usize, since: Nanos) -> bool {
        self.is_paused(client) || self.clients[client].paused_at > since.saturating_sub(self.completion_bound())
    }

    /// Whether nothing had troubled the two since well before `since`, and a connection between them can be made at all.
    pub fn was_within_reach(&self, client: usize, master: usize, since: Nanos) -> bool {
        let faulty = |conn: &Conn| {
            let is_faulty = conn.is_held && conn.is_faulty || open(&conn.wire).was_full;
            conn.client == client && conn.master == master && is_faulty
        };
        let trouble = self.trouble[client][master];
        let undisturbed = trouble == 0 || trouble + SECOND < since;
        undisturbed && self.plan.is_patient() && !self.plan.is_crowded() && !self.conns.iter().any(faulty)
    }

    /// At the end of the world.
    pub fn check_all_ended(&mut self) {
        let running = self.oracle.ops.iter().position(|op| op.is_running);
        if let Some(op) = running {
            self.violation(Rule::Overdue, &format!("op {op} never ended"));
        }
        if self.plan.is_distant && self.oracle.grants == 0 && self.oracle.operations() > 0 {
            self.violation(Rule::OutOfReach, "no lock was granted in all this time");
        }
        if !self.extensions.is_empty() {
            self.violation(Rule::Overdue, "an extension never ended");
        }
    }
}

/// No master here answers like that: it was the answer to something else.
pub fn is_foreign(error: &Error) -> bool {
    error.to_string().starts_with("unexpected reply")
}

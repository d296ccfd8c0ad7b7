//! The callers: lock, work, unlock, again and again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::RngExt;
use rand::seq::SliceRandom;
use redlock::claim::Claim;
use redlock::engine::acquire::{Held, Request, Vote, acquire};
use redlock::engine::release::{Answer, release};
use redlock::engine::renew::{Waits, release_lease};
use redlock::host::pool::{self, Idle};
use redlock::quorum;
use tokio::sync::oneshot;

use super::extending::Hold;
use super::leases::drift_ms;
use super::plan::{Sharing, log_uniform, resources};
use super::time::{MS, Nanos};
use super::world::{Event, World};

/// One caller: a thread or a task of a client.
pub struct Worker {
    pub client: usize,
    number: usize,
    /// The session it always uses, unless it takes one from the pool.
    pub session: Option<usize>,
    pub doing: Doing,
}

/// What a caller is doing; operations by their index in the oracle's books.
pub enum Doing {
    Resting,
    Locking {
        op: usize,
        session: usize,
        result: oneshot::Receiver<Result<Held, Vec<Vote>>>,
        cancel: Option<oneshot::Sender<()>>,
    },
    Holding(Hold),
    Unlocking {
        op: usize,
        session: usize,
        claim: Arc<Claim>,
        late_before: Nanos,
        result: oneshot::Receiver<Option<Vec<Answer>>>,
    },
}

/// The sessions of one client that nobody works on.
struct IdleOf<'a> {
    world: &'a mut World,
    client: usize,
}

impl IdleOf<'_> {
    fn seat(&self, index: usize) -> usize {
        self.world.clients[self.client].idle[index]
    }
}

impl Idle for IdleOf<'_> {
    fn count(&self) -> usize {
        self.world.clients[self.client].idle.len()
    }

    fn awaits(&self, index: usize, key: Option<&[u8]>) -> bool {
        self.world.seats[self.seat(index)].session.awaits(key)
    }

    fn catch_up(&mut self, index: usize) {
        let session = self.seat(index);
        self.world.attend(session);
        self.world.leave(session);
    }
}

impl World {
    pub fn add_worker(&mut self, client: usize, number: usize, session: Option<usize>) {
        let session = match self.clients[client].plan.sharing {
            Sharing::Own => Some(self.new_session(client)),
            Sharing::Loop | Sharing::Pool => session,
        };
        let worker = self.workers.len();
        self.workers.push(Worker { client, number, session, doing: Doing::Resting });
        self.rest(worker);
    }

    pub fn rest(&mut self, worker: usize) {
        let at = self.now() + log_uniform(&mut self.random, self.plan.rest, self.plan.ttl_ms * MS / 2);
        self.schedule(at, Event::Step { worker });
    }

    /// A worker goes on, unless its process is stopped.
    pub fn step(&mut self, worker: usize) {
        let client = self.workers[worker].client;
        if self.is_paused(client) {
            let until = self.clients[client].paused_until;
            return self.schedule(until, Event::Step { worker });
        }
        match std::mem::replace(&mut self.workers[worker].doing, Doing::Resting) {
            Doing::Resting if self.may_begin() => self.begin_lock(worker),
            Doing::Holding(hold) => self.finish(worker, hold),
            other => self.workers[worker].doing = other,
        }
    }

    fn may_begin(&self) -> bool {
        self.now() < self.plan.end && self.oracle.operations() < self.plan.operations
    }

    fn begin_lock(&mut self, worker: usize) {
        let session = self.take_session(worker, None);
        // The TTL tells the callers of one session apart, for a SET says nothing else of who wanted it.
        let ttl_ms = self.plan.ttl_ms / 8 * 8 + self.workers[worker].number as u64;
        let request = Request {
            resources: self.draw_resources(),
            ttl_ms,
            drift_ms: drift_ms(ttl_ms),
            quorum: quorum::majority(self.nodes.len()),
            tries: self.plan.tries,
            retry_delay: Duration::from_nanos(self.plan.retry_delay),
            timeout: self.plan.timeout.map(Duration::from_nanos),
            script: Arc::default(),
            key: None,
            fencing: self.random.random_bool(self.plan.fenced),
            rounds: Arc::default(),
        };
        let op = self.begin_operation(worker, session, &request, self.lock_bound(ttl_ms));
        let (cancel, cancelled) = oneshot::channel();
        let result = self.seats[session]
            .session
            .start(move |masters| async move { acquire(&masters, &request, cancelled.fuse()).await });
        self.workers[worker].doing = Doing::Locking { op, session, result, cancel: Some(cancel) };
        self.dirty.insert(session);
        if self.random.random_bool(self.plan.cancels) && !self.is_calm() {
            let at = self.now() + log_uniform(&mut self.random, 1000, 2000 * MS);
            self.schedule(at, Event::Cancel { worker, op });
        }
    }

    /// One, or several in an order that is nobody else's.
    fn draw_resources(&mut self) -> Vec<Vec<u8>> {
        let mut names = resources(self.plan.resources);
        names.shuffle(&mut self.random);
        let several = self.random.random_bool(self.plan.several);
        names.truncate(if several { 3 } else { 1 });
        names
    }

    pub fn begin_unlock(&mut self, worker: usize, hold: &Hold) {
        let (op, lease, claim) = (hold.op, Arc::clone(&hold.lease), Arc::clone(hold.lease.claim()));
        self.end_belief(&claim.key);
        let session = self.take_session(worker, Some(&claim.key));
        self.restart_operation(op, if hold.is_plain { self.release_bound() } else { self.lease_bound() });
        self.note_unlocking(op, session);
        if hold.is_plain {
            self.note_plain_release(op);
        }
        // A plain lock is known by its key alone.
        let released = Claim::of_key(claim.resources.clone(), claim.key.clone(), Arc::clone(&claim.script));
        let (seat, released) = (&self.seats[session].session, Arc::new(released));
        let result = if hold.is_plain {
            seat.start(move |masters| async move { Some(release(&masters, &released).await) })
        } else {
            seat.start(move |masters| async move { release_lease(&masters, &lease, Waits::ForTurn).await })
        };
        let late_before = self.late_in_all(self.workers[worker].client);
        self.workers[worker].doing = Doing::Unlocking { op, session, claim, late_before, result };
        self.dirty.insert(session);
    }

    pub fn cancel(&mut self, worker: usize, wanted: usize) {
        if let Doing::Locking { op, session, cancel, .. } = &mut self.workers[worker].doing
            && *op == wanted
            && let Some(cancel) = cancel.take()
        {
            _ = cancel.send(());
            self.dirty.insert(*session);
            self.note_cancelled(wanted);
        }
    }

    /// As the blocking host does: what came in since the last operation comes first.
    pub fn take_session(&mut self, worker: usize, key: Option<&[u8]>) -> usize {
        let Worker { client, session, .. } = self.workers[worker];
        let session = session.or_else(|| self.lend(client, key)).unwrap_or_else(|| self.new_session(client));
        if self.clients[client].plan.sharing == Sharing::Own {
            self.workers[worker].session = Some(session);
        }
        self.attend(session);
        session
    }

    pub fn lend(&mut self, client: usize, key: Option<&[u8]>) -> Option<usize> {
        let index = pool::choose(&mut IdleOf { world: self, client }, key)?;
        Some(self.clients[client].idle.remove(index))
    }

    pub fn attend(&mut self, session: usize) {
        if !self.seats[session].attended {
            self.seats[session].attended = true;
            self.seats[session].session.resume();
            self.turn(session);
        }
    }

    pub fn leave(&mut self, session: usize) {
        self.seats[session].session.leave();
        self.seats[session].attended = false;
    }

    pub fn give_session(&mut self, worker: usize, session: usize) {
        let Worker { client, .. } = self.workers[worker];
        let sharing = self.clients[client].plan.sharing;
        if sharing != Sharing::Loop {
            self.leave(session);
        }
        if sharing == Sharing::Pool {
            self.clients[client].idle.push(session);
        }
    }

    /// Take the results of operations that ended in a turn of `session`.
    pub fn end_operations(&mut self, session: usize) {
        for worker in 0..self.workers.len() {
            match &mut self.workers[worker].doing {
                Doing::Locking { op, session: at, result, .. } if *at == session => {
                    if let (op, Ok(result)) = (*op, result.try_recv()) {
                        self.end_lock(worker, op, session, result);
                    }
                }
                Doing::Unlocking { op, session: at, claim, late_before, result } if *at == session => {
                    if let (op, claim, late, Ok(answers)) = (*op, Arc::clone(claim), *late_before, result.try_recv()) {
                        self.give_session(worker, session);
                        self.end_lease(op, &claim.key, &answers.unwrap_or_default(), late);
                        self.workers[worker].doing = Doing::Resting;
                        self.rest(worker);
                    }
                }
                _ => {}
            }
        }
    }

    fn end_lock(&mut self, worker: usize, op: usize, session: usize, result: Result<Held, Vec<Vote>>) {
        self.give_session(worker, session);
        match result {
            Ok(held) => {
                let lease = self.lease_of(worker, op, &held);
                self.note_granted(op, &held, &lease);
                self.hold(worker, op, &held, lease);
            }
            Err(votes) => {
                self.note_refused(op, &votes);
                self.workers[worker].doing = Doing::Resting;
                self.rest(worker);
            }
        }
    }

    /// At once, or after a while, or when nothing is left of the lock, or later than that.
    pub fn end_of_work(&mut self, worker: usize, until: Nanos) -> Nanos {
        let end = self.clients[self.workers[worker].client].clock.when_steady(until);
        let left = end.saturating_sub(self.now());
        match self.random.random_range(0..10) {
            0..=1 => self.now() + self.random.random_range(0..=left.min(MS)),
            2..=4 => self.now() + left / 4,
            5..=6 => self.now() + left - left / 200,
            7 => end,
            _ => end + left / 2,
        }
    }
}

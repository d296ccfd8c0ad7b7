//! The holders: they extend by hand or have their leases renewed, and what that comes to is checked.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use redlock::claim::Claim;
use redlock::clock::Instant;
use redlock::engine::acquire::Held;
use redlock::engine::extend::{Answer, Extended, Request, extend};
use redlock::engine::renew::{SharedLease, Waits, extend_lease};
use redlock::lease::{Lease, Reason, Ttl};
use redlock::quorum;
use redlock::script::Extension as Said;
use tokio::sync::oneshot;

use super::leases::drift_ms;
use super::oracle::{Rule, is_foreign};
use super::plan::{Sharing, log_uniform};
use super::time::{MS, Nanos, SECOND};
use super::worker::Doing;
use super::world::{Event, World};

/// What a caller does with a lock that it has.
pub struct Hold {
    pub op: usize,
    pub lease: Arc<SharedLease>,
    /// The driver renews it.
    keeps: bool,
    /// It was extended by an operation on a lock that is no lease, and is released by such a one.
    pub is_plain: bool,
    /// It is to be released as soon as its extension has ended.
    leaving: bool,
    /// When the holder looks next whether it has run out; `None` once it knows that it has.
    looks_at: Option<Nanos>,
}

/// An extension by hand that is under way.
pub struct Extension {
    worker: usize,
    pub op: usize,
    ttl: Ttl,
    session: usize,
    claim: Arc<Claim>,
    is_kept: bool,
    pub valid_until: Option<Instant>,
    began_local: Nanos,
    began_shown: Instant,
    paused_before: Nanos,
    late_before: Nanos,
    held_at_start: usize,
    /// Which masters had carried out its `SET` by then: that of another may have been on its way.
    set_at_start: Vec<bool>,
    began: Nanos,
    /// The masters that did not have it when it began, though nothing had been wrong with them for long.
    lost_at: Vec<usize>,
    result: oneshot::Receiver<Ended>,
}

/// How an extension ended: of a lock as such, or of a lease.
enum Ended {
    Plain(Result<Extended, Vec<Answer>>),
    Lease(Result<(), Reason>),
}

impl World {
    /// A lock was granted: work, and extend meanwhile.
    pub fn hold(&mut self, worker: usize, op: usize, held: &Held, lease: Arc<SharedLease>) {
        let keeps = self.random.random_bool(self.plan.keeps);
        let until = self.clients[self.workers[worker].client].clock.steady() + held.validity_ms * MS;
        let mut at = self.end_of_work(worker, until);
        if keeps {
            at = self.now() + log_uniform(&mut self.random, 1, 3 * self.plan.ttl_ms) * MS;
            if let Some(after) = self.renew(op) {
                self.extend_after(worker, op, after);
            }
        } else if self.random.random_bool(self.plan.extends) {
            // Some too late.
            let after = self.random.random_range(0..=self.plan.ttl_ms * MS * 3 / 2);
            self.extend_after(worker, op, after);
            let stays = self.random.random_bool(0.5);
            at = if stays { at.max(self.now() + after + self.plan.ttl_ms * MS / 2) } else { at };
        }
        let expires_at = lease.with(|state| state.expires_at());
        let mut holding = Hold { op, lease, keeps, is_plain: false, leaving: false, looks_at: Some(Nanos::MAX) };
        self.look_by(worker, &mut holding, expires_at);
        self.workers[worker].doing = Doing::Holding(holding);
        self.schedule(at, Event::Step { worker });
    }

    /// Have the holder look by then whether its lock has run out.
    fn look_by(&mut self, worker: usize, hold: &mut Hold, expires_at: Instant) {
        let (at, op) = (self.when_over(worker, expires_at), hold.op);
        if hold.looks_at.is_some_and(|before| at < before) {
            hold.looks_at = Some(at);
            self.schedule(at, Event::Tell { worker, op });
        }
    }

    fn when_over(&self, worker: usize, expires_at: Instant) -> Nanos {
        let shown = Nanos::try_from(expires_at.since_zero().as_nanos()).unwrap();
        self.clients[self.workers[worker].client].clock.when_shown(shown)
    }

    /// The lock of a holder may have run out: it is told. If it has not, it may have been extended.
    pub fn tell(&mut self, worker: usize, op: usize) {
        let client = &self.clients[self.workers[worker].client];
        if self.is_paused(self.workers[worker].client) {
            return self.schedule(client.paused_until, Event::Tell { worker, op });
        }
        let shown = Duration::from_nanos(client.clock.shown());
        let mut doing = std::mem::replace(&mut self.workers[worker].doing, Doing::Resting);
        if let Doing::Holding(hold) = &mut doing
            && hold.op == op
            && hold.looks_at.is_some()
        {
            let expires_at = hold.lease.with(|state| state.expires_at());
            hold.looks_at = Some(Nanos::MAX);
            if expires_at.since_zero() <= shown {
                self.check_slept(worker, hold);
                hold.looks_at = None;
            } else {
                self.look_by(worker, hold, expires_at);
            }
        }
        self.workers[worker].doing = doing;
    }

    /// Whoever has not been told until now that a lock has run out need not have known it for long.
    fn check_slept(&mut self, worker: usize, hold: &Hold) {
        let client = &self.clients[self.workers[worker].client];
        let expires_at = hold.lease.with(|state| state.expires_at());
        let due = self.when_over(worker, expires_at).max(client.paused_at);
        let late = self.now().saturating_sub(due);
        if hold.looks_at.is_some() && late > SECOND + MS {
            self.violation(Rule::SleptThrough, &format!("op {} had run out {} ms before", hold.op, late / MS));
        }
    }

    fn extend_after(&mut self, worker: usize, op: usize, pause: Nanos) {
        let at = self.now() + pause;
        self.schedule(at, Event::Extend { worker, op });
    }

    /// The holder has done its work: it releases, or drops what is renewed. It may be in the middle of an extension, in
    /// another task or thread; the pool makes it wait where the session of that still owes an answer.
    pub fn finish(&mut self, worker: usize, mut hold: Hold) {
        self.check_slept(worker, &hold);
        let own = self.clients[self.workers[worker].client].plan.sharing == Sharing::Own;
        let owes = |session: usize| self.seats[session].session.awaits(Some(&hold.lease.claim().key));
        let mut under_way = self.extensions.iter().filter(|extension| extension.op == hold.op).peekable();
        let is_extending = under_way.peek().is_some();
        let waits = |extension: &Extension| hold.is_plain && extension.valid_until.is_some();
        if under_way.any(|extension| own || waits(extension) || owes(extension.session)) {
            hold.leaving = true;
            self.workers[worker].doing = Doing::Holding(hold);
            return;
        }
        if hold.keeps && !is_extending && self.drops(&hold) {
            self.abandon(worker, &hold);
            return self.rest(worker);
        }
        self.begin_unlock(worker, &hold);
    }

    pub fn step_to_extend(&mut self, worker: usize, op: usize) {
        let client = self.workers[worker].client;
        if self.is_paused(client) {
            let until = self.clients[client].paused_until;
            return self.schedule(until, Event::Extend { worker, op });
        }
        let mut doing = std::mem::replace(&mut self.workers[worker].doing, Doing::Resting);
        if let Doing::Holding(hold) = &mut doing
            && hold.op == op
            && !self.extensions.iter().any(|extension| extension.op == op)
        {
            self.begin_extension(worker, hold);
        }
        self.workers[worker].doing = doing;
    }

    fn begin_extension(&mut self, worker: usize, hold: &mut Hold) {
        let (lease, claim) = (Arc::clone(&hold.lease), Arc::clone(hold.lease.claim()));
        let session = self.take_session(worker, Some(&claim.key));
        let client = self.workers[worker].client;
        let ttl = self.draw_ttl(&lease);
        hold.is_plain = !hold.keeps && self.random.random_bool(0.5);
        let by_key = || Claim::of_key(claim.resources.clone(), claim.key.clone(), Arc::clone(&claim.script));
        let claim = if hold.is_plain { Arc::new(by_key()) } else { Arc::clone(&claim) };
        self.say(|| format!("worker {worker} extends, op {}", hold.op));
        self.stir(hold.op);
        let now = self.shown(client);
        if hold.is_plain {
            // What is asked for may take effect though it seems to fail.
            _ = lease.sent(now, ttl);
        }
        let knows = !hold.is_plain || self.knows_deadline();
        let valid_until = knows.then(|| lease.with(|state| state.expires_at()));
        let mut extension = Extension {
            worker,
            op: hold.op,
            ttl,
            session,
            claim: Arc::clone(&claim),
            is_kept: hold.keeps,
            valid_until,
            began_local: self.clients[client].clock.steady(),
            began_shown: now,
            paused_before: self.clients[client].paused_in_all,
            late_before: self.late_in_all(client),
            held_at_start: self.masters_with(&claim.resources, &claim.key),
            set_at_start: self.masters_set(hold.op, &claim.key),
            began: self.now(),
            lost_at: self.masters_that_lost(client, &claim),
            result: oneshot::channel().1,
        };
        let seat = &self.seats[session].session;
        extension.result = if hold.is_plain {
            let quorum = quorum::majority(self.nodes.len());
            let request = Request { claim, ttl_ms: ttl.ms, drift_ms: ttl.drift_ms, quorum, valid_until };
            seat.start(move |masters| async move { Ended::Plain(extend(&masters, &request).await) })
        } else {
            seat.start(
                move |masters| async move { Ended::Lease(extend_lease(&masters, &lease, ttl, Waits::ForTurn).await) },
            )
        };
        self.dirty.insert(session);
        self.extensions.push(extension);
        self.look_by(worker, hold, ttl.expires_at(now));
    }

    /// How long an extension is to keep it: mostly as long as the one before, or shorter.
    ///
    /// None asks for more later: a server may carry out what was sent over two connections in any order.
    fn draw_ttl(&mut self, lease: &SharedLease) -> Ttl {
        let mut ms = lease.with(|state| state.ttl().ms);
        if self.plan.shortens > 0.0 && self.random.random_bool(self.plan.shortens) {
            ms = log_uniform(&mut self.random, ms.div_ceil(8).max(4), ms.max(5));
        }
        Ttl { ms, drift_ms: drift_ms(ms) }
    }

    /// Take the results of extensions that ended in a turn of `session`.
    pub fn end_extensions(&mut self, session: usize) {
        let ended = |(index, extension): (usize, &mut Extension)| {
            (extension.session == session)
                .then(|| extension.result.try_recv().ok())
                .flatten()
                .map(|result| (index, result))
        };
        while let Some((index, result)) = self.extensions.iter_mut().enumerate().find_map(ended) {
            let extension = self.extensions.remove(index);
            self.end_extension(&extension, result);
        }
    }

    fn end_extension(&mut self, extension: &Extension, ended: Ended) {
        self.give_session(extension.worker, extension.session);
        let client = self.workers[extension.worker].client;
        let mut bound = (extension.ttl.ms * MS / 2).min(500 * MS) + self.release_bound();
        if matches!(ended, Ended::Lease(_)) {
            // It may wait for a renewal.
            bound += self.lease_bound() + self.late_in_all(client) - extension.late_before;
        }
        self.check_duration(extension.worker, extension.began_local, extension.paused_before, bound, "an extension");
        let quorum = quorum::majority(self.nodes.len());
        match &ended {
            Ended::Plain(Ok(extended)) => self.check_answers(extension, &extended.answers),
            Ended::Plain(Err(answers)) => {
                self.check_answers(extension, answers);
                let said = answers.iter().filter(|answer| matches!(answer, Ok(Said::Taken | Said::Absent))).count();
                self.check_heard(extension, said > self.nodes.len() - quorum, &format!("{answers:?}"));
            }
            Ended::Lease(Ok(())) => self.check_held(extension),
            Ended::Lease(Err(reason)) => {
                self.check_heard(extension, *reason != Reason::Unavailable, &format!("{reason:?}"));
            }
        }
        let doing = std::mem::replace(&mut self.workers[extension.worker].doing, Doing::Resting);
        match doing {
            Doing::Holding(hold) if hold.op == extension.op => self.go_on(extension, hold, ended),
            other => self.workers[extension.worker].doing = other,
        }
    }

    fn go_on(&mut self, extension: &Extension, mut hold: Hold, ended: Ended) {
        if let Ended::Plain(Ok(extended)) = ended {
            self.remember(&(hold.op, extended.validity_ms));
            self.note_extended(extension, &hold, &extended);
        }
        if hold.leaving {
            return self.begin_unlock(extension.worker, &hold);
        }
        // One that had to wait for its turn ends the lease later than was thought when it was asked for.
        let expires_at = hold.lease.with(|state| state.expires_at());
        self.look_by(extension.worker, &mut hold, expires_at);
        self.workers[extension.worker].doing = Doing::Holding(hold);
    }

    /// A lock was extended: from now on it is believed in for longer.
    fn note_extended(&mut self, extension: &Extension, hold: &Hold, extended: &Extended) {
        let op = extension.op;
        self.say(|| format!("op {op}: EXTENDED for {} ms", extended.validity_ms));
        self.oracle.extensions += 1;
        self.check_held(extension);
        self.end_belief(&extension.claim.key);
        self.check_validity(op, extended.validity_ms, extended.expires_at);
        // Whoever extends a lock as such, even late, has a new one.
        let now = self.shown(self.workers[extension.worker].client);
        hold.lease.with(|state| *state = Lease::new(now, extension.ttl, extended.expires_at));
        self.begin_belief(op, &hold.lease);
    }

    /// Whether a quorum has extended it in time, although its holder is not told yet.
    pub fn is_just_extended(&self, op: usize, client: usize) -> bool {
        let (now, quorum) = (self.shown(client), quorum::majority(self.nodes.len()));
        self.extensions.iter().filter(|extension| extension.op == op).any(|extension| {
            let (claim, began) = (&extension.claim, extension.began_shown);
            extension.valid_until.is_some_and(|until| began < until)
                && now < extension.ttl.expires_at(began)
                && self.masters_with(&claim.resources, &claim.key) >= quorum
        })
    }

    /// What was extended was there.
    fn check_held(&mut self, extension: &Extension) {
        let Extension { op, held_at_start, .. } = *extension;
        let is_set = self.masters_set(op, &extension.claim.key);
        let arrived = extension.set_at_start.iter().zip(is_set).filter(|&(&before, now)| now && !before).count();
        let is_revived = held_at_start + arrived < quorum::majority(self.nodes.len());
        if is_revived && !extension.is_kept && self.plan.broken.is_none() {
            self.violation(Rule::Revived, &format!("op {op} was on {held_at_start} masters and is extended"));
        }
    }

    fn check_answers(&mut self, extension: &Extension, answers: &[Answer]) {
        for (master, answer) in answers.iter().enumerate() {
            let facts = self.facts_of(extension.op, &extension.claim.key, master);
            let is_true = match answer {
                Ok(Said::Extended) => facts.iter().all(|facts| facts.extended),
                Ok(Said::Taken) => facts.iter().any(|facts| facts.taken),
                Ok(Said::Absent) => facts.iter().any(|facts| facts.not_there),
                Err(error) => !is_foreign(error),
            };
            if !is_true {
                let what = format!("master {master} is said to answer an extension with {answer:?}: {facts:?}");
                self.violation(Rule::WrongReply, &what);
            }
        }
    }

    /// The masters that have another key in its place, or none, and are sure to say so: they are well, and known to be.
    fn masters_that_lost(&self, client: usize, claim: &Claim) -> Vec<usize> {
        let has = |master: usize, resource: &Vec<u8>| self.nodes[master].master.holder(resource) == Some(&*claim.key);
        let lost = |&master: &usize| !claim.resources.iter().all(|resource| has(master, resource));
        let is_known = |master: usize| self.clients[client].healths[master].1.is_well();
        let reached = |&master: &usize| is_known(master) && self.was_within_reach(client, master, self.now());
        (0..self.nodes.len()).filter(lost).filter(reached).collect()
    }

    /// What so many masters could say is not left out of the answers of an extension that had the time to wait for it.
    fn check_heard(&mut self, extension: &Extension, was_heard: bool, how: &str) {
        let Extension { op, ttl, worker, began, .. } = *extension;
        let client = self.workers[worker].client;
        let needed = self.nodes.len() - quorum::majority(self.nodes.len()) + 1;
        let enough = 16 * self.plan.longest_delay();
        let had_time = ttl.ms * MS / 2 > enough && self.plan.is_patient() && !self.plan.is_crowded();
        let until = extension.valid_until.map_or(Duration::MAX, Instant::since_zero);
        let in_time = until.saturating_sub(Duration::from_nanos(enough)) > extension.began_shown.since_zero();
        let untroubled = |&&master: &&usize| self.trouble[client][master] < began;
        let could = extension.lost_at.iter().filter(untroubled).count();
        let paused = self.clients[client].paused_in_all > extension.paused_before || self.is_paused(client);
        // One that is released meanwhile asks no further.
        let goes_on = !extension.claim.is_given_back();
        let counts = had_time && in_time && !paused && goes_on && !extension.is_kept && self.plan.broken.is_none();
        if counts && could >= needed && !was_heard {
            let what = format!("op {op}: {could} masters had lost it, and it ends with {how}");
            self.violation(Rule::Unheard, &what);
        }
    }
}

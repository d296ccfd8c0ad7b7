//! The holders: they extend by hand or have a keeper do so, and what that comes to is checked.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use redlock::clock::Instant;
use redlock::engine::acquire::Held;
use redlock::engine::extend::{Answer, Extended, Request, extend};
use redlock::quorum;
use redlock::script::{Claim, Extension as Said};
use tokio::sync::oneshot;

use super::oracle::{Rule, is_foreign};
use super::plan::{Sharing, log_uniform};
use super::time::{MS, Nanos, SECOND};
use super::worker::Doing;
use super::world::{Event, World};
use super::{forgets_deadline, keeper_goes_on};

/// What a caller does with a lock that it has.
pub struct Hold {
    op: usize,
    claim: Arc<Claim>,
    /// When its validity is over, as the engine tells it.
    expires_at: Instant,
    /// What extensions set.
    ttl_ms: u64,
    /// A keeper extends it.
    keeps: bool,
    /// It is to be released as soon as its extension has ended.
    leaving: bool,
    /// The holder knows that it has run out.
    told: bool,
}

/// An extension under way.
pub struct Extension {
    worker: usize,
    op: usize,
    ttl_ms: u64,
    session: usize,
    claim: Arc<Claim>,
    valid_until: Option<Instant>,
    began_local: Nanos,
    began_shown: Nanos,
    paused_before: Nanos,
    held_at_start: usize,
    /// Which masters had carried out its `SET` by then: that of another may have been on its way.
    set_at_start: Vec<bool>,
    began: Nanos,
    /// The masters that did not have it when it began, though nothing had been wrong with them for long.
    lost_at: Vec<usize>,
    result: oneshot::Receiver<Result<Extended, Vec<Answer>>>,
}

impl World {
    /// A lock was granted: work, and extend meanwhile.
    pub fn hold(&mut self, worker: usize, op: usize, held: &Held) {
        let keeps = self.random.random_bool(self.plan.keeps);
        let (claim, expires_at, ttl_ms) = (Arc::clone(&held.claim), held.expires_at, self.oracle.ttl_ms(op));
        let until = self.clients[self.workers[worker].client].clock.steady() + held.validity_ms * MS;
        let mut at = self.end_of_work(worker, until);
        if keeps {
            at = self.now() + log_uniform(&mut self.random, 1, 3 * self.plan.ttl_ms) * MS;
            self.extend_after(worker, op, self.plan.ttl_ms * MS / 3);
        } else if self.random.random_bool(self.plan.extends) {
            // Some too late.
            let after = self.random.random_range(0..=self.plan.ttl_ms * MS * 3 / 2);
            self.extend_after(worker, op, after);
            let stays = self.random.random_bool(0.5);
            at = if stays { at.max(self.now() + after + self.plan.ttl_ms * MS / 2) } else { at };
        }
        let (leaving, told) = (false, false);
        self.workers[worker].doing = Doing::Holding(Hold { op, claim, expires_at, ttl_ms, keeps, leaving, told });
        self.schedule(at, Event::Step { worker });
        self.tell_at(worker, op, expires_at);
    }

    /// Have the holder told when its lock runs out, unless it is extended before.
    fn tell_at(&mut self, worker: usize, op: usize, expires_at: Instant) {
        let at = self.when_over(worker, expires_at);
        self.schedule(at, Event::Tell { worker, op });
    }

    fn when_over(&self, worker: usize, expires_at: Instant) -> Nanos {
        let shown = Nanos::try_from(expires_at.since_zero().as_nanos()).unwrap();
        self.clients[self.workers[worker].client].clock.when_shown(shown)
    }

    /// The lock of a holder may have run out: it is told.
    pub fn tell(&mut self, worker: usize, op: usize) {
        let client = &self.clients[self.workers[worker].client];
        if self.is_paused(self.workers[worker].client) {
            return self.schedule(client.paused_until, Event::Tell { worker, op });
        }
        let shown = Duration::from_nanos(client.clock.shown());
        let mut doing = std::mem::replace(&mut self.workers[worker].doing, Doing::Resting);
        if let Doing::Holding(hold) = &mut doing
            && hold.op == op
            && hold.expires_at.since_zero() <= shown
        {
            self.check_told(worker, hold);
            hold.told = true;
        }
        self.workers[worker].doing = doing;
    }

    /// Whoever has not been told until now that a lock has run out need not have known it for long.
    fn check_told(&mut self, worker: usize, hold: &Hold) {
        let client = &self.clients[self.workers[worker].client];
        let due = self.when_over(worker, hold.expires_at).max(client.paused_at);
        let late = self.now().saturating_sub(due);
        if !hold.told && late > SECOND + MS {
            self.violation(Rule::ToldLate, &format!("op {} had run out {} ms before", hold.op, late / MS));
        }
    }

    fn extend_after(&mut self, worker: usize, op: usize, pause: Nanos) {
        let at = self.now() + pause;
        self.schedule(at, Event::Extend { worker, op });
    }

    /// The holder has done its work: it releases, once no keeper extends. Whoever extends by hand may be in the middle
    /// of it, in another task or thread; the pool makes them wait where the session that they work on still owes an answer.
    pub fn finish(&mut self, worker: usize, mut hold: Hold) {
        self.check_told(worker, &hold);
        let own = self.clients[self.workers[worker].client].plan.sharing == Sharing::Own;
        let owes = |session: usize| self.seats[session].session.awaits(Some(&hold.claim.key));
        let is_busy = |extension: &Extension| {
            let waits = extension.valid_until.is_some() || own || owes(extension.session);
            extension.op == hold.op && waits
        };
        if keeper_goes_on(self.bug) && hold.keeps && !own {
            self.begin_extension(worker, &mut hold);
        } else if self.extensions.iter().any(is_busy) {
            hold.leaving = true;
            self.workers[worker].doing = Doing::Holding(hold);
            return;
        }
        self.begin_unlock(worker, hold.op, hold.claim);
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
        let session = self.take_session(worker, Some(&hold.claim.key));
        let client = self.workers[worker].client;
        let ttl_ms = self.draw_ttl(worker, hold);
        let knows = hold.keeps || self.random.random_bool(0.5);
        let request = Request {
            claim: Arc::clone(&hold.claim),
            ttl_ms,
            drift_ms: ttl_ms / 100 + 2,
            quorum: quorum::majority(self.nodes.len()),
            valid_until: knows.then_some(hold.expires_at),
        };
        self.say(|| format!("worker {worker} extends, op {}", hold.op));
        self.stir(hold.op);
        let valid_until = request.valid_until;
        let lost_at = self.masters_that_lost(client, &hold.claim);
        let result = self.seats[session].session.start(move |masters| async move { extend(&masters, &request).await });
        self.dirty.insert(session);
        self.extensions.push(Extension {
            worker,
            op: hold.op,
            ttl_ms,
            session,
            claim: Arc::clone(&hold.claim),
            valid_until,
            began_local: self.clients[client].clock.steady(),
            began_shown: self.clients[client].clock.shown(),
            paused_before: self.clients[client].paused_in_all,
            held_at_start: self.masters_with(&hold.claim.resources, &hold.claim.key),
            set_at_start: self.masters_set(hold.op, &hold.claim.key),
            began: self.now(),
            lost_at,
            result,
        });
    }

    /// How long an extension is to keep it: mostly as long as the one before. A holder that asks for less must assume the
    /// worst from then on, whatever comes of it.
    ///
    /// Nor does it ask for more later: a server may carry out what was sent over two connections in any order.
    fn draw_ttl(&mut self, worker: usize, hold: &mut Hold) -> u64 {
        if self.plan.shortens > 0.0 && self.random.random_bool(self.plan.shortens) {
            hold.ttl_ms = log_uniform(&mut self.random, hold.ttl_ms.div_ceil(8).max(4), hold.ttl_ms.max(5));
            if !forgets_deadline(self.bug) {
                let clock = &self.clients[self.workers[worker].client].clock;
                let relied_on = Duration::from_millis(hold.ttl_ms - (hold.ttl_ms / 100 + 2));
                let shown = Instant::from_zero(Duration::from_nanos(clock.shown()));
                hold.expires_at = hold.expires_at.min(shown.after(relied_on));
                let until = clock.steady() + Nanos::try_from(relied_on.as_nanos()).unwrap();
                self.shorten_belief(&hold.claim.key, until);
                self.tell_at(worker, hold.op, hold.expires_at);
            }
        }
        hold.ttl_ms
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

    fn end_extension(&mut self, extension: &Extension, result: Result<Extended, Vec<Answer>>) {
        self.give_session(extension.worker, extension.session);
        let bound = (extension.ttl_ms * MS / 2).min(500 * MS) + self.release_bound();
        self.check_duration(extension.worker, extension.began_local, extension.paused_before, bound, "an extension");
        self.check_answers(extension, result.as_ref().map_or_else(|answers| answers, |extended| &extended.answers));
        if let Err(answers) = &result {
            self.check_heard(extension, answers);
        }
        let doing = std::mem::replace(&mut self.workers[extension.worker].doing, Doing::Resting);
        match doing {
            Doing::Holding(hold) if hold.op == extension.op => self.go_on(extension, hold, result.ok()),
            other => self.workers[extension.worker].doing = other,
        }
    }

    fn go_on(&mut self, extension: &Extension, mut hold: Hold, extended: Option<Extended>) {
        self.remember(&(hold.op, extended.as_ref().map(|extended| extended.validity_ms)));
        let clock = &self.clients[self.workers[extension.worker].client].clock;
        let now = Instant::from_zero(std::time::Duration::from_nanos(clock.shown()));
        let in_time = extension.valid_until.is_none_or(|until| now < until);
        let mut pause = hold.ttl_ms * MS / 20;
        if let Some(extended) = extended.filter(|_| in_time) {
            (hold.expires_at, pause) = (extended.expires_at, hold.ttl_ms * MS / 3);
            hold.told = false;
            self.tell_at(extension.worker, hold.op, hold.expires_at);
            self.note_extended(extension, &extended);
        }
        let (keeps_on, op) = (hold.keeps && in_time && !hold.leaving, hold.op);
        if hold.leaving {
            return self.begin_unlock(extension.worker, hold.op, hold.claim);
        }
        self.workers[extension.worker].doing = Doing::Holding(hold);
        if keeps_on {
            self.extend_after(extension.worker, op, pause);
        }
    }

    /// A lock was extended: from now on it is believed in for longer.
    fn note_extended(&mut self, extension: &Extension, extended: &Extended) {
        let Extension { op, held_at_start, .. } = *extension;
        self.say(|| format!("op {op}: EXTENDED for {} ms", extended.validity_ms));
        self.oracle.extensions += 1;
        let is_set = self.masters_set(op, &extension.claim.key);
        let arrived = extension.set_at_start.iter().zip(is_set).filter(|&(&before, now)| now && !before).count();
        if held_at_start + arrived < quorum::majority(self.nodes.len()) && self.plan.broken.is_none() {
            self.violation(Rule::Revived, &format!("op {op} was on {held_at_start} masters and is extended"));
        }
        self.end_belief(&extension.claim.key);
        self.check_validity(op, extended.validity_ms, extended.expires_at);
        self.begin_belief(op, &extension.claim.key, extended.validity_ms);
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
    fn check_heard(&mut self, extension: &Extension, answers: &[Answer]) {
        let Extension { op, ttl_ms, worker, began, .. } = *extension;
        let client = self.workers[worker].client;
        let needed = answers.len() - quorum::majority(answers.len()) + 1;
        let said = answers.iter().filter(|answer| matches!(answer, Ok(Said::Taken | Said::Absent))).count();
        let enough = 16 * self.plan.longest_delay();
        let had_time = ttl_ms * MS / 2 > enough && self.plan.is_patient() && !self.plan.is_crowded();
        let until = extension.valid_until.map_or(Duration::MAX, Instant::since_zero);
        let in_time = until.saturating_sub(Duration::from_nanos(enough)) > Duration::from_nanos(extension.began_shown);
        let untroubled = |&&master: &&usize| self.trouble[client][master] < began;
        let could = extension.lost_at.iter().filter(untroubled).count();
        let paused = self.clients[client].paused_in_all > extension.paused_before || self.is_paused(client);
        if had_time && in_time && !paused && self.plan.broken.is_none() && could >= needed && said < needed {
            let what = format!("op {op}: {could} masters had lost it, and it ends with {answers:?}");
            self.violation(Rule::Unheard, &what);
        }
    }

    /// Whether `SET` may be written for a lock that was granted before: an extension may give it again to a master that
    /// has lost it, until the lock has run out by our own clock.
    pub fn may_retake(&self, op: usize) -> bool {
        let extension = self.extensions.iter().find(|extension| extension.op == op);
        let until = extension.and_then(|extension| Some((extension.worker, extension.valid_until?)));
        until.is_some_and(|(worker, until)| {
            let shown = self.clients[self.workers[worker].client].clock.shown();
            std::time::Duration::from_nanos(shown) < until.since_zero()
        })
    }
}

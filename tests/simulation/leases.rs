//! The leases: who is told of them, and the driver of each client, which renews them and releases those that were
//! abandoned. It does what `host::driver` does, in a world without threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use redlock::clock::Instant;
use redlock::engine::acquire::Held;
use redlock::engine::owed::settle;
use redlock::engine::release::Answer;
use redlock::engine::renew::{Listener, SharedLease, Waits, keep, release_lease};
use redlock::lease::{Lease, Reason, Ttl};
use redlock::quorum;
use tokio::sync::oneshot;

use super::extending::Hold;
use super::oracle::Rule;
use super::plan::{Plan, Sharing, log_uniform};
use super::resp::Request;
use super::time::{MS, Nanos, SECOND};
use super::wire::open;
use super::worker::Worker;
use super::world::{Event, World};

/// What is told of a lease.
enum Told {
    Asked { was_extended: bool, took: Duration },
    Lost(Reason),
}

/// What was told, with the operation whose lease it is of.
type Inbox = Arc<Mutex<Vec<(usize, Told)>>>;

struct Ear {
    op: usize,
    inbox: Inbox,
}

impl Ear {
    fn tell(&self, told: Told) {
        open(&self.inbox).push((self.op, told));
    }
}

impl Listener for Ear {
    fn asked(&self, was_extended: bool, took: Duration) {
        self.tell(Told::Asked { was_extended, took });
    }

    fn lost(&self, reason: Reason) {
        self.tell(Told::Lost(reason));
    }

    fn renew(&self, _: Ttl) {
        unreachable!("there are masters");
    }

    fn give_back(&self) {
        unreachable!("there are masters");
    }

    fn news(&self) {}
}

/// How holders and drivers behave in a world. From a random stream of their own: what else a seed draws stays the same.
#[derive(Debug)]
struct Habits {
    /// How many of those who have their lease renewed drop it without a release, and how many extend it by hand as well.
    abandons: f64,
    extends: f64,
    /// How long a lease may be held, in milliseconds.
    max_hold: Option<u64>,
    /// After how many of its turns the thread of a driver is not scheduled for a while.
    is_late: f64,
}

/// The thread of one client that renews its leases.
#[derive(Default)]
struct Driver {
    /// The session on which it renews.
    session: Option<usize>,
    jobs: Vec<(usize, Task)>,
    /// Until when it is not scheduled, and for how long it was not in all.
    late_until: Nanos,
    late_in_all: Nanos,
    /// It was not scheduled for so long, and has not said so yet.
    left_alone: Nanos,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Keep,
    Release,
    /// Of no operation.
    Settle,
}

/// What the world knows of a lease.
struct Book {
    lease: Arc<SharedLease>,
    worker: usize,
    is_kept: bool,
    /// An extension of it was written, and its end not told yet.
    is_extending: bool,
    /// When its holder dropped it, by the client's own clock.
    abandoned_at: Option<Instant>,
    /// When its release began, by the client's own clock and in truth.
    released_at: Option<(Instant, Nanos)>,
    /// The driver released it, and its thread was not scheduled meanwhile: connections may not have been made in time.
    is_released_late: bool,
}

/// A lease that a driver renews: whether it is to be given back in the end.
struct Renewing {
    op: usize,
    session: usize,
    result: oneshot::Receiver<bool>,
}

/// A release by a driver.
struct Release {
    op: usize,
    session: usize,
    late_before: Nanos,
    result: oneshot::Receiver<Option<Vec<Answer>>>,
}

/// All leases, and those who renew them.
pub struct Leases {
    habits: Habits,
    random: StdRng,
    inbox: Inbox,
    drivers: Vec<Driver>,
    books: BTreeMap<usize, Book>,
    ops: BTreeMap<Vec<u8>, usize>,
    /// Those whose release has not begun.
    held: Vec<usize>,
    renewing: Vec<Renewing>,
    releases: Vec<Release>,
}

impl Leases {
    pub fn new(plan: &Plan) -> Self {
        let mut random = StdRng::seed_from_u64(plan.seed ^ 0x1ea5e);
        let longest = log_uniform(&mut random, plan.ttl_ms.div_ceil(2), 6 * plan.ttl_ms);
        let habits = Habits {
            abandons: *[0.0, 0.2, 0.5].choose(&mut random).unwrap(),
            extends: *[0.0, 0.5].choose(&mut random).unwrap(),
            max_hold: random.random_bool(0.3).then_some(longest),
            is_late: *[0.0, 0.0, 0.02, 0.2].choose(&mut random).unwrap(),
        };
        let drivers = plan.clients.iter().map(|_| Driver::default()).collect();
        let (inbox, books, ops, held, renewing, releases) = Default::default();
        Self { habits, random, inbox, drivers, books, ops, held, renewing, releases }
    }
}

impl World {
    /// The time by a client's own clock.
    pub fn shown(&self, client: usize) -> Instant {
        Instant::from_zero(Duration::from_nanos(self.clients[client].clock.shown()))
    }

    /// The true time at which a client's own clock shows this.
    fn when(&self, client: usize, shown: Instant) -> Nanos {
        self.clients[client].clock.when_shown(Nanos::try_from(shown.since_zero().as_nanos()).unwrap())
    }

    /// The lease of what was granted.
    pub fn lease_of(&mut self, worker: usize, op: usize, held: &Held) -> Arc<SharedLease> {
        let ttl = Ttl { ms: self.oracle.ttl_ms(op), drift_ms: drift_ms(self.oracle.ttl_ms(op)) };
        let now = self.shown(self.workers[worker].client);
        let ear = Ear { op, inbox: Arc::clone(&self.leases.inbox) };
        let (claim, quorum) = (Arc::clone(&held.claim), quorum::majority(self.nodes.len()));
        let state = Lease::new(now, ttl, held.expires_at);
        let lease = Arc::new(SharedLease::new(claim, quorum, state, Arc::new(ear)));
        let book = Book {
            lease: Arc::clone(&lease),
            worker,
            is_kept: false,
            is_extending: false,
            abandoned_at: None,
            released_at: None,
            is_released_late: false,
        };
        self.leases.books.insert(op, book);
        self.leases.ops.insert(held.claim.key.clone(), op);
        self.leases.held.push(op);
        lease
    }

    /// Have a lease renewed from now on. Returns after what time its holder extends it by hand, if it does.
    pub fn renew(&mut self, op: usize) -> Option<Nanos> {
        let Leases { habits, random, books, .. } = &mut self.leases;
        let book = books.get_mut(&op).unwrap();
        book.is_kept = true;
        let (lease, client) = (Arc::clone(&book.lease), self.workers[book.worker].client);
        let after = random.random_bool(habits.extends).then(|| random.random_range(0..=self.plan.ttl_ms * MS * 3 / 2));
        let longest = habits.max_hold.map(Duration::from_millis);
        let now = self.shown(client);
        lease.renew(now, longest);
        if let Some(longest) = longest {
            let at = self.when(client, now.after(longest));
            self.schedule(at, Event::HoldEnds { op });
        }
        self.post(client, op, Task::Keep, 0);
        after
    }

    /// Whether the holder of a lease that is renewed drops it. Not while the session of an event loop still waits for an
    /// answer about it: the driver has no such session, and its release could overtake the `SET`.
    pub fn drops(&mut self, hold: &Hold) -> bool {
        let taken_on = &self.seats[self.oracle.ops[hold.op].session];
        let is_loop = self.clients[taken_on.client].plan.sharing == Sharing::Loop;
        let owes = is_loop && taken_on.session.awaits(Some(&hold.lease.claim().key));
        let Leases { habits, random, .. } = &mut self.leases;
        random.random_bool(habits.abandons) && !owes
    }

    /// Whether its lease is renewed.
    pub fn is_kept(&self, op: usize) -> bool {
        self.leases.books.get(&op).is_some_and(|book| book.is_kept)
    }

    /// Whether one who extends a lock that is no lease says until when it is known to be held.
    pub fn knows_deadline(&mut self) -> bool {
        self.leases.random.random_bool(0.5)
    }

    /// A holder drops its lease without a release: the driver releases it when it comes to that.
    pub fn abandon(&mut self, worker: usize, hold: &Hold) {
        let (op, client) = (hold.op, self.workers[worker].client);
        self.say(|| format!("worker {worker} abandons, op {op}"));
        self.end_belief(&hold.lease.claim().key);
        let is_held = hold.lease.abandon();
        self.restart_operation(op, self.lease_bound() + self.lateness());
        if !is_held {
            return self.note_unlocked(op, &hold.lease.claim().key, &[]);
        }
        let now = self.shown(client);
        self.leases.books.get_mut(&op).unwrap().abandoned_at = Some(now);
        self.leave_owing_session(worker, &hold.lease.claim().key);
        let delay = if self.leases.habits.is_late > 0.0 { self.draw_lateness() } else { 0 };
        self.post(client, op, Task::Release, delay);
    }

    /// The longest that the release of a lease may take, which may wait for an extension.
    pub fn lease_bound(&self) -> Nanos {
        let extension = (self.plan.ttl_ms * MS / 2).min(500 * MS) + self.release_bound();
        extension + self.release_bound() + self.lateness()
    }

    /// The longest that the thread of a driver is not scheduled at a time.
    pub fn lateness(&self) -> Nanos {
        if self.leases.habits.is_late > 0.0 { self.plan.ttl_ms * MS / 2 } else { 0 }
    }

    /// For how long in all the thread of a client's driver was not scheduled.
    pub fn late_in_all(&self, client: usize) -> Nanos {
        self.leases.drivers[client].late_in_all
    }

    fn draw_lateness(&mut self) -> Nanos {
        let most = self.lateness();
        log_uniform(&mut self.leases.random, 10_000, most)
    }

    fn post(&mut self, client: usize, op: usize, task: Task, delay: Nanos) {
        self.leases.drivers[client].jobs.push((op, task));
        let at = self.now() + delay;
        self.leases.drivers[client].late_in_all += delay;
        self.schedule(at, Event::Drive { client });
    }

    /// The thread of a client's driver goes on: it takes up its jobs.
    pub fn drive(&mut self, client: usize) {
        let until = self.clients[client].paused_until.max(self.leases.drivers[client].late_until);
        if self.now() < until {
            return self.schedule(until, Event::Drive { client });
        }
        // As in the thread, which notices that a wait was too long.
        let absent = std::mem::take(&mut self.leases.drivers[client].left_alone);
        if absent > LATE {
            let lanes = self.seats.iter().filter(|seat| seat.is_lane && seat.client == client);
            lanes.for_each(|seat| seat.session.was_left_alone(Duration::from_nanos(absent)));
        }
        let jobs = std::mem::take(&mut self.leases.drivers[client].jobs);
        let begun: Vec<usize> = jobs.into_iter().filter_map(|(op, task)| self.begin_job(client, op, task)).collect();
        // As in the thread: first its own session, then others.
        let own = self.leases.drivers[client].session;
        own.into_iter()
            .chain(begun.into_iter().filter(|&session| Some(session) != own))
            .for_each(|session| self.turn(session));
    }

    /// The drivers are told to see to what masters are owed, and idle sessions take in what has come.
    pub fn begin_to_settle(&mut self) {
        let looking = std::mem::take(&mut open(&self.deeds).looking);
        for client in looking {
            for session in 0..self.seats.len() {
                if self.seats[session].client == client && !self.seats[session].attended {
                    self.attend(session);
                    self.leave(session);
                }
            }
        }
        let owing = std::mem::take(&mut open(&self.deeds).owing);
        for client in owing {
            let delay = if self.leases.habits.is_late > 0.0 { self.draw_lateness() } else { 0 };
            self.post(client, usize::MAX, Task::Settle, delay);
        }
    }

    /// Returns the session that it is begun on, if that is to take a turn.
    fn begin_job(&mut self, client: usize, op: usize, task: Task) -> Option<usize> {
        if task == Task::Settle {
            let session = self.driver_session(client);
            self.seats[session].session.spawn(settle);
            return None;
        }
        let lease = Arc::clone(&self.leases.books[&op].lease);
        if task == Task::Keep {
            let session = self.keeping_session(client);
            let result = self.seats[session].session.start(|masters| keep(masters, lease));
            self.leases.renewing.push(Renewing { op, session, result });
            return Some(session);
        }
        let session = self.lend_to_driver(client, op);
        let result = self.seats[session]
            .session
            .start(move |masters| async move { release_lease(&masters, &lease, Waits::ForTurn).await });
        let late_before = self.late_in_all(client);
        self.leases.releases.push(Release { op, session, late_before, result });
        Some(session)
    }

    /// An event loop renews its leases on its own session.
    fn keeping_session(&mut self, client: usize) -> usize {
        let of_loop = |worker: &Worker| (worker.client == client).then_some(worker.session).flatten();
        match self.clients[client].plan.sharing {
            Sharing::Loop => self.workers.iter().find_map(of_loop).unwrap(),
            Sharing::Own | Sharing::Pool => self.driver_session(client),
        }
    }

    fn driver_session(&mut self, client: usize) -> usize {
        if let Some(session) = self.leases.drivers[client].session {
            return session;
        }
        let random = StdRng::from_rng(&mut self.leases.random);
        let owed = Arc::clone(&self.clients[client].owed);
        let session = self.add_session(client, owed, random);
        self.attend_as_driver(session);
        self.leases.drivers[client].session = Some(session);
        session
    }

    /// As the thread does: the session that still waits for an answer about the lock, or the driver's own.
    fn lend_to_driver(&mut self, client: usize, op: usize) -> usize {
        let Book { lease, worker, .. } = &self.leases.books[&op];
        let (key, worker) = (lease.claim().key.clone(), *worker);
        self.leave_owing_session(worker, &key);
        let owes = |session: &usize| self.seats[*session].session.awaits(Some(&key));
        let Some(index) = self.clients[client].idle.iter().position(owes) else {
            return self.driver_session(client);
        };
        let session = self.clients[client].idle.remove(index);
        self.attend_as_driver(session);
        session
    }

    /// A worker with a session of its own leaves it to the driver, if that still waits for an answer about this lock.
    fn leave_owing_session(&mut self, worker: usize, key: &[u8]) {
        let Worker { client, session, .. } = self.workers[worker];
        let is_own = self.clients[client].plan.sharing == Sharing::Own;
        let is_owing =
            |&session: &usize| !self.seats[session].attended && self.seats[session].session.awaits(Some(key));
        if is_own && let Some(session) = session.filter(is_owing) {
            self.workers[worker].session = None;
            self.clients[client].idle.push(session);
        }
    }

    /// The session is driven by the driver of its client from now on.
    fn attend_as_driver(&mut self, session: usize) {
        self.attend(session);
        let seat = &mut self.seats[session];
        seat.is_lane = true;
        seat.session.handle().let_others_wake(Some(super::wire::alarm(session, &self.deeds)));
    }

    /// Whether the thread that drives a session is scheduled.
    pub fn is_scheduled(&self, session: usize) -> bool {
        let seat = &self.seats[session];
        !seat.is_lane || self.now() >= self.leases.drivers[seat.client].late_until
    }

    /// After a turn of `session`: what was told in it of leases, and what has ended.
    pub fn end_turn_of_leases(&mut self, session: usize) {
        let inbox = std::mem::take(&mut *open(&self.leases.inbox));
        for (op, told) in inbox {
            self.note_told(op, &told);
        }
        self.note_released();
        let client = self.seats[session].client;
        self.end_renewals(client, session);
        self.end_releases(session);
        let Leases { habits, random, .. } = &mut self.leases;
        if self.seats[session].is_lane && habits.is_late > 0.0 && random.random_bool(habits.is_late) {
            let delay = self.draw_lateness();
            let until = self.now() + delay;
            let driver = &mut self.leases.drivers[client];
            driver.late_until = driver.late_until.max(until);
            driver.late_in_all += delay;
            driver.left_alone = driver.left_alone.max(delay);
            self.schedule(until, Event::Drive { client });
        }
    }

    fn note_told(&mut self, op: usize, told: &Told) {
        let book = self.leases.books.get_mut(&op).unwrap();
        let client = self.workers[book.worker].client;
        match *told {
            Told::Asked { was_extended, took } => {
                book.is_extending = false;
                let ends = [book.abandoned_at, book.released_at.map(|(shown, _)| shown)];
                let end = ends.into_iter().flatten().min();
                let began = self.shown(client).before(took);
                self.oracle.extensions += u64::from(was_extended);
                self.remember(&(op, was_extended));
                self.say(|| format!("op {op}: asked to extend its lease, granted {was_extended}"));
                if end.is_some_and(|end| began > end) {
                    self.violation(Rule::GoesOn, &format!("op {op}: an extension began after the lease was given up"));
                }
            }
            Told::Lost(reason) => {
                self.say(|| format!("op {op}: LOST, {reason:?}"));
                self.check_told(op);
            }
        }
    }

    /// Since a lease that is renewed was lost, its holder cannot rely on it: that is told before validity ends.
    pub fn check_told(&mut self, op: usize) {
        let Some(Book { lease, worker, is_kept: true, .. }) = self.leases.books.get(&op) else { return };
        let client = self.workers[*worker].client;
        let expires_at = lease.with(|state| state.expires_at());
        let absent_until = self.clients[client].paused_until.max(self.leases.drivers[client].late_until);
        // While the machine sleeps no timer goes off: a wait ends within a second of its waking.
        let asleep = if self.plan.sleeps() { SECOND } else { 0 };
        let is_excused = absent_until + asleep >= self.when(client, expires_at);
        let late = self.shown(client).since(expires_at);
        if self.shown(client) >= expires_at && !is_excused {
            self.violation(Rule::ToldLate, &format!("op {op}: {late:?} after the end of validity"));
        }
    }

    /// Whether a holder whose validity is over was told so, if its lease is renewed.
    pub fn was_told(&self, op: usize) -> bool {
        self.leases.books.get(&op).is_none_or(|book| !book.is_kept || book.lease.with(|state| state.has_ended()))
    }

    fn note_released(&mut self) {
        let now = self.now();
        for op in std::mem::take(&mut self.leases.held) {
            let book = &self.leases.books[&op];
            if book.lease.with(|state| state.is_released()) {
                let shown = self.shown(self.workers[book.worker].client);
                self.leases.books.get_mut(&op).unwrap().released_at = Some((shown, now));
            } else {
                self.leases.held.push(op);
            }
        }
    }

    /// The release of a lock that is no lease begins.
    pub fn note_plain_release(&mut self, op: usize) {
        let (book, now) = (&self.leases.books[&op], self.now());
        let shown = self.shown(self.workers[book.worker].client);
        self.leases.books.get_mut(&op).unwrap().released_at.get_or_insert((shown, now));
    }

    /// What is held for as long as it may be is released.
    fn end_renewals(&mut self, client: usize, session: usize) {
        let mut given_back = Vec::new();
        self.leases.renewing.retain_mut(|renewing| {
            let ended = if renewing.session == session { renewing.result.try_recv().ok() } else { None };
            given_back.extend(ended.filter(|&is_given_back| is_given_back).map(|_| renewing.op));
            ended.is_none()
        });
        for op in given_back {
            self.post(client, op, Task::Release, 0);
        }
    }

    fn end_releases(&mut self, session: usize) {
        let ended = |(index, release): (usize, &mut Release)| {
            (release.session == session).then(|| release.result.try_recv().ok()).flatten().map(|result| (index, result))
        };
        while let Some((index, answers)) = self.leases.releases.iter_mut().enumerate().find_map(ended) {
            let Release { op, late_before, .. } = self.leases.releases.remove(index);
            let client = self.seats[session].client;
            if self.leases.drivers[client].session != Some(session) {
                self.seats[session].is_lane = false;
                self.leave(session);
                self.clients[client].idle.push(session);
            }
            let is_late = self.late_in_all(client) > late_before;
            let book = self.leases.books.get_mut(&op).unwrap();
            book.is_released_late = is_late;
            let key = book.lease.claim().key.clone();
            if book.abandoned_at.is_some() {
                self.end_lease(op, &key, &answers.unwrap_or_default(), late_before);
            }
        }
    }

    /// The release of a lease has ended.
    pub fn end_lease(&mut self, op: usize, key: &[u8], answers: &[Answer], late_before: Nanos) {
        let late = self.late_in_all(self.oracle.ops[op].client) - late_before;
        self.oracle.allow(op, late);
        self.note_unlocked(op, key, answers);
    }

    /// The engine wrote a request to extend.
    pub fn note_extending(&mut self, conn: usize, key: &[u8]) {
        let Some(&op) = self.leases.ops.get(key) else { return };
        let is_over = self.is_given_up(op);
        let book = self.leases.books.get_mut(&op).unwrap();
        if !std::mem::replace(&mut book.is_extending, true) {
            self.stir(op);
        }
        if is_over && !self.is_held_back(conn) {
            self.violation(Rule::GoesOn, &format!("op {op} is extended on connection {conn} after its release"));
        }
    }

    /// Whether the release of a lease had begun before this moment.
    pub fn is_given_up(&self, op: usize) -> bool {
        let released_at = self.leases.books.get(&op).and_then(|book| book.released_at);
        released_at.is_some_and(|(_, at)| at < self.now())
    }

    /// Whether `SET` may be written for a lock that was granted before: masters that do not have it, or not any more, get
    /// it until it has run out by our own clock, or is released.
    pub fn may_retake(&self, op: usize) -> bool {
        let Some(book) = self.leases.books.get(&op) else { return false };
        let client = self.workers[book.worker].client;
        self.shown(client) < book.lease.with(|state| state.expires_at()) || self.is_just_extended(op, client)
    }

    /// For how long a master may be told to keep what was granted before, in milliseconds: what is left of it, the drift, an
    /// exchange, for a script that the master does not know is sent once more, and what is lost where these are rounded.
    pub fn left_of(&self, op: usize) -> u64 {
        let Book { lease, worker, .. } = &self.leases.books[&op];
        let client = self.workers[*worker].client;
        let paused = self.clients[client].paused_in_all > 0 || self.clients[client].paused_at > 0;
        let is_late = paused || self.lateness() > 0 || self.plan.late_per_mille > 0;
        // A lease that may be held only so long is given its end just after it is granted.
        if self.is_just_extended(op, client) || is_late || self.leases.habits.max_hold.is_some() {
            return u64::MAX;
        }
        let left = lease.with(|state| state.expires_at().since(self.shown(client)));
        // It may have been owed since before an extension for a shorter time, with the drift of the longer one.
        let longest = self.oracle.ttl_ms(op).max(lease.with(|state| state.ttl().ms));
        u64::try_from(left.as_millis()).unwrap() + drift_ms(longest) + 4 * self.plan.longest_delay() / MS + 3
    }

    /// Whether this release undoes a `SET` by which an extension gave a lock again that is still held: another release
    /// follows when it is given up.
    pub fn undoes_retake(&self, conn: usize, resource: &[u8], key: &[u8]) -> bool {
        let book = self.leases.ops.get(key).map(|op| &self.leases.books[op]);
        let is_held = book.is_some_and(|book| !book.lease.with(|state| state.is_released()));
        is_held && self.conns[conn].set.iter().any(|(name, set)| name == resource && set == key)
    }

    /// A lease was held for as long as it may be.
    pub fn end_hold(&mut self, op: usize) {
        let Book { lease, worker, .. } = &self.leases.books[&op];
        let (lease, client) = (Arc::clone(lease), self.workers[*worker].client);
        let left = lease.with(|state| state.remaining(self.shown(client)));
        if left > Duration::ZERO {
            self.violation(Rule::HeldTooLong, &format!("op {op}: {left:?} are left of its lease"));
        }
        // It may still be extended by hand.
        let at = self.now() + self.lease_bound() + 12 * self.plan.longest_delay();
        let late_before = self.late_in_all(client);
        self.schedule(at, Event::HoldEnded { op, late_before });
    }

    /// By now, masters that were within reach do not have it any more, unless the driver was away.
    pub fn check_hold_ended(&mut self, op: usize, late_before: Nanos) {
        let Book { lease, worker, .. } = &self.leases.books[&op];
        let (key, client) = (lease.claim().key.clone(), self.workers[*worker].client);
        let at = self.clients[client].paused_until + self.lease_bound() + 12 * self.plan.longest_delay();
        if self.now() < at {
            return self.schedule(at, Event::HoldEnded { op, late_before });
        }
        if self.late_in_all(client) == late_before {
            self.look_for_key(&key);
        }
    }

    /// Whether a lock is renewed, or extended by hand just now.
    pub fn is_extended(&self, op: usize) -> bool {
        self.leases.books.get(&op).is_some_and(|book| book.is_kept) || self.extensions.iter().any(|each| each.op == op)
    }

    /// Whether the driver released it, and was not there all the time.
    pub fn was_released_late(&self, op: usize) -> bool {
        self.leases.books.get(&op).is_some_and(|book| book.is_released_late)
    }
}

/// What the thread notices, as `host::driver` has it.
const LATE: Nanos = 20 * MS;

/// The drift that holders allow for.
pub const fn drift_ms(ttl_ms: u64) -> u64 {
    ttl_ms / 100 + 2
}

/// The key of a request that extends.
pub fn extending(request: &Request) -> Option<&[u8]> {
    let words: Vec<&[u8]> = request.iter().map(Vec::as_slice).collect();
    match *words {
        [b"SET", _, key, b"IFEQ", ..] | [b"EVAL", _, b"1", _, key, _] => Some(key),
        _ => None,
    }
}

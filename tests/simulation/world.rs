//! The world: true time, what happens in it in which order, and everybody who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redlock::engine::Session;
use redlock::engine::crowd::Crowds;
use redlock::engine::owed::Owed;
use redlock::master::endpoint::{Address, Endpoint};
use redlock::master::guard::Guards;
use redlock::master::health::{Health, Journal};

use super::extending::Extension;
use super::leases::Leases;
use super::master::Master;
use super::network::{Conn, Item};
use super::oracle::{Oracle, Rule};
use super::plan::{Broken, ClientPlan, Fault, Plan, Sharing};
use super::time::{Clock, MS, Nanos, SECOND};
use super::wire::{Deeds, Host, open};
use super::worker::Worker;
use super::{Bug, steps_wall_clock, waits_uncut};

/// After so long the library looks at the clock again, whatever it waits for.
const LONGEST_WAIT: Nanos = SECOND;

/// What happens at one instant.
#[derive(Debug, Hash)]
pub enum Event {
    /// Something arrives at a master.
    Up { conn: usize, item: Item },
    /// Something arrives at a client.
    Down { conn: usize, item: Item },
    /// A session's next deadline, in its own time.
    Timer { session: usize, deadline: Nanos },
    /// A worker does what it does next.
    Step { worker: usize },
    /// The caller of a worker gives up.
    Cancel { worker: usize, op: usize },
    /// A fault of the plan, by its index.
    Fault { index: usize },
    /// A frozen, dead or loading master may be well again.
    Recover { master: usize },
    /// A stalled path ends in resets.
    Break { client: usize, master: usize },
    /// A paused client goes on.
    Resume { client: usize },
    /// The protocol library with the planted bug stops waiting for the reply to a command.
    Forget { conn: usize, command: u64 },
    /// By now an operation that ended must have left nothing on masters that were within reach.
    LookForKey { key: Vec<u8> },
    /// By now a key has outlived its TTL.
    Outlived { master: usize, resource: Vec<u8>, key: Vec<u8> },
    /// A push that was held up.
    Push { conn: usize, push: Vec<u8> },
    /// A master looks whether a key has expired.
    Reap { master: usize, resource: Vec<u8> },
    /// A holder extends.
    Extend { worker: usize, op: usize },
    /// The thread that renews a client's leases goes on.
    Drive { client: usize },
    /// A release is to have reached every master that has been within reach for long.
    LookForRelease { key: Vec<u8> },
    /// A lock that is held is to be on every master that has been within reach for long.
    LookForLock { op: usize, lacking: Vec<usize> },
    /// A lease was held for as long as it may be.
    HoldEnds { op: usize },
    /// By now it is gone from masters that were within reach.
    HoldEnded { op: usize, late_before: Nanos },
    /// A holder is told if its lock has run out.
    Tell { worker: usize, op: usize },
    /// The wait of a session ends before its deadline: the clock is looked at again.
    Look { session: usize },
}

/// A master as the world knows it: whether it runs.
pub struct Node {
    pub master: Master,
    pub frozen_until: Nanos,
    pub down_until: Nanos,
    pub unpowered_until: Nanos,
    pub loading_until: Nanos,
    pub full_until: Nanos,
}

impl Node {
    pub fn is_up(&self, now: Nanos) -> bool {
        now >= self.down_until
    }

    pub fn has_power(&self, now: Nanos) -> bool {
        now >= self.unpowered_until
    }

    pub fn serves(&self, now: Nanos) -> bool {
        self.is_up(now) && now >= self.frozen_until
    }
}

/// A process with sessions.
pub struct Client {
    pub plan: ClientPlan,
    pub clock: Arc<Clock>,
    /// The wall clock: set right when the world begins, and set wrong later.
    pub wall: Arc<Clock>,
    pub healths: Vec<(Arc<Endpoint>, Arc<Health>)>,
    pub crowds: Arc<Crowds>,
    /// What masters are owed by its sessions, but for that of an event loop.
    pub owed: Arc<Owed>,
    pub idle: Vec<usize>,
    pub paused_until: Nanos,
    pub paused_in_all: Nanos,
    pub paused_at: Nanos,
    /// When its machine wakes that was suspended last.
    pub asleep_until: Nanos,
}

/// A session and who drives it.
pub struct Seat {
    pub session: Session,
    pub client: usize,
    pub attended: bool,
    /// The driver of the client drives it.
    pub is_lane: bool,
    pub armed: Option<Nanos>,
    pub turns: u64,
}

/// How one seed ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub violations: BTreeMap<Rule, String>,
    pub hash: u64,
    pub events: u64,
    pub grants: u64,
    pub contended: u64,
    pub tokens: u64,
    pub tokens_at_once: u64,
    pub extensions: u64,
    pub trace: Vec<String>,
}

pub struct World {
    pub plan: Plan,
    pub bug: Option<Bug>,
    pub random: StdRng,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    pub seats: Vec<Seat>,
    /// The sessions that have something to do.
    pub dirty: BTreeSet<usize>,
    pub workers: Vec<Worker>,
    pub conns: Vec<Conn>,
    /// Who is to be told of the next change of what: master, resource, connection.
    pub watches: BTreeSet<(usize, Vec<u8>, usize)>,
    /// Extensions under way.
    pub extensions: Vec<Extension>,
    pub leases: Leases,
    /// Until when nothing gets through, by client and master.
    pub blocked: Vec<Vec<Nanos>>,
    /// When the last trouble between them ends, by client and master.
    pub trouble: Vec<Vec<Nanos>>,
    pub deeds: Arc<Mutex<Deeds>>,
    pub oracle: Oracle,
    truth: Arc<AtomicU64>,
    queue: BTreeMap<(Nanos, u64), Event>,
    scheduled: u64,
    events: u64,
    hasher: DefaultHasher,
    trace: Option<Vec<String>>,
}

/// As the pool of a process: the driver is told, and idle sessions read.
struct Keeper {
    client: usize,
    deeds: Arc<Mutex<Deeds>>,
}

impl redlock::engine::owed::Keeper for Keeper {
    fn settle(&self) -> bool {
        open(&self.deeds).owing.insert(self.client);
        true
    }

    fn look(&self) {
        open(&self.deeds).looking.insert(self.client);
    }
}

impl World {
    pub fn new(plan: Plan, bug: Option<Bug>, traced: bool) -> Self {
        let truth = Arc::new(AtomicU64::new(0));
        let quiet = vec![vec![0; plan.masters.len()]; plan.clients.len()];
        let mut world = Self {
            random: StdRng::seed_from_u64(plan.seed ^ 0x5eed),
            nodes: Vec::new(),
            clients: Vec::new(),
            seats: Vec::new(),
            dirty: BTreeSet::new(),
            workers: Vec::new(),
            conns: Vec::new(),
            watches: BTreeSet::new(),
            extensions: Vec::new(),
            leases: Leases::new(&plan),
            blocked: quiet.clone(),
            trouble: quiet,
            deeds: Arc::default(),
            oracle: Oracle::new(),
            truth,
            queue: BTreeMap::new(),
            scheduled: 0,
            events: 0,
            hasher: DefaultHasher::new(),
            trace: traced.then(Vec::new),
            plan,
            bug,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        for (index, &(kind, ppm)) in self.plan.masters.iter().enumerate() {
            let mut master = Master::new(index, kind, Clock::new(&self.truth, ppm, SECOND));
            master.tracks = !self.plan.untracked[index];
            let (frozen_until, down_until, unpowered_until, loading_until, full_until) = (0, 0, 0, 0, 0);
            self.nodes.push(Node { master, frozen_until, down_until, unpowered_until, loading_until, full_until });
        }
        for index in 0..self.plan.clients.len() {
            self.add_client(index);
        }
        for (index, at) in self.plan.faults.iter().map(|(at, _)| *at).enumerate().collect::<Vec<_>>() {
            self.schedule(at, Event::Fault { index });
        }
    }

    fn add_client(&mut self, index: usize) {
        let plan = self.plan.clients[index].clone();
        let journal = Arc::new(Journal::default());
        let is_guarded = self.plan.broken == Some(Broken::ForgetsGuarded);
        let guards = Arc::new(Guards::new(is_guarded, false, self.plan.ttl_ms));
        let healths = (0..self.nodes.len()).map(|master| {
            let endpoint = self.endpoint(master);
            let health = Health::new(endpoint.to_string(), Arc::clone(&journal), Arc::clone(&guards));
            (Arc::new(endpoint), Arc::new(health))
        });
        let (healths, clock) = (healths.collect(), Arc::new(Clock::new(&self.truth, plan.ppm, plan.zero)));
        let wall = Arc::new(Clock::new(&self.truth, plan.ppm, SECOND));
        let (crowds, idle, workers) = (Arc::default(), Vec::new(), plan.workers);
        let shared = plan.sharing == Sharing::Loop;
        let (paused_until, paused_in_all, paused_at, asleep_until) = (0, 0, 0, 0);
        self.clients.push(Client {
            plan,
            clock,
            wall,
            healths,
            crowds,
            owed: self.owed_by(index),
            idle,
            paused_until,
            paused_in_all,
            paused_at,
            asleep_until,
        });
        let session = shared.then(|| self.new_session(index));
        for number in 0..workers {
            self.add_worker(index, number, session);
        }
    }

    fn owed_by(&self, client: usize) -> Arc<Owed> {
        Arc::new(Owed::new(Box::new(Keeper { client, deeds: Arc::clone(&self.deeds) })))
    }

    fn endpoint(&self, master: usize) -> Endpoint {
        let port = u16::try_from(master).unwrap();
        let mut endpoint = Endpoint::new(Address::Tcp { host: "master".into(), port });
        if !self.plan.is_distant {
            endpoint.socket_timeout = Some(Duration::from_nanos(self.plan.socket_timeout));
            endpoint.connect_timeout = Some(Duration::from_nanos(self.plan.socket_timeout));
        }
        endpoint
    }

    /// A session without connections; driven whenever there is something to do if it is an event loop's.
    pub fn new_session(&mut self, client: usize) -> usize {
        let random = StdRng::from_rng(&mut self.random);
        let is_loop = self.clients[client].plan.sharing == Sharing::Loop;
        let owed = if is_loop { Arc::default() } else { Arc::clone(&self.clients[client].owed) };
        self.add_session(client, owed, random)
    }

    /// The same, with what it draws from.
    pub fn add_session(&mut self, client: usize, owed: Arc<Owed>, random: StdRng) -> usize {
        let session = self.seats.len();
        let host = Host {
            session,
            clock: Arc::clone(&self.clients[client].clock),
            wall: Arc::clone(&self.clients[client].wall),
            random: Mutex::new(random),
            room: self.plan.room,
            deeds: Arc::clone(&self.deeds),
        };
        self.seats.push(Seat {
            session: Session::new(
                &self.clients[client].healths,
                Arc::clone(&self.clients[client].crowds),
                owed,
                Arc::new(host),
            ),
            client,
            attended: self.clients[client].plan.sharing == Sharing::Loop,
            is_lane: false,
            armed: None,
            turns: 0,
        });
        session
    }

    pub fn now(&self) -> Nanos {
        self.truth.load(Ordering::Relaxed)
    }

    /// Have `event` happen at `at`, after all that is already to happen then.
    pub fn schedule(&mut self, at: Nanos, event: Event) {
        self.queue.insert((at.max(self.now()), self.scheduled), event);
        self.scheduled += 1;
    }

    /// Write a line into the trace, if there is one.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now();
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>14.6} ms  {}", Duration::from_nanos(now).as_secs_f64() * 1e3, line()));
        }
    }

    /// Make what the engine answered part of the hash.
    pub fn remember(&mut self, what: &impl Hash) {
        what.hash(&mut self.hasher);
    }

    /// Note that `rule` was broken.
    pub fn violation(&mut self, rule: Rule, what: &str) {
        self.say(|| format!("VIOLATION {rule:?}: {what}"));
        let now = self.now();
        self.oracle.violations.entry(rule).or_insert_with(|| format!("at {:.3} ms: {what}", now as f64 / 1e6));
    }

    /// Let everything happen, until nothing more will.
    pub fn run(mut self) -> Outcome {
        let last = self.plan.end + 400 * SECOND;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > last || self.events > 5_000_000 {
                self.violation(Rule::Overdue, "the world does not come to rest");
                break;
            }
            self.truth.store(at, Ordering::Relaxed);
            self.events += 1;
            if self.trace.is_some() {
                (at, &event).hash(&mut self.hasher);
            }
            self.say(|| event.to_string());
            self.happen(event);
            self.settle();
            self.check_beliefs();
        }
        self.check_all_ended();
        Outcome {
            hash: self.hasher.finish(),
            events: self.events,
            grants: self.oracle.grants,
            contended: self.oracle.contended,
            tokens: self.oracle.tokens,
            tokens_at_once: self.oracle.tokens_at_once,
            extensions: self.oracle.extensions,
            violations: std::mem::take(&mut self.oracle.violations),
            trace: self.trace.take().unwrap_or_default(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up { conn, item } => self.arrive_at_master(conn, item),
            Event::Down { conn, item } => self.arrive_at_client(conn, item),
            Event::Timer { session, deadline } => {
                let seat = &mut self.seats[session];
                if seat.armed == Some(deadline) {
                    seat.armed = None;
                    self.dirty.insert(session);
                }
            }
            Event::Step { worker } => self.step(worker),
            Event::Cancel { worker, op } => self.cancel(worker, op),
            Event::Fault { index } => self.befall(index),
            Event::Recover { master } => self.recover(master),
            Event::Break { client, master } => self.reset_all(client, master),
            Event::Resume { client } => self.resume(client),
            Event::Forget { conn, command } => self.forget_command(conn, command),
            Event::LookForKey { key } => self.look_for_key(&key),
            Event::Outlived { master, resource, key } => self.check_outlived(master, &resource, &key),
            Event::Push { conn, push } => self.push(conn, push),
            Event::Reap { master, resource } => self.reap(master, &resource),
            Event::Extend { worker, op } => self.step_to_extend(worker, op),
            Event::Drive { client } => self.drive(client),
            Event::LookForRelease { key } => self.look_for_release(&key),
            Event::LookForLock { op, lacking } => self.look_for_lock(op, lacking),
            Event::HoldEnds { op } => self.end_hold(op),
            Event::HoldEnded { op, late_before } => self.check_hold_ended(op, late_before),
            Event::Tell { worker, op } => self.tell(worker, op),
            Event::Look { session } => _ = self.dirty.insert(session),
        }
    }

    /// Give every session that has something to do its turns, until none has.
    fn settle(&mut self) {
        while let Some(session) = self.next_turn() {
            self.turn(session);
        }
    }

    fn next_turn(&mut self) -> Option<usize> {
        self.dirty.append(&mut open(&self.deeds).woken);
        self.dirty.iter().copied().find(|&session| self.has_turn(session))
    }

    fn has_turn(&self, session: usize) -> bool {
        let seat = &self.seats[session];
        seat.attended && !self.is_paused(seat.client) && self.is_scheduled(session)
    }

    pub fn is_paused(&self, client: usize) -> bool {
        self.now() < self.clients[client].paused_until
    }

    pub fn turn(&mut self, session: usize) {
        self.dirty.remove(&session);
        let seat = &mut self.seats[session];
        seat.turns += 1;
        seat.session.turn();
        self.carry_out_deeds();
        self.end_turn_of_leases(session);
        self.begin_to_settle();
        self.end_operations(session);
        self.end_extensions(session);
        self.end_turn(session);
        self.arm(session);
    }

    fn arm(&mut self, session: usize) {
        let seat = &mut self.seats[session];
        let deadline = seat.session.wait().deadline.map(|at| Nanos::try_from(at.since_zero().as_nanos()).unwrap());
        if seat.armed == deadline {
            return;
        }
        seat.armed = deadline;
        if let Some(deadline) = deadline {
            let at = self.clients[self.seats[session].client].clock.when_shown(deadline);
            self.schedule(at, Event::Timer { session, deadline });
        }
    }

    fn carry_out_deeds(&mut self) {
        let deeds = std::mem::take(&mut open(&self.deeds).list);
        for deed in deeds {
            self.carry_out(deed);
        }
    }

    /// A fault of the plan strikes.
    fn befall(&mut self, index: usize) {
        let (now, fault) = (self.now(), self.plan.faults[index].1.clone());
        self.oracle.changes += 1;
        self.say(|| format!("FAULT {fault:?}"));
        match fault {
            Fault::Freeze { master, lasting } => {
                self.nodes[master].frozen_until = self.nodes[master].frozen_until.max(now + lasting);
                self.trouble_all(master, now + lasting);
            }
            Fault::Kill { master, lasting, forgets } => self.kill(master, lasting, forgets, true),
            Fault::PowerCut { master, lasting, forgets } => self.kill(master, lasting, forgets, false),
            Fault::Reset { client, master } => self.reset_all(client, master),
            Fault::HalfOpen { client, master } => self.half_open(client, master),
            Fault::Stall { client, master, lasting, reset } => self.stall(client, master, lasting, reset),
            Fault::Pause { client, lasting } => self.pause(client, lasting),
            Fault::Suspend { client, lasting } => self.suspend(client, lasting),
            Fault::SetWallClock { client, by } => {
                self.clients[client].wall.step(by);
                if steps_wall_clock(self.bug) {
                    self.set_wall_clock(client, by);
                }
            }
            Fault::FlushScripts { master } => self.nodes[master].master.flush_scripts(),
            Fault::OutOfMemory { master, lasting } => {
                self.nodes[master].full_until = now + lasting;
                self.nodes[master].master.out_of_memory = true;
                self.schedule(now + lasting, Event::Recover { master });
                self.trouble_all(master, now + lasting);
            }
            Fault::ClockJump { master, by } => self.nodes[master].master.clock.step(by),
            Fault::Delete => self.delete_locks(),
        }
        if let Fault::Freeze { master, lasting } = fault {
            self.schedule(now + lasting, Event::Recover { master });
        }
    }

    /// The holder of what is deleted now is not to blame for what comes of it.
    fn delete_locks(&mut self) {
        let now = self.now();
        for resource in super::plan::resources(self.plan.resources) {
            for master in (0..self.nodes.len()).filter(|&master| self.nodes[master].serves(now)).collect::<Vec<_>>() {
                self.nodes[master].master.delete_key(&resource);
                self.tell_of_changes(master);
            }
            self.note_deleted(resource);
        }
    }

    fn kill(&mut self, master: usize, lasting: Nanos, forgets: bool, powered: bool) {
        let now = self.now();
        let loading = lasting / 8;
        let node = &mut self.nodes[master];
        node.down_until = node.down_until.max(now + lasting);
        node.loading_until = node.down_until + loading;
        if !powered {
            node.unpowered_until = node.down_until;
        }
        if forgets {
            node.master.forget();
        }
        node.master.flush_scripts();
        node.master.restart();
        node.master.loading = true;
        let (up, loaded) = (node.down_until, node.loading_until);
        self.drop_connections(master, powered);
        self.trouble_all(master, loaded);
        self.schedule(up, Event::Recover { master });
        self.schedule(loaded, Event::Recover { master });
    }

    /// A master that may be well again carries out what has piled up.
    fn recover(&mut self, master: usize) {
        let now = self.now();
        let node = &mut self.nodes[master];
        node.master.loading = now < node.loading_until;
        node.master.out_of_memory = now < node.full_until;
        if node.serves(now) {
            self.serve_all(master);
        }
    }

    fn pause(&mut self, client: usize, lasting: Nanos) {
        let (now, paused) = (self.now(), self.is_paused(client));
        let client_state = &mut self.clients[client];
        if !paused {
            client_state.paused_at = now;
        }
        client_state.paused_until = client_state.paused_until.max(now + lasting);
        let until = client_state.paused_until;
        self.schedule(until, Event::Resume { client });
    }

    fn resume(&mut self, client: usize) {
        if self.is_paused(client) {
            return;
        }
        let now = self.now();
        let client_state = &mut self.clients[client];
        client_state.paused_in_all += now.saturating_sub(client_state.paused_at);
        client_state.paused_at = now;
        // Whoever wakes goes on waiting.
        if now > client_state.asleep_until {
            self.touch(client);
        }
    }

    /// The machine of a client sleeps: nothing reaches it, and its waits stand still. Its clock does not.
    fn suspend(&mut self, client: usize, lasting: Nanos) {
        let awake = self.now() + lasting;
        (0..self.nodes.len()).for_each(|master| self.stall(client, master, lasting, false));
        self.pause(client, lasting);
        self.clients[client].asleep_until = awake;
        // What is due by then is late by as much as a wait is long.
        self.clients[client].paused_in_all += LONGEST_WAIT;
        for session in (0..self.seats.len()).filter(|&session| self.seats[session].client == client).collect::<Vec<_>>()
        {
            if let Some(deadline) = self.seats[session].armed.take() {
                let at = self.clients[client].clock.when_shown(deadline);
                let at = self.end_of_wait(at, awake, true);
                self.schedule(at, Event::Look { session });
            }
        }
        let is_wait = |event: &Event| match event {
            Event::Extend { worker, .. } | Event::Tell { worker, .. } => Some((*worker, true)),
            Event::Step { worker } | Event::Cancel { worker, .. } => Some((*worker, false)),
            _ => None,
        };
        let waits = self.queue.iter().filter_map(|(&place, event)| Some((place, is_wait(event)?)));
        let waits = waits.filter(|&(_, (worker, _))| self.workers[worker].client == client);
        for (place, (_, is_cut)) in waits.collect::<Vec<_>>() {
            let event = self.queue.remove(&place).unwrap();
            let at = self.end_of_wait(place.0, awake, is_cut);
            self.queue.insert((at, place.1), event);
        }
    }

    /// When a task that falls asleep now, and wakes then, does what was due `at`: the library looks at the clock again
    /// and again, its callers only wait.
    fn end_of_wait(&mut self, at: Nanos, awake: Nanos, is_cut: bool) -> Nanos {
        let left = at.saturating_sub(self.now());
        if is_cut && !waits_uncut(self.bug) {
            at.max(awake + left.min(self.random.random_range(0..LONGEST_WAIT)))
        } else {
            awake + left
        }
    }

    fn touch(&mut self, client: usize) {
        self.dirty.extend((0..self.seats.len()).filter(|&session| self.seats[session].client == client));
    }

    fn set_wall_clock(&mut self, client: usize, by: i64) {
        self.clients[client].clock.step(by);
        self.seats.iter_mut().filter(|seat| seat.client == client).for_each(|seat| seat.armed = None);
        self.touch(client);
    }

    /// Note trouble between `master` and everybody until `until`.
    fn trouble_all(&mut self, master: usize, until: Nanos) {
        for client in 0..self.clients.len() {
            self.trouble_between(client, master, until);
        }
    }

    pub fn trouble_between(&mut self, client: usize, master: usize, until: Nanos) {
        let trouble = &mut self.trouble[client][master];
        *trouble = (*trouble).max(until);
    }

    pub fn is_calm(&self) -> bool {
        self.plan.is_calm()
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Up { conn, item } => write!(f, "conn {conn} -> master  {item}"),
            Self::Down { conn, item } => write!(f, "conn {conn} -> client  {item}"),
            Self::LookForKey { key } => write!(f, "look for {}", key.escape_ascii()),
            Self::Outlived { master, key, .. } => write!(f, "master {master}: outlived {}", key.escape_ascii()),
            Self::Timer { session, deadline } => {
                write!(f, "session {session}: timer {:.3} ms", *deadline as f64 / MS as f64)
            }
            other => write!(f, "{other:?}"),
        }
    }
}

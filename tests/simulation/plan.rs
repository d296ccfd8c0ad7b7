//! What a seed stands for: who is there, how far apart, and what befalls them.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::master::Kind;
use super::time::{MS, Nanos, RATE_BOUND_PPM, SECOND};

/// Where the seeds of `make soak` begin. Most of them draw small worlds, so that many can be run. Smaller seeds draw what
/// they always did: some of them are there because they once failed.
const FRESH: u64 = 1 << 40;

/// An assumption of Redlock's, broken on purpose, or one of the remedies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Masters come back at once and without their data.
    Forgets,
    /// Masters come back without their data, but only after the longest TTL.
    ForgetsLong,
    /// Masters come back at once and without their data, and clients guard against that.
    ForgetsGuarded,
    /// A master's clock jumps forward by an hour.
    ClockJumps,
    /// A client's clock runs 5 % slow, beyond what the drift allows for.
    ClockCrawls,
    /// A client is stopped after it looked at its lock and before it acts on it.
    ActsBlindly,
}

/// How a client's callers share its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All at once in one session, as tasks of one event loop.
    Loop,
    /// A session for each, as threads with a manager each.
    Own,
    /// Whichever came back last, as threads with one manager.
    Pool,
}

/// A machine or a process with callers on it.
#[derive(Debug, Clone)]
pub struct ClientPlan {
    pub ppm: i64,
    pub zero: Nanos,
    pub sharing: Sharing,
    pub workers: usize,
}

/// Something that happens to somebody.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The process of a master stops; its kernel goes on.
    Freeze { master: usize, lasting: Nanos },
    /// The process of a master is killed, and started again.
    Kill { master: usize, lasting: Nanos, forgets: bool },
    /// The machine of a master loses power, and gets it back.
    PowerCut { master: usize, lasting: Nanos, forgets: bool },
    /// All connections between two are reset.
    Reset { client: usize, master: usize },
    /// The master loses the connections without a word.
    HalfOpen { client: usize, master: usize },
    /// Nothing gets through between two, and then what was sent does, or the connections are reset.
    Stall { client: usize, master: usize, lasting: Nanos, reset: bool },
    /// A client stops: its kernel goes on.
    Pause { client: usize, lasting: Nanos },
    /// A client's machine is suspended: its clock runs on, what its processes wait for stands still.
    Suspend { client: usize, lasting: Nanos },
    /// Somebody sets a client's wall clock. The engine looks at it for nothing but the first token to propose.
    SetWallClock { client: usize, by: i64 },
    /// `SCRIPT FLUSH`.
    FlushScripts { master: usize },
    /// A master answers `SET` with `-OOM`.
    OutOfMemory { master: usize, lasting: Nanos },
    /// A master's clock jumps.
    ClockJump { master: usize, by: i64 },
    /// An operator deletes all locks on the masters that run.
    Delete,
}

/// All that is decided before the world begins.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub masters: Vec<(Kind, i64)>,
    pub clients: Vec<ClientPlan>,
    /// The shortest delay one way, by client and master.
    pub delays: Vec<Vec<Nanos>>,
    /// How much longer than the shortest a delay may be, as a factor of it.
    pub jitter: u64,
    /// How many of a thousand packets are late by up to half a second.
    pub late_per_mille: u32,
    /// Whether bytes come one by one, in pieces, or as they were sent.
    pub piece: usize,
    pub room: usize,
    pub pushes: bool,
    /// Which masters do not tell who reads a key of its changes.
    pub untracked: Vec<bool>,
    /// How many of the pushes that were asked for never come.
    pub lost_pushes: f64,
    pub resources: usize,
    /// How many of the callers want a fencing token.
    pub fenced: f64,
    /// How many callers want several resources at once.
    pub several: f64,
    /// How many holders extend by hand, and how many have their lease renewed.
    pub extends: f64,
    pub keeps: f64,
    /// How many extensions set a shorter time than before.
    pub shortens: f64,
    pub cancels: f64,
    pub ttl_ms: u64,
    pub tries: u64,
    pub retry_delay: Nanos,
    /// How long callers wait at most; without bound for their tries then.
    pub timeout: Option<Nanos>,
    pub socket_timeout: Nanos,
    /// The shortest pause of a caller between two locks.
    pub rest: Nanos,
    /// When, and after how many operations, nobody begins anything new.
    pub end: Nanos,
    pub operations: usize,
    pub faults: Vec<(Nanos, Fault)>,
    pub broken: Option<Broken>,
    /// Whether masters are so far away that a connection takes longer than a round.
    pub is_distant: bool,
}

impl Plan {
    /// The plan of `seed`; the same whatever bug is planted.
    pub fn new(seed: u64, broken: Option<Broken>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let masters: Vec<_> = (0..random.random_range(1..=7)).map(|_| (kind(&mut random), ppm(&mut random))).collect();
        let untracked = masters.iter().map(|_| random.random_bool(0.1)).collect();
        let clients = (0..random.random_range(2..=6)).map(|_| client(&mut random)).collect();
        let ttl_ms = log_uniform(&mut random, 30, 4000);
        let end = (8 * ttl_ms * MS).clamp(2 * SECOND, 10 * SECOND);
        let mut plan = Self {
            seed,
            masters,
            clients,
            delays: Vec::new(),
            jitter: random.random_range(0..=5),
            late_per_mille: 0,
            piece: if random.random_bool(0.2) { random.random_range(1..=9) } else { usize::MAX },
            room: if random.random_bool(0.1) { random.random_range(20..=200) } else { 1 << 16 },
            pushes: random.random_bool(0.2),
            untracked,
            lost_pushes: *[0.0, 0.0, 0.1, 0.5, 1.0].choose(&mut random).unwrap(),
            resources: random.random_range(1..=3),
            fenced: *[0.0, 0.0, 0.5, 1.0].choose(&mut random).unwrap(),
            several: *[0.0, 0.0, 0.5].choose(&mut random).unwrap(),
            extends: *[0.0, 0.6].choose(&mut random).unwrap(),
            keeps: *[0.0, 0.0, 0.5].choose(&mut random).unwrap(),
            shortens: 0.0,
            cancels: *[0.05, 0.05, 0.3].choose(&mut random).unwrap(),
            ttl_ms,
            tries: log_uniform(&mut random, 1, 20),
            retry_delay: log_uniform(&mut random, 2, 200) * MS,
            timeout: None,
            socket_timeout: log_uniform(&mut random, 20, 1000) * MS,
            rest: 1000,
            end,
            operations: random.random_range(15..=45),
            faults: Vec::new(),
            broken,
            is_distant: broken.is_none() && seed % 20 == 7,
        };
        let is_fresh = seed >= FRESH;
        if is_fresh {
            plan.shrink(&mut random);
        }
        plan.draw_delays(&mut random);
        plan.draw_patience(&mut random);
        if broken.is_some() {
            plan.break_it(&mut random);
        } else if random.random_bool(0.8) {
            plan.late_per_mille = *[0, 0, 1, 10].choose(&mut random).unwrap();
            plan.draw_faults(&mut random);
        }
        plan.shortens = *[0.0, 0.0, 0.5].choose(&mut random).unwrap();
        if !plan.faults.is_empty() && broken.is_none() && random.random_bool(0.15) {
            plan.silence(&mut random);
        }
        match seed % 20 {
            7 if plan.is_distant => plan.draw_distance(&mut random),
            5 if broken.is_none() => plan.draw_suspends(&mut random),
            9 if broken.is_none() && (!is_fresh || random.random_bool(0.3)) => plan.draw_silence(&mut random),
            17 if broken.is_none() => plan.draw_deletions(&mut random),
            _ => {}
        }
        if is_fresh {
            let timeout = plan.timeout.unwrap_or(0);
            plan.retry_delay = plan.retry_delay.max(timeout / 10);
        }
        plan
    }

    /// Mostly fewer callers, who do less, and larger pieces: most of what a world costs are bytes that come one by one.
    fn shrink(&mut self, random: &mut StdRng) {
        self.piece = self.piece.saturating_mul(random.random_range(1..=30));
        if self.piece < 10 {
            (self.operations, self.tries) = (3, self.tries.min(3));
        } else if random.random_bool(0.01) {
            return;
        }
        self.operations = self.operations.min(random.random_range(3..=7));
        self.clients.truncate(random.random_range(2..=3));
        self.clients.iter_mut().for_each(|client| client.workers = client.workers.min(random.random_range(1..=3)));
        self.masters.truncate(if random.random_bool(0.7) { 3 } else { 7 });
    }

    /// Whether nothing ever goes wrong.
    pub fn is_calm(&self) -> bool {
        self.faults.is_empty() && self.late_per_mille == 0 && self.broken.is_none()
    }

    /// Whether send buffers are so small that what is decided may be written only much later.
    pub const fn is_crowded(&self) -> bool {
        self.room < 1024
    }

    /// Whether a connection that has to be made is there well before the engine gives up on it.
    pub fn is_patient(&self) -> bool {
        self.socket_timeout.min(500 * MS) > 16 * self.longest_delay()
    }

    /// The longest a packet takes that is not late.
    pub fn longest_delay(&self) -> Nanos {
        let longest = self.delays.iter().flatten().max().copied().unwrap_or(0);
        longest * (self.jitter + 1) + 2 * MS
    }

    fn draw_delays(&mut self, random: &mut StdRng) {
        let most = log_uniform(random, 50, 15_000) * 1000;
        let mut row = || (0..self.masters.len()).map(|_| random.random_range(most / 4..=most)).collect();
        self.delays = (0..self.clients.len()).map(|_| row()).collect();
    }

    /// In some worlds all that goes wrong is the distance, and there are tries enough to overcome it.
    fn draw_distance(&mut self, random: &mut StdRng) {
        let mut delay = || random.random_range(100..=200) * MS;
        self.delays.iter_mut().flatten().for_each(|each| *each = delay());
        (self.jitter, self.late_per_mille) = (0, 0);
        (self.piece, self.room) = (usize::MAX, 1 << 16);
        (self.tries, self.retry_delay, self.timeout) = (30, 200 * MS, None);
        self.ttl_ms = self.ttl_ms.max(5000);
        self.socket_timeout = 500 * MS;
        self.faults.clear();
    }

    /// Whether a machine sleeps now and then.
    pub fn sleeps(&self) -> bool {
        self.faults.iter().any(|(_, fault)| matches!(fault, Fault::Suspend { .. }))
    }

    /// In some worlds the machines of clients are suspended, for half a TTL or for several.
    fn draw_suspends(&mut self, random: &mut StdRng) {
        self.ttl_ms = self.ttl_ms.max(log_uniform(random, 2000, 8000));
        self.end = 10 * SECOND;
        for client in 0..self.clients.len() {
            let lasting = log_uniform(random, self.ttl_ms / 2, 4 * self.ttl_ms) * MS;
            self.faults.push((random.random_range(0..self.end), Fault::Suspend { client, lasting }));
        }
    }

    /// In some worlds busy processes, with callers who ask but once or twice, are answered nothing for a while.
    fn draw_silence(&mut self, random: &mut StdRng) {
        self.bring_near(random);
        self.clients.truncate(2);
        self.clients.iter_mut().for_each(|client| client.workers = random.random_range(4..=8));
        (self.tries, self.timeout) = (random.random_range(1..=2), None);
        self.retry_delay = log_uniform(random, 2, 50) * MS;
        self.end = SECOND;
        self.silence(random);
        self.operations = 300;
    }

    /// In some worlds a few masters are dead, and what is held is deleted on all others.
    fn draw_deletions(&mut self, random: &mut StdRng) {
        self.bring_near(random);
        let lasting = self.end;
        let minority = (self.masters.len() - 1) / 2;
        for master in 0..random.random_range(0..=minority).max(1).min(minority) {
            let dies = random.random_bool(0.8);
            let killed = Fault::Kill { master, lasting, forgets: false };
            self.faults.push((0, if dies { killed } else { Fault::Freeze { master, lasting } }));
        }
        self.faults.extend((0..12).map(|_| (random.random_range(0..self.end), Fault::Delete)));
        (self.extends, self.keeps) = (1.0, random.random_range(0.0..=1.0));
        self.operations *= 2;
    }

    /// Nothing is wrong with the network, and there is time enough for everything.
    fn bring_near(&mut self, random: &mut StdRng) {
        self.delays.iter_mut().flatten().for_each(|delay| *delay = random.random_range(MS / 20..=MS));
        (self.jitter, self.late_per_mille) = (random.random_range(0..=1), 0);
        (self.piece, self.room) = (usize::MAX, 1 << 16);
        self.ttl_ms = self.ttl_ms.max(log_uniform(random, 500, 4000));
        self.end = (8 * self.ttl_ms * MS).clamp(2 * SECOND, 10 * SECOND);
        self.socket_timeout = log_uniform(random, 200, 1000) * MS;
        self.rest = 20 * MS;
        self.faults.clear();
    }

    /// In some worlds callers wait for as long as a timeout allows, with pauses that only their end would be missed in.
    fn draw_patience(&mut self, random: &mut StdRng) {
        if random.random_bool(0.4) {
            self.ttl_ms = self.ttl_ms.max(log_uniform(random, 30, 6000));
            self.tries = u64::MAX;
            self.retry_delay = log_uniform(random, 5, 2000) * MS;
            self.timeout = Some(log_uniform(random, self.ttl_ms / 2, 6 * self.ttl_ms + 2000) * MS);
            // Time enough to oversleep, and not a turn for each byte of it.
            self.piece = self.piece.max(8);
            if random.random_bool(0.25) {
                (self.lost_pushes, self.ttl_ms) = (1.0, self.ttl_ms.max(5000));
                self.timeout = Some(2 * self.ttl_ms * MS);
            }
        }
    }

    fn draw_faults(&mut self, random: &mut StdRng) {
        for _ in 0..random.random_range(0..=12) {
            let at = random.random_range(0..self.end);
            let fault = self.fault(random);
            self.faults.push((at, fault));
        }
        for _ in 0..8 {
            let (at, client) = (random.random_range(0..self.end), random.random_range(0..self.clients.len()));
            self.faults.push((at, Fault::SetWallClock { client, by: wall_clock_step(random) }));
        }
    }

    /// All masters stop at once, for longer than anybody waits for them, and there is a life after it.
    fn silence(&mut self, random: &mut StdRng) {
        let (at, lasting) = (random.random_range(0..self.end / 2), log_uniform(random, 500, 4000) * MS);
        self.faults.extend((0..self.masters.len()).map(|master| (at, Fault::Freeze { master, lasting })));
        self.end = self.end.max(at + lasting + 4 * SECOND);
        self.operations *= 3;
    }

    fn fault(&self, random: &mut StdRng) -> Fault {
        let (client, master) = (random.random_range(0..self.clients.len()), random.random_range(0..self.masters.len()));
        let lasting = log_uniform(random, 1, 2000) * MS;
        let forgets = false;
        match random.random_range(0..19) {
            0..=3 => Fault::Freeze { master, lasting },
            4..=5 => Fault::Kill { master, lasting, forgets },
            6 => Fault::PowerCut { master, lasting, forgets },
            7..=8 => Fault::Reset { client, master },
            9 => Fault::HalfOpen { client, master },
            10..=13 => Fault::Stall { client, master, lasting, reset: random.random_bool(0.4) },
            14..=16 => Fault::Pause { client, lasting: lasting.min(3 * self.ttl_ms * MS) },
            17 => Fault::FlushScripts { master },
            _ => Fault::OutOfMemory { master, lasting },
        }
    }

    /// Break one assumption, again and again, and nothing else.
    fn break_it(&mut self, random: &mut StdRng) {
        self.ttl_ms = self.ttl_ms.max(500);
        self.end = 10 * SECOND;
        let ttl = self.ttl_ms * MS;
        for _ in 0..8 {
            let master = random.random_range(0..self.masters.len());
            let at = random.random_range(0..self.end);
            let client = random.random_range(0..self.clients.len());
            self.faults.extend(match self.broken {
                Some(Broken::Forgets | Broken::ForgetsGuarded) => {
                    Some((at, Fault::Kill { master, lasting: 5 * MS, forgets: true }))
                }
                Some(Broken::ForgetsLong) => Some((at, Fault::Kill { master, lasting: ttl + ttl / 50, forgets: true })),
                Some(Broken::ClockJumps) => Some((at, Fault::ClockJump { master, by: 3600 * SECOND.cast_signed() })),
                Some(Broken::ActsBlindly) => Some((at, Fault::Pause { client, lasting: ttl + ttl / 2 })),
                _ => None,
            });
        }
        if self.broken == Some(Broken::ClockCrawls) {
            self.clients.iter_mut().step_by(2).for_each(|client| client.ppm = -50_000);
        }
    }
}

/// The names of this many locks.
pub fn resources(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|name| format!("lock-{name}").into_bytes()).collect()
}

fn kind(random: &mut StdRng) -> Kind {
    *Kind::ALL.choose(random).unwrap()
}

/// The extremes are as likely as all that lies between.
fn ppm(random: &mut StdRng) -> i64 {
    let any = random.random_range(-RATE_BOUND_PPM..=RATE_BOUND_PPM);
    *[-RATE_BOUND_PPM, RATE_BOUND_PPM, any, any].choose(random).unwrap()
}

fn client(random: &mut StdRng) -> ClientPlan {
    let sharing = *[Sharing::Loop, Sharing::Own, Sharing::Pool].choose(random).unwrap();
    ClientPlan {
        ppm: ppm(random),
        zero: random.random_range(0..1000 * SECOND),
        sharing,
        workers: if sharing == Sharing::Pool {
            random.random_range(1..=4)
        } else {
            *[1, 1, 2, 3, 6].choose(random).unwrap()
        },
    }
}

fn wall_clock_step(random: &mut StdRng) -> i64 {
    let by = log_uniform(random, 10, 3_600_000).cast_signed() * MS.cast_signed();
    if random.random_bool(0.5) { by } else { -by }
}

/// Short and long are equally likely, on a logarithmic scale.
pub fn log_uniform(random: &mut StdRng, low: u64, high: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let drawn = ((low as f64).ln() + random.random::<f64>() * (high as f64 / low as f64).ln()).exp() as u64;
    drawn.clamp(low, high)
}

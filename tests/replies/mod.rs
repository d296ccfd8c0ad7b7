//! Whatever bytes masters send: no panic, no grant that was not given, no reply without end, no call without end.
//!
//! A real session on streams in memory, in virtual time. What masters say is a list of [`Step`]s; which of it was a grant
//! is found out beside the engine, by a parser of its own ([`frames`]). Used by the property test and by the fuzz target.

mod frames;
mod world;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use redlock::clock::Clock;
use redlock::engine::acquire::{Held, Request, acquire};
use redlock::engine::owed::{Keeper, Owed};
use redlock::engine::release::release;
use redlock::engine::{Masters, Session};
use redlock::master::endpoint::{Address, Endpoint};
use redlock::master::health::{Health, Journal};
use redlock::quorum::majority;
use redlock::script::{Grant, UnlockScript};
use tokio::sync::oneshot;
use world::{Command, Connection, World};

const TTL_MS: u64 = 10_000;
const DRIFT_MS: u64 = 102;
const TRIES: u64 = 2;
/// Locks taken one after another in one session, so that a reply to one may be mistaken for that to another.
const LOCKS: usize = 2;
/// How long one call may take, at the very most: two rounds, each with its release, each exchange with a new connection.
const LONGEST_CALL: Duration = Duration::from_secs(20);
/// What may be read beyond what was asked for: 64 KiB, and one buffer.
const MOST_UNASKED: usize = 128 * 1024;
const FLOOD: usize = 200 * 1024;
/// More would only make the fuzzer slow.
const MOST_STEPS: usize = 100;

/// What a master that behaves says to a `SET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// OK.
    Yes,
    /// Somebody holds it.
    No,
    /// An error.
    Error,
}

/// What a master does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// Send any bytes.
    Send(Vec<u8>),
    /// Send some bytes again and again, a few hundred KiB of them.
    Flood(Vec<u8>),
    /// Answer everything that has no answer yet.
    Answer(Says),
    /// Leave the greeting unanswered from now on, or answer it again, which is what it does at first.
    Sulk(bool),
    /// Close the connection.
    Close,
    /// Nothing, for so many milliseconds.
    Pass(u16),
}

/// One thing that one master does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Which, by number, around and around.
    pub(crate) master: u8,
    /// What.
    pub(crate) act: Act,
}

/// How it went: per lock, whether it was granted.
pub(crate) type Outcome = Vec<bool>;

/// Lock, and unlock what was granted, while `masters` masters do these steps and then fall silent.
///
/// # Panics
///
/// If the engine does what it must not.
pub(crate) fn play(masters: usize, steps: &[Step]) -> Outcome {
    let mut stage = Stage::new(masters, steps);
    (0..LOCKS).map(|_| stage.lock_and_unlock()).collect()
}

/// The engine on one side, the masters and what is left of the script on the other.
struct Stage<'a> {
    world: World,
    session: Session,
    masters: usize,
    steps: std::slice::Iter<'a, Step>,
    sulking: Vec<bool>,
}

/// Settles nothing.
struct Absent;

impl Keeper for Absent {
    fn settle(&self) -> bool {
        true
    }

    fn look(&self) {}
}

impl<'a> Stage<'a> {
    fn new(masters: usize, steps: &'a [Step]) -> Self {
        Self::owing(masters, steps, Arc::default())
    }

    /// One in which nothing more is done for masters when a call has its result.
    fn unfinished(masters: usize) -> Self {
        Self::owing(masters, &[], Arc::new(Owed::new(Box::new(Absent))))
    }

    fn owing(masters: usize, steps: &'a [Step], owed: Arc<Owed>) -> Self {
        let world = World::new(7);
        let journal = Arc::new(Journal::default());
        let endpoints: Vec<_> = (0..masters)
            .map(|number| {
                let port = u16::try_from(number).unwrap_or_default();
                let endpoint = Arc::new(Endpoint::new(Address::Tcp { host: "made-up".into(), port }));
                let health = Arc::new(Health::new(endpoint.to_string(), Arc::clone(&journal), Arc::default()));
                (endpoint, health)
            })
            .collect();
        let session = Session::new(&endpoints, Arc::default(), owed, Arc::new(world.clone()));
        Self { world, session, masters, steps: steps.iter(), sulking: vec![false; masters] }
    }

    fn request(&self) -> Request {
        Request {
            resources: vec![b"r".to_vec()],
            ttl_ms: TTL_MS,
            drift_ms: DRIFT_MS,
            quorum: majority(self.masters),
            tries: TRIES,
            retry_delay: Duration::from_millis(50),
            timeout: None,
            script: Arc::new(UnlockScript::default()),
            key: None,
            fencing: false,
            rounds: Arc::default(),
        }
    }

    fn lock_and_unlock(&mut self) -> bool {
        let request = self.request();
        let (_keep, cancel) = oneshot::channel();
        let outcome = self.call(|masters| async move { acquire(&masters, &request, cancel.fuse()).await });
        let Ok(held) = outcome else { return false };
        self.check_grant(&held);
        self.call(|masters| async move { release(&masters, &held.claim).await });
        true
    }

    /// One operation from beginning to end.
    fn call<T, F>(&mut self, operation: impl FnOnce(Arc<Masters>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.session.resume();
        let start = self.world.now();
        let mut result = self.session.start(operation);
        loop {
            self.turn();
            if let Ok(value) = result.try_recv() {
                self.session.leave();
                return value;
            }
            self.go_on();
            assert!(self.world.now().since(start) < LONGEST_CALL, "a call without end");
        }
    }

    /// Let the engine do what it can, with masters that greet, as most do.
    fn turn(&mut self) {
        self.session.turn();
        while (0..self.masters).any(|master| !self.sulking[master] && self.greet(master)) {
            self.session.turn();
        }
        let most = self.world.most_unasked();
        assert!(most <= MOST_UNASKED, "{most} bytes were read that nobody had asked for");
    }

    /// Answer the next command of a master's, if it is one of the greeting's.
    fn greet(&self, master: usize) -> bool {
        let greet = |connection: &mut Connection| {
            let reply = connection
                .unanswered()
                .filter(|command| is_greeting(command))
                .map(|command| polite(command, Says::Yes));
            reply.map(|reply| connection.answer(&reply)).is_some()
        };
        self.world.open(master, greet).unwrap_or(false)
    }

    /// The next step, or the next thing that the engine waits for.
    fn go_on(&mut self) {
        match self.steps.next() {
            Some(step) => self.take(step),
            None => match self.session.wait().deadline {
                Some(deadline) => self.world.advance_to(deadline),
                None => panic!("the engine waits for nothing in particular"),
            },
        }
    }

    fn take(&mut self, step: &Step) {
        let master = usize::from(step.master) % self.masters;
        let act = |connection: &mut Connection| match &step.act {
            Act::Send(bytes) => connection.deliver(bytes),
            Act::Flood(bytes) => connection.deliver(&bytes.repeat(FLOOD / bytes.len().max(1))),
            Act::Answer(says) => answer_all(connection, *says),
            Act::Close => connection.end(),
            Act::Pass(_) | Act::Sulk(_) => {}
        };
        match step.act {
            Act::Pass(millis) => self.world.pass(Duration::from_millis(millis.into())),
            Act::Sulk(sulks) => self.sulking[master] = sulks,
            _ => _ = self.world.open(master, act),
        }
    }

    /// A quorum said yes to this very key, in so many words, and there was time.
    fn check_grant(&self, held: &Held) {
        let granted: Vec<bool> = (0..self.masters).map(|master| self.world.granted(master, &held.claim.key)).collect();
        let believed: Vec<bool> = held.votes.iter().map(|vote| *vote == Ok(Grant::Granted)).collect();
        assert!(believed.iter().zip(&granted).all(|(believed, is)| *is || !believed), "{believed:?}, but {granted:?}");
        assert!(believed.into_iter().filter(|&vote| vote).count() >= majority(self.masters), "no quorum: {granted:?}");
        let left = Duration::from_millis(TTL_MS - DRIFT_MS)
            .saturating_sub(self.world.asked_since(&held.claim.key))
            .as_millis();
        assert!(held.validity_ms > 0 && u128::from(held.validity_ms) <= left, "{} of {left} ms", held.validity_ms);
    }
}

/// What depends on which of several things comes first.
#[cfg(test)]
mod order;

/// The commands with which a connection begins.
fn is_greeting(command: &Command) -> bool {
    match command[0].as_slice() {
        b"HELLO" | b"AUTH" | b"SELECT" | b"CLIENT" | b"INFO" | b"TIME" => true,
        b"EVAL" => command[2] == b"0",
        _ => false,
    }
}

fn answer_all(connection: &mut Connection, says: Says) {
    while let Some(reply) = connection.unanswered().map(|command| polite(command, says)) {
        connection.answer(&reply);
    }
}

/// What Redis would say.
fn polite(command: &Command, says: Says) -> Vec<u8> {
    match (command[0].as_slice(), says) {
        (b"HELLO", _) => b"%2\r\n$7\r\nversion\r\n$5\r\n8.2.3\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".to_vec(),
        (b"INFO", _) => b"$11\r\nrun_id:abcd\r\n".to_vec(),
        (_, Says::Error) => b"-NOSCRIPT No matching script\r\n".to_vec(),
        (b"SET" | b"SELECT" | b"AUTH" | b"CLIENT", Says::Yes) => b"+OK\r\n".to_vec(),
        (b"EVAL" | b"EVALSHA", says) => format!(":{}\r\n", u8::from(says == Says::Yes)).into_bytes(),
        _ => b"$-1\r\n".to_vec(),
    }
}

/// A script, of a number of masters, out of any bytes: what the fuzzer changes.
pub(crate) fn decode(data: &[u8]) -> (usize, Vec<Step>) {
    let mut bytes = data.iter().copied();
    let masters = 1 + usize::from(bytes.next().unwrap_or_default() % 5);
    let steps = std::iter::from_fn(|| {
        let code = bytes.next()?;
        let mut take = || -> Vec<u8> {
            let count = bytes.next().unwrap_or_default().into();
            bytes.by_ref().take(count).collect()
        };
        let act = match code >> 3 & 15 {
            0 => Act::Answer(Says::Yes),
            1 => Act::Answer(Says::No),
            2 => Act::Answer(Says::Error),
            3 => Act::Sulk(true),
            4 => Act::Sulk(false),
            5 => Act::Close,
            6 => Act::Flood(take()),
            7 => Act::Pass(u16::from(bytes.next().unwrap_or_default()) * 4),
            _ => Act::Send(take()),
        };
        Some(Step { master: code & 7, act })
    });
    (masters, steps.take(MOST_STEPS).collect())
}

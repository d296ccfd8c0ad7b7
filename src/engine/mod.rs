//! The operations over N masters, as plain `async fn`s, and the session that runs them.

pub mod acquire;
pub mod crowd;
pub mod extend;
mod fence;
pub mod inspect;
pub mod owed;
pub mod release;
pub mod renew;
mod waiting;

use std::collections::HashMap;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join_all, select};
use redis::Value;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, SemaphorePermit, oneshot};

use crate::clock::Instant;
use crate::engine::crowd::Crowds;
use crate::engine::owed::Owed;
use crate::error::Error;
use crate::master::Master;
use crate::master::endpoint::Endpoint;
use crate::master::health::Health;
use crate::master::link::{Link, Taking};
use crate::planted::{self, Bug};
use crate::quorum::{self, Verdict};
use crate::runtime::{Effects, Executor, Handle, Wait, locked};
use crate::script;
use crate::token::{self, Key};

/// The masters of one session.
#[derive(Debug)]
pub struct Masters {
    list: Vec<Arc<Master>>,
    handle: Handle,
    lines: Mutex<HashMap<Vec<u8>, Weak<AsyncMutex<()>>>>,
    crowds: Arc<Crowds>,
    owed: Arc<Owed>,
    me: Weak<Self>,
    renewals: Semaphore,
    /// The process ends after its call: what is decided is finished in the call.
    is_last_call: AtomicBool,
}

impl Deref for Masters {
    type Target = [Arc<Master>];

    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

impl Masters {
    /// Timers, tasks and the outside world.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Whether the process ends after this call: then what a quorum decides reaches the others before it returns, if they
    /// are not much slower.
    pub fn expect_last_call(&self, is_last_call: bool) {
        self.is_last_call.store(is_last_call, Ordering::Relaxed);
    }

    /// A key nobody else has.
    #[must_use]
    pub fn fresh_key(&self) -> Key {
        token::key(|bytes| self.handle.effects().fill_random(bytes))
    }

    /// Wait until the masters may be asked to renew one more lease. Those who wait go on in the order in which they came.
    async fn may_renew(&self) -> Option<SemaphorePermit<'_>> {
        self.renewals.acquire().await.ok()
    }

    /// The longest a round waits for masters that do not answer.
    fn patience(&self, ttl_ms: u64) -> Duration {
        let allowed = self.iter().map(|master| master.answer_patience()).max();
        quorum::patience(ttl_ms, allowed.unwrap_or_default())
    }

    /// The longest time for which a lock was asked for, as far as known.
    fn longest_ttl(&self) -> Duration {
        self.first().map(|master| master.longest_ttl()).unwrap_or_default()
    }

    /// Whether there is no quorum without masters that are suspect.
    fn needs_suspects(&self, quorum: usize) -> bool {
        self.iter().filter(|master| master.is_well()).count() < quorum
    }

    /// What was begun then is decided. Where the process ends after its call, no one else reaches the masters that were
    /// slower: those have as long again for it, and at least [`LEAST_FINISH`].
    async fn finish(&self, start: Instant, rest: impl Future<Output = ()>) {
        if self.is_last_call.load(Ordering::Relaxed) {
            let took = self.handle.now().since(start);
            select(pin!(rest), self.handle.sleep(took.clamp(LEAST_FINISH, LONGEST_FINISH))).await;
        }
    }

    /// Which masters a round that needs `quorum` of them asks and waits for, connections to be made included: all where
    /// it needs suspects, for only an answer shows that one is well again. Otherwise not those, unless it is their turn.
    fn awaited(&self, quorum: usize) -> Vec<bool> {
        let all = self.needs_suspects(quorum);
        let shuns_hung = planted::is(Bug::ShunHung);
        self.iter().map(|master| (all && !(shuns_hung && master.is_hung())) || master.is_due()).collect()
    }

    /// Where those of this session stand in line who wait for these resources: first come, first served.
    fn line(&self, resources: &[Vec<u8>]) -> Arc<AsyncMutex<()>> {
        let mut lines = locked(&self.lines);
        if lines.len() == lines.capacity() {
            lines.retain(|_, line| line.strong_count() > 0);
        }
        let line = lines.entry(least(resources).to_vec()).or_default();
        line.upgrade().unwrap_or_else(|| {
            let fresh = Arc::default();
            *line = Arc::downgrade(&fresh);
            fresh
        })
    }

    /// Be one of those in this process who wait for these resources.
    fn join(&self, resources: &[Vec<u8>]) -> crowd::Place {
        self.crowds.join(least(resources), self.handle.now())
    }

    /// What masters said in a round that ended so. Of one that was not needed, what is known from before: somebody will
    /// ask why there was no quorum. One still to answer kept silent, if the round did not end without it.
    fn explained<T>(&self, verdict: Verdict, said: Vec<Result<T, Error>>) -> Vec<Result<T, Error>> {
        let explained = |(master, one): (&Arc<Master>, Result<T, Error>)| match one {
            Err(Error::NotAwaited) if verdict == Verdict::Open => Err(Error::NoAnswer),
            Err(error @ (Error::NotAwaited | Error::NotSent)) => Err(master.failure().unwrap_or(error)),
            said => said,
        };
        self.iter().zip(said).map(explained).collect()
    }

    /// The master all contenders for these resources ask first, whatever process they are in; the next one where it is
    /// suspect. `None` where too few are well: there a round cannot wait for one before it asks the others.
    ///
    /// Callers whose names meet only in part may have different ones, and split the votes again and again. After some
    /// `splits` it is the same for all names.
    fn designated(&self, resources: &[Vec<u8>], quorum: usize, splits: usize) -> Option<usize> {
        let hash = if splits < MOST_SPLITS { fnv1a(least(resources)) } else { 0 };
        let first = usize::try_from(hash % self.len().max(1) as u64).unwrap_or_default();
        let mut in_turn = (0..self.len()).map(|step| (first + step) % self.len());
        in_turn.find(|&index| self[index].is_well()).filter(|_| !self.needs_suspects(quorum))
    }
}

/// What stands for all of them, whatever the order they are named in; callers whose sets meet often have the least in
/// common.
fn least(resources: &[Vec<u8>]) -> &[u8] {
    resources.iter().min().map_or(&[], Vec::as_slice)
}

/// How many rounds of one call may end with the vote of the master that was asked first and without a quorum, before it asks
/// another one first.
const MOST_SPLITS: usize = 2;

/// How long the masters that were slower than a quorum have for the last call of a process.
const LEAST_FINISH: Duration = Duration::from_millis(10);
const LONGEST_FINISH: Duration = Duration::from_millis(100);

/// How many resources of one claim are asked for at once, at most: the deadline of a round bounds what is sent for it.
const MOST_AT_ONCE: usize = 1000;

/// How many leases are renewed at the same time, at most. After a pause of the process all are due at once, and the last
/// answer has to come before the first renewal that waits for it gives up: 300 µs each take 80 ms.
const MOST_RENEWALS: usize = 256;

/// What `ask` says about each resource, all asked at once if they are not too many; the first error if there is any.
async fn of_each<'a, T, F>(resources: &'a [Vec<u8>], ask: impl Fn(&'a [u8]) -> F) -> Result<Vec<T>, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    // Each is waited for, whatever the others say: an answer that nobody waits for is not there to be undone.
    let mut said = Vec::new();
    for some in resources.chunks(MOST_AT_ONCE) {
        said.extend(join_all(some.iter().map(|resource| ask(resource))).await);
    }
    said.into_iter().collect()
}

/// Send the `SET` that takes a resource, for so many milliseconds.
async fn take(link: Link, resource: &[u8], taking: Taking, ttl_ms: u64) -> Result<Value, Error> {
    let set = script::set(resource, &taking.claim.key, ttl_ms);
    link.call_expecting(&set, Some(taking), script::is_grant).await
}

/// FNV-1a: the same in every process and every release, as a hash that contenders must agree on has to be.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Connections to N masters, and the operations in progress on them. Belongs to one caller, or one event loop, at a
/// time.
#[derive(Debug)]
pub struct Session {
    executor: Executor,
    masters: Arc<Masters>,
}

impl Session {
    /// A session without connections. `masters` are the endpoints with their health, which other sessions may share, as
    /// they do `crowds`, and what is `owed`.
    #[must_use]
    pub fn new(
        masters: &[(Arc<Endpoint>, Arc<Health>)],
        crowds: Arc<Crowds>,
        owed: Arc<Owed>,
        effects: Arc<dyn Effects>,
    ) -> Self {
        let executor = Executor::new(effects);
        let handle = executor.handle().clone();
        let list = masters
            .iter()
            .map(|(endpoint, health)| Master::new(Arc::clone(endpoint), Arc::clone(health), handle.clone()))
            .collect();
        let (lines, renewals) = (Mutex::default(), Semaphore::new(MOST_RENEWALS));
        let is_last_call = AtomicBool::new(false);
        let masters = |me: &Weak<Masters>| {
            let me = Weak::clone(me);
            Masters { list, handle, lines, crowds, owed, me, renewals, is_last_call }
        };
        Self { executor, masters: Arc::new_cyclic(masters) }
    }

    /// Timers, tasks and the outside world.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        self.masters.handle()
    }

    /// Begin `operation`; it makes progress in [`Session::turn`]s, whoever waits for it or not.
    pub fn spawn<F>(&self, operation: impl FnOnce(Arc<Masters>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.masters.handle.spawn(operation(Arc::clone(&self.masters)));
    }

    /// Begin `operation`; its result appears in the returned channel.
    pub fn start<T, F>(&self, operation: impl FnOnce(Arc<Masters>) -> F) -> oneshot::Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        self.spawn(|masters| operation(masters).map(|value| _ = done.send(value)));
        result
    }

    /// Let everything that can go on go on, until all is waiting.
    pub fn turn(&mut self) {
        self.executor.run_until_stalled();
    }

    /// Whether the answer of some master to a claim is still to come: to that with this key, or to any.
    #[must_use]
    pub fn awaits(&self, key: Option<&[u8]>) -> bool {
        self.masters.iter().any(|master| master.awaits(key))
    }

    /// Whether masters are owed something that is seen to in this session, or have not answered a claim.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.masters.owed.is_worked_on() || self.awaits(None)
    }

    /// The caller is back, and goes on taking [`Session::turn`]s.
    pub fn resume(&self) {
        self.executor.resume();
    }

    /// The caller turns away: until it is back, nothing can go on.
    pub fn leave(&self) {
        self.executor.leave();
    }

    /// Since when the caller has turned away.
    #[must_use]
    pub fn left_at(&self) -> Option<Instant> {
        self.executor.left_at()
    }

    /// The caller was not there for so long, though it had not said that it would leave.
    pub fn was_left_alone(&self, absent: Duration) {
        self.executor.was_left_alone(absent);
    }

    /// What everything is waiting for.
    #[must_use]
    pub fn wait(&self) -> Wait {
        self.executor.wait()
    }
}

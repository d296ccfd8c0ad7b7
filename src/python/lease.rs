//! `_redlock.LeaseState`: a lease as Python holds it, and `_redlock.Events`: what becomes of those that are renewed.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures_util::future::select;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rustix::process::{Pid, getpid};
use tokio::sync::Notify;

use crate::claim::Claim;
use crate::clock::{BootClock, Clock, Instant};
use crate::engine::Masters;
use crate::engine::acquire::Cancel;
use crate::engine::renew::{Listener, SharedLease, Waits};
use crate::host::blocking::Ended;
use crate::host::driver;
use crate::host::pool::Pool;
use crate::lease::{Lease, Reason, Ttl};
use crate::python::engine::Engine;
use crate::python::outcome::Held;
use crate::python::waiting::{self, Caller};
use crate::runtime::locked;

/// Upper bounds in seconds of the buckets of [`Renewals`], as `_counters.BOUNDS`.
const BOUNDS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// The renewals of one manager's leases, counted.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    extended: AtomicU64,
    given_back: AtomicU64,
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Renewals {
    fn add(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|&bound| bound < took.as_secs_f64());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many were extended, how many were given back since no holder referred to them any more, and how long the
    /// masters took: per bucket, and in all.
    pub(super) fn read(&self) -> (u64, u64, Vec<u64>, f64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let seconds = Duration::from_nanos(read(&self.nanos)).as_secs_f64();
        (read(&self.extended), read(&self.given_back), self.counts.iter().map(read).collect(), seconds)
    }
}

/// What a thread of Python's has to do for a lease that is renewed.
enum Event {
    Lost,
    Renew(Ttl),
    GiveBack,
    News,
}

/// What has happened, until a thread of Python's looks at it.
#[derive(Default)]
struct Inbox {
    events: Mutex<Vec<(u64, Event)>>,
    news: Notify,
}

/// Whom the driver tells of one lease.
struct Told {
    renewals: Arc<Renewals>,
    keeper: Mutex<Option<(Arc<Inbox>, u64)>>,
}

impl Told {
    fn tell(&self, event: Event) {
        if let Some((inbox, number)) = &*locked(&self.keeper) {
            locked(&inbox.events).push((*number, event));
            inbox.news.notify_one();
        }
    }
}

impl Listener for Told {
    fn asked(&self, was_extended: bool, took: Duration) {
        self.renewals.extended.fetch_add(was_extended.into(), Ordering::Relaxed);
        self.renewals.add(took);
    }

    fn lost(&self, _: Reason) {
        self.tell(Event::Lost);
    }

    fn renew(&self, ttl: Ttl) {
        self.tell(Event::Renew(ttl));
    }

    fn give_back(&self) {
        self.tell(Event::GiveBack);
    }

    fn news(&self) {
        self.tell(Event::News);
    }
}

/// What becomes of the leases of this process that are renewed. For one thread of Python's.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Events {
    inbox: Arc<Inbox>,
    /// Of no masters: sessions that only wait.
    pool: Pool,
}

/// Which lease, what, and the TTL in milliseconds of a renewal.
type News = (u64, &'static str, u64);

#[pymethods]
impl Events {
    #[new]
    fn new() -> Self {
        Self { inbox: Arc::default(), pool: Pool::default() }
    }

    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<Vec<News>> {
        let caller = Caller::here(py, self.pool.here())?;
        let longest = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let inbox = Arc::clone(&self.inbox);
        let news = |masters: Arc<Masters>, cancel: Cancel| async move {
            masters.handle().let_others_wake(None);
            let pause = masters.handle().sleep(longest);
            let news = pin!(inbox.news.notified());
            select(select(news, cancel), pause).await;
        };
        let ended = match waiting::patched_select(py)? {
            None => py.detach(|| caller.home.run(None, Duration::ZERO, news, caller.detached())),
            Some(select) => {
                let wait = |sources: &[_], timeout| caller.through(&select, sources, timeout);
                caller.home.run(None, Duration::ZERO, news, wait)
            }
        };
        if let Ended::BrokenOff((), reason) | Ended::Inherited(reason) = ended {
            return Err(reason);
        }
        let events = std::mem::take(&mut *locked(&self.inbox.events));
        let in_words = |(number, event)| match event {
            Event::Lost => (number, "lost", 0),
            Event::Renew(ttl) => (number, "renew", ttl.ms),
            Event::GiveBack => (number, "give back", 0),
            Event::News => (number, "news", 0),
        };
        Ok(events.into_iter().map(in_words).collect())
    }
}

/// A lease: how long it can be relied on, and how it ended. Of the process that made it.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct LeaseState {
    lease: Arc<SharedLease>,
    told: Arc<Told>,
    pool: Arc<Pool>,
    pid: Pid,
    /// It is renewed.
    is_kept: AtomicBool,
    /// The threads that extend or release it.
    busy: Mutex<Vec<ThreadId>>,
}

#[pymethods]
impl LeaseState {
    #[new]
    fn new(
        engine: Option<&Bound<'_, Engine>>,
        held: Option<PyRef<'_, Held>>,
        quorum: usize,
        ttl_ms: u64,
        drift_ms: u64,
        expires_at: f64,
    ) -> Self {
        // The one that was taken: other sessions may still have to do with it.
        let nothing = || Arc::new(Claim::new(Vec::new(), Vec::new(), Arc::default()));
        let claim = held.map_or_else(nothing, |held| held.claim());
        let (pool, renewals) = match engine {
            Some(engine) => engine.get().shared(),
            None => Default::default(),
        };
        let told = Arc::new(Told { renewals, keeper: Mutex::default() });
        let expires_at = Instant::from_zero(Duration::try_from_secs_f64(expires_at).unwrap_or_default());
        let state = Lease::new(BootClock.now(), Ttl { ms: ttl_ms, drift_ms }, expires_at);
        let listener = Arc::<Told>::clone(&told);
        let lease = Arc::new(SharedLease::new(claim, quorum, state, listener));
        let (is_kept, busy) = Default::default();
        Self { lease, told, pool, pid: getpid(), is_kept, busy }
    }

    /// Milliseconds that are left; 0 once it has ended, and in a forked child.
    #[getter]
    fn remaining_ms(&self) -> u64 {
        if self.is_inherited() {
            return 0;
        }
        let left = self.lease.with(|state| state.remaining(BootClock.now()));
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }

    #[getter]
    fn why_not(&self) -> Option<&'static str> {
        if self.is_inherited() {
            return Some("forked");
        }
        self.lease.with(|state| state.why_not(BootClock.now())).map(word)
    }

    #[getter]
    fn ttl_ms(&self) -> u64 {
        self.read(|state| state.ttl().ms).unwrap_or_default()
    }

    #[getter]
    fn validity_ms(&self) -> u64 {
        let validity = self.read(|state| state.validity()).unwrap_or_default();
        u64::try_from(validity.as_millis()).unwrap_or(u64::MAX)
    }

    #[getter]
    fn expires_at(&self) -> f64 {
        self.read(|state| state.expires_at().since_zero().as_secs_f64()).unwrap_or_default()
    }

    fn is_at(&self, master: usize) -> bool {
        !self.is_inherited() && self.lease.claim().is_at(master)
    }

    #[getter]
    fn is_told(&self) -> bool {
        self.read(|state| state.is_told()).unwrap_or_default()
    }

    #[getter]
    fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Relaxed)
    }

    #[getter]
    fn released_in_time(&self) -> Option<bool> {
        self.read(|state| state.released_in_time()).flatten()
    }

    /// Renew it from now on. What is to be told of it is told to `events` by this number.
    fn keep(&self, events: &Events, number: u64, max_hold: Option<f64>) -> PyResult<()> {
        let longest = max_hold.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        *locked(&self.told.keeper) = Some((Arc::clone(&events.inbox), number));
        self.lease.renew(BootClock.now(), longest);
        self.is_kept.store(true, Ordering::Relaxed);
        driver::renew(&self.pool, Arc::clone(&self.lease)).map_err(|error| {
            self.is_kept.store(false, Ordering::Relaxed);
            PyRuntimeError::new_err(format!("can't start the thread that renews leases: {error}"))
        })
    }

    /// It is lost for this reason; whether it was held until now.
    fn lose(&self, reason: &str) -> bool {
        let reason = reason_of(reason);
        self.read(|state| state.lose(reason)).unwrap_or_default()
    }

    /// An extension by the clients' own methods begins. Why there is none, if the lease has ended.
    fn begin_extension(&self, ttl_ms: u64, drift_ms: u64) -> Option<&'static str> {
        self.lease.sent(BootClock.now(), Ttl { ms: ttl_ms, drift_ms }).err().map(word)
    }

    /// It has ended: with the moment of the new end of validity, or with the reason why there is none. Why the lease was
    /// not extended.
    fn end_extension(
        &self,
        ttl_ms: u64,
        drift_ms: u64,
        expires_at: Option<f64>,
        reason: Option<&str>,
    ) -> Option<&'static str> {
        let until = |seconds| Instant::from_zero(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let answers = expires_at.map(until).ok_or_else(|| reason.map_or(Reason::Unavailable, reason_of));
        let ttl = Ttl { ms: ttl_ms, drift_ms };
        self.lease.foreign_ended(BootClock.now(), ttl, answers).err().map(word)
    }

    /// A release by the clients' own methods begins, or one that has nothing to do: whether it is the first.
    fn begin_release(&self) -> bool {
        !self.is_inherited() && self.lease.begin_release(BootClock.now())
    }

    fn end_release(&self, was_held: bool) {
        self.lease.end_release(was_held);
    }

    /// Have it released by the driver, if it was not released yet.
    fn release_later(&self) {
        if !self.is_inherited() && self.lease.abandon() {
            // If no thread can be started, it lapses.
            _ = driver::release_later(&self.pool, Arc::clone(&self.lease));
        }
    }
}

impl LeaseState {
    /// Whether this is a forked child: another thread of its parent may have held any lock at that moment.
    fn is_inherited(&self) -> bool {
        getpid() != self.pid
    }

    fn read<T>(&self, read: impl FnOnce(&mut Lease) -> T) -> Option<T> {
        (!self.is_inherited()).then(|| self.lease.with(read))
    }

    pub(super) const fn lease(&self) -> &Arc<SharedLease> {
        &self.lease
    }

    /// How an operation on it waits that is begun in this thread: a signal handler, and another greenlet of the thread,
    /// must not wait for what they interrupt.
    pub(super) fn waits(&self) -> Waits {
        let here = thread::current().id();
        if locked(&self.busy).contains(&here) { Waits::ForNothing } else { Waits::ForTurn }
    }

    /// This thread extends or releases it, until the result is dropped.
    pub(super) fn work(&self) -> AtWork<'_> {
        let here = thread::current().id();
        locked(&self.busy).push(here);
        AtWork { busy: &self.busy, here, pid: self.pid }
    }
}

pub(super) struct AtWork<'a> {
    busy: &'a Mutex<Vec<ThreadId>>,
    here: ThreadId,
    pid: Pid,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        if getpid() == self.pid {
            let mut busy = locked(self.busy);
            if let Some(index) = busy.iter().rposition(|one| *one == self.here) {
                busy.swap_remove(index);
            }
        }
    }
}

/// One that is renewed is released when nothing refers to it any more. Without renewals it merely lapses.
impl Drop for LeaseState {
    fn drop(&mut self) {
        if self.is_kept() && !self.is_inherited() && self.lease.abandon() {
            self.told.renewals.given_back.fetch_add(1, Ordering::Relaxed);
            _ = driver::release_later(&self.pool, Arc::clone(&self.lease));
        }
    }
}

/// The process ends: release what is still renewed, but wait no longer than this for it.
#[pyfunction]
pub(super) fn finish(py: Python<'_>, seconds: f64) {
    py.detach(|| driver::finish(Duration::try_from_secs_f64(seconds).unwrap_or_default()));
}

/// The process is about to fork: end the thread of the driver, until [`resume_driver`].
#[pyfunction]
pub(super) fn pause_driver(py: Python<'_>) {
    py.detach(driver::pause);
}

/// The process has forked: go on.
#[pyfunction]
pub(super) fn resume_driver(py: Python<'_>) -> PyResult<()> {
    py.detach(driver::resume).map_err(Into::into)
}

pub(super) const fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => "expired",
        Reason::TakenOver => "taken over",
        Reason::Unavailable => "unavailable",
        Reason::Released => "released",
    }
}

fn reason_of(word: &str) -> Reason {
    match word {
        "taken over" => Reason::TakenOver,
        "unavailable" => Reason::Unavailable,
        "released" => Reason::Released,
        _ => Reason::Expired,
    }
}

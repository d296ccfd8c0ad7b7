//! A small executor: "poll everything until it stalls; here are the descriptors and the next deadline".

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::FuturesUnordered;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::clock::Instant;
use crate::runtime::source::Source;
use crate::runtime::{Alarm, Effects};

/// Lock, whatever happened to the thread that held it before: no invariant spans two of our critical sections.
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a session waits for: ready descriptors, or the next deadline.
#[derive(Debug, Default)]
pub struct Wait {
    /// The sources with somebody waiting for them.
    pub sources: Vec<Arc<Source>>,
    /// When to go on even if nothing happens.
    pub deadline: Option<Instant>,
}

/// What the futures of one session share: timers, new tasks, sources and the host's effects.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    effects: Arc<dyn Effects>,
    random: Mutex<StdRng>,
    timers: Mutex<Timers>,
    spawned: Mutex<Vec<BoxFuture<'static, ()>>>,
    sources: Mutex<Vec<Arc<Source>>>,
    attention: Mutex<Attention>,
    woken: Arc<Woken>,
}

/// When somebody drove the executor, and when nobody did.
#[derive(Default)]
struct Attention {
    left_at: Option<Instant>,
    unattended: Duration,
}

#[derive(Default)]
struct Timers {
    next_id: u64,
    pending: BTreeMap<(Instant, u64), Waker>,
}

impl Handle {
    /// The outside world: time, randomness, connections.
    #[must_use]
    pub fn effects(&self) -> &dyn Effects {
        &*self.0.effects
    }

    /// Use the session's generator: for jitter, never for keys.
    pub fn with_random<T>(&self, use_it: impl FnOnce(&mut StdRng) -> T) -> T {
        use_it(&mut locked(&self.0.random))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.0.effects.now()
    }

    /// Run `task` to its end, whoever waits for it or not.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        locked(&self.0.spawned).push(Box::pin(task));
    }

    /// Wait until `at`.
    #[must_use]
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep { handle: self.clone(), at, id: None }
    }

    /// Wait for `duration`.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now().after(duration))
    }

    /// What comes of `work`, or `None` when it has had `allowed`. Time in which the executor was not driven does not count:
    /// what takes several exchanges cannot go on then.
    pub async fn within<T>(&self, allowed: Duration, work: impl Future<Output = T> + Unpin) -> Option<T> {
        let (start, absent) = (self.now(), self.unattended());
        let mut work = work;
        loop {
            let deadline = start.after(allowed.saturating_add(self.unattended().saturating_sub(absent)));
            if self.now() >= deadline {
                return None;
            }
            if let Either::Left((result, _)) = select(&mut work, self.sleep_until(deadline)).await {
                return Some(result);
            }
        }
    }

    /// How long in all nobody has driven the executor, up to the last time somebody came back to it.
    ///
    /// What takes several exchanges, such as a handshake, cannot go on in that time: it must not count against the
    /// other side.
    #[must_use]
    pub fn unattended(&self) -> Duration {
        locked(&self.0.attention).unattended
    }

    /// From now on, a task that another thread wakes ends the wait of the host, too: by `alarm`, or by what the outside
    /// world has for it.
    pub fn let_others_wake(&self, alarm: Option<Alarm>) {
        let woken = &self.0.woken;
        if woken.alarm.get().is_none()
            && let Some(alarm) = alarm.or_else(|| self.effects().alarm(self).ok())
        {
            _ = woken.alarm.set(alarm);
        }
    }

    /// Have the host watch `source` until it is forgotten.
    pub fn watch(&self, source: Arc<Source>) {
        locked(&self.0.sources).push(source);
    }

    /// Stop watching `source`.
    pub fn forget(&self, source: &Arc<Source>) {
        locked(&self.0.sources).retain(|watched| !Arc::ptr_eq(watched, source));
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// A wait for an instant. Ready only once the executor has fired it, and the executor first hands out what has arrived
/// on the sockets: a reply that is there always beats the deadline, however late the process comes to look.
#[derive(Debug)]
pub struct Sleep {
    handle: Handle,
    at: Instant,
    id: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut timers = locked(&self.handle.0.timers);
        let id = self.id.unwrap_or(timers.next_id);
        if self.id.is_none() {
            timers.next_id += 1;
            timers.pending.insert((self.at, id), cx.waker().clone());
        } else if let Some(waker) = timers.pending.get_mut(&(self.at, id)) {
            waker.clone_from(cx.waker());
        } else {
            return Poll::Ready(());
        }
        drop(timers);
        self.id = Some(id);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            locked(&self.handle.0.timers).pending.remove(&(self.at, id));
        }
    }
}

/// The tasks of one session, and the loop that polls those that were woken.
pub struct Executor {
    handle: Handle,
    tasks: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

/// Whether a task can go on, and what ends the wait of the host then.
struct Woken {
    any: AtomicBool,
    is_host_waiting: AtomicBool,
    alarm: OnceLock<Alarm>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// In any thread. Either the host sees what is stored here before it waits, or its wait is seen here.
    fn wake_by_ref(self: &Arc<Self>) {
        self.any.store(true, Ordering::SeqCst);
        if self.is_host_waiting.load(Ordering::SeqCst)
            && let Some(alarm) = self.alarm.get()
        {
            alarm();
        }
    }
}

impl Executor {
    /// An executor without tasks, in the world of `effects`.
    #[must_use]
    pub fn new(effects: Arc<dyn Effects>) -> Self {
        let mut seed = [0; 32];
        effects.fill_random(&mut seed);
        let random = Mutex::new(StdRng::from_seed(seed));
        let shared = Shared {
            effects,
            random,
            timers: Mutex::default(),
            spawned: Mutex::default(),
            sources: Mutex::default(),
            attention: Mutex::default(),
            woken: Arc::new(Woken {
                any: AtomicBool::new(true),
                is_host_waiting: AtomicBool::new(false),
                alarm: OnceLock::new(),
            }),
        };
        Self { handle: Handle(Arc::new(shared)), tasks: FuturesUnordered::new() }
    }

    /// What tasks need to get at this executor.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Poll every woken task until all are stalled; first those with news from the sockets, then those whose time has
    /// come.
    pub fn run_until_stalled(&mut self) {
        self.handle.0.woken.is_host_waiting.store(false, Ordering::SeqCst);
        // What is due later has to wait until the sockets were looked at again: an answer that is there comes first, also
        // where the process was stopped meanwhile.
        let now = self.handle.now();
        self.poll_woken();
        while self.fire_timers(now) {
            self.poll_woken();
        }
    }

    /// Somebody drives the executor again.
    pub fn resume(&self) {
        let mut attention = locked(&self.handle.0.attention);
        if let Some(left_at) = attention.left_at.take() {
            attention.unattended += self.handle.now().since(left_at);
        }
    }

    /// Nobody drives the executor until further notice.
    pub fn leave(&self) {
        locked(&self.handle.0.attention).left_at = Some(self.handle.now());
    }

    /// Since when no host drives it, if that was said.
    #[must_use]
    pub fn left_at(&self) -> Option<Instant> {
        locked(&self.handle.0.attention).left_at
    }

    /// Nobody drove the executor for so long, without notice.
    pub fn was_left_alone(&self, absent: Duration) {
        locked(&self.handle.0.attention).unattended += absent;
    }

    /// What the stalled tasks wait for; the host is about to wait for it. If another thread has woken a task meanwhile,
    /// the deadline is over.
    #[must_use]
    pub fn wait(&self) -> Wait {
        let woken = &self.handle.0.woken;
        woken.is_host_waiting.store(true, Ordering::SeqCst);
        let at_once = woken.any.load(Ordering::SeqCst).then(Instant::default);
        let sources = locked(&self.handle.0.sources).clone();
        Wait { sources, deadline: at_once.or_else(|| self.next_deadline()) }
    }

    fn poll_woken(&mut self) {
        let woken = Arc::clone(&self.handle.0.woken);
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        loop {
            woken.any.store(false, Ordering::SeqCst);
            self.tasks.extend(std::mem::take(&mut *locked(&self.handle.0.spawned)));
            let finished_one = matches!(self.tasks.poll_next_unpin(&mut cx), Poll::Ready(Some(())));
            let more = woken.any.load(Ordering::SeqCst) || !locked(&self.handle.0.spawned).is_empty();
            if !finished_one && !more {
                return;
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        locked(&self.handle.0.timers).pending.first_key_value().map(|(&(at, _), _)| at)
    }

    /// Wake everybody whose time has come; whether there was anybody.
    fn fire_timers(&self, now: Instant) -> bool {
        let mut timers = locked(&self.handle.0.timers);
        if timers.pending.is_empty() {
            return false;
        }
        let later = timers.pending.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut timers.pending, later);
        drop(timers);
        let any = !due.is_empty();
        due.into_values().for_each(Waker::wake);
        any
    }
}

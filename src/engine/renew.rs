//! Leases over N masters: each is renewed until it ends, and extended and released in turn.
//!
//! A lease may be renewed by one session, and be extended and released by others in other threads. Each waits its turn:
//! it begins with what the one before it has found.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use futures_util::task::AtomicWaker;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::claim::Claim;
use crate::clock::Instant;
use crate::engine::Masters;
use crate::engine::extend;
use crate::engine::release::{self, release};
use crate::lease::{Lease, Reason, Step, Ttl};
use crate::planted::{self, Bug};
use crate::runtime::{Handle, locked};

/// What is told of a lease while it is renewed: in the thread that renews, so it must not wait for anything.
pub trait Listener: Send + Sync {
    /// The masters were asked to extend it, and answered within this time.
    fn asked(&self, was_extended: bool, took: Duration);

    /// It is lost. Its holder is to be told.
    fn lost(&self, reason: Reason);

    /// It is to be extended by the code that calls the clients' own methods, which reports by [`SharedLease::foreign_ended`].
    fn renew(&self, ttl: Ttl);

    /// It is to be released by the same.
    fn give_back(&self);

    /// There is something to log about its masters.
    fn news(&self);
}

/// A lease, shared by those who hold it and the task that renews it.
pub struct SharedLease {
    claim: Arc<Claim>,
    quorum: usize,
    state: Mutex<Lease>,
    /// Held while the masters are asked to extend or to release.
    turn: AsyncMutex<()>,
    /// The state has changed in a way that the task that renews it must know of.
    changed: Change,
    /// The task may not have begun yet.
    hurry: OnceLock<fn()>,
    is_abandoned: AtomicBool,
    /// It was released by a signal handler that did not wait for the extension that it interrupted.
    is_interrupted: AtomicBool,
    listener: Arc<dyn Listener>,
}

/// That something has changed, for the one task that waits for it; until that has seen it.
#[derive(Default)]
struct Change {
    is_new: AtomicBool,
    waker: AtomicWaker,
}

impl Change {
    fn tell(&self) {
        self.is_new.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_new.swap(false, Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl std::fmt::Debug for SharedLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedLease").field("state", &*locked(&self.state)).finish_non_exhaustive()
    }
}

impl SharedLease {
    /// A lease of what was taken with `claim`, for which `quorum` masters must agree.
    #[must_use]
    pub fn new(claim: Arc<Claim>, quorum: usize, state: Lease, listener: Arc<dyn Listener>) -> Self {
        Self {
            claim,
            quorum,
            state: Mutex::new(state),
            turn: AsyncMutex::default(),
            changed: Change::default(),
            hurry: OnceLock::new(),
            is_abandoned: AtomicBool::new(false),
            is_interrupted: AtomicBool::new(false),
            listener,
        }
    }

    /// What was taken.
    #[must_use]
    pub const fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }

    /// Read or change the state, in one step.
    pub fn with<T>(&self, work: impl FnOnce(&mut Lease) -> T) -> T {
        work(&mut locked(&self.state))
    }

    /// Whether the lease has ended, or no holder refers to it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let is_abandoned = self.is_abandoned.load(Ordering::Relaxed) && !planted::is(Bug::RenewsAbandoned);
        is_abandoned || self.with(|state| state.is_released())
    }

    /// No holder refers to it any more: it is renewed no more, and given to no master that lacks it. Returns whether it is
    /// still to be released.
    pub fn abandon(&self) -> bool {
        self.is_abandoned.store(true, Ordering::Relaxed);
        let is_held = self.with(|state| !state.is_given_back());
        if is_held {
            self.claim.give_back();
            self.changed.tell();
        }
        is_held
    }

    /// It is renewed from now on: for `max_hold`, if that is given.
    pub fn renew(&self, now: Instant, max_hold: Option<Duration>) {
        self.with(|state| state.renew(now, max_hold));
        if let Some(longest) = max_hold {
            self.claim.end_at(now.after(longest));
        }
    }

    /// It is lost: tell the holder, once.
    pub fn lose(&self, reason: Reason) {
        if self.with(|state| state.lose(reason)) {
            self.claim.give_back();
            self.listener.lost(reason);
        }
        self.changed.tell();
    }

    /// There is something to log about its masters.
    pub fn tell_news(&self) {
        self.listener.news();
    }

    /// The turn, if no other extension or release has it.
    async fn turn(&self, handle: &Handle) -> MutexGuard<'_, ()> {
        if let Ok(turn) = self.turn.try_lock() {
            return turn;
        }
        handle.let_others_wake(None); // it ends in another session, perhaps in another thread
        self.turn.lock().await
    }

    /// What is to be done for it, and when.
    fn next(&self, now: Instant) -> Step {
        if self.is_over() { Step::Over } else { self.with(|state| state.next(now)) }
    }

    /// Ask the masters to extend it, once. The caller has the turn.
    async fn try_to_extend(&self, masters: &Masters, ttl: Ttl) -> Result<(), Reason> {
        let start = masters.handle().now();
        let until = self.sent(start, ttl)?;
        let request = extend::Request {
            claim: Arc::clone(&self.claim),
            ttl_ms: ttl.ms,
            drift_ms: ttl.drift_ms,
            quorum: self.quorum,
            valid_until: Some(until),
        };
        let extended = extend::extend(masters, &request).await;
        let now = masters.handle().now();
        self.listener.asked(extended.is_ok(), now.since(start));
        let answers = match extended {
            Ok(extended) => Ok(extended.expires_at),
            Err(answers) => Err(extend::why_not(&answers, self.quorum)),
        };
        self.extension_ended(now, ttl, answers)
    }

    /// An extension has ended: with the moment until which it can be relied on now, or why the masters did not extend it.
    fn extension_ended(&self, now: Instant, ttl: Ttl, answers: Result<Instant, Reason>) -> Result<(), Reason> {
        let (result, is_lost) = self.with(|state| match (state.why_not(now), answers) {
            (Some(reason), _) => (Err(reason), false),
            (None, Ok(expires_at)) => (state.extended(now, ttl, expires_at), false),
            (None, Err(reason)) => (Err(reason), state.extension_failed(now, reason)),
        });
        if let (Err(reason), true) = (result, is_lost) {
            self.claim.give_back();
            self.listener.lost(reason);
        }
        self.changed.tell();
        result
    }

    /// An extension is about to be asked for, perhaps by the clients' own methods.
    ///
    /// Returns until when it may go on. `Err` if the lease has ended.
    pub fn sent(&self, now: Instant, ttl: Ttl) -> Result<Instant, Reason> {
        let (until, is_sooner) = self.with(|state| {
            let before = state.lost_at();
            (state.extension_sent(now, ttl), state.lost_at() < before)
        });
        if is_sooner {
            self.changed.tell();
            self.hurry.get().inspect(|hurry| hurry());
        }
        until
    }

    /// Have this called when something is due earlier than it was.
    pub fn on_hurry(&self, hurry: fn()) {
        _ = self.hurry.set(hurry);
    }

    /// An extension by the clients' own methods has ended.
    pub fn foreign_ended(&self, now: Instant, ttl: Ttl, answers: Result<Instant, Reason>) -> Result<(), Reason> {
        self.extension_ended(now, ttl, answers)
    }

    /// It is about to be released. Returns whether that is to be done: not twice.
    pub fn begin_release(&self, now: Instant) -> bool {
        if !planted::is(Bug::KeeperGoesOn) {
            self.claim.give_back();
        }
        let is_first = self.with(|state| state.begin_release(now));
        if is_first {
            self.changed.tell();
        }
        is_first
    }

    /// The masters have answered the release.
    pub fn end_release(&self, was_held: bool) {
        self.with(|state| state.end_release(was_held));
    }
}

/// Renew a lease until it is over: each time that a part of its TTL has passed. Its loss is told before its validity
/// ends.
///
/// Returns whether it is to be released now: its holder keeps it for as long as it may. Not here, for another session may
/// still wait for the answer to the `SET` that took it, which no release must overtake.
pub async fn keep(masters: Arc<Masters>, lease: Arc<SharedLease>) -> bool {
    let handle = masters.handle();
    loop {
        match lease.next(handle.now()) {
            Step::Wait(at) => wait(&lease, handle, at).await,
            // On the heap: of thousands of leases, few are renewed at the same time.
            Step::Renew(ttl) => Box::pin(renew(&lease, &masters, ttl)).await,
            Step::Lose(reason) => lease.lose(reason),
            Step::GiveBackAt(at) if handle.now() < at => wait(&lease, handle, at).await,
            Step::GiveBackAt(_) if masters.is_empty() => {
                lease.listener.give_back();
                return false;
            }
            Step::GiveBackAt(_) => return true,
            Step::Over => return false,
        }
    }
}

/// Wait until then, or until it has changed. Most leases are here most of the time, so this is small.
fn wait(lease: &SharedLease, handle: &Handle, until: Instant) -> impl Future<Output = ()> {
    let mut sleep = handle.sleep_until(until);
    poll_fn(move |cx| if sleep.poll_unpin(cx).is_ready() { Poll::Ready(()) } else { lease.changed.poll(cx) })
}

/// Wait until its holder has to be told, if it has not ended before; or until it has changed.
async fn wait_for_loss(lease: &SharedLease, handle: &Handle) {
    let (has_ended, lost_at) = lease.with(|state| (state.has_ended(), state.lost_at()));
    if has_ended { poll_fn(|cx| lease.changed.poll(cx)).await } else { wait(lease, handle, lost_at).await }
}

/// Renew it, unless another extends or releases it until its holder has to be told.
async fn renew(lease: &SharedLease, masters: &Masters, ttl: Ttl) {
    let handle = masters.handle();
    if masters.is_empty() {
        lease.listener.renew(ttl);
        return wait(lease, handle, lease.with(|state| state.lost_at())).await;
    }
    let lost_at = lease.with(|state| state.lost_at());
    let ready = async { (masters.may_renew().await, lease.turn(handle).await) };
    let Either::Left((ready, _)) = select(pin!(ready), handle.sleep_until(lost_at)).await else { return };
    // Another may just have extended it.
    if let Step::Renew(ttl) = lease.next(handle.now()) {
        let mut extension = pin!(lease.try_to_extend(masters, ttl));
        // It may take longer than the holder can wait to be told of a loss.
        while let Either::Right(((), _)) = select(extension.as_mut(), pin!(wait_for_loss(lease, handle))).await {
            if let Step::Lose(reason) = lease.next(handle.now()) {
                lease.lose(reason);
            }
        }
    }
    drop(ready);
}

/// Whether an extension or a release waits for another one that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It does.
    ForTurn,
    /// It interrupts the one that has the turn, which cannot go on meanwhile. An extension that was interrupted by a
    /// release releases once more at its end.
    ForNothing,
}

/// Extend a lease, when it is the caller's turn. `Err` is why it could not be extended: only after
/// [`Reason::Unavailable`] another try may succeed.
pub async fn extend_lease(masters: &Masters, lease: &SharedLease, ttl: Ttl, waits: Waits) -> Result<(), Reason> {
    let turn = match waits {
        Waits::ForTurn => Some(lease.turn(masters.handle()).await),
        Waits::ForNothing => None,
    };
    let result = lease.try_to_extend(masters, ttl).await;
    if lease.is_interrupted.load(Ordering::Relaxed) {
        release(masters, &lease.claim).await;
    }
    drop(turn);
    result
}

/// Release a lease, once. Returns what each master said; `None` if it was released before: then that is waited for.
pub async fn release_lease(masters: &Masters, lease: &SharedLease, waits: Waits) -> Option<Vec<release::Answer>> {
    let is_first = lease.begin_release(masters.handle().now());
    let turn = match waits {
        Waits::ForTurn if !planted::is(Bug::KeeperGoesOn) => Some(lease.turn(masters.handle()).await),
        Waits::ForNothing if !is_first => return None,
        _ => None,
    };
    lease.is_interrupted.store(waits == Waits::ForNothing, Ordering::Relaxed);
    if lease.with(|state| state.is_given_back()) {
        return None;
    }
    let answers = release(masters, &lease.claim).await;
    drop(turn);
    let absent = answers.iter().filter(|answer| matches!(answer, Ok(crate::script::Release::Absent))).count();
    lease.end_release(absent + lease.quorum <= answers.len());
    Some(answers)
}

//! What masters are owed when a call has its result: a lock that they do not have yet, or a release that they have not
//! confirmed.
//!
//! A session goes on only while a caller drives it, so what a call leaves undone is written down here. One task sees to
//! it: on a session of the driver, or on that of the event loop.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::Value;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::claim::Claim;
use crate::clock::Instant;
use crate::engine::release::tell;
use crate::engine::{Masters, fence as fencing, of_each, take};
use crate::error::Error;
use crate::fence::{self, Call};
use crate::master::Master;
use crate::master::link::{Link, Taking};
use crate::planted::{self, Bug};
use crate::runtime::locked;
use crate::script::{self, Extension, Grant};

/// How many debts to one master are seen to at the same time, at most.
const MOST_DEBTS: usize = 10_000;

/// How long the caller's own session has for an answer, before the master is asked once more.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long it takes until that is read, if it has come; and how often it is looked for at most.
const LOOKS: Duration = Duration::from_millis(10);

/// The first and the longest pause before a master is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What one master is owed.
#[derive(Debug)]
pub struct Debt {
    /// The lock.
    pub claim: Arc<Claim>,
    /// The index of the master.
    pub master: usize,
    /// What it is to get.
    pub what: What,
    /// It was sent that, and the caller's own session may still get the answer.
    pub is_sent: bool,
    /// When it is owed nothing any more: the master will have forgotten the lock by itself, or its holder may not rely on
    /// it any longer.
    pub until: Instant,
    /// How much longer than that masters keep it, whose clocks may differ.
    pub drift: Duration,
}

/// What a master is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The lock, with its fencing token, for what is left of its validity.
    Lock(Option<u64>),
    /// To keep the lock for what is left of its validity, if it has it.
    Extension,
    /// Its release.
    Release,
}

impl Debt {
    /// Until when it is owed: a lock as long as its holder may rely on it.
    fn until(&self) -> Instant {
        match self.what {
            What::Lock(_) | What::Extension => self.claim.until().unwrap_or(self.until),
            What::Release => self.until,
        }
    }

    /// How long the master is to keep the lock, in milliseconds.
    fn left(&self, now: Instant) -> u64 {
        if planted::is(Bug::FullTtl) {
            return planted::full_ttl(self.drift);
        }
        u64::try_from(self.until().since(now).saturating_add(self.drift).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the master may have the lock, and is relied on.
    fn is_wanted(&self, now: Instant, master: &Master) -> bool {
        !self.is_settled(now) && master.doubt().is_none()
    }

    /// Whether it is a release that no session has sent there yet.
    fn is_unsent(&self) -> bool {
        self.what == What::Release && !self.is_sent
    }

    fn is_settled(&self, now: Instant) -> bool {
        now >= self.until()
            || self.claim.is_forgotten()
            || match self.what {
                What::Lock(_) | What::Extension => is_released(&self.claim) || self.claim.is_at(self.master),
                What::Release => self.claim.is_released_at(self.master) || self.claim.cannot_be_at(self.master),
            }
    }
}

fn is_released(claim: &Claim) -> bool {
    claim.is_given_back() && !planted::is(Bug::CompletesReleased)
}

/// What sees to the sessions of a process, some of which are driven only while a caller uses them.
pub trait Keeper: Send + Sync {
    /// Have a task begun that runs [`settle`], in a session of its own; whether it could be.
    fn settle(&self) -> bool;

    /// Have the sessions that no caller uses take in what has come.
    fn look(&self);
}

/// The debts of one manager in one process, or in one event loop.
#[derive(Default)]
pub struct Owed {
    ledger: Mutex<Ledger>,
    /// There are debts that the task which settles them has not taken up.
    news: Notify,
    keeper: Option<Box<dyn Keeper>>,
}

#[derive(Default)]
struct Ledger {
    fresh: Vec<(Debt, Unfinished)>,
    /// What is unfinished, and how often, by its key: one, unless the caller uses its key for several locks.
    claims: HashMap<Vec<u8>, Vec<(Arc<Claim>, usize)>>,
    is_worked_on: bool,
    unsent: usize,
    looked_at: Instant,
}

/// A lock about which there is something to do or to hear. As long as this lives, a release finds the lock by its key:
/// otherwise it could not stop what is still to be done.
pub(super) struct Unfinished {
    claim: Arc<Claim>,
    owed: Weak<Owed>,
    /// It is a release that was sent nowhere yet.
    is_unsent: bool,
    /// It is seen to that this master gets the lock, or keeps it.
    gets: Option<usize>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(master) = self.gets {
            self.claim.stop_owing(master);
        }
        let Some(owed) = self.owed.upgrade() else { return };
        let mut ledger = locked(&owed.ledger);
        ledger.unsent -= usize::from(self.is_unsent);
        let Some(claims) = ledger.claims.get_mut(&self.claim.key) else { return };
        if let Some(place) = claims.iter().position(|(claim, _)| Arc::ptr_eq(claim, &self.claim)) {
            claims[place].1 -= 1;
            if claims[place].1 == 0 {
                claims.swap_remove(place);
            }
        }
        if claims.is_empty() {
            ledger.claims.remove(&self.claim.key);
        }
    }
}

impl std::fmt::Debug for Owed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owed").finish_non_exhaustive()
    }
}

impl Owed {
    /// No debts yet. `keeper` has them settled in another session.
    #[must_use]
    pub fn new(keeper: Box<dyn Keeper>) -> Self {
        Self { keeper: Some(keeper), ..Self::default() }
    }

    /// The same lock as another caller has it, if it is unfinished.
    #[must_use]
    pub fn known(&self, claim: &Claim) -> Option<Arc<Claim>> {
        let ledger = locked(&self.ledger);
        let mut known = ledger.claims.get(&claim.key)?.iter().rev().map(|(known, _)| known);
        known.find(|known| known.is(claim)).map(Arc::clone)
    }

    /// How many releases there are that were sent nowhere yet: a process does not end without them.
    #[must_use]
    pub fn unsent(&self) -> usize {
        locked(&self.ledger).unsent
    }

    /// Whether no thread is at work on it at this moment.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.ledger.try_lock().is_ok()
    }

    /// Another lock is about to use this key for the same name: nothing more is done about the one before.
    pub fn forget(&self, another: &Claim) {
        let mut ledger = locked(&self.ledger);
        let Some(claims) = ledger.claims.get_mut(&another.key) else { return };
        claims.extract_if(.., |(claim, _)| claim.meets(another)).for_each(|(claim, _)| claim.forget());
        if claims.is_empty() {
            ledger.claims.remove(&another.key);
        }
    }

    /// Have a release find the lock by its key while the result lives.
    pub(super) fn unfinished(self: &Arc<Self>, claim: &Arc<Claim>) -> Unfinished {
        self.unfinished_with(claim, false, None)
    }

    fn unfinished_with(self: &Arc<Self>, claim: &Arc<Claim>, is_unsent: bool, gets: Option<usize>) -> Unfinished {
        let mut ledger = locked(&self.ledger);
        ledger.unsent += usize::from(is_unsent);
        let claims = ledger.claims.entry(claim.key.clone()).or_default();
        match claims.iter_mut().find(|(known, _)| Arc::ptr_eq(known, claim)) {
            Some((_, count)) => *count += 1,
            None => claims.push((Arc::clone(claim), 1)),
        }
        Unfinished { claim: Arc::clone(claim), owed: Arc::downgrade(self), is_unsent, gets }
    }

    /// Write down what is owed. Returns whether a task has to be begun in this session that settles it.
    fn add(self: &Arc<Self>, mut debts: Vec<Debt>) -> bool {
        // A lock that is owed to a master already gets there with the time that it has then.
        debts.retain(|debt| debt.what == What::Release || debt.claim.owe(debt.master));
        if debts.is_empty() {
            return false;
        }
        let unfinished = |debt: &Debt| {
            let gets = (debt.what != What::Release).then_some(debt.master);
            self.unfinished_with(&debt.claim, debt.is_unsent(), gets)
        };
        let unfinished: Vec<_> = debts.iter().map(unfinished).collect();
        let mut ledger = locked(&self.ledger);
        ledger.fresh.extend(debts.into_iter().zip(unfinished));
        let is_first = !std::mem::replace(&mut ledger.is_worked_on, true);
        drop(ledger);
        self.news.notify_one();
        match &self.keeper {
            Some(keeper) if is_first => {
                if !keeper.settle() {
                    locked(&self.ledger).is_worked_on = false;
                }
                false
            }
            Some(_) => false,
            None => is_first,
        }
    }

    /// Have answers read that came to sessions that no caller uses, unless that was just done.
    fn look(&self, now: Instant) {
        let Some(keeper) = &self.keeper else { return };
        let mut ledger = locked(&self.ledger);
        let is_due = now.since(ledger.looked_at) > LOOKS;
        if is_due {
            ledger.looked_at = now;
        }
        drop(ledger);
        if is_due {
            keeper.look();
        }
    }

    fn take(&self) -> Vec<(Debt, Unfinished)> {
        std::mem::take(&mut locked(&self.ledger).fresh)
    }

    /// Whether a task settles what is owed.
    pub(super) fn is_worked_on(&self) -> bool {
        locked(&self.ledger).is_worked_on
    }

    /// Whether nothing is owed any more: then the task ends, and the next debt begins another.
    fn is_over(&self) -> bool {
        let mut ledger = locked(&self.ledger);
        let is_over = ledger.fresh.is_empty();
        if is_over {
            ledger.is_worked_on = false;
        }
        is_over
    }
}

/// The task may be dropped before it is over: the next debt begins another.
struct AtWork {
    owed: Arc<Owed>,
    is_over: bool,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if !self.is_over {
            locked(&self.owed.ledger).is_worked_on = false;
        }
    }
}

impl Masters {
    /// Have it seen to that masters get what they are owed.
    pub(super) fn owe(&self, debts: Vec<Debt>) {
        if self.owed.add(debts)
            && let Some(masters) = self.me.upgrade()
        {
            self.handle.spawn(settle(masters));
        }
    }

    /// The caller does not wait for the rest of the answers about a lock. When they come, `owes` tells what the master is
    /// owed that gave it: a lock that was granted or extended, and that it does not have.
    pub(super) fn hear_out<A: Send + 'static>(
        &self,
        claim: &Arc<Claim>,
        mut rest: FuturesUnordered<BoxFuture<'static, (usize, A)>>,
        owes: impl Fn(usize, A) -> Option<Debt> + Send + 'static,
    ) {
        if rest.is_empty() {
            return;
        }
        let (me, unfinished) = (Weak::clone(&self.me), self.owed.unfinished(claim));
        self.handle.spawn(async move {
            while let Some((index, answer)) = rest.next().await {
                let debt = owes(index, answer).filter(|debt| !debt.claim.is_given_back());
                if let (Some(debt), Some(masters)) = (debt, me.upgrade()) {
                    masters.owe(vec![debt]);
                }
            }
            drop(unfinished);
        });
    }
}

/// See to all debts until there are none.
pub async fn settle(masters: Arc<Masters>) {
    let mut at_work = AtWork { owed: Arc::clone(&masters.owed), is_over: false };
    let owed = &masters.owed;
    let gates: Vec<Gate> = masters.iter().map(|_| Gate::default()).collect();
    let mut counts = vec![0; masters.len()];
    let mut unpaid = FuturesUnordered::new();
    loop {
        for (debt, unfinished) in owed.take() {
            let master = debt.master;
            // Of too many, it will forget the rest by itself.
            if counts[master] < MOST_DEBTS {
                counts[master] += 1;
                let paid = move |()| {
                    drop(unfinished);
                    master
                };
                unpaid.push(pay(&masters, debt, &gates[master]).map(paid));
            }
        }
        if unpaid.is_empty() && owed.is_over() {
            at_work.is_over = true;
            return;
        }
        if let Either::Left((Some(master), _)) = select(unpaid.next(), pin!(owed.news.notified())).await {
            counts[master] -= 1;
        }
    }
}

/// Where there is no connection to a master, or where it refuses what it is told, one debt is tried at a time.
struct Gate {
    /// How long the next one waits that has tried in vain.
    pause: AsyncMutex<Duration>,
    /// It answered with an error the last time.
    refuses: AtomicBool,
}

impl Default for Gate {
    fn default() -> Self {
        Self { pause: AsyncMutex::new(FIRST_PAUSE), refuses: AtomicBool::new(false) }
    }
}

/// Pay one debt, however often that has to be tried.
async fn pay(masters: &Masters, mut debt: Debt, gate: &Gate) {
    let (handle, master) = (masters.handle(), &masters[debt.master]);
    let is_open = |claim: &Claim| {
        !gate.refuses.load(Ordering::Relaxed) && claim.resources.iter().all(|resource| master.is_linked(resource))
    };
    if debt.is_sent {
        handle.sleep(PATIENCE).await;
        if !debt.is_settled(handle.now()) {
            masters.owed.look(handle.now());
            handle.sleep(LOOKS).await;
        }
    }
    let mut own_pause = FIRST_PAUSE;
    while !debt.is_settled(handle.now()) {
        let mut turn = if is_open(&debt.claim) { None } else { Some(gate.pause.lock().await) };
        if debt.is_settled(handle.now()) {
            break;
        }
        if is_open(&debt.claim) {
            turn = None;
        }
        // A release does not overtake what another session has sent, and of that nothing is sent twice: the second could
        // come after the release. The answer may be there to be read.
        let is_early =
            debt.what != What::Extension && debt.claim.unanswered_at(debt.master) > master.unanswered(&debt.claim);
        if is_early {
            masters.owed.look(handle.now());
        }
        let mut is_over = false;
        if !is_early {
            let result = try_to_pay(masters, master, &debt).await;
            let refusal = result.as_ref().err().filter(|error| matches!(error, Error::Reply(_)));
            gate.refuses.store(refusal.is_some(), Ordering::Relaxed);
            is_over = result.is_ok() || debt.what == What::Release && refusal.is_some_and(|error| !error.is_passing());
        }
        if is_open(&debt.claim)
            && let Some(mut pause) = turn.take()
        {
            *pause = FIRST_PAUSE; // for the next time that it is away
        }
        if debt.what != What::Release && is_released(&debt.claim) {
            // The release left this master to us, on the connection that may have carried the lock there.
            debt.what = What::Release;
            debt.until = handle.now().after(masters.longest_ttl());
            continue;
        }
        if is_over {
            if debt.what != What::Release && debt.claim.is_withdrawn_at(debt.master) {
                // Nor may one rely on it who extends it by its key: that is found here.
                drop(turn);
                debt.claim.stop_owing(debt.master); // what the next extension owes it is another debt
                while handle.now() < debt.until() && !is_released(&debt.claim) && !debt.claim.is_forgotten() {
                    handle.sleep(LONGEST_PAUSE.min(debt.until().since(handle.now()))).await;
                }
            }
            break;
        }
        let pause = turn.as_deref_mut().unwrap_or(&mut own_pause);
        handle.sleep(*pause).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
    }
}

async fn try_to_pay(masters: &Masters, master: &Arc<Master>, debt: &Debt) -> Result<(), Error> {
    let (claim, until) = (&debt.claim, debt.until());
    let has_it = match debt.what {
        What::Release => return tell(Arc::clone(master), Arc::clone(claim), debt.master).await,
        What::Lock(token) => of_each(&claim.resources, |resource| give(masters, master, debt, token, resource)).await?,
        What::Extension => of_each(&claim.resources, |resource| prolong(masters, master, debt, resource)).await?,
    };
    match (debt.what, has_it.iter().all(|&has_it| has_it)) {
        (_, true) if debt.until() > until => return Err(Error::NotSent), // it was extended meanwhile
        (_, true) => claim.note_at(debt.master),
        (What::Extension, false) => {}
        (_, false) => return Err(Error::NotSent),
    }
    Ok(())
}

/// Give one resource of a lock to a master, unless it is there. Returns whether it is.
async fn give(
    masters: &Masters,
    master: &Master,
    debt: &Debt,
    token: Option<u64>,
    resource: &[u8],
) -> Result<bool, Error> {
    let (claim, handle) = (&debt.claim, masters.handle());
    let wanted = || debt.is_wanted(handle.now(), master);
    let taking = || Taking { claim: Arc::clone(claim), master: debt.master };
    let left = || debt.left(handle.now());
    let is_granted = match token {
        None => {
            let exchange = |link| take(link, resource, taking(), left());
            let answer = master.call_to_take(resource, exchange, wanted).await?;
            script::grant(answer.value)? == Grant::Granted
        }
        Some(token) => {
            let exchange = |link: Link| async move {
                let call = Call::acquire(resource, &claim.key, left(), token);
                fencing::run(link, &call, Some(taking()), wanted).await
            };
            fence::reply(master.call_to_take(resource, exchange, wanted).await?.value)?.granted
        }
    };
    Ok(is_granted || prolong(masters, master, debt, resource).await?)
}

/// Have a master keep one resource of a lock for what is left, if it has it. Returns whether it has: an earlier command may
/// have been carried out although its answer never came.
async fn prolong(masters: &Masters, master: &Master, debt: &Debt, resource: &[u8]) -> Result<bool, Error> {
    let (key, handle) = (&debt.claim.key, masters.handle());
    let exchange = |link: Link| async move {
        let reply = link.call(&script::prolong(resource, key, debt.left(handle.now())), None).await?;
        // Users need no right to extend if they only lock.
        if matches!(reply, Value::ServerError(_)) { link.call(&script::get(resource), None).await } else { Ok(reply) }
    };
    let answer = master.call(resource, exchange, || debt.is_wanted(handle.now(), master)).await?;
    Ok(script::extension(answer.value, key)? == Extension::Extended)
}

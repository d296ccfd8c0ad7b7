//! Taking a lock: one round, and rounds until one succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, Fuse, FusedFuture, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;

use crate::clock::Instant;
use crate::engine::release::{Treatment, release_where};
use crate::engine::waiting::Waiting;
use crate::engine::{Masters, of_each};
use crate::error::Error;
use crate::master::Master;
use crate::master::health::Standing;
use crate::master::link::Link;
use crate::planted::{self, Bug};
use crate::quorum::{self, Tally, Verdict};
use crate::script::{self, Claim, Grant, UnlockScript};

/// A lock to take.
#[derive(Debug, Clone)]
pub struct Request {
    /// The names of the locks, one or several to be taken together: the Redis keys.
    pub resources: Vec<Vec<u8>>,
    /// How long the masters keep it, in milliseconds.
    pub ttl_ms: u64,
    /// How much of that the masters' clocks may differ by, in milliseconds.
    pub drift_ms: u64,
    /// How many masters must grant.
    pub quorum: usize,
    /// How many rounds to try.
    pub tries: u64,
    /// The longest pause between two rounds.
    pub retry_delay: Duration,
    /// How long all rounds and pauses may take together.
    pub timeout: Option<Duration>,
    /// How to release.
    pub script: Arc<UnlockScript>,
    /// The caller's own key; each round draws a fresh one otherwise.
    pub key: Option<Vec<u8>>,
}

/// What one master said in a round.
pub type Vote = Result<Grant, Error>;

/// A lock that was taken.
#[derive(Debug, Clone)]
pub struct Held {
    /// How long it is safe to use, in milliseconds.
    pub validity_ms: u64,
    /// When that is over.
    pub expires_at: Instant,
    /// What releases it.
    pub claim: Arc<Claim>,
    /// What each master said until a quorum had granted.
    pub votes: Vec<Vote>,
}

/// Resolves when the caller gives up.
pub type Cancel = Fuse<oneshot::Receiver<()>>;

/// Try up to `request.tries` rounds, with jittered pauses between them, for as long as `request.timeout` says. `Err` is
/// what each master said in the last one that was not cut short.
///
/// A caller that cancels gets its answer when what was taken so far is released.
pub async fn acquire(masters: &Masters, request: &Request, mut cancel: Cancel) -> Result<Held, Vec<Vote>> {
    masters.iter().for_each(|master| master.note_ttl(request.ttl_ms));
    let mut waiting = Waiting::new(masters, request);
    let mut before = None;
    loop {
        let votes = match round(masters, request, &waiting, &mut cancel).await {
            Ok(held) => return Ok(held),
            // One that the timeout may have cut short tells less than the one before it.
            Err(votes) if masters.handle().now() >= waiting.give_up_at => return Err(before.unwrap_or(votes)),
            Err(votes) => votes,
        };
        if cancel.is_terminated() || !waiting.for_next_try(&votes, &mut cancel).await {
            return Err(votes);
        }
        before = Some(votes);
    }
}

/// One round: every master is asked at once, and the lock is held as soon as a quorum has granted in time.
///
/// Among contenders one master is asked first, and the others only on its yes.
async fn round(
    masters: &Masters,
    request: &Request,
    waiting: &Waiting<'_>,
    cancel: &mut Cancel,
) -> Result<Held, Vec<Vote>> {
    let start = masters.handle().now();
    let deadline = start.after(quorum::patience(request.ttl_ms)).min(waiting.give_up_at);
    let deadline = masters.handle().sleep_until(deadline);
    let mut canvass = Canvass::new(masters, request);
    let decided = canvass.run(waiting.asks_one_first().then(|| masters.designated(&request.resources)));
    select(std::pin::pin!(decided), select(deadline, cancel)).await;
    let (verdict, attempt, votes) = canvass.close();
    let start = if planted::is(Bug::LateStart) { masters.handle().now() } else { start };
    let elapsed = masters.handle().now().since(start);
    let drift_ms = if planted::is(Bug::NoDrift) { 0 } else { request.drift_ms };
    let validity = quorum::validity_ms(request.ttl_ms, elapsed, drift_ms);
    if let (Verdict::Granted, Some(validity_ms)) = (verdict, validity) {
        let expires_at = quorum::expires_at(start, request.ttl_ms, drift_ms);
        let votes = masters.explained(verdict, votes);
        return Ok(Held { validity_ms, expires_at, claim: Arc::clone(&attempt.claim), votes });
    }
    if !planted::is(Bug::NoRelease) {
        attempt.undo(masters, &votes).await;
    }
    Err(masters.explained(verdict, votes))
}

/// One attempt to set one key on all masters.
struct Attempt {
    claim: Arc<Claim>,
    ttl_ms: u64,
    decided: AtomicBool,
    sent: Vec<AtomicBool>,
}

impl Attempt {
    fn new(masters: &Masters, request: &Request) -> Self {
        let key = request.key.clone().unwrap_or_else(|| masters.fresh_key().to_vec());
        let claim = Claim { resources: request.resources.clone(), key, script: Arc::clone(&request.script) };
        let not_yet = || AtomicBool::new(false);
        Self {
            claim: Arc::new(claim),
            ttl_ms: request.ttl_ms,
            decided: not_yet(),
            sent: masters.iter().map(|_| not_yet()).collect(),
        }
    }

    /// Ask one master, unless the round is decided before there is a connection to it. Its vote is a grant when it
    /// grants all resources.
    async fn ask(self: Arc<Self>, master: Arc<Master>, index: usize) -> Vote {
        let votes = of_each(&self.claim.resources, |resource| self.ask_for(resource, &master, index)).await?;
        master.voted();
        Ok(if votes.iter().all(|vote| *vote == Grant::Granted) { Grant::Granted } else { Grant::Refused })
    }

    async fn ask_for(&self, resource: &[u8], master: &Master, index: usize) -> Vote {
        let set = script::set(resource, &self.claim.key, self.ttl_ms);
        let exchange = |link: Link| {
            self.sent[index].store(true, Ordering::Relaxed);
            let set = &set;
            async move {
                master.watch_clock(&link);
                link.call(set, Some(&self.claim)).await
            }
        };
        let is_open = || planted::is(Bug::LateSet) || !self.decided.load(Ordering::Relaxed);
        // Whether it is to be relied on may show only when there is a connection.
        let wanted = || is_open() && master.doubt().is_none();
        let answer = master.call(resource, exchange, wanted).await.map_err(|error| master.doubt().unwrap_or(error))?;
        match script::grant(answer.value)? {
            Grant::Refused if answer.repeated => self.is_ours(resource, master).await,
            grant => Ok(grant),
        }
    }

    /// The first `SET` may have been executed before its connection died: then our own key refuses the second.
    async fn is_ours(&self, resource: &[u8], master: &Master) -> Vote {
        let get = script::get(resource);
        let exchange = |link: Link| {
            let get = &get;
            async move { link.call(get, None).await }
        };
        let answer = master.call(resource, exchange, || true).await?;
        let ours = matches!(&answer.value, redis::Value::BulkString(key) if *key == self.claim.key);
        Ok(if ours { Grant::Granted } else { Grant::Refused })
    }

    /// Release on every master that was asked, also on those that refused or have not answered: an answer may be wrong
    /// or late, a release is never.
    async fn undo(&self, masters: &Masters, votes: &[Vote]) {
        release_where(masters, &self.claim, |index, _| match &votes[index] {
            _ if !self.sent[index].load(Ordering::Relaxed) => Treatment::Skip,
            vote if planted::is(Bug::ReleaseWhereGranted) && *vote != Ok(Grant::Granted) => Treatment::Skip,
            Err(Error::NoAnswer | Error::NotAwaited) => Treatment::Tell,
            _ => Treatment::Await,
        })
        .await;
    }
}

/// The votes of one round, as they come in.
struct Canvass<'a> {
    masters: &'a Masters,
    attempt: Arc<Attempt>,
    asked: FuturesUnordered<BoxFuture<'static, (usize, Vote)>>,
    standings: Vec<Standing>,
    tally: Tally,
    votes: Vec<Vote>,
}

impl<'a> Canvass<'a> {
    fn new(masters: &'a Masters, request: &Request) -> Self {
        let standings = masters.standings(request.quorum);
        let awaited = standings.iter().filter(|&&standing| standing == Standing::Good).count();
        Self {
            masters,
            attempt: Arc::new(Attempt::new(masters, request)),
            asked: FuturesUnordered::new(),
            tally: Tally::new(request.quorum - usize::from(planted::is(Bug::QuorumOffByOne)), awaited),
            votes: vec![Err(Error::NotSent); masters.len()],
            standings,
        }
    }

    /// Ask until the round is decided.
    async fn run(&mut self, designated: Option<usize>) {
        let first = designated.filter(|&first| self.standings[first] == Standing::Good);
        if let Some(first) = first {
            self.ask(first);
            self.take_one().await;
            if self.votes[first] == Ok(Grant::Refused) {
                return;
            }
        }
        (0..self.masters.len()).filter(|&index| Some(index) != first).for_each(|index| self.ask(index));
        while self.tally.verdict() == Verdict::Open && !self.asked.is_empty() {
            self.take_one().await;
        }
    }

    fn ask(&mut self, index: usize) {
        let master = &self.masters[index];
        if self.standings[index] == Standing::Good
            || self.attempt.claim.resources.iter().all(|resource| master.is_linked(resource))
        {
            let ask = Arc::clone(&self.attempt).ask(Arc::clone(master), index);
            self.votes[index] = Err(Error::NotAwaited);
            self.asked.push(ask.map(move |vote| (index, vote)).boxed());
        }
    }

    async fn take_one(&mut self) {
        let Some((index, vote)) = self.asked.next().await else { return };
        if self.standings[index] == Standing::Good {
            self.tally.close_one();
        }
        if vote == Ok(Grant::Granted) {
            self.tally.grant();
        }
        self.votes[index] = vote;
    }

    /// The round is decided: nothing more is sent for it but its release; answers still to come are awaited by nobody.
    fn close(self) -> (Verdict, Arc<Attempt>, Vec<Vote>) {
        self.attempt.decided.store(true, Ordering::Relaxed);
        let mut stragglers = self.asked;
        self.masters.handle().spawn(async move { while stragglers.next().await.is_some() {} });
        (self.tally.verdict(), self.attempt, self.votes)
    }
}

//! Taking a lock: one round, and rounds until one succeeds.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Fuse, FusedFuture, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;

use crate::claim::Claim;
use crate::clock::Instant;
use crate::engine::owed::{Debt, What};
use crate::engine::release::{Treatment, owe_undone, release_where};
use crate::engine::waiting::Waiting;
use crate::engine::{Masters, fence as fencing, of_each, take};
use crate::error::Error;
use crate::fence::{self, Ballot, Call, Reply};
use crate::master::Master;
use crate::master::link::{Link, Taking};
use crate::planted::{self, Bug};
use crate::quorum::{self, Tally, Verdict};
use crate::runtime::Sleep;
use crate::script::{self, Grant, UnlockScript};

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
    /// Whether to have a fencing token with it.
    pub fencing: bool,
    /// Counts the rounds that are made for it.
    pub rounds: Arc<AtomicU64>,
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
    /// Its fencing token, if one was asked for.
    pub token: Option<Token>,
}

/// A fencing token: greater than that of everybody who held any of the resources before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub number: u64,
    /// Whether the first proposal was accepted, so that it cost nothing.
    pub at_once: bool,
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
    let (mut before, mut highest_seen, mut reconnected) = (None, 0, false);
    loop {
        let votes = match round(masters, request, &waiting, &mut highest_seen, &mut cancel).await {
            Ok(held) => return Ok(held),
            // One that the timeout may have cut short tells less than the one before it.
            Err(votes) if masters.handle().now() >= waiting.give_up_at => return Err(before.unwrap_or(votes)),
            Err(votes) => votes,
        };
        // What idle connections had come to is no answer of the masters. There are new ones now.
        if !reconnected && !cancel.is_terminated() && was_forgotten(&votes, request) {
            reconnected = true;
            continue;
        }
        let may_go_on = !cancel.is_terminated() && !is_hopeless(&votes, request.quorum);
        if !may_go_on || !waiting.for_next_try(&votes, &mut cancel).await {
            return Err(votes);
        }
        before = Some(votes);
    }
}

/// Whether connections that were forgotten may have kept a quorum from granting. Not with the caller's own key: what
/// was sent on them, and its release, may still arrive.
fn was_forgotten(votes: &[Vote], request: &Request) -> bool {
    let may_grant = votes.iter().filter(|vote| matches!(vote, Ok(Grant::Granted) | Err(Error::Forgotten))).count();
    request.key.is_none() && votes.contains(&Err(Error::Forgotten)) && may_grant >= request.quorum
}

/// Whether masters without scripts leave no quorum for a fencing token: another try would find them the same.
fn is_hopeless(votes: &[Vote], quorum: usize) -> bool {
    votes.iter().filter(|vote| !matches!(vote, Err(Error::Unfenced(_)))).count() < quorum
}

/// Why a lock was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Others hold it.
    Contended,
    /// A quorum answered, and no master refused: its grants came when the validity was over.
    Expired,
    /// No quorum of masters gave a vote.
    Unavailable,
    /// No quorum of masters runs fencing scripts.
    Unfenced,
}

/// Why masters that said this did not grant a lock to a quorum. An outage goes before contention: with too few
/// masters it cannot be had, whether another holds it or not.
#[must_use]
pub fn why_not(votes: &[Vote], quorum: usize) -> Refusal {
    let failed = votes.iter().filter(|vote| vote.as_ref().is_err_and(Error::is_failure)).count();
    if is_hopeless(votes, quorum) {
        Refusal::Unfenced
    } else if failed + quorum > votes.len() {
        Refusal::Unavailable
    } else if votes.contains(&Ok(Grant::Refused)) {
        Refusal::Contended
    } else {
        Refusal::Expired
    }
}

/// One round: every master is asked at once, and the lock is held as soon as a quorum has granted in time.
///
/// Among contenders one master is asked first, and the others not if it says no.
async fn round(
    masters: &Masters,
    request: &Request,
    waiting: &Waiting<'_>,
    highest_seen: &mut u64,
    cancel: &mut Cancel,
) -> Result<Held, Vec<Vote>> {
    request.rounds.fetch_add(1, Ordering::Relaxed);
    let start = masters.handle().now();
    let mut canvass = Canvass::new(masters, request, *highest_seen);
    let designated = waiting.asked_first();
    // Whoever is asked after another has as long for an answer: the distance that one round trip overcomes in that time may
    // be too long for two.
    let limit = start.after(Duration::from_millis(request.ttl_ms / 2)).min(waiting.give_up_at);
    let deadline = || masters.handle().now().after(masters.patience(request.ttl_ms)).min(limit);
    let is_open = match designated {
        Some(first) => {
            // If it does not answer, there is time left to ask the others.
            let until = deadline().min(start.after(Duration::from_millis(request.ttl_ms / 4)));
            in_time(canvass.ask_first(first), masters.handle().sleep_until(until), cancel).await
        }
        None => Some(true),
    };
    if is_open != Some(false) && !cancel.is_terminated() {
        in_time(canvass.ask_others(designated), masters.handle().sleep_until(deadline()), cancel).await;
        if canvass.tally.verdict() == Verdict::Granted {
            masters.finish(start, canvass.take_all()).await;
        }
    }
    *highest_seen = canvass.highest_seen();
    let (verdict, attempt, votes, token) = canvass.close(request.drift_ms);
    let start = if planted::is(Bug::LateStart) { masters.handle().now() } else { start };
    let elapsed = masters.handle().now().since(start);
    let drift_ms = if planted::is(Bug::NoDrift) { 0 } else { request.drift_ms };
    let validity = quorum::validity_ms(request.ttl_ms, elapsed, drift_ms);
    if let (Verdict::Granted, Some(validity_ms)) = (verdict, validity) {
        let expires_at = quorum::expires_at(start, request.ttl_ms, drift_ms);
        attempt.claim.extend_until(expires_at);
        if !planted::is(Bug::Incomplete) {
            masters.owe(attempt.missing(&votes, expires_at, drift_ms, token));
        }
        let votes = masters.explained(verdict, votes);
        return Ok(Held { validity_ms, expires_at, claim: Arc::clone(&attempt.claim), votes, token });
    }
    if planted::is(Bug::CompletesLost) {
        attempt.claim.extend_until(quorum::expires_at(start, request.ttl_ms, drift_ms));
        masters.owe(attempt.missing(&votes, start, drift_ms, token));
    }
    if !planted::is(Bug::NoRelease) {
        attempt.undo(masters, &votes).await;
    }
    Err(masters.explained(verdict, votes))
}

/// What comes of asking, if that is known by the deadline and the caller does not give up.
async fn in_time<T>(asking: impl Future<Output = T>, deadline: Sleep, cancel: &mut Cancel) -> Option<T> {
    match select(pin!(asking), select(deadline, cancel)).await {
        Either::Left((known, _)) => Some(known),
        Either::Right(_) => None,
    }
}

/// One attempt to set one key on all masters.
struct Attempt {
    claim: Arc<Claim>,
    ttl_ms: u64,
    /// The token to propose, if there is to be one.
    proposal: Option<u64>,
    decided: AtomicBool,
    /// Masters that have answered for one of the resources at least.
    answered: Vec<AtomicBool>,
}

impl Attempt {
    fn new(masters: &Masters, request: &Request, highest_seen: u64) -> Self {
        let key = request.key.clone().unwrap_or_else(|| masters.fresh_key().to_vec());
        let claim = Claim::new(request.resources.clone(), key, Arc::clone(&request.script));
        if request.key.is_some() {
            masters.owed.forget(&claim);
        }
        let not_yet = || AtomicBool::new(false);
        Self {
            claim: Arc::new(claim),
            ttl_ms: request.ttl_ms,
            proposal: request.fencing.then(|| fence::propose(highest_seen, masters.handle().effects().since_epoch())),
            decided: not_yet(),
            answered: masters.iter().map(|_| not_yet()).collect(),
        }
    }

    /// Ask one master, unless the round is decided before there is a connection to it. Its vote is a grant when it
    /// grants all resources.
    async fn ask(self: Arc<Self>, master: Arc<Master>, index: usize) -> Answer {
        let answer = match self.proposal {
            None => {
                let votes = of_each(&self.claim.resources, |resource| self.ask_for(resource, &master, index)).await?;
                (Grant::from(votes.iter().all(|vote| *vote == Grant::Granted)), None)
            }
            Some(token) => {
                let propose = |resource| self.propose_for(token, resource, &master, index);
                let reply = fencing::together(of_each(&self.claim.resources, propose).await?);
                (Grant::from(reply.is_some_and(|reply| reply.granted)), reply)
            }
        };
        master.voted();
        if answer.0 == Grant::Granted {
            self.claim.note_at(index);
        }
        Ok(answer)
    }

    async fn ask_for(&self, resource: &[u8], master: &Master, index: usize) -> Vote {
        let exchange = |link: Link| {
            master.watch_clock(&link);
            take(link, resource, self.taking(index), self.ttl_ms)
        };
        let wanted = || self.is_wanted_of(master);
        let answer =
            master.call_to_take(resource, exchange, wanted).await.map_err(|error| master.doubt().unwrap_or(error))?;
        self.answered[index].store(true, Ordering::Relaxed);
        match script::grant(answer.value)? {
            Grant::Refused if answer.repeated => self.is_ours(resource, master).await,
            grant => Ok(grant),
        }
    }

    async fn propose_for(&self, token: u64, resource: &[u8], master: &Master, index: usize) -> Result<Reply, Error> {
        let call = Call::acquire(resource, &self.claim.key, self.ttl_ms, token);
        let wanted = || self.is_wanted_of(master);
        let exchange = |link: Link| {
            master.watch_clock(&link);
            fencing::run(link, &call, Some(self.taking(index)), wanted)
        };
        let answer =
            master.call_to_take(resource, exchange, wanted).await.map_err(|error| master.doubt().unwrap_or(error))?;
        self.answered[index].store(true, Ordering::Relaxed);
        fence::reply(answer.value)
    }

    fn taking(&self, master: usize) -> Taking {
        Taking { claim: Arc::clone(&self.claim), master }
    }

    /// Whether the vote of `master` still counts: whether it is to be relied on may show only when there is a connection.
    fn is_wanted_of(&self, master: &Master) -> bool {
        let is_open = planted::is(Bug::LateSet) || !self.decided.load(Ordering::Relaxed);
        is_open && master.doubt().is_none()
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
        Ok(ours.into())
    }

    /// What the masters are owed that have not got it, and to which it is not on its way.
    fn missing(&self, votes: &[Vote], until: Instant, drift_ms: u64, token: Option<Token>) -> Vec<Debt> {
        let drift = Duration::from_millis(drift_ms);
        let is_missing = |&(index, vote): &(usize, &Vote)| {
            let is_sent = *vote == Err(Error::NotAwaited) && !self.claim.cannot_be_at(index);
            !is_sent && !self.claim.is_at(index) && !matches!(vote, Err(Error::Unfenced(_)))
        };
        let what = What::Lock(token.map(|token| token.number));
        let debt = |(master, _)| Debt { claim: Arc::clone(&self.claim), master, what, is_sent: false, until, drift };
        votes.iter().enumerate().filter(is_missing).map(debt).collect()
    }

    /// Release on every master that was asked, also on those that refused or have not answered: an answer may be wrong
    /// or late, a release is never.
    async fn undo(&self, masters: &Masters, votes: &[Vote]) {
        if !planted::is(Bug::CompletesLost) {
            self.claim.give_back();
        }
        let answers = release_where(masters, &self.claim, |index, _| match &votes[index] {
            _ if self.claim.cannot_be_at(index) => Treatment::Skip,
            vote if planted::is(Bug::ReleaseWhereGranted) && *vote != Ok(Grant::Granted) => Treatment::Skip,
            // One that is at work on many resources is no silent one.
            Err(Error::NoAnswer | Error::NotAwaited) if !self.answered[index].load(Ordering::Relaxed) => {
                Treatment::Tell
            }
            _ => Treatment::Await,
        })
        .await;
        owe_undone(masters, &self.claim, &answers);
    }
}

/// What one master said: its vote, and what it made of the token that was proposed.
type Answer = Result<(Grant, Option<Reply>), Error>;

/// The votes of one round, as they come in.
struct Canvass<'a> {
    masters: &'a Masters,
    attempt: Arc<Attempt>,
    asked: FuturesUnordered<BoxFuture<'static, (usize, Answer)>>,
    awaited: Vec<bool>,
    tally: Tally,
    votes: Vec<Vote>,
    quorum: usize,
    ballot: Option<Ballot>,
    token: Option<Token>,
}

impl<'a> Canvass<'a> {
    fn new(masters: &'a Masters, request: &Request, highest_seen: u64) -> Self {
        let awaited = masters.awaited(request.quorum);
        let count = awaited.iter().filter(|&&is_awaited| is_awaited).count();
        let attempt = Attempt::new(masters, request, highest_seen);
        let quorum = request.quorum - usize::from(planted::is(Bug::QuorumOffByOne));
        Self {
            masters,
            ballot: attempt.proposal.map(|token| Ballot::new(token, quorum, count)),
            attempt: Arc::new(attempt),
            token: None,
            quorum,
            asked: FuturesUnordered::new(),
            tally: Tally::new(quorum, count),
            votes: vec![Err(Error::NotSent); masters.len()],
            awaited,
        }
    }

    /// Ask one master before all others; whether those are to be asked.
    async fn ask_first(&mut self, first: usize) -> bool {
        self.ask(first);
        self.take_one().await;
        self.votes[first] != Ok(Grant::Refused)
    }

    /// Ask all but the one that was asked first, until the round is decided.
    async fn ask_others(&mut self, designated: Option<usize>) {
        let start = self.masters.handle().now();
        (0..self.masters.len()).filter(|&index| Some(index) != designated).for_each(|index| self.ask(index));
        while self.tally.verdict() == Verdict::Open && !self.asked.is_empty() {
            self.take_one().await;
        }
        // Those that are there already: one that has answered is owed nothing.
        while !self.asked.is_empty() && self.take_one().now_or_never().is_some() {}
        if self.tally.verdict() == Verdict::Granted && self.ballot.is_some() {
            self.elect(start).await;
        }
    }

    /// The lock is granted: have the token accepted, or one that is greater than all that stood against it.
    async fn elect(&mut self, start: Instant) {
        // Worth as long a wait as the grants took: a second round takes no less.
        let took = self.masters.handle().now().since(start);
        let patience = self.masters.handle().sleep(took);
        select(pin!(self.take_acceptances()), patience).await;
        let Some(ballot) = self.ballot else { return };
        let at_once = ballot.verdict() == Verdict::Granted;
        let number = if at_once { ballot.token() } else { ballot.next() };
        if at_once || planted::is(Bug::NoWriteBack) || self.bump(number).await {
            self.token = Some(Token { number, at_once });
        }
    }

    async fn take_all(&mut self) {
        while !self.asked.is_empty() {
            self.take_one().await;
        }
    }

    async fn take_acceptances(&mut self) {
        while self.ballot.is_some_and(|ballot| ballot.verdict() == Verdict::Open) && !self.asked.is_empty() {
            self.take_one().await;
        }
    }

    /// The second round, with the masters that may have granted.
    async fn bump(&mut self, token: u64) -> bool {
        self.attempt.decided.store(true, Ordering::Relaxed);
        let asked = |index: usize| !self.attempt.claim.cannot_be_at(index);
        let may_be_ours = |index: usize| matches!(self.votes[index], Ok(Grant::Granted) | Err(Error::NotAwaited));
        let masters = self.masters.iter().enumerate().filter(|&(index, _)| asked(index) && may_be_ours(index));
        let masters = masters.map(|(_, master)| Arc::clone(master)).collect();
        fencing::bump(masters, &self.attempt.claim, self.attempt.ttl_ms, token, self.quorum).await
    }

    fn ask(&mut self, index: usize) {
        let master = &self.masters[index];
        if self.awaited[index] || self.attempt.claim.resources.iter().all(|resource| master.is_linked(resource)) {
            let ask = Arc::clone(&self.attempt).ask(Arc::clone(master), index);
            self.votes[index] = Err(Error::NotAwaited);
            self.asked.push(ask.map(move |vote| (index, vote)).boxed());
        }
    }

    async fn take_one(&mut self) {
        let Some((index, answer)) = self.asked.next().await else { return };
        let is_awaited = self.awaited[index];
        if is_awaited {
            self.tally.close_one();
        }
        if matches!(answer, Ok((Grant::Granted, _))) {
            self.tally.grant();
        }
        if let Some(ballot) = &mut self.ballot {
            ballot.take(answer.as_ref().ok().and_then(|(_, reply)| *reply), is_awaited);
        }
        self.votes[index] = answer.map(|(grant, _)| grant);
    }

    fn highest_seen(&self) -> u64 {
        self.ballot.map_or(0, |ballot| ballot.highest_seen())
    }

    /// The round is decided: nothing more is sent for it but its release, and no caller waits for the rest of the answers.
    fn close(self, drift_ms: u64) -> (Verdict, Arc<Attempt>, Vec<Vote>, Option<Token>) {
        self.attempt.decided.store(true, Ordering::Relaxed);
        let unasked = |index: &usize| self.awaited[*index] && self.votes[*index] == Err(Error::NotSent);
        (0..self.votes.len()).filter(unasked).for_each(|index| self.masters[index].give_back());
        let is_complete = self.ballot.is_none() || self.token.is_some();
        let verdict = if is_complete { self.tally.verdict() } else { Verdict::Denied };
        let (claim, drift) = (Arc::clone(&self.attempt.claim), Duration::from_millis(drift_ms));
        let what = What::Lock(self.token.map(|token| token.number));
        self.masters.hear_out(&self.attempt.claim, self.asked, move |master, answer| {
            let is_missing = !matches!(answer, Ok((Grant::Granted, _)) | Err(Error::Unfenced(_)));
            let until = claim.until().filter(|_| is_missing)?;
            Some(Debt { claim: Arc::clone(&claim), master, what, is_sent: false, until, drift })
        });
        (verdict, self.attempt, self.votes, self.token)
    }
}

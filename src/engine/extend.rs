//! Setting the TTL of a lock anew: never a key that is gone.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use crate::claim::{Claim, Decision};
use crate::clock::Instant;
use crate::engine::Masters;
use crate::engine::owed::{Debt, What};
use crate::engine::release::compare_and;
use crate::error::Error;
use crate::lease::Reason;
use crate::master::Master;
use crate::master::link::Link;
use crate::planted::{self, Bug};
use crate::quorum::{self, Tally, Verdict};
use crate::script::{self, Extension};

/// A lock to keep.
#[derive(Debug, Clone)]
pub struct Request {
    /// The lock.
    pub claim: Arc<Claim>,
    /// How long the masters are to keep it from now on, in milliseconds.
    pub ttl_ms: u64,
    /// How much of that the masters' clocks may differ by, in milliseconds.
    pub drift_ms: u64,
    /// How many masters must have it still.
    pub quorum: usize,
    /// Until when the lock is known to be ours: an extension that is not granted by then fails. Where it is not known,
    /// masters that have lost the lock do not get it again.
    pub valid_until: Option<Instant>,
}

/// What one master said to an extension.
pub type Answer = Result<Extension, Error>;

/// A lock that was extended.
#[derive(Debug, Clone)]
pub struct Extended {
    /// How long it is safe to use, in milliseconds.
    pub validity_ms: u64,
    /// When that is over.
    pub expires_at: Instant,
    /// The lock.
    pub claim: Arc<Claim>,
    /// What each master said until a quorum had extended.
    pub answers: Vec<Answer>,
}

/// Extend where the lock is still held; done when a quorum still had it, in time. `Err` is what each master said: the lock
/// then has the deadline it had, or the one this would have set, if that is earlier: some may have obeyed all the same.
///
/// Sets a TTL and never a key, so it cannot revive a lock that has expired or that somebody else holds. Source: "Making
/// the algorithm more reliable: Extending the lock" in the Redis documentation.
pub async fn extend(masters: &Masters, request: &Request) -> Result<Extended, Vec<Answer>> {
    masters.iter().for_each(|master| master.note_ttl(request.ttl_ms));
    let start = masters.handle().now();
    let expires_at = quorum::expires_at(start, request.ttl_ms, request.drift_ms);
    let patience = start.after(masters.patience(request.ttl_ms));
    let deadline = request.valid_until.map_or(patience, |until| until.min(patience));
    // What the caller knows by its key alone may be known better.
    let claim = masters.owed.known(&request.claim).unwrap_or_else(|| Arc::clone(&request.claim));
    let _unfinished = masters.owed.unfinished(&claim);
    // Some masters may obey although it fails: the lock is given to others no longer than that.
    claim.extend_until(claim.until().map_or(expires_at, |until| until.min(expires_at)));
    let mut poll = Poll::new(masters, request, &claim, deadline);
    select(std::pin::pin!(poll.run()), masters.handle().sleep_until(deadline)).await;
    // A caller that was stopped meanwhile, and finds the answers now, may know already that it is lost.
    let is_in_time = request.valid_until.is_none_or(|until| masters.handle().now() < until);
    if poll.tally.verdict() == Verdict::Granted && is_in_time {
        masters.finish(start, poll.take_all()).await;
    }
    let verdict = if is_in_time { poll.tally.verdict() } else { Verdict::Denied };
    let answers = poll.close(masters, verdict, request.drift_ms);
    let validity = quorum::validity_ms(request.ttl_ms, masters.handle().now().since(start), request.drift_ms);
    let (Verdict::Granted, Some(validity_ms)) = (verdict, validity) else { return Err(answers) };
    claim.extend_until(expires_at);
    Ok(Extended { validity_ms, expires_at, claim, answers })
}

/// Why the masters did not extend a lock. [`Reason::TakenOver`] and [`Reason::Expired`] are final: fewer masters than a
/// quorum still have it. After [`Reason::Unavailable`] they may have it.
#[must_use]
pub fn why_not(answers: &[Answer], quorum: usize) -> Reason {
    let count = |wanted: Extension| answers.iter().filter(|answer| **answer == Ok(wanted)).count();
    let (taken, absent) = (count(Extension::Taken), count(Extension::Absent));
    match (taken, absent) {
        _ if taken + absent + quorum <= answers.len() => Reason::Unavailable,
        (0, _) => Reason::Expired,
        _ => Reason::TakenOver,
    }
}

/// The answers of all masters, as they come in.
struct Poll {
    claim: Arc<Claim>,
    /// It is known until when the lock was held: one that may have run out is given to no master.
    knows_deadline: bool,
    asked: FuturesUnordered<BoxFuture<'static, (usize, Answer)>>,
    awaited: Vec<bool>,
    tally: Tally,
    quorum: usize,
    answers: Vec<Answer>,
}

impl Poll {
    fn new(masters: &Masters, request: &Request, claim: &Arc<Claim>, deadline: Instant) -> Self {
        let awaited = masters.awaited(request.quorum);
        let count = awaited.iter().filter(|&&is_awaited| is_awaited).count();
        let ask = |(index, master): (usize, &Arc<Master>)| {
            let (handle, known) = (masters.handle().clone(), Arc::clone(claim));
            // A lock that is released is extended nowhere else; if it was when this began, the masters are to say so.
            let goes_on = claim.is_given_back() || planted::is(Bug::KeeperGoesOn);
            // Nor is one too late: a later extension may have set a longer TTL since, over another connection.
            let wanted = move || handle.now() < deadline && (goes_on || !known.is_given_back());
            ask(Arc::clone(master), Arc::clone(claim), request.ttl_ms, wanted)
                .map(move |answer| (index, answer))
                .boxed()
        };
        Self {
            claim: Arc::clone(claim),
            knows_deadline: request.valid_until.is_some(),
            asked: masters.iter().enumerate().map(ask).collect(),
            awaited,
            tally: Tally::new(request.quorum, count),
            quorum: request.quorum,
            answers: vec![Err(Error::NotAwaited); masters.len()],
        }
    }

    /// Ask until there is nothing more to learn.
    async fn run(&mut self) {
        while !self.is_over() && self.take_one().await {}
    }

    async fn take_all(&mut self) {
        while self.take_one().await {}
    }

    /// Take in one answer; whether there was one.
    async fn take_one(&mut self) -> bool {
        let Some((index, answer)) = self.asked.next().await else { return false };
        if self.awaited[index] {
            self.tally.close_one();
        }
        let counts = planted::is(Bug::AbsentExtends) && answer == Ok(Extension::Absent);
        let answer = match answer {
            // A release is on its way there: it will lose the lock.
            Ok(Extension::Extended) if !self.claim.decide(index, Decision::Counted) => Err(Error::Withdrawn),
            answer => answer,
        };
        match &answer {
            Ok(Extension::Extended) => self.claim.note_at(index),
            Err(error) if !error.is_failure() => {}
            _ => self.claim.note_doubtful(index),
        }
        if answer == Ok(Extension::Extended) || counts {
            self.tally.grant();
        }
        self.answers[index] = answer;
        true
    }

    /// A quorum has extended; or it cannot, and either that is final or no answer is due that could show so: the caller
    /// must learn whether another try may succeed.
    fn is_over(&self) -> bool {
        match self.tally.verdict() {
            Verdict::Open => false,
            Verdict::Granted => true,
            Verdict::Denied => !self.tally.is_awaiting() || self.is_lost() || planted::is(Bug::HastyVerdict),
        }
    }

    /// Whether so many no longer have it that a quorum cannot.
    fn is_lost(&self) -> bool {
        let lost =
            self.answers.iter().filter(|answer| matches!(answer, Ok(Extension::Taken | Extension::Absent))).count();
        lost > self.answers.len().saturating_sub(self.quorum)
    }

    /// The caller does not wait for more. Masters that turn out to have lost an extended lock get it again; those that
    /// have not answered are asked once more.
    fn close(self, masters: &Masters, verdict: Verdict, drift_ms: u64) -> Vec<Answer> {
        let (claim, drift) = (self.claim, Duration::from_millis(drift_ms));
        // What may have run out before is given to no master, and kept where it is all the same.
        let what = if self.knows_deadline { What::Lock(None) } else { What::Extension };
        let debt = move |claim: &Arc<Claim>, master, is_sent| {
            claim.note_doubtful(master);
            Some(Debt { claim: Arc::clone(claim), master, what, is_sent, until: claim.until()?, drift })
        };
        let knows_deadline = self.knows_deadline;
        let lost = move |claim: &Arc<Claim>, master| {
            claim.lost_at(master);
            debt(claim, master, false).filter(|_| knows_deadline)
        };
        if verdict == Verdict::Granted {
            let owed = self.answers.iter().enumerate().filter_map(|(master, answer)| match answer {
                Ok(Extension::Absent) => lost(&claim, master),
                Err(error) if *error != Error::Withdrawn => debt(&claim, master, true),
                _ => None,
            });
            masters.owe(owed.collect());
        }
        masters.hear_out(&Arc::clone(&claim), self.asked, move |master, answer| match answer {
            Ok(Extension::Absent) if verdict == Verdict::Granted => lost(&claim, master),
            Ok(Extension::Extended) if claim.decide(master, Decision::Counted) => {
                claim.note_at(master);
                None
            }
            _ => None,
        });
        masters.explained(verdict, self.answers)
    }
}

/// What a master says of all resources: that it no longer has one, whatever became of the others; or the first error.
async fn ask(master: Arc<Master>, claim: Arc<Claim>, ttl_ms: u64, wanted: impl Fn() -> bool + Send + Sync) -> Answer {
    let asked = claim.resources.iter().map(|resource| ask_for(resource, &master, &claim.key, ttl_ms, &wanted));
    let answers = join_all(asked).await;
    let rank = |answer: &Answer| match answer {
        Ok(Extension::Taken | Extension::Absent) => 0,
        Err(_) => 1,
        Ok(Extension::Extended) => 2,
    };
    answers.into_iter().min_by_key(rank).unwrap_or(Ok(Extension::Extended))
}

async fn ask_for(
    resource: &[u8],
    master: &Master,
    key: &[u8],
    ttl_ms: u64,
    wanted: impl Fn() -> bool + Copy + Send + Sync,
) -> Answer {
    let exchange = |link: Link| async move {
        if planted::is(Bug::ReviveByExtend) {
            return link.call(&planted::plain_set(resource, key, ttl_ms), None).await;
        }
        let way = link.release_by();
        compare_and(link, way, wanted, |way| way.extend(resource, key, ttl_ms), script::is_extension).await
    };
    script::extension(master.call(resource, exchange, wanted).await?.value, key)
}

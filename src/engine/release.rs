//! Giving a lock back: compare and delete on every master.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::{Cmd, Value};

use crate::claim::Claim;
use crate::engine::{Masters, of_each};
use crate::error::Error;
use crate::lease::Reason;
use crate::master::Master;
use crate::master::link::Link;
use crate::planted::{self, Bug};
use crate::quorum;
use crate::runtime::Handle;
use crate::script::{self, CompareAndDelete, Release};

/// How soon it is looked again whether another session has its answer, and how long between two looks at most.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// What one master said to a release.
pub type Answer = Result<Release, Error>;

/// Why a release did not do what was asked; `None` if some master still had the lock, and a quorum has it no more.
#[must_use]
pub fn why_not(answers: &[Answer], quorum: usize) -> Option<Reason> {
    let answered = answers.iter().filter(|answer| !answer.as_ref().is_err_and(Error::is_failure)).count();
    match answers.contains(&Ok(Release::Released)) {
        _ if answered < quorum => Some(Reason::Unavailable),
        true => None,
        false => Some(Reason::Expired),
    }
}

/// How a release treats one master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Tell it and wait for its answer.
    Await,
    /// Tell it as soon as possible, but do not wait.
    Tell,
    /// It cannot have the claim.
    Skip,
}

/// Release `claim` on every master; returns when those that are well have answered.
///
/// One that is down or hung is told when it can be, but waited for only if there is no quorum without it, or if it is down
/// and its turn to be tried has come. Never fails: what a minority says, or does not say, is in the answers.
/// Source: "Releasing the lock" in the Redis documentation.
pub async fn release(masters: &Masters, claim: &Arc<Claim>) -> Vec<Answer> {
    release_where(masters, claim, treatment(masters)).await
}

/// The same where no caller waits, and other sessions may still be owed answers to what took the lock. A release must not
/// overtake that: a master that owes such an answer is told when it has come, or its connection has been given up.
pub async fn release_after_answers(masters: &Masters, claim: &Arc<Claim>) -> Vec<Answer> {
    let owes: Vec<bool> = (0..masters.len()).map(|index| claim.is_unanswered_at(index)).collect();
    let treatment = treatment(masters);
    let told_now = |index: usize, master: &Master| if owes[index] { Treatment::Skip } else { treatment(index, master) };
    let mut answers = release_where(masters, claim, told_now).await;
    if owes.contains(&true) {
        let mut pause = FIRST_LOOK;
        while (0..masters.len()).any(|index| claim.is_unanswered_at(index)) {
            masters.handle().sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
        let rest = |index: usize, master: &Master| if owes[index] { treatment(index, master) } else { Treatment::Skip };
        for (index, answer) in release_where(masters, claim, rest).await.into_iter().enumerate() {
            if owes[index] {
                answers[index] = answer;
            }
        }
    }
    answers
}

/// How each master is treated now.
fn treatment(masters: &Masters) -> impl Fn(usize, &Master) -> Treatment {
    let quorum = quorum::majority(masters.len());
    let needs_suspects = masters.needs_suspects(quorum);
    let awaited = masters.awaited(quorum);
    move |index: usize, master: &Master| {
        // It may be back any moment, with the key: one refused connection is cheaper than a lock that nobody holds.
        let is_suspect = !awaited[index] || (master.is_hung() && !needs_suspects);
        if is_suspect { Treatment::Tell } else { Treatment::Await }
    }
}

/// Release `claim`, treating each master as `treatment` says.
pub(super) async fn release_where(
    masters: &Masters,
    claim: &Arc<Claim>,
    treatment: impl Fn(usize, &Master) -> Treatment,
) -> Vec<Answer> {
    let mut answers = vec![Err(Error::NotSent); masters.len()];
    let mut asked = FuturesUnordered::new();
    for (index, master) in masters.iter().enumerate() {
        let (master, treatment) = (Arc::clone(master), treatment(index, master));
        if treatment == Treatment::Skip {
            continue;
        }
        answers[index] = Err(Error::NoAnswer);
        if treatment == Treatment::Await {
            let ask = ask_or_tell(master, Arc::clone(claim), masters.handle());
            asked.push(ask.map(move |answer| (index, answer)));
        } else {
            masters.handle().spawn(tell(master, Arc::clone(claim)));
        }
    }
    while let Some((index, answer)) = asked.next().await {
        answers[index] = answer;
    }
    answers
}

/// Wait for the answer. A connection that was waited for in vain carries the release all the same, when it is there.
async fn ask_or_tell(master: Arc<Master>, claim: Arc<Claim>, handle: &Handle) -> Answer {
    let answer = ask(Arc::clone(&master), Arc::clone(&claim)).await;
    if answer == Err(Error::NoAnswer) && master.is_connecting() {
        handle.spawn(tell(master, claim));
    }
    answer
}

async fn ask(master: Arc<Master>, claim: Arc<Claim>) -> Answer {
    let answers = of_each(planted::released(&claim.resources), |resource| ask_for(resource, &master, &claim)).await?;
    Ok(if answers.contains(&Release::Absent) { Release::Absent } else { Release::Released })
}

async fn ask_for(resource: &[u8], master: &Master, claim: &Claim) -> Answer {
    let exchange = |link: Link| async move {
        if planted::is(Bug::UnlockWithoutCompare) {
            return link.call(&planted::plain_delete(resource, &claim.key), None).await;
        }
        let way = link.release_by().for_script(&claim.script);
        compare_and(link, way, || true, |way| way.release(claim, resource)).await
    };
    script::release(master.call(resource, exchange, || true).await?.value)
}

/// Release where nobody waits for the answer, so that nobody may be there for a `NOSCRIPT`: the script goes along.
async fn tell(master: Arc<Master>, claim: Arc<Claim>) {
    _ = of_each(planted::released(&claim.resources), |resource| tell_of(resource, &master, &claim)).await;
}

async fn tell_of(resource: &[u8], master: &Master, claim: &Claim) -> Result<Value, Error> {
    let exchange = |link: Link| {
        let release = link.release_by().release_in_full(claim, resource);
        async move { link.call(&release, None).await }
    };
    master.call_in_background(resource, exchange).await.map(|answer| answer.value)
}

/// Send `command` in the cheapest way the master has and allows, from `way` on, while it is wanted.
pub(super) async fn compare_and(
    link: Link,
    mut way: CompareAndDelete,
    wanted: impl Fn() -> bool,
    command: impl Fn(CompareAndDelete) -> Cmd,
) -> Result<Value, Error> {
    loop {
        if !wanted() {
            return Err(Error::NotSent);
        }
        let reply = link.call(&command(way), None).await?;
        let Value::ServerError(error) = &reply else { return Ok(reply) };
        let Some(next) = way.fallback(error) else { return Ok(reply) };
        if error.code() != "NOSCRIPT" {
            link.set_release_by(next);
        }
        way = next;
    }
}

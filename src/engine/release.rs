//! Giving a lock back: compare and delete on every master.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::Value;

use crate::engine::Masters;
use crate::error::Error;
use crate::master::Master;
use crate::master::health::Standing;
use crate::master::link::Link;
use crate::planted::{self, Bug};
use crate::quorum;
use crate::script::{self, Claim, Release};

/// What one master said to a release.
pub type Answer = Result<Release, Error>;

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
/// One that is down or hung is told when it can be, but waited for only when its turn to be tried has come, or if there is
/// no quorum without it. Never fails: what a minority says, or does not say, is in the answers.
/// Source: "Releasing the lock" in the Redis documentation.
pub async fn release(masters: &Masters, claim: &Arc<Claim>) -> Vec<Answer> {
    let standings = masters.standings(quorum::majority(masters.len()));
    let treatment = |index: usize, master: &Master| match standings[index] {
        Standing::Good if !master.is_hung() => Treatment::Await,
        // It may be back any moment, with the key: one refused connection is cheaper than a lock that nobody holds.
        _ => Treatment::Tell,
    };
    release_where(masters, claim, treatment).await
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
            asked.push(ask(master, Arc::clone(claim)).map(move |answer| (index, answer)));
        } else {
            masters.handle().spawn(tell(master, Arc::clone(claim)));
        }
    }
    while let Some((index, answer)) = asked.next().await {
        answers[index] = answer;
    }
    answers
}

async fn ask(master: Arc<Master>, claim: Arc<Claim>) -> Answer {
    let answer = master.call(&claim.resource, |link| compare_and_delete(link, Arc::clone(&claim)), || true).await?;
    script::release(answer.value)
}

/// Release where nobody waits for the answer, so that nobody may be there for a `NOSCRIPT`: the script goes along.
async fn tell(master: Arc<Master>, claim: Arc<Claim>) {
    let exchange = |link: Link| {
        let release = link.release_by().command_in_full(&claim);
        async move { link.call(&release, None).await }
    };
    _ = master.call(&claim.resource, exchange, || true).await;
}

/// Release in the cheapest way the master has and allows.
async fn compare_and_delete(link: Link, claim: Arc<Claim>) -> Result<Value, Error> {
    if planted::is(Bug::UnlockWithoutCompare) {
        return link.call(&planted::plain_delete(&claim), None).await;
    }
    let mut way = link.release_by().for_script(&claim.script);
    loop {
        let reply = link.call(&way.command(&claim), None).await?;
        let Value::ServerError(error) = &reply else { return Ok(reply) };
        let Some(next) = way.fallback(error) else { return Ok(reply) };
        if error.code() != "NOSCRIPT" {
            link.set_release_by(next);
        }
        way = next;
    }
}

//! Giving a lock back: compare and delete on every master.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use redis::Value;

use crate::engine::Masters;
use crate::error::Error;
use crate::master::Master;
use crate::master::link::Link;
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

/// Release `claim` on every master; returns when those that did not keep silent before have answered.
///
/// Never fails: what a minority says, or does not say, is in the answers; who is not waited for is [`Error::NoAnswer`].
/// Source: "Releasing the lock" in the Redis documentation.
pub async fn release(masters: &Masters, claim: &Arc<Claim>) -> Vec<Answer> {
    release_where(masters, claim, |_, master| if master.is_hung() { Treatment::Tell } else { Treatment::Await }).await
}

/// Release `claim`, treating each master as `treatment` says.
pub(super) async fn release_where(
    masters: &Masters,
    claim: &Arc<Claim>,
    treatment: impl Fn(usize, &Master) -> Treatment,
) -> Vec<Answer> {
    let mut answers = vec![Err(Error::NoAnswer); masters.len()];
    let mut asked = FuturesUnordered::new();
    for (index, master) in masters.iter().enumerate() {
        let ask = ask(Arc::clone(master), Arc::clone(claim));
        match treatment(index, master) {
            Treatment::Await => asked.push(ask.map(move |answer| (index, answer))),
            Treatment::Tell => masters.handle().spawn(ask.map(drop)),
            Treatment::Skip => {}
        }
    }
    while let Some((index, answer)) = asked.next().await {
        answers[index] = answer;
    }
    answers
}

async fn ask(master: Arc<Master>, claim: Arc<Claim>) -> Answer {
    let answer = master.call(|link| compare_and_delete(link, Arc::clone(&claim)), || true).await?;
    script::release(answer.value)
}

/// Release in the cheapest way the master has and allows.
async fn compare_and_delete(link: Link, claim: Arc<Claim>) -> Result<Value, Error> {
    let mut way = link.release_by().for_script(&claim.script);
    loop {
        let reply = link.call(&way.command(&claim), None).await?;
        let Value::ServerError(error) = &reply else { return Ok(reply) };
        let Some(next) = way.fallback(error.code()) else { return Ok(reply) };
        if error.code() != "NOSCRIPT" {
            link.set_release_by(next);
        }
        way = next;
    }
}

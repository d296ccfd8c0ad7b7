//! The two rounds of a fencing token, as masters are asked for them.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::Value;

use crate::claim::Claim;
use crate::engine::of_each;
use crate::error::Error;
use crate::fence::{self, Ballot, Call, Reply};
use crate::master::Master;
use crate::master::link::{Link, Taking};
use crate::quorum::Verdict;

/// Make `call` at the master at the other end of `link`, in the form it wants. `taking` is what the call takes, if
/// anything; `wanted` says whether it is still to be taken when another form has to be tried.
pub(super) async fn run(
    link: Link,
    call: &Call<'_>,
    taking: Option<Taking>,
    wanted: impl Fn() -> bool,
) -> Result<Value, Error> {
    loop {
        let form = link.fencing_form();
        let reply = link.call(&call.command(form), taking.clone()).await?;
        let fallback = match &reply {
            Value::ServerError(error) => form.fallback(error),
            _ => None,
        };
        link.set_fencing_form(fallback.unwrap_or_else(|| form.next()));
        if fallback.is_none() || !wanted() {
            return Ok(reply);
        }
    }
}

/// The answers of one master for all resources of a claim, as one.
pub(super) fn together(replies: Vec<Reply>) -> Option<Reply> {
    replies.into_iter().reduce(Reply::and)
}

/// The second round: propose `token` to the masters that may have granted `claim` in the first. Whether a quorum
/// accepted it. Source: `docs/fencing.md`.
pub(super) async fn bump(masters: Vec<Arc<Master>>, claim: &Claim, ttl_ms: u64, token: u64, quorum: usize) -> bool {
    let mut ballot = Ballot::new(token, quorum, masters.len());
    let mut asked: FuturesUnordered<_> = masters.into_iter().map(|master| ask(master, claim, ttl_ms, token)).collect();
    while ballot.verdict() == Verdict::Open
        && let Some(answer) = asked.next().await
    {
        ballot.take(answer.ok().flatten(), true);
    }
    ballot.verdict() == Verdict::Granted
}

async fn ask(master: Arc<Master>, claim: &Claim, ttl_ms: u64, token: u64) -> Result<Option<Reply>, Error> {
    let ask_for = |resource| {
        let master = &master;
        async move {
            let call = Call::bump(resource, &claim.key, ttl_ms, token);
            let exchange = |link: Link| run(link, &call, None, || true);
            fence::reply(master.call(resource, exchange, || true).await?.value)
        }
    };
    Ok(together(of_each(&claim.resources, ask_for).await?))
}

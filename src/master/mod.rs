//! One Redis master: how it is reached, whether it is well, and what it answers.

pub mod bounded;
mod cluster;
mod connect;
pub mod endpoint;
pub mod guard;
pub mod health;
mod introduction;
pub mod link;
mod node;
mod sentinel;
pub mod socket;
pub mod tls;
pub mod watch;

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{Either, select};
use redis::Value;

use crate::claim::Claim;
use crate::clock::Instant;
use crate::error::{Error, is_read_only};
use crate::quorum::MAX_PATIENCE;
use crate::runtime::{Handle, locked};
use cluster::Routes;
use endpoint::Endpoint;
use guard::Cause;
use health::Health;
use link::Link;
use node::Node;

/// How often one question is sent on to another node: once is usual, twice while a slot moves.
const MOST_REDIRECTIONS: usize = 4;

/// One master as one session sees it: at most one connection to each of its nodes, so that commands take effect in the
/// order they were sent.
///
/// A cluster is one master with several nodes; any other has one.
#[derive(Debug)]
pub struct Master {
    seed: Arc<Node>,
    routes: Mutex<Routes>,
    health: Arc<Health>,
    handle: Handle,
}

/// What to carry out, whether it is still wanted, and what for.
struct Errand<E, W> {
    exchange: E,
    wanted: W,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Ask,
    /// Not to be repeated where what was sent may still arrive.
    Take,
    /// It is a question whether the master is there in itself, and is to be sent at once.
    Release,
    /// No caller waits for it.
    ReleaseLater,
}

/// An answer, and whether the master may have answered before, over a connection that died under it.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub value: Value,
    /// The exchange was repeated.
    pub repeated: bool,
}

impl Master {
    /// A master not connected to yet.
    #[must_use]
    pub fn new(endpoint: Arc<Endpoint>, health: Arc<Health>, handle: Handle) -> Arc<Self> {
        let seed = Arc::new(Node::new(endpoint, Arc::clone(&health), handle.clone()));
        let routes = Mutex::new(Routes::new(Arc::clone(&seed)));
        Arc::new(Self { seed, routes, health, handle })
    }

    /// Whether it answered when last asked, as far as is known. One that did not is suspect.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.health.is_well()
    }

    /// Whether to wait for it where others make a quorum without it: if it is well, or its turn to be tried has come,
    /// which the caller then has.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.is_well() || self.handle.with_random(|random| self.health.is_due(self.handle.now(), random))
    }

    /// Nothing was sent to it after all: its turn to be tried is there for the next one.
    pub fn give_back(&self) {
        self.health.give_back(self.handle.now());
    }

    /// It granted or refused a lock: what was wrong with it is over.
    pub fn voted(&self) {
        self.health.voted();
    }

    /// It will not say when a lock is released, so that those who wait for one have to ask.
    pub fn cannot_be_watched(&self, why: &Error) {
        self.health.cannot_be_watched(why);
    }

    /// A lock is asked for, for so long.
    pub fn note_ttl(&self, ttl_ms: u64) {
        self.health.guards().note_ttl(ttl_ms);
    }

    /// The longest time for which a lock was asked for, as far as known.
    #[must_use]
    pub fn longest_ttl(&self) -> Duration {
        self.health.guards().longest_ttl()
    }

    /// Why its vote is not to be relied on now, if it is not.
    #[must_use]
    pub fn doubt(&self) -> Option<Error> {
        self.health.doubt(|| self.handle.now())
    }

    /// Compare its clock with ours, now and then; the question goes along with what is sent anyway.
    pub fn watch_clock(&self, link: &Link) {
        if link.asks() && self.health.clock_is_due(self.handle.now()) {
            let (link, health, handle) = (link.clone(), Arc::clone(&self.health), self.handle.clone());
            self.handle.spawn(async move { introduction::ask_time(&link, &health, &handle).await });
        }
    }

    /// Whether it kept silent when last asked, so that nobody need wait for it.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.health.is_hung()
    }

    /// What it last failed with, unless it has mended since.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.health.summary().failure
    }

    /// How long it is given for an answer.
    #[must_use]
    pub fn answer_patience(&self) -> Duration {
        self.seed.endpoint().answer_patience()
    }

    /// Whether a connection to it is being made, which may be there any moment.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        locked(&self.routes).is_connecting()
    }

    /// Whether the answer to a claim is still to come: to that with this key, or to any.
    #[must_use]
    pub fn awaits(&self, key: Option<&[u8]>) -> bool {
        locked(&self.routes).awaits(key)
    }

    /// How many commands that take this claim have no answer yet here.
    #[must_use]
    pub fn unanswered(&self, claim: &Claim) -> usize {
        locked(&self.routes).unanswered(claim)
    }

    /// Whether a command about `resource` would go out at once.
    #[must_use]
    pub fn is_linked(&self, resource: &[u8]) -> bool {
        locked(&self.routes).node_for(resource).is_linked()
    }

    /// Carry out `exchange`, which is about `resource`, over the one connection there is to whoever has that key, made
    /// if need be.
    ///
    /// A connection that turns out to be closed, as servers do with idle ones, is replaced and the exchange repeated,
    /// once. `wanted` says, whenever a connection is there, whether anything should be sent at all.
    pub async fn call<F>(
        &self,
        resource: &[u8],
        exchange: impl Fn(Link) -> F + Send + Sync,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answer, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send,
    {
        self.carry_out(resource, Errand { exchange, wanted, purpose: Purpose::Ask }).await
    }

    /// The same for an exchange that takes a lock. On a connection that was forgotten it ends with [`Error::Forgotten`]:
    /// what was sent on it is followed by its release, and if both arrive after all, the key must not be in use again.
    pub async fn call_to_take<F>(
        &self,
        resource: &[u8],
        exchange: impl Fn(Link) -> F + Send + Sync,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answer, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send,
    {
        self.carry_out(resource, Errand { exchange, wanted, purpose: Purpose::Take }).await
    }

    /// The same for an exchange that releases a lock.
    pub async fn call_to_release<F>(
        &self,
        resource: &[u8],
        exchange: impl Fn(Link) -> F + Send + Sync,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answer, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send,
    {
        self.carry_out(resource, Errand { exchange, wanted, purpose: Purpose::Release }).await
    }

    /// The same for no caller that waits: as soon as there is a connection, however long it takes to make.
    pub async fn call_to_release_later<F>(
        &self,
        resource: &[u8],
        exchange: impl Fn(Link) -> F + Send + Sync,
        wanted: impl Fn() -> bool + Send + Sync,
    ) -> Result<Answer, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send,
    {
        self.carry_out(resource, Errand { exchange, wanted, purpose: Purpose::ReleaseLater }).await
    }

    async fn carry_out<F, E, W>(&self, resource: &[u8], errand: Errand<E, W>) -> Result<Answer, Error>
    where
        E: Fn(Link) -> F + Send + Sync,
        W: Fn() -> bool + Send + Sync,
        F: Future<Output = Result<Value, Error>> + Send,
    {
        let start = self.handle.now();
        let first = self.call_once(resource, &errand, start).await;
        let is_over = match first {
            Err(Error::Closed) => true,
            Err(Error::Forgotten) => errand.purpose != Purpose::Take,
            _ => false,
        };
        let repeated = is_over && (errand.wanted)();
        let result = if repeated { self.call_once(resource, &errand, self.handle.now()).await } else { first };
        self.note(&result, start);
        result.map(|value| Answer { value, repeated })
    }

    /// Ask the node that had the key last, from `start` on, and go where the answers send us.
    async fn call_once<F, E, W>(&self, resource: &[u8], errand: &Errand<E, W>, start: Instant) -> Result<Value, Error>
    where
        E: Fn(Link) -> F + Send + Sync,
        W: Fn() -> bool + Send + Sync,
        F: Future<Output = Result<Value, Error>> + Send,
    {
        let mut node = locked(&self.routes).node_for(resource);
        let mut result = self.ask(&node, errand, start).await;
        if matches!(result, Err(Error::Connect(_))) && !Arc::ptr_eq(&node, &self.seed) {
            node = Arc::clone(&self.seed);
            result = self.ask(&node, errand, self.handle.now()).await;
        }
        for _ in 0..MOST_REDIRECTIONS {
            let Ok(reply) = &result else { break };
            let Some(next) = locked(&self.routes).learn(resource, reply, &node) else { break };
            let now = self.handle.now();
            if now.since(start) >= self.answer_patience().max(MAX_PATIENCE) {
                break;
            }
            node = next;
            result = self.ask(&node, errand, now).await;
        }
        result
    }

    /// Ask one node, now. One that fails is not taken for the owner of any key from then on: the cluster may have put
    /// another in its place.
    async fn ask<F, E, W>(&self, node: &Arc<Node>, errand: &Errand<E, W>, now: Instant) -> Result<Value, Error>
    where
        E: Fn(Link) -> F + Send + Sync,
        W: Fn() -> bool + Send + Sync,
        F: Future<Output = Result<Value, Error>> + Send,
    {
        let is_awaited = errand.purpose != Purpose::ReleaseLater;
        let asks_first = matches!(errand.purpose, Purpose::Ask | Purpose::Take);
        let result = async {
            let link = node.link(is_awaited.then(|| node.endpoint().link_patience())).await?;
            if !(errand.wanted)() {
                return Err(Error::NotSent);
            }
            let interval = node.endpoint().health_check_interval;
            let is_due = asks_first && interval.is_some_and(|interval| link.is_idle_for(interval, now));
            let exchange = pin!(async {
                if is_due {
                    // Whatever it answers, it is there.
                    link.call(&redis::cmd("PING"), None).await?;
                    if !(errand.wanted)() {
                        return Err(Error::NotSent);
                    }
                }
                (errand.exchange)(link.clone()).await
            });
            let value = self.exchange(node, &link, link.grace(interval, now), exchange).await?;
            if matches!(&value, Value::ServerError(error) if is_read_only(error)) {
                // A master no more: connect anew, and ask for its role.
                link.give_up();
                self.health.raise(Cause::Demoted, self.handle.now());
            }
            Ok(value)
        }
        .await;
        if matches!(&result, Err(error) if !matches!(error, Error::NotSent | Error::Forgotten)) {
            locked(&self.routes).forget(node);
        }
        result
    }

    /// Wait for an exchange over `link`. One that was idle, and now does not answer as fast as usual, is not waited for
    /// alone: a new connection is made beside it.
    async fn exchange(
        &self,
        node: &Arc<Node>,
        link: &Link,
        grace: Option<Duration>,
        mut exchange: Pin<&mut (impl Future<Output = Result<Value, Error>> + Send)>,
    ) -> Result<Value, Error> {
        if let Some(grace) = grace {
            match select(exchange.as_mut(), self.handle.sleep(grace)).await {
                Either::Left((result, _)) => return result,
                Either::Right(_) => node.replace(link),
            }
        }
        exchange.await
    }

    /// Let the health record, and so the log, know how it went with what began at `start`.
    fn note(&self, result: &Result<Value, Error>, start: Instant) {
        match result {
            Ok(Value::ServerError(error)) if !is_expected(error.code()) => {
                self.health.answered_with(&error.clone().into());
            }
            Ok(_) => self.health.answered(),
            Err(Error::NotSent | Error::Forgotten) => self.give_back(),
            Err(error) => self.handle.with_random(|random| self.health.failed(error, start, self.handle.now(), random)),
        }
    }
}

/// Errors that are part of the protocol between us and a well master.
fn is_expected(code: &str) -> bool {
    matches!(code, "NOSCRIPT" | "WRONGTYPE")
}

//! One Redis master: how it is reached, whether it is well, and what it answers.

mod bounded;
mod connect;
pub mod endpoint;
pub mod health;
pub mod link;
pub mod socket;
pub mod tls;

use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{Either, Shared, select};
use redis::Value;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::runtime::{Handle, locked};
use endpoint::Endpoint;
use health::{Health, Standing};
use link::Link;

/// One master as one session sees it: at most one connection, so that commands take effect in the order they were sent.
#[derive(Debug)]
pub struct Master {
    endpoint: Arc<Endpoint>,
    health: Arc<Health>,
    handle: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Apart,
    Connecting(Shared<oneshot::Receiver<Result<Link, Error>>>),
    Linked(Link),
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
        Arc::new(Self { endpoint, health, handle, state: Mutex::default() })
    }

    /// How far a round that starts now should go for this master.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.handle.with_random(|random| self.health.standing(self.handle.now(), random))
    }

    /// Whether it kept silent when last asked, so that nobody need wait for it.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        self.health.is_hung()
    }

    /// Whether a command would go out at once.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        matches!(&*locked(&self.state), State::Linked(link) if link.is_open())
    }

    /// Carry out `exchange` over the one connection there is, made if need be.
    ///
    /// A connection that turns out to be closed, as servers do with idle ones, is replaced and the exchange repeated, once. `wanted` says, whenever a
    /// connection is there, whether anything should be sent at all.
    pub async fn call<F>(
        self: &Arc<Self>,
        exchange: impl Fn(Link) -> F + Send,
        wanted: impl Fn() -> bool + Send,
    ) -> Result<Answer, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send,
    {
        let first = self.call_once(&exchange, &wanted).await;
        let repeated = matches!(first, Err(Error::Closed)) && wanted();
        let result = if repeated { self.call_once(&exchange, &wanted).await } else { first };
        self.note(&result);
        result.map(|value| Answer { value, repeated })
    }

    async fn call_once<F>(
        self: &Arc<Self>,
        exchange: &(impl Fn(Link) -> F + Send),
        wanted: &(impl Fn() -> bool + Send),
    ) -> Result<Value, Error>
    where
        F: Future<Output = Result<Value, Error>> + Send,
    {
        let link = self.link().await?;
        if !wanted() {
            return Err(Error::NotSent);
        }
        let value = exchange(link.clone()).await?;
        if matches!(&value, Value::ServerError(error) if error.code() == "READONLY") {
            // A master no more: connect anew, and ask for its role.
            link.give_up();
        }
        Ok(value)
    }

    /// Let the health record, and so the log, know.
    fn note(&self, result: &Result<Value, Error>) {
        match result {
            Ok(Value::ServerError(error)) if !is_expected(error.code()) => {
                self.health.answered_with(&error.clone().into());
            }
            Ok(_) => self.health.answered(),
            Err(Error::NotSent) => {}
            Err(error) => self.handle.with_random(|random| self.health.failed(error, self.handle.now(), random)),
        }
    }

    /// The open connection, or a new one. Everybody who asks while it is being made waits for the same one.
    pub async fn link(self: &Arc<Self>) -> Result<Link, Error> {
        let connecting = {
            let mut state = locked(&self.state);
            match &*state {
                State::Linked(link) if link.is_open() => return Ok(link.clone()),
                State::Connecting(connecting) => connecting.clone(),
                _ => {
                    let connecting = self.start_connecting();
                    *state = State::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        connecting.await.unwrap_or(Err(Error::Closed))
    }

    fn start_connecting(self: &Arc<Self>) -> Shared<oneshot::Receiver<Result<Link, Error>>> {
        let (done, connecting) = oneshot::channel();
        let master = Arc::clone(self);
        self.handle.spawn(async move {
            let result = master.connect_in_time().await;
            *locked(&master.state) = result.clone().map_or_else(|_| State::Apart, State::Linked);
            _ = done.send(result);
        });
        connecting.shared()
    }

    /// One deadline for resolving, connecting, TLS and the handshake together. Time in which the caller was not there to go on with it does not count.
    async fn connect_in_time(&self) -> Result<Link, Error> {
        let mut connect = std::pin::pin!(connect::connect(&self.endpoint, &self.handle, &self.health));
        let (start, absent) = (self.handle.now(), self.handle.unattended());
        loop {
            let allowed = self.endpoint.connect_patience() + self.handle.unattended().saturating_sub(absent);
            if self.handle.now().since(start) >= allowed {
                return Err(Error::NoAnswer);
            }
            let deadline = self.handle.sleep_until(start.after(allowed));
            if let Either::Left((result, _)) = select(connect.as_mut(), deadline).await {
                return result;
            }
        }
    }
}

/// Errors that are part of the protocol between us and a well master.
fn is_expected(code: &str) -> bool {
    matches!(code, "NOSCRIPT" | "WRONGTYPE")
}

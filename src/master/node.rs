//! One server and the one connection to it, made when it is needed.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{Either, Shared, select};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::master::connect;
use crate::master::endpoint::{Address, Endpoint};
use crate::master::health::Health;
use crate::master::link::Link;
use crate::runtime::{Handle, locked};

/// At most one connection, so that commands take effect in the order they were sent.
#[derive(Debug)]
pub(super) struct Node {
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

impl Node {
    /// A server not connected to yet.
    pub(super) fn new(endpoint: Arc<Endpoint>, health: Arc<Health>, handle: Handle) -> Self {
        Self { endpoint, health, handle, state: Mutex::default() }
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Where another node of the same master is. No `host` means the same host; `None` if that is unknown.
    pub(super) fn sibling(&self, host: &str, port: u16) -> Option<Endpoint> {
        let host = match &self.endpoint.address {
            Address::Tcp { host: own, .. } if host.is_empty() => own,
            _ if host.is_empty() => return None,
            _ => host,
        };
        Some(self.endpoint.at(host.to_owned(), port))
    }

    /// Another node of the same master, not connected to yet.
    pub(super) fn elsewhere(&self, endpoint: Endpoint) -> Self {
        Self::new(Arc::new(endpoint), Arc::clone(&self.health), self.handle.clone())
    }

    /// Whether a command would go out at once.
    pub(super) fn is_linked(&self) -> bool {
        matches!(&*locked(&self.state), State::Linked(link) if link.is_open())
    }

    /// Whether the answer to a claim is still to come: to that with this key, or to any.
    pub(super) fn awaits(&self, key: Option<&[u8]>) -> bool {
        matches!(&*locked(&self.state), State::Linked(link) if link.awaits(key))
    }

    /// The open connection, or a new one. Everybody who asks while it is being made waits for the same one.
    pub(super) async fn link(self: &Arc<Self>) -> Result<Link, Error> {
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
        let node = Arc::clone(self);
        self.handle.spawn(async move {
            let result = node.connect_in_time().await;
            *locked(&node.state) = result.clone().map_or_else(|_| State::Apart, State::Linked);
            _ = done.send(result);
        });
        connecting.shared()
    }

    /// One deadline for resolving, connecting, TLS and the handshake together. Time in which the caller was not there
    /// to go on with it does not count.
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

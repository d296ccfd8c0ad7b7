//! One server and the one connection to it, made when it is needed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use tokio::sync::oneshot;

use crate::claim::Claim;
use crate::clock::Instant;
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
    /// A caller waited for the connection that is being made, and waits no longer.
    is_late: AtomicBool,
    /// Another one is being made beside it.
    is_replacing: AtomicBool,
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
        Self {
            endpoint,
            health,
            handle,
            state: Mutex::default(),
            is_late: AtomicBool::new(false),
            is_replacing: AtomicBool::new(false),
        }
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

    /// How many commands that take this claim have no answer yet on the connection that it has now.
    pub(super) fn unanswered(&self, claim: &Claim) -> usize {
        match &*locked(&self.state) {
            State::Linked(link) => link.unanswered(claim),
            _ => 0,
        }
    }

    /// Whether a connection is being made.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(&*locked(&self.state), State::Connecting(_))
    }

    /// The open connection, or a new one. Everybody who asks while it is being made waits for the same one, and no longer
    /// than `patience`, if that is given. The connection is made all the same: it is there for the next caller.
    pub(super) async fn link(self: &Arc<Self>, patience: Option<Duration>) -> Result<Link, Error> {
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
        let made = match patience {
            Some(patience) => self.handle.within(patience, connecting).await,
            None => Some(connecting.await),
        };
        let Some(made) = made else {
            self.is_late.store(true, Ordering::Relaxed);
            return Err(Error::NoAnswer);
        };
        made.unwrap_or(Err(Error::Closed))
    }

    fn start_connecting(self: &Arc<Self>) -> Shared<oneshot::Receiver<Result<Link, Error>>> {
        let (done, connecting) = oneshot::channel();
        let node = Arc::clone(self);
        self.is_late.store(false, Ordering::Relaxed);
        let start = self.handle.now();
        self.handle.spawn(async move {
            let result = node.connect().await;
            if node.is_late.load(Ordering::Relaxed) {
                node.note_late(&result, start);
            }
            *locked(&node.state) = result.clone().map_or_else(|_| State::Apart, State::Linked);
            _ = done.send(result);
        });
        connecting.shared()
    }

    /// Make a new connection beside `old`, which may be forgotten. It takes the place of `old` if that has said nothing
    /// until then.
    pub(super) fn replace(self: &Arc<Self>, old: &Link) {
        if self.is_replacing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (node, old, heard_at) = (Arc::clone(self), old.clone(), old.heard_at());
        self.handle.spawn(async move {
            let made = node.connect_in_time().await;
            // An answer on the old one that came along with the end of the handshake counts: before a timer fires, all
            // that has arrived is taken in. A grant would be given back otherwise, and be a vote all the same.
            node.handle.sleep(Duration::ZERO).await;
            node.is_replacing.store(false, Ordering::Relaxed);
            let Ok(new) = made else { return };
            let is_silent = old.heard_at() == heard_at;
            if is_silent && node.put_in_place_of(&old, new) {
                old.forget();
            }
        });
    }

    fn put_in_place_of(&self, old: &Link, new: Link) -> bool {
        let mut state = locked(&self.state);
        let is_there = matches!(&*state, State::Linked(link) if link.is(old));
        if is_there {
            *state = State::Linked(new);
        }
        is_there
    }

    /// A caller that waited for this connection took the master for silent. Now more is known.
    fn note_late(&self, result: &Result<Link, Error>, start: Instant) {
        match result {
            Ok(_) => self.health.answered(),
            Err(Error::NoAnswer) => {}
            Err(error) => self.handle.with_random(|random| self.health.failed(error, start, self.handle.now(), random)),
        }
    }

    /// Make a connection. One that ended while no caller was there to go on with it says nothing of the master: it is made
    /// once more.
    async fn connect(&self) -> Result<Link, Error> {
        let absent = self.handle.unattended();
        let first = self.connect_in_time().await;
        let was_left = self.handle.unattended() > absent;
        match first {
            Err(Error::Connect(_) | Error::Closed) if was_left => self.connect_in_time().await,
            first => first,
        }
    }

    /// One deadline for resolving, connecting, TLS and the handshake together.
    async fn connect_in_time(&self) -> Result<Link, Error> {
        let connect = std::pin::pin!(connect::connect(&self.endpoint, &self.handle, &self.health));
        self.handle.within(self.endpoint.connect_patience(), connect).await.unwrap_or(Err(Error::NoAnswer))
    }
}

//! The sessions of one manager: one for each caller at work, kept for the next.

use std::sync::{Arc, Mutex, OnceLock};

use rustix::process::{Pid, getpid};

use crate::engine::Session;
use crate::host::System;
use crate::master::endpoint::Endpoint;
use crate::master::health::{Health, Journal};
use crate::runtime::locked;

/// Sessions kept for the next caller; more are closed as they come back.
const MOST_IDLE: usize = 64;

/// The endpoints of one manager and its sessions to them, in this process and those forked from it.
#[derive(Debug)]
pub struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    first: Arc<InProcess>,
}

/// The sessions of one process. A forked child must not touch those of its parent: it takes the next link of this
/// chain, so that no lock that another thread held at the fork is ever waited for.
#[derive(Debug)]
struct InProcess {
    pid: Pid,
    journal: Arc<Journal>,
    masters: Vec<(Arc<Endpoint>, Arc<Health>)>,
    idle: Mutex<Vec<Session>>,
    child: OnceLock<Arc<InProcess>>,
}

impl Pool {
    /// A pool without sessions.
    #[must_use]
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let first = Arc::new(InProcess::new(&endpoints));
        Self { endpoints, first }
    }

    /// The endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Take the session that was used last, or a new one, and work on it.
    pub fn with_session<T>(&self, work: impl FnOnce(&mut Session) -> T) -> T {
        let home = self.current();
        let idle = locked(&home.idle).pop();
        let mut session = idle.unwrap_or_else(|| home.new_session());
        session.resume();
        let result = work(&mut session);
        session.leave();
        let mut idle = locked(&home.idle);
        if idle.len() < MOST_IDLE {
            idle.push(session);
        }
        result
    }

    /// A session of the caller's own, which does not go back: for an event loop.
    #[must_use]
    pub fn new_session(&self) -> Session {
        self.current().new_session()
    }

    /// What there is to log, in this process.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.current().journal
    }

    fn current(&self) -> &Arc<InProcess> {
        let pid = getpid();
        let mut link = &self.first;
        while link.pid != pid {
            link = link.child.get_or_init(|| Arc::new(link.inherit(&self.endpoints)));
        }
        link
    }
}

impl InProcess {
    fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let journal = Arc::new(Journal::default());
        let health = |endpoint: &Arc<Endpoint>| Arc::new(Health::new(endpoint.to_string(), Arc::clone(&journal)));
        let masters = endpoints.iter().map(|endpoint| (Arc::clone(endpoint), health(endpoint))).collect();
        Self { pid: getpid(), journal, masters, idle: Mutex::default(), child: OnceLock::new() }
    }

    fn new_session(&self) -> Session {
        Session::new(&self.masters, Arc::new(System))
    }

    /// In a child: close the sessions that came with the fork, without a byte to the servers, for the parent goes on
    /// using them.
    fn inherit(&self, endpoints: &[Arc<Endpoint>]) -> Self {
        if let Ok(mut idle) = self.idle.try_lock() {
            idle.clear();
        }
        Self::new(endpoints)
    }
}

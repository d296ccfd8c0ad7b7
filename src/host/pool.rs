//! The sessions of one manager: one for each caller at work, kept for the next.

use std::sync::{Arc, Mutex, OnceLock};

use rustix::process::{Pid, getpid};

use crate::engine::Session;
use crate::host::{System, blocking};
use crate::master::endpoint::Endpoint;
use crate::master::guard::Guards;
use crate::master::health::{Health, Journal, Summary};
use crate::runtime::locked;

/// Sessions kept for the next caller; more are closed as they come back.
const MOST_IDLE: usize = 64;

/// The endpoints of one manager and its sessions to them, in this process and those forked from it.
#[derive(Debug)]
pub struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    guards: Arc<Guards>,
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
    pub fn new(endpoints: Vec<Arc<Endpoint>>, guards: Guards) -> Self {
        let guards = Arc::new(guards);
        let first = Arc::new(InProcess::new(&endpoints, &guards));
        Self { endpoints, guards, first }
    }

    /// Work on a session: on the one that still waits for an answer about `key`, if there is one, for nothing that is
    /// said about a lock may overtake the `SET` that took it; otherwise on the one used last, or a new one.
    pub fn with_session<T>(&self, key: Option<&[u8]>, work: impl FnOnce(&mut Session) -> T) -> T {
        let home = self.current();
        let mut session = home.take(key).unwrap_or_else(|| home.new_session());
        let result = work(&mut session);
        session.leave();
        let mut idle = locked(&home.idle);
        if idle.len() < MOST_IDLE {
            idle.push(session);
        }
        result
    }

    /// What there is to log, in this process.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.current().journal
    }

    /// What has become of each master's commands, in this process.
    #[must_use]
    pub fn summaries(&self) -> Vec<Summary> {
        self.current().masters.iter().map(|(_, health)| health.summary()).collect()
    }

    fn current(&self) -> &Arc<InProcess> {
        let pid = getpid();
        let mut link = &self.first;
        while link.pid != pid {
            link = link.child.get_or_init(|| Arc::new(link.inherit(&self.endpoints, &self.guards)));
        }
        link
    }
}

/// Whether a session waits for no answer about a lock, which somebody may want to release before it has come.
fn is_free(session: &mut Session) -> bool {
    if session.awaits(None) {
        catch_up(session);
        session.leave();
    }
    !session.awaits(None)
}

fn catch_up(session: &mut Session) {
    session.resume();
    blocking::catch_up(session);
}

impl InProcess {
    fn new(endpoints: &[Arc<Endpoint>], guards: &Arc<Guards>) -> Self {
        let journal = Arc::new(Journal::default());
        let health = |endpoint: &Arc<Endpoint>| {
            Arc::new(Health::new(endpoint.to_string(), Arc::clone(&journal), Arc::clone(guards)))
        };
        let masters = endpoints.iter().map(|endpoint| (Arc::clone(endpoint), health(endpoint))).collect();
        Self { pid: getpid(), journal, masters, idle: Mutex::default(), child: OnceLock::new() }
    }

    fn take(&self, key: Option<&[u8]>) -> Option<Session> {
        let mut idle = locked(&self.idle);
        let waits_for_it = |session: &Session| key.is_some_and(|key| session.awaits(Some(key)));
        let owing = idle.iter().position(waits_for_it);
        let index = owing.or_else(|| (0..idle.len()).rev().find(|&index| is_free(&mut idle[index])))?;
        let mut session = idle.remove(index);
        drop(idle);
        catch_up(&mut session);
        Some(session)
    }

    fn new_session(&self) -> Session {
        Session::new(&self.masters, Arc::new(System))
    }

    /// In a child: close the sessions that came with the fork, without a byte to the servers, for the parent goes on
    /// using them.
    fn inherit(&self, endpoints: &[Arc<Endpoint>], guards: &Arc<Guards>) -> Self {
        if let Ok(mut idle) = self.idle.try_lock() {
            idle.clear();
        }
        Self::new(endpoints, guards)
    }
}

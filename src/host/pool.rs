//! The sessions of one manager: one for each caller at work, kept for the next.

use std::sync::{Arc, Mutex, OnceLock};

use rustix::process::{Pid, getpid};

use crate::engine::Session;
use crate::engine::crowd::Crowds;
use crate::host::{System, blocking};
use crate::master::endpoint::Endpoint;
use crate::master::guard::Guards;
use crate::master::health::{Health, Journal, Summary};
use crate::planted::{self, Bug};
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
    crowds: Arc<Crowds>,
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
        if getpid() != home.pid {
            return result; // in a child that was forked meanwhile: not even the mutex is its own
        }
        session.leave();
        let mut idle = locked(&home.idle);
        if idle.len() < MOST_IDLE {
            idle.push(session);
        }
        result
    }

    /// A session that is the caller's alone, for as long as it likes.
    #[must_use]
    pub fn new_session(&self) -> Session {
        self.current().new_session()
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

/// The sessions that nobody works on, in the order in which they came back. The simulation has its own.
pub trait Idle {
    /// How many there are.
    fn count(&self) -> usize;

    /// [`Session::awaits`].
    fn awaits(&self, index: usize, key: Option<&[u8]>) -> bool;

    /// Have one take in what came since it was used, and leave it again.
    fn catch_up(&mut self, index: usize);
}

impl Idle for Vec<Session> {
    fn count(&self) -> usize {
        self.len()
    }

    fn awaits(&self, index: usize, key: Option<&[u8]>) -> bool {
        self[index].awaits(key)
    }

    fn catch_up(&mut self, index: usize) {
        catch_up(&mut self[index]);
        self[index].leave();
    }
}

/// The session to lend for something about the lock with `key`: the one that still waits for an answer about it, or else
/// the one used last of those that wait for no answer about any.
pub fn choose(idle: &mut impl Idle, key: Option<&[u8]>) -> Option<usize> {
    if planted::is(Bug::LendAny) {
        return idle.count().checked_sub(1);
    }
    let owing = key.and_then(|key| (0..idle.count()).find(|&index| idle.awaits(index, Some(key))));
    owing.or_else(|| (0..idle.count()).rev().find(|&index| is_free(idle, index)))
}

/// Whether a session waits for no answer about a lock, which somebody may want to release before it has come.
fn is_free(idle: &mut impl Idle, index: usize) -> bool {
    if idle.awaits(index, None) {
        idle.catch_up(index);
    }
    !idle.awaits(index, None)
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
        let (crowds, idle, child) = (Arc::default(), Mutex::default(), OnceLock::new());
        Self { pid: getpid(), journal, masters, crowds, idle, child }
    }

    fn take(&self, key: Option<&[u8]>) -> Option<Session> {
        let mut idle = locked(&self.idle);
        let index = choose(&mut *idle, key)?;
        let mut session = idle.remove(index);
        drop(idle);
        catch_up(&mut session);
        Some(session)
    }

    fn new_session(&self) -> Session {
        Session::new(&self.masters, Arc::clone(&self.crowds), Arc::new(System))
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

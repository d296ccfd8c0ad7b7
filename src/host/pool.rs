//! The sessions of one manager: one for each caller at work, kept for the next.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use rustix::process::{Pid, getpid};

use crate::clock::Instant;
use crate::engine::acquire::Cancel;
use crate::engine::crowd::Crowds;
use crate::engine::owed::{Keeper, Owed};
use crate::engine::{Masters, Session};
use crate::host::System;
use crate::host::blocking::{self, Ended};
use crate::host::driver;
use crate::host::shared;
use crate::master::endpoint::Endpoint;
use crate::master::guard::Guards;
use crate::master::health::{Health, Journal, Summary};
use crate::runtime::{Source, locked};

/// Sessions kept for the next caller; more are closed as they come back.
const MOST_IDLE: usize = 64;

/// How long one is kept that no caller uses. A burst of threads leaves one each.
const LONGEST_IDLE: Duration = Duration::from_secs(60);

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
pub struct InProcess {
    pid: Pid,
    journal: Arc<Journal>,
    masters: Vec<(Arc<Endpoint>, Arc<Health>)>,
    crowds: Arc<Crowds>,
    owed: Arc<Owed>,
    system: System,
    sessions: Mutex<Sessions>,
    /// A session that owed answers is back.
    back: Condvar,
    child: OnceLock<Arc<InProcess>>,
}

#[derive(Debug, Default)]
struct Sessions {
    idle: Vec<Session>,
    /// The keys of the locks about which sessions at work still waited for answers when they were lent, and who works
    /// on them.
    owed: Vec<(Vec<u8>, ThreadId)>,
}

/// Of no masters: for leases that only clients' own methods can extend.
impl Default for Pool {
    fn default() -> Self {
        Self::new(Vec::new(), Guards::default())
    }
}

impl Pool {
    /// A pool without sessions.
    #[must_use]
    pub fn new(endpoints: Vec<Arc<Endpoint>>, guards: Guards) -> Self {
        let guards = Arc::new(guards);
        let first = InProcess::new(&endpoints, &guards);
        Self { endpoints, guards, first }
    }

    /// Whether it is for these masters, with the same settings.
    #[must_use]
    pub fn is_of(&self, endpoints: &[Arc<Endpoint>], guards: &Guards) -> bool {
        self.guards.are_as(guards)
            && self.endpoints.len() == endpoints.len()
            && self.endpoints.iter().zip(endpoints).all(|(mine, other)| mine.is_same(other))
    }

    /// The part of the process that calls. Only code of the caller's can fork, and so make another one of it.
    #[must_use]
    pub fn here(&self) -> &Arc<InProcess> {
        let pid = getpid();
        let mut link = &self.first;
        while link.pid != pid {
            link = link.child.get_or_init(|| link.inherit(&self.endpoints, &self.guards));
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
    let owing = key.and_then(|key| (0..idle.count()).find(|&index| idle.awaits(index, Some(key))));
    owing.or_else(|| (0..idle.count()).rev().find(|&index| is_free(idle, index)))
}

/// Whether a session waits for no answer about a lock, which somebody may want to release before it has come.
fn is_free(idle: &mut impl Idle, index: usize) -> bool {
    !idle.awaits(index, None) || {
        idle.catch_up(index);
        !idle.awaits(index, None)
    }
}

fn catch_up(session: &mut Session) {
    session.resume();
    blocking::catch_up(session);
}

impl Sessions {
    /// Whether another thread works on a session that owes answers about `key`. This one itself may do so as well, in
    /// another greenlet or below a signal handler: it would wait for itself.
    fn owes(&self, key: &[u8]) -> bool {
        self.owed.iter().any(|(one, worker)| one == key && *worker != thread::current().id())
    }

    /// The session that was used longest ago, if that was too long ago, or if there are too many. One that still waits
    /// for answers stays: what it has sent may not be overtaken by its release.
    fn take_old(&mut self, now: Instant) -> Option<Session> {
        let left_at = self.idle.first()?.left_at();
        let is_old = left_at.is_some_and(|left_at| now.since(left_at) > LONGEST_IDLE);
        ((is_old || self.idle.len() > MOST_IDLE) && is_free(&mut self.idle, 0)).then(|| self.idle.remove(0))
    }
}

/// The answers about one lock that a session at work still waits for.
struct Debt<'a> {
    home: &'a InProcess,
    key: &'a [u8],
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        if !self.home.is_here() {
            return; // in a forked child: the mutex may be held for good
        }
        let mut sessions = locked(&self.home.sessions);
        let here = thread::current().id();
        if let Some(index) = sessions.owed.iter().position(|(key, worker)| key == self.key && *worker == here) {
            sessions.owed.swap_remove(index);
        }
        drop(sessions);
        self.home.back.notify_all();
    }
}

/// What is owed does not keep the sessions alive.
struct Home(Weak<InProcess>);

impl Keeper for Home {
    fn settle(&self) -> bool {
        self.0.upgrade().is_some_and(|home| driver::settle(home).is_ok())
    }

    fn look(&self) {
        if let Some(home) = self.0.upgrade() {
            let idle = &mut locked(&home.sessions).idle;
            (0..idle.count()).for_each(|index| idle.catch_up(index));
        }
    }
}

impl InProcess {
    fn new(endpoints: &[Arc<Endpoint>], guards: &Arc<Guards>) -> Arc<Self> {
        let journal = Arc::new(Journal::default());
        let health = |endpoint: &Arc<Endpoint>| {
            Arc::new(Health::new(endpoint.to_string(), Arc::clone(&journal), Arc::clone(guards)))
        };
        let masters = endpoints.iter().map(|endpoint| (Arc::clone(endpoint), health(endpoint))).collect();
        let (crowds, system, sessions) = (Arc::default(), System::default(), Mutex::default());
        let (back, child) = (Condvar::new(), OnceLock::new());
        Arc::new_cyclic(|me: &Weak<Self>| {
            let owed = Arc::new(Owed::new(Box::new(Home(Weak::clone(me)))));
            Self { pid: getpid(), journal, masters, crowds, owed, system, sessions, back, child }
        })
    }

    /// Whether this is that process, and no child that was forked meanwhile.
    #[must_use]
    pub fn is_here(&self) -> bool {
        getpid() == self.pid
    }

    /// [`blocking::run`] on a session: on the one that still waits for an answer about `key`, if there is one, for nothing
    /// that is said about a lock may overtake the `SET` that took it; otherwise on the one used last, or a new one. While
    /// another thread works on that one, as an extension does, it is waited for, no longer than `patience`.
    pub fn run<T, E, F>(
        &self,
        key: Option<&[u8]>,
        patience: Duration,
        operation: impl FnOnce(Arc<Masters>, Cancel) -> F,
        wait: impl FnMut(&[Arc<Source>], Duration) -> Result<(), E>,
    ) -> Ended<T, E>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (session, debt) = self.take(key, patience);
        let mut session = session.unwrap_or_else(|| self.new_session());
        let ended = blocking::run(&mut session, self.pid, operation, wait);
        if matches!(ended, Ended::Inherited(_)) {
            return ended; // in a child that was forked meanwhile: not even the mutex is its own
        }
        self.take_back(session);
        drop(debt);
        ended
    }

    /// The session that still waits for an answer about `key`, if there is one and no caller works on it: a release that
    /// took another way could overtake what it undoes.
    pub(super) fn lend_owing(&self, key: &[u8]) -> Option<Session> {
        let mut sessions = locked(&self.sessions);
        let index = sessions.idle.iter().position(|session| session.awaits(Some(key)))?;
        let mut session = sessions.idle.remove(index);
        drop(sessions);
        catch_up(&mut session);
        Some(session)
    }

    /// A session is not used any more for now.
    pub(super) fn take_back(&self, session: Session) {
        session.leave();
        let now = session.left_at().unwrap_or_default();
        let mut sessions = locked(&self.sessions);
        sessions.idle.push(session);
        let old: Vec<_> = std::iter::from_fn(|| sessions.take_old(now)).collect();
        drop(sessions);
        drop(old); // closes its connections
        shared::close_unused(now);
    }

    /// What masters are owed.
    #[must_use]
    pub fn owed(&self) -> &Owed {
        &self.owed
    }

    /// What there is to log.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What has become of each master's commands.
    #[must_use]
    pub fn summaries(&self) -> Vec<Summary> {
        self.masters.iter().map(|(_, health)| health.summary()).collect()
    }

    /// A session that was kept, if one will do; and what it owes, for as long as it is lent.
    fn take<'a>(&'a self, key: Option<&'a [u8]>, patience: Duration) -> (Option<Session>, Option<Debt<'a>>) {
        let mut sessions = locked(&self.sessions);
        if let Some(key) = key {
            let waited = self.back.wait_timeout_while(sessions, patience, |sessions| sessions.owes(key));
            sessions = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(index) = choose(&mut sessions.idle, key) else { return (None, None) };
        let mut session = sessions.idle.remove(index);
        let debt = key.filter(|key| session.awaits(Some(key))).map(|key| Debt { home: self, key });
        sessions.owed.extend(debt.iter().map(|debt| (debt.key.to_vec(), thread::current().id())));
        drop(sessions);
        catch_up(&mut session);
        (Some(session), debt)
    }

    /// A session that is the caller's alone, for as long as it likes.
    #[must_use]
    pub fn new_session(&self) -> Session {
        self.session(Arc::clone(&self.owed))
    }

    /// A session of an event loop, which sees by itself to what is owed.
    #[must_use]
    pub fn loop_session(&self) -> Session {
        self.session(Arc::default())
    }

    fn session(&self, owed: Arc<Owed>) -> Session {
        Session::new(&self.masters, Arc::clone(&self.crowds), owed, Arc::new(self.system.clone()))
    }

    /// Close sessions that are not used until there are no more than this. Called where nothing may be waited for: a session
    /// that still waits for answers stays, and all do if another thread looks at them now.
    pub(super) fn keep_sessions(&self, most: usize) {
        let Ok(mut sessions) = self.sessions.try_lock() else { return };
        let mut too_many = sessions.idle.len().saturating_sub(most);
        let is_closed = |session: &mut Session| {
            let is_closed = too_many > 0 && !session.awaits(None);
            too_many -= usize::from(is_closed);
            is_closed
        };
        let closed: Vec<_> = sessions.idle.extract_if(.., is_closed).collect();
        drop(sessions);
        drop(closed); // closes their connections
    }

    /// In a child: close the sessions that came with the fork, without a byte to the servers, for the parent goes on
    /// using them.
    fn inherit(&self, endpoints: &[Arc<Endpoint>], guards: &Arc<Guards>) -> Arc<Self> {
        // A thread that is not there any more may have held either.
        if let (Ok(mut sessions), true) = (self.sessions.try_lock(), self.owed.is_free()) {
            sessions.idle.clear();
        }
        Self::new(endpoints, guards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn owing(key: &[u8], worker: ThreadId) -> Arc<InProcess> {
        let home = InProcess::new(&[], &Arc::default());
        locked(&home.sessions).owed.push((key.to_vec(), worker));
        home
    }

    #[test]
    fn a_session_at_work_in_another_thread_is_waited_for_until_it_is_back() {
        let home = owing(b"key", thread::current().id());
        thread::scope(|scope| {
            let taker = scope.spawn(|| home.take(Some(b"key"), LONG).0.is_none());
            assert!(!taker.is_finished());
            drop(Debt { home: &home, key: b"key" });
            assert!(taker.join().unwrap());
        });
        assert_eq!(locked(&home.sessions).owed, []);
    }

    #[test]
    fn a_thread_does_not_wait_for_a_session_that_it_works_on_itself() {
        let home = owing(b"key", thread::current().id());
        assert!(home.take(Some(b"key"), LONG).0.is_none());
    }

    #[test]
    fn a_session_that_no_caller_has_used_for_long_is_closed() {
        let home = InProcess::new(&[], &Arc::default());
        let (one, other) = (home.new_session(), home.new_session());
        home.take_back(one);
        home.take_back(other);
        let mut sessions = locked(&home.sessions);
        let left_at = sessions.idle[0].left_at().unwrap();
        assert!(sessions.take_old(left_at.after(LONGEST_IDLE)).is_none());
        let old = sessions.take_old(left_at.after(LONGEST_IDLE + Duration::from_nanos(1))).unwrap();
        assert_eq!(old.left_at(), Some(left_at));
        assert_eq!(sessions.idle.len(), 1);
    }

    #[test]
    fn of_too_many_sessions_those_that_were_used_first_are_closed() {
        let home = InProcess::new(&[], &Arc::default());
        let sessions: Vec<_> = (0..MOST_IDLE + 3).map(|_| home.new_session()).collect();
        locked(&home.sessions).idle.extend(sessions);
        home.take_back(home.new_session());
        assert_eq!(locked(&home.sessions).idle.len(), MOST_IDLE);
        assert!(locked(&home.sessions).idle.last().unwrap().left_at().is_some(), "the one that came last");
    }

    #[test]
    fn who_has_no_patience_does_not_wait() {
        let other = thread::spawn(|| thread::current().id()).join().unwrap();
        let home = owing(b"key", other);
        assert!(home.take(Some(b"key"), Duration::ZERO).0.is_none());
    }
}

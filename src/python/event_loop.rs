//! `_redlock.LoopSession`: the asyncio host's half in Rust. The other half, in `_loop.py`, has the loop watch the
//! descriptors and the time.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use pyo3::prelude::*;
use rustix::process::{Pid, getpid};
use tokio::sync::oneshot;

use crate::clock::{BootClock, Clock, Instant};
use crate::engine::Session;
use crate::engine::release::release;
use crate::host::blocking;
use crate::python::engine::Engine;
use crate::python::operation::Operation;
use crate::python::outcome::Outcome;
use crate::runtime::{Source, locked};

/// A turn that is so late was kept from us by whatever else the loop had to do.
const LATE: Duration = Duration::from_millis(20);

/// One session of one event loop, and the operations in progress on it.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct LoopSession {
    engine: Py<Engine>,
    pid: Pid,
    state: Mutex<State>,
}

struct State {
    session: Session,
    finished: Arc<Mutex<Vec<(u64, Outcome)>>>,
    cancels: HashMap<u64, oneshot::Sender<()>>,
    last_operation: u64,
    last_turn: Instant,
    due: Option<Instant>,
    watched: Vec<Watched>,
    /// What the loop was just told to watch no longer. Stays open until it has heard: the number must not be another
    /// file's before.
    unwatched: Vec<Watched>,
}

/// A descriptor as the loop was last told to watch it.
struct Watched {
    source: Arc<Source>,
    read: bool,
    write: bool,
}

impl Watched {
    fn now(source: Arc<Source>) -> Self {
        let (read, write) = (source.wants_read(), source.wants_write());
        Self { source, read, write }
    }

    fn fd(&self) -> RawFd {
        self.source.as_fd().as_raw_fd()
    }

    fn interest(&self) -> Interest {
        (self.fd(), self.read, self.write)
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.source, &other.source) && (self.read, self.write) == (other.read, other.write)
    }
}

/// What the loop is to watch a descriptor for: `(fd, read, write)`.
type Interest = (RawFd, bool, bool);

/// Finished operations with their outcomes, changes of interest, and the seconds until the next turn is due.
type Turn<T> = (Vec<(u64, T)>, Vec<Interest>, Option<f64>);

/// The same, and whether there is something to log.
type Report<T> = (Vec<(u64, T)>, Vec<Interest>, Option<f64>, bool);

#[pymethods]
impl LoopSession {
    fn start(&self, operation: &Operation) -> u64 {
        if self.is_inherited() {
            return 0;
        }
        locked(&self.state).start(operation)
    }

    fn turn<'py>(&self, py: Python<'py>) -> PyResult<Report<Bound<'py, PyAny>>> {
        if self.is_inherited() {
            return Ok(Report::default());
        }
        let (finished, changes, pause) = locked(&self.state).turn();
        let finished = finished.into_iter().map(|(operation, outcome)| Ok((operation, outcome.into_python(py)?)));
        Ok((finished.collect::<PyResult<_>>()?, changes, pause, self.engine.get().has_news()))
    }

    fn cancel(&self, operation: u64) {
        if !self.is_inherited() {
            locked(&self.state).cancel(operation);
        }
    }

    fn write_log(&self, py: Python<'_>) -> PyResult<()> {
        self.engine.get().write_log(py)
    }
}

impl LoopSession {
    pub(super) fn new(engine: Py<Engine>, session: Session) -> Self {
        let state = State {
            session,
            finished: Arc::default(),
            cancels: HashMap::new(),
            last_operation: 0,
            last_turn: BootClock.now(),
            due: None,
            watched: Vec::new(),
            unwatched: Vec::new(),
        };
        Self { engine, pid: getpid(), state: Mutex::new(state) }
    }

    /// A forked child that leaves its parent's loop by an exception runs it once more, to end its tasks: it must not send
    /// a byte on the parent's connections.
    fn is_inherited(&self) -> bool {
        self.pid != getpid()
    }
}

/// The loop was closed. What was under way is given up, and its releases are at least sent.
impl Drop for LoopSession {
    fn drop(&mut self) {
        if !self.is_inherited() {
            locked(&self.state).abandon();
        }
    }
}

impl State {
    fn start(&mut self, operation: &Operation) -> u64 {
        self.last_operation += 1;
        let number = self.last_operation;
        let (cancel, cancelled) = oneshot::channel();
        self.cancels.insert(number, cancel);
        let finished = Arc::clone(&self.finished);
        self.session.spawn(|masters| {
            operation.perform(masters, cancelled.fuse()).map(move |outcome| locked(&finished).push((number, outcome)))
        });
        number
    }

    /// An operation that has ended already has nothing to cancel.
    fn cancel(&mut self, operation: u64) {
        if let Some(cancel) = self.cancels.remove(&operation) {
            _ = cancel.send(());
        }
    }

    /// All descriptors are looked at, whichever the loop has found ready: a loop that was busy for long finds several,
    /// and deadlines over, and an answer that is there beats its deadline.
    fn turn(&mut self) -> Turn<Outcome> {
        // If it fails, the descriptors are looked at again in the next turn.
        let anything = blocking::poll(&self.session.wait().sources, Duration::ZERO).unwrap_or(false);
        let now = BootClock.now();
        if anything && self.due.is_some_and(|due| now.since(due) > LATE) {
            self.session.was_left_alone(now.since(self.last_turn));
        }
        self.last_turn = now;
        self.session.turn();
        let finished = std::mem::take(&mut *locked(&self.finished));
        for (operation, _) in &finished {
            self.cancels.remove(operation);
        }
        let wait = self.session.wait();
        self.due = wait.deadline;
        let pause = wait.deadline.map(|deadline| deadline.since(BootClock.now()).as_secs_f64());
        (finished, self.changes(wait.sources), pause)
    }

    /// How what is to be watched differs from what the loop was told last. What is gone comes first.
    fn changes(&mut self, sources: Vec<Arc<Source>>) -> Vec<Interest> {
        let now: Vec<Watched> = sources.into_iter().map(Watched::now).collect();
        let before = std::mem::replace(&mut self.watched, now);
        let changed: Vec<Interest> =
            self.watched.iter().filter(|new| !before.contains(new)).map(Watched::interest).collect();
        self.unwatched = before;
        self.unwatched.retain(|old| !self.watched.iter().any(|new| Arc::ptr_eq(&new.source, &old.source)));
        self.unwatched.iter().map(|old| (old.fd(), false, false)).chain(changed).collect()
    }

    fn abandon(&mut self) {
        self.cancels.drain().for_each(|(_, cancel)| _ = cancel.send(()));
        self.session.turn();
        for claim in locked(&self.finished).iter().filter_map(|(_, outcome)| outcome.taken()) {
            self.session.spawn(|masters| async move { drop(release(&masters, &claim).await) });
        }
        self.session.turn();
    }
}

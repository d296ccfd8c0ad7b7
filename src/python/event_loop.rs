//! `_redlock.LoopSession`: the asyncio host's half in Rust. The other half, in `_loop.py`, has the loop watch one
//! descriptor and the time.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use pyo3::prelude::*;
use tokio::sync::oneshot;

use crate::clock::{BootClock, Clock, Instant};
use crate::engine::Session;
use crate::engine::release::release;
use crate::host::pool::InProcess;
use crate::host::queue::Queue;
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
    home: Arc<InProcess>,
    state: Mutex<State>,
}

struct State {
    session: Session,
    finished: Arc<Mutex<Vec<(u64, Outcome)>>>,
    cancels: HashMap<u64, oneshot::Sender<()>>,
    last_operation: u64,
    last_turn: Instant,
    due: Option<Instant>,
    /// There from the first connection on, if there are descriptors left.
    queue: Option<Queue>,
}

/// Finished operations with their outcomes, what the loop is to watch, and the seconds until the next turn is due.
type Turn<T> = (Vec<(u64, T)>, Option<RawFd>, Option<f64>);

/// The same, and whether there is something to log.
type Report<T> = (Vec<(u64, T)>, Option<RawFd>, Option<f64>, bool);

#[pymethods]
impl LoopSession {
    #[getter]
    fn home(&self) -> usize {
        Arc::as_ptr(&self.home).addr()
    }

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
        let (finished, queue, pause) = locked(&self.state).turn();
        let finished = finished.into_iter().map(|(operation, outcome)| Ok((operation, outcome.into_python(py)?)));
        Ok((finished.collect::<PyResult<_>>()?, queue, pause, self.home.journal().has_news()))
    }

    fn cancel(&self, operation: u64) {
        if !self.is_inherited() {
            locked(&self.state).cancel(operation);
        }
    }

    fn is_busy(&self) -> bool {
        !self.is_inherited() && locked(&self.state).session.is_busy()
    }

    fn write_log(&self, py: Python<'_>) -> PyResult<()> {
        self.engine.get().write_log(py)
    }
}

impl LoopSession {
    pub(super) fn new(engine: Py<Engine>, home: Arc<InProcess>) -> Self {
        let state = State {
            session: home.loop_session(),
            finished: Arc::default(),
            cancels: HashMap::new(),
            last_operation: 0,
            last_turn: BootClock.now(),
            due: None,
            queue: None,
        };
        Self { engine, home, state: Mutex::new(state) }
    }

    /// A forked child that leaves its parent's loop by an exception runs it once more, to end its tasks: it must not send
    /// a byte on the parent's connections.
    fn is_inherited(&self) -> bool {
        !self.home.is_here()
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

    /// What is there is taken in first: a loop that was busy for long finds several answers, and deadlines over, and an
    /// answer that is there beats its deadline.
    fn turn(&mut self) -> Turn<Outcome> {
        let anything = self.queue.as_mut().is_some_and(Queue::take_in);
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
        (finished, self.watch(&wait.sources), pause)
    }

    fn watch(&mut self, sources: &[Arc<Source>]) -> Option<RawFd> {
        if self.queue.is_none() && !sources.is_empty() {
            // If there is none to be had, the next turn asks again.
            self.queue = Queue::new().ok();
        }
        let queue = self.queue.as_mut()?;
        queue.watch(sources);
        Some(queue.as_raw_fd())
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

//! `_redlock.Engine`: the operations, for blocking callers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use rustix::process::{Pid, getpid};

use crate::clock::{BootClock, Clock};
use crate::engine::Masters;
use crate::host::blocking::Ended;
use crate::host::pool::Pool;
use crate::host::shared::{self, SharedPool};
use crate::master::guard::Guards;
use crate::master::health::{Journal, Summary};
use crate::python::endpoint::Endpoint;
use crate::python::event_loop::LoopSession;
use crate::python::lease::{LeaseState, Renewals};
use crate::python::operation::Operation;
use crate::python::outcome::Outcome;
use crate::python::waiting::{self, Caller};
use crate::quorum::MAX_PATIENCE;

/// Sessions to N masters, and the operations over them.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Engine {
    pool: SharedPool,
    /// In which process this was made, and what had become of its masters by then: other managers may have used them.
    before: (Pid, Vec<Summary>),
    renewals: Arc<Renewals>,
    is_last_call: AtomicBool,
    log: Py<PyAny>,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (endpoints, log, restart_guard_ms = None, clock_guard = false, *, shares = true))]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a Vec")]
    fn new(
        endpoints: Vec<PyRef<'_, Endpoint>>,
        log: Py<PyAny>,
        restart_guard_ms: Option<u64>,
        clock_guard: bool,
        shares: bool,
    ) -> PyResult<Self> {
        if endpoints.is_empty() {
            return Err(PyValueError::new_err("endpoints: expected at least one"));
        }
        let guards = Guards::new(restart_guard_ms.is_some(), clock_guard, restart_guard_ms.unwrap_or_default());
        let endpoints = endpoints.iter().map(|endpoint| Arc::clone(&endpoint.0)).collect();
        let pool = if shares { SharedPool::of(endpoints, guards) } else { SharedPool::alone(endpoints, guards) };
        let before = (getpid(), pool.here().summaries());
        Ok(Self { pool, before, renewals: Arc::default(), is_last_call: AtomicBool::new(false), log })
    }

    /// Run an operation in this thread, and log what was noticed on the way. A lock is given back when an exception is
    /// raised, and when nothing is left of it.
    fn run<'py>(&self, py: Python<'py>, operation: &Operation) -> PyResult<Bound<'py, PyAny>> {
        let caller = Caller::here(py, self.pool.here())?;
        let _at_work = operation.lease().map(LeaseState::work);
        let (outcome, reason) = self.perform(py, operation, caller)?;
        // The last moment at which an exception finds a lock in our hands: raised later, it would be lost with the result.
        let reason = reason.or_else(|| caller.check(py).err());
        // All that takes long lies behind: the log, and the wait for the interpreter.
        if reason.is_none() && !outcome.is_over(BootClock.now()) {
            return outcome.into_python(py);
        }
        let mut again = None;
        if let Some(claim) = outcome.taken()
            && caller.home.is_here()
        {
            // To the end even when another handler raises meanwhile: that is raised then.
            again = self.perform(py, &Operation::release_of(claim), caller)?.1;
        }
        again.or(reason).map_or_else(|| outcome.refused().into_python(py), Err)
    }

    /// Per master what it last failed with, unless it has answered since, and how many errors and timeouts there were.
    fn health(&self) -> Vec<(Option<String>, u64, u64)> {
        let (pid, before) = &self.before;
        let before = if *pid == getpid() { before.as_slice() } else { &[] };
        let counts = |index: usize| before.get(index).map_or((0, 0), |summary| (summary.errors, summary.timeouts));
        let facts = |(index, summary): (usize, Summary)| {
            let (errors, timeouts) = counts(index);
            (summary.failure.map(|error| error.to_string()), summary.errors - errors, summary.timeouts - timeouts)
        };
        self.pool.here().summaries().into_iter().enumerate().map(facts).collect()
    }

    /// How many leases were extended, how many were given back since no holder referred to them, and how long the masters
    /// took to answer: how often as long as each bucket says, and in all.
    fn renewals(&self) -> (u64, u64, Vec<u64>, f64) {
        self.renewals.read()
    }

    /// The process ends after its call, so each call finishes what a quorum has decided.
    fn expect_last_call(&self) {
        self.is_last_call.store(true, Ordering::Relaxed);
    }

    /// The manager has other masters from now on.
    fn close_with_me(&self) {
        self.pool.close_with_me();
    }

    /// What tells its masters from those of others: engines of the same process that share sessions have the same.
    #[getter]
    fn home(&self) -> usize {
        Arc::as_ptr(self.pool.here()).addr()
    }

    fn loop_session(this: Bound<'_, Self>) -> LoopSession {
        let home = Arc::clone(this.get().pool.here());
        LoopSession::new(this.unbind(), home)
    }

    /// Log what was noticed of the masters since the last call. A handler that fails must not cost anybody a lock; what
    /// is to end the program is raised when all is logged.
    pub(super) fn write_log(&self, py: Python<'_>) -> PyResult<()> {
        self.write(py, self.pool.here().journal())
    }
}

impl Engine {
    fn write(&self, py: Python<'_>, journal: &Journal) -> PyResult<()> {
        let mut result = Ok(());
        for (level, message) in journal.take() {
            match self.log.call1(py, (level as i32, message)) {
                Err(error) if error.is_instance_of::<PyException>(py) => {
                    error.write_unraisable(py, Some(self.log.bind(py)));
                }
                Err(error) => result = result.and(Err(error)),
                Ok(_) => {}
            }
        }
        result
    }

    /// Run an operation to its end: how that was, and what is to be raised.
    fn perform(&self, py: Python<'_>, operation: &Operation, caller: Caller<'_>) -> PyResult<(Outcome, Option<PyErr>)> {
        let begin = |masters: Arc<Masters>, cancel| {
            masters.expect_last_call(self.is_last_call.load(Ordering::Relaxed));
            operation.perform(masters, cancel)
        };
        let key = operation.key();
        let ended = match waiting::patched_select(py)? {
            // No longer than a master may take to answer.
            None => py.detach(|| caller.home.run(key, MAX_PATIENCE, begin, caller.detached())),
            // Other greenlets, and threads that want the interpreter, would wait as well.
            Some(select) => {
                let wait = |sources: &[_], timeout| caller.through(&select, sources, timeout);
                caller.home.run(key, Duration::ZERO, begin, wait)
            }
        };
        let (outcome, reason) = match ended {
            Ended::Finished(outcome) => (outcome, None),
            Ended::BrokenOff(outcome, reason) => (outcome, Some(reason)),
            Ended::Inherited(reason) => return Err(reason),
        };
        let logged = self.write(py, caller.home.journal());
        Ok((outcome, reason.or(logged.err())))
    }

    /// What leases need of it.
    pub(super) fn shared(&self) -> (Arc<Pool>, Arc<Renewals>) {
        (Arc::clone(&*self.pool), Arc::clone(&self.renewals))
    }
}

/// This is a child that was just forked.
#[pyfunction]
pub(super) fn forget_parents() {
    shared::forget_parents();
}

/// Close the connections to masters that no engine uses any more. `used_too`: later engines share nothing with those that
/// are there.
#[pyfunction]
#[pyo3(signature = (*, used_too = false))]
pub(super) fn close_unused(py: Python<'_>, used_too: bool) {
    py.detach(|| if used_too { shared::forget_all() } else { shared::close_all_unused() });
}

//! `_redlock.Engine`: the operations, for blocking callers.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::engine::Masters;
use crate::engine::acquire::{Cancel, acquire};
use crate::engine::release::{Answer, release};
use crate::host::blocking::{self, Ended};
use crate::host::pool::Pool;
use crate::python::arguments;
use crate::python::endpoint::Endpoint;
use crate::python::outcome::Outcome;
use crate::python::waiting;
use crate::script::Claim;

/// Sessions to N masters, and the operations over them.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Engine {
    pool: Pool,
    log: Py<PyAny>,
}

#[pymethods]
impl Engine {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a Vec")]
    fn new(endpoints: Vec<PyRef<'_, Endpoint>>, log: Py<PyAny>) -> PyResult<Self> {
        if endpoints.is_empty() {
            return Err(PyValueError::new_err("endpoints: expected at least one"));
        }
        let endpoints = endpoints.iter().map(|endpoint| Arc::clone(&endpoint.0)).collect();
        Ok(Self { pool: Pool::new(endpoints), log })
    }

    #[pyo3(signature = (resource, ttl_ms, quorum, drift_ms, tries, retry_delay, unlock_script = None, key = None))]
    #[expect(clippy::too_many_arguments, reason = "one call, one crossing of the border")]
    fn lock<'py>(
        &self,
        py: Python<'py>,
        resource: &[u8],
        ttl_ms: u64,
        quorum: usize,
        drift_ms: u64,
        tries: u64,
        retry_delay: f64,
        unlock_script: Option<&str>,
        key: Option<&[u8]>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = arguments::request(resource, ttl_ms, quorum, drift_ms, tries, retry_delay, unlock_script, key)?;
        let ended =
            self.run(py, None, move |masters, cancel| async move { acquire(&masters, &request, cancel).await })?;
        // The last moment at which a signal finds the lock in our hands: raised later, it would be lost with the result.
        let (outcome, reason) = match ended {
            Ended::Finished(outcome) => (outcome, py.check_signals().err()),
            Ended::BrokenOff(outcome, reason) => (outcome, Some(reason)),
        };
        match (outcome, reason) {
            (outcome, None) => Outcome::Acquired(outcome).to_python(py),
            (Ok(held), Some(reason)) => self.give_back(py, held.claim).and(Err(reason)),
            (Err(_), Some(reason)) => Err(reason),
        }
    }

    #[pyo3(signature = (resource, key, unlock_script = None))]
    fn unlock<'py>(
        &self,
        py: Python<'py>,
        resource: &[u8],
        key: &[u8],
        unlock_script: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let claim = arguments::claim(resource, key, unlock_script);
        Outcome::Released(self.give_back(py, claim)?).to_python(py)
    }
}

impl Engine {
    /// Run an operation in this thread; then log what was noticed on the way.
    fn run<T, F>(
        &self,
        py: Python<'_>,
        key: Option<&[u8]>,
        operation: impl FnOnce(Arc<Masters>, Cancel) -> F + Send,
    ) -> PyResult<Ended<T, PyErr>>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let ended = match waiting::patched_select(py)? {
            None => py.detach(|| {
                self.pool.with_session(key, |session| blocking::run(session, operation, waiting::detached()))
            }),
            Some(select) => self.pool.with_session(key, |session| {
                blocking::run(session, operation, |sources, timeout| waiting::through(&select, sources, timeout))
            }),
        };
        self.write_log(py);
        Ok(ended)
    }

    /// Log what was noticed of the masters since the last call. A handler that raises must not cost anybody a lock.
    fn write_log(&self, py: Python<'_>) {
        for (level, message) in self.pool.journal().take() {
            if let Err(error) = self.log.call1(py, (level as i32, message)) {
                error.write_unraisable(py, Some(self.log.bind(py)));
            }
        }
    }

    /// Release, to the end even when a signal handler raises meanwhile: then raise.
    fn give_back(&self, py: Python<'_>, claim: Arc<Claim>) -> PyResult<Vec<Answer>> {
        let key = claim.key.clone();
        match self.run(py, Some(&key), move |masters, _| async move { release(&masters, &claim).await })? {
            Ended::Finished(answers) => Ok(answers),
            Ended::BrokenOff(_, reason) => Err(reason),
        }
    }
}

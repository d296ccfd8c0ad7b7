//! `_redlock.Engine`: the operations, for blocking callers.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::engine::Masters;
use crate::engine::acquire::{Cancel, Held, Request, Vote, acquire};
use crate::engine::release::{Answer, release};
use crate::host::blocking::{self, Ended};
use crate::host::pool::Pool;
use crate::python::endpoint::Endpoint;
use crate::python::waiting;
use crate::script::{Claim, Grant, Release, UnlockScript};

/// Sessions to N masters, and the operations over them.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Engine {
    pool: Pool,
    log: Py<PyAny>,
    script: Arc<UnlockScript>,
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
        Ok(Self { pool: Pool::new(endpoints), log, script: Arc::default() })
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
        let request = Request {
            resource: resource.to_vec(),
            ttl_ms,
            drift_ms,
            quorum,
            tries,
            retry_delay: pause(retry_delay)?,
            script: self.script(unlock_script),
            key: key.map(<[u8]>::to_vec),
        };
        let ended = self.run(py, move |masters, cancel| async move { acquire(&masters, &request, cancel).await })?;
        match ended {
            Ended::Finished(Ok(held)) => granted(py, &held),
            Ended::Finished(Err(votes)) => Ok(PyList::new(py, votes.iter().map(vote_text))?.into_any()),
            Ended::BrokenOff(outcome, reason) => {
                if let Ok(held) = outcome {
                    self.give_back(py, held.claim)?;
                }
                Err(reason)
            }
        }
    }

    #[pyo3(signature = (resource, key, unlock_script = None))]
    fn unlock<'py>(
        &self,
        py: Python<'py>,
        resource: &[u8],
        key: &[u8],
        unlock_script: Option<&str>,
    ) -> PyResult<Bound<'py, PyList>> {
        let claim = Claim { resource: resource.to_vec(), key: key.to_vec(), script: self.script(unlock_script) };
        let answers = self.give_back(py, Arc::new(claim))?;
        PyList::new(py, answers.iter().map(answer_text))
    }
}

impl Engine {
    /// Run an operation in this thread; then log what was noticed on the way.
    fn run<T, F>(
        &self,
        py: Python<'_>,
        operation: impl FnOnce(Arc<Masters>, Cancel) -> F + Send,
    ) -> PyResult<Ended<T, PyErr>>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let ended = match waiting::patched_select(py)? {
            None => {
                py.detach(|| self.pool.with_session(|session| blocking::run(session, operation, waiting::detached)))
            }
            Some(select) => self.pool.with_session(|session| {
                blocking::run(session, operation, |sources, timeout| waiting::through(&select, sources, timeout))
            }),
        };
        for (level, message) in self.pool.journal().take() {
            self.log.call1(py, (level as i32, message))?;
        }
        Ok(ended)
    }

    /// Release, to the end even when a signal handler raises meanwhile: then raise.
    fn give_back(&self, py: Python<'_>, claim: Arc<Claim>) -> PyResult<Vec<Answer>> {
        match self.run(py, move |masters, _| async move { release(&masters, &claim).await })? {
            Ended::Finished(answers) => Ok(answers),
            Ended::BrokenOff(_, reason) => Err(reason),
        }
    }

    fn script(&self, text: Option<&str>) -> Arc<UnlockScript> {
        text.map_or_else(|| Arc::clone(&self.script), |text| Arc::new(UnlockScript::new(text)))
    }
}

fn pause(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("retry_delay {seconds}: expected 0 seconds or more")))
}

fn granted<'py>(py: Python<'py>, held: &Held) -> PyResult<Bound<'py, PyAny>> {
    let validity_ms = held.validity_ms.into_pyobject(py)?.into_any();
    let key = PyBytes::new(py, &held.claim.key).into_any();
    Ok(PyTuple::new(py, [validity_ms, key])?.into_any())
}

fn vote_text(vote: &Vote) -> String {
    match vote {
        Ok(Grant::Granted) => "granted".to_owned(),
        Ok(Grant::Refused) => "refused".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn answer_text(answer: &Answer) -> String {
    match answer {
        Ok(Release::Released) => "released".to_owned(),
        Ok(Release::Absent) => "absent".to_owned(),
        Err(error) => error.to_string(),
    }
}

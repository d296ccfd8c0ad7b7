//! `_redlock.Operation`: something to do at the masters, whoever waits for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::clock::Instant;
use crate::engine::Masters;
use crate::engine::acquire::{self, Cancel, acquire};
use crate::engine::extend::{self, extend};
use crate::engine::inspect::inspect;
use crate::engine::release::release;
use crate::python::outcome::Outcome;
use crate::script::{Claim, UnlockScript};

/// What to do, as often as it is run.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Operation(Kind);

#[derive(Clone)]
enum Kind {
    Acquire(Arc<acquire::Request>),
    Release(Arc<Claim>),
    Extend(Arc<extend::Request>),
    Inspect(Arc<Vec<u8>>),
}

#[pymethods]
impl Operation {
    #[staticmethod]
    #[pyo3(signature = (resources, ttl_ms, quorum, drift_ms, tries, retry_delay, timeout = None, unlock_script = None,
        key = None, fencing = false))]
    #[expect(clippy::too_many_arguments, reason = "one call, one crossing of the border")]
    fn acquire(
        resources: Vec<Vec<u8>>,
        ttl_ms: u64,
        quorum: usize,
        drift_ms: u64,
        tries: u64,
        retry_delay: f64,
        timeout: Option<f64>,
        unlock_script: Option<&str>,
        key: Option<Vec<u8>>,
        fencing: bool,
    ) -> PyResult<Self> {
        Ok(Self(Kind::Acquire(Arc::new(acquire::Request {
            resources: some(resources)?,
            ttl_ms,
            drift_ms,
            quorum,
            tries,
            retry_delay: seconds("retry_delay", retry_delay)?,
            timeout: timeout.map(|timeout| seconds("timeout", timeout)).transpose()?,
            script: script(unlock_script),
            key,
            fencing,
            rounds: Arc::default(),
        }))))
    }

    #[staticmethod]
    #[pyo3(signature = (resources, key, unlock_script = None))]
    fn release(resources: Vec<Vec<u8>>, key: Vec<u8>, unlock_script: Option<&str>) -> PyResult<Self> {
        let script = script(unlock_script);
        Ok(Self(Kind::Release(Arc::new(Claim { resources: some(resources)?, key, script }))))
    }

    #[staticmethod]
    #[pyo3(signature = (resources, key, ttl_ms, quorum, drift_ms, valid_until = None))]
    fn extend(
        resources: Vec<Vec<u8>>,
        key: Vec<u8>,
        ttl_ms: u64,
        quorum: usize,
        drift_ms: u64,
        valid_until: Option<f64>,
    ) -> PyResult<Self> {
        let claim = Arc::new(Claim { resources: some(resources)?, key, script: script(None) });
        let valid_until = valid_until.map(|until| seconds("valid_until", until)).transpose()?.map(Instant::from_zero);
        Ok(Self(Kind::Extend(Arc::new(extend::Request { claim, ttl_ms, drift_ms, quorum, valid_until }))))
    }

    #[staticmethod]
    fn inspect(resource: Vec<u8>) -> Self {
        Self(Kind::Inspect(Arc::new(resource)))
    }

    #[getter]
    fn rounds(&self) -> u64 {
        match &self.0 {
            Kind::Acquire(request) => request.rounds.load(Ordering::Relaxed),
            Kind::Release(_) | Kind::Extend(_) | Kind::Inspect(_) => 0,
        }
    }

    fn __repr__(&self) -> String {
        let (what, resources) = match &self.0 {
            Kind::Acquire(request) => ("acquire", &request.resources[..]),
            Kind::Release(claim) => ("release", &claim.resources[..]),
            Kind::Extend(request) => ("extend", &request.claim.resources[..]),
            Kind::Inspect(resource) => ("inspect", std::slice::from_ref(&**resource)),
        };
        let names: Vec<_> = resources.iter().map(|resource| resource.escape_ascii().to_string()).collect();
        format!("<Operation {what} {}>", names.join(", "))
    }
}

impl Operation {
    pub(super) fn release_of(claim: Arc<Claim>) -> Self {
        Self(Kind::Release(claim))
    }

    /// The key this is about, if it is about a lock that was taken before.
    pub(super) fn key(&self) -> Option<&[u8]> {
        match &self.0 {
            Kind::Release(claim) => Some(&claim.key),
            Kind::Extend(request) => Some(&request.claim.key),
            Kind::Acquire(_) | Kind::Inspect(_) => None,
        }
    }

    /// Do it, once.
    pub(super) fn perform(
        &self,
        masters: Arc<Masters>,
        cancel: Cancel,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        let kind = self.0.clone();
        async move {
            match kind {
                Kind::Acquire(request) => Outcome::Acquired(acquire(&masters, &request, cancel).await),
                Kind::Release(claim) => Outcome::Released(release(&masters, &claim).await),
                Kind::Extend(request) => Outcome::Extended(extend(&masters, &request).await),
                Kind::Inspect(resource) => Outcome::Inspected(inspect(&masters, &resource).await),
            }
        }
    }
}

fn some(resources: Vec<Vec<u8>>) -> PyResult<Vec<Vec<u8>>> {
    if resources.is_empty() {
        return Err(PyValueError::new_err("resources: expected at least one"));
    }
    Ok(resources)
}

fn script(text: Option<&str>) -> Arc<UnlockScript> {
    static STANDARD: LazyLock<Arc<UnlockScript>> = LazyLock::new(Arc::default);
    text.map_or_else(|| Arc::clone(&STANDARD), |text| Arc::new(UnlockScript::new(text)))
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    let error = |_| PyValueError::new_err(format!("{name} {value}: expected 0 seconds or more"));
    Duration::try_from_secs_f64(value).map_err(error)
}

//! `_redlock.Operation`: something to do at the masters, whoever waits for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::claim::Claim;
use crate::clock::Instant;
use crate::engine::Masters;
use crate::engine::acquire::{self, Cancel, acquire};
use crate::engine::extend::{self, extend};
use crate::engine::inspect::inspect;
use crate::engine::release::release;
use crate::engine::renew::{SharedLease, Waits, extend_lease, release_lease};
use crate::lease::Ttl;
use crate::python::lease::LeaseState;
use crate::python::outcome::Outcome;
use crate::script::UnlockScript;

/// What to do, as often as it is run.
#[pyclass(frozen, module = "redlock._redlock")]
pub(super) struct Operation(Kind, Option<Py<LeaseState>>);

#[derive(Clone)]
enum Kind {
    Acquire(Arc<acquire::Request>),
    Release(Arc<Claim>),
    Extend(Arc<extend::Request>),
    ReleaseLease(Arc<SharedLease>, Waits),
    ExtendLease(Arc<SharedLease>, Waits, Ttl),
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
        let request = acquire::Request {
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
        };
        Ok(Self(Kind::Acquire(Arc::new(request)), None))
    }

    #[staticmethod]
    #[pyo3(signature = (resources, key, unlock_script = None))]
    fn release(resources: Vec<Vec<u8>>, key: Vec<u8>, unlock_script: Option<&str>) -> PyResult<Self> {
        let script = script(unlock_script);
        Ok(Self::release_of(Arc::new(Claim::of_key(some(resources)?, key, script))))
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
        let claim = Arc::new(Claim::of_key(some(resources)?, key, script(None)));
        let valid_until = valid_until.map(|until| seconds("valid_until", until)).transpose()?.map(Instant::from_zero);
        let request = extend::Request { claim, ttl_ms, drift_ms, quorum, valid_until };
        Ok(Self(Kind::Extend(Arc::new(request)), None))
    }

    #[staticmethod]
    fn release_lease(lease: &Bound<'_, LeaseState>) -> Self {
        let state = lease.get();
        Self(Kind::ReleaseLease(Arc::clone(state.lease()), state.waits()), Some(lease.clone().unbind()))
    }

    #[staticmethod]
    fn extend_lease(lease: &Bound<'_, LeaseState>, ttl_ms: u64, drift_ms: u64) -> Self {
        let (state, ttl) = (lease.get(), Ttl { ms: ttl_ms, drift_ms });
        Self(Kind::ExtendLease(Arc::clone(state.lease()), state.waits(), ttl), Some(lease.clone().unbind()))
    }

    #[staticmethod]
    fn inspect(resource: Vec<u8>) -> Self {
        Self(Kind::Inspect(Arc::new(resource)), None)
    }

    #[getter]
    fn rounds(&self) -> u64 {
        match &self.0 {
            Kind::Acquire(request) => request.rounds.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    fn __repr__(&self) -> String {
        let (what, resources) = match &self.0 {
            Kind::Acquire(request) => ("acquire", &request.resources[..]),
            Kind::Release(claim) => ("release", &claim.resources[..]),
            Kind::Extend(request) => ("extend", &request.claim.resources[..]),
            Kind::ReleaseLease(lease, _) => ("release_lease", &lease.claim().resources[..]),
            Kind::ExtendLease(lease, ..) => ("extend_lease", &lease.claim().resources[..]),
            Kind::Inspect(resource) => ("inspect", std::slice::from_ref(&**resource)),
        };
        let names: Vec<_> = resources.iter().map(|resource| resource.escape_ascii().to_string()).collect();
        format!("<Operation {what} {}>", names.join(", "))
    }
}

impl Operation {
    pub(super) fn release_of(claim: Arc<Claim>) -> Self {
        Self(Kind::Release(claim), None)
    }

    /// The key this is about, if it is about a lock that was taken before.
    pub(super) fn key(&self) -> Option<&[u8]> {
        match &self.0 {
            Kind::Release(claim) => Some(&claim.key),
            Kind::Extend(request) => Some(&request.claim.key),
            Kind::ReleaseLease(lease, _) | Kind::ExtendLease(lease, ..) => Some(&lease.claim().key),
            Kind::Acquire(_) | Kind::Inspect(_) => None,
        }
    }

    /// The lease that it extends or releases.
    pub(super) fn lease(&self) -> Option<&LeaseState> {
        self.1.as_ref().map(Py::get)
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
                Kind::ReleaseLease(lease, waits) => {
                    Outcome::LeaseReleased(release_lease(&masters, &lease, waits).await)
                }
                Kind::ExtendLease(lease, waits, ttl) => {
                    Outcome::LeaseExtended(extend_lease(&masters, &lease, ttl, waits).await)
                }
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

pub(super) fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    let error = |_| PyValueError::new_err(format!("{name} {value}: expected 0 seconds or more"));
    Duration::try_from_secs_f64(value).map_err(error)
}

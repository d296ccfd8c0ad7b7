//! Python's arguments as the engine's.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::engine::acquire::Request;
use crate::script::{Claim, UnlockScript};

/// What to take, for how long, and how hard to try.
#[expect(clippy::too_many_arguments, reason = "one call, one crossing of the border")]
pub(super) fn request(
    resource: &[u8],
    ttl_ms: u64,
    quorum: usize,
    drift_ms: u64,
    tries: u64,
    retry_delay: f64,
    unlock_script: Option<&str>,
    key: Option<&[u8]>,
) -> PyResult<Request> {
    Ok(Request {
        resource: resource.to_vec(),
        ttl_ms,
        drift_ms,
        quorum,
        tries,
        retry_delay: pause(retry_delay)?,
        script: script(unlock_script),
        key: key.map(<[u8]>::to_vec),
    })
}

pub(super) fn claim(resource: &[u8], key: &[u8], unlock_script: Option<&str>) -> Arc<Claim> {
    Arc::new(Claim { resource: resource.to_vec(), key: key.to_vec(), script: script(unlock_script) })
}

fn script(text: Option<&str>) -> Arc<UnlockScript> {
    static STANDARD: LazyLock<Arc<UnlockScript>> = LazyLock::new(Arc::default);
    text.map_or_else(|| Arc::clone(&STANDARD), |text| Arc::new(UnlockScript::new(text)))
}

fn pause(seconds: f64) -> PyResult<Duration> {
    let error = |_| PyValueError::new_err(format!("retry_delay {seconds}: expected 0 seconds or more"));
    Duration::try_from_secs_f64(seconds).map_err(error)
}

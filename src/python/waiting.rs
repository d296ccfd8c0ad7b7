//! How a thread of Python's waits: by `poll(2)`, or, where gevent or eventlet have patched `select`, through that.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyModule};
use rustix::io::Errno;

use crate::host::blocking;
use crate::runtime::Source;

/// Wait with the interpreter detached. A signal interrupts the wait, and its handlers run at once: nothing polls for them.
pub(super) fn detached(sources: &[Arc<Source>], timeout: Duration) -> PyResult<()> {
    match blocking::poll(sources, timeout) {
        #[expect(clippy::redundant_closure_for_method_calls, reason = "the method is not general enough")]
        Err(Errno::INTR) => Python::attach(|py| py.check_signals()),
        Err(error) => Err(std::io::Error::from(error).into()),
        Ok(()) => Ok(()),
    }
}

/// `select.select`, if it is not the interpreter's own: then other greenlets are to run while this one waits.
pub(super) fn patched_select(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static SELECT: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = SELECT.get_or_try_init(py, || py.import("select").map(Bound::unbind))?.bind(py);
    let select = module.getattr("select")?;
    Ok((!select.is_instance_of::<PyCFunction>()).then_some(select))
}

/// Wait through `select`, attached: greenlets share one thread, and would entangle what the binding keeps for each attached thread.
pub(super) fn through(select: &Bound<'_, PyAny>, sources: &[Arc<Source>], timeout: Duration) -> PyResult<()> {
    let number = |source: &Arc<Source>| source.as_fd().as_raw_fd();
    let reading: Vec<RawFd> = sources.iter().filter(|source| source.wants_read()).map(number).collect();
    let writing: Vec<RawFd> = sources.iter().filter(|source| source.wants_write()).map(number).collect();
    select.call1((reading, writing, Vec::<RawFd>::new(), timeout.as_secs_f64()))?;
    // What is ready is looked up here, for hang-ups count as readiness, and the three lists do not tell them.
    blocking::poll(sources, Duration::ZERO).map_err(|error| std::io::Error::from(error).into())
}

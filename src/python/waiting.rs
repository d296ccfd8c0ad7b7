//! How a thread of Python's waits: by `poll(2)`, or, where gevent or eventlet have patched `select`, through that.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyModule};
use rustix::io::Errno;

use crate::clock::{BootClock, Clock};
use crate::host::blocking;
use crate::runtime::Source;

/// Answers take less than this; what takes longer is worth a look at the signals.
const GLANCE: Duration = Duration::from_millis(20);

/// Wait with the interpreter detached. A signal interrupts the wait, and its handlers run at once.
///
/// One that came just before the wait interrupts nothing, so there is one more look in a wait that turns out to be long, and
/// every now and then between short ones.
pub(super) fn detached() -> impl FnMut(&[Arc<Source>], Duration) -> PyResult<()> {
    let mut looked = BootClock.now();
    move |sources, timeout| {
        let glance = timeout.min(GLANCE);
        let ready = interruptible(sources, glance)?;
        let now = BootClock.now();
        if ready && now.since(looked) < GLANCE {
            return Ok(());
        }
        looked = now;
        check_signals()?;
        if !ready && timeout > glance {
            interruptible(sources, timeout.saturating_sub(glance))?;
        }
        Ok(())
    }
}

fn interruptible(sources: &[Arc<Source>], timeout: Duration) -> PyResult<bool> {
    match blocking::poll(sources, timeout) {
        Err(Errno::INTR) => check_signals().map(|()| true),
        other => other.map_err(|error| std::io::Error::from(error).into()),
    }
}

#[expect(clippy::redundant_closure_for_method_calls, reason = "the method is not general enough")]
fn check_signals() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

/// `select.select`, if it is not the interpreter's own: then other greenlets are to run while this one waits.
pub(super) fn patched_select(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static SELECT: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = SELECT.get_or_try_init(py, || py.import("select").map(Bound::unbind))?.bind(py);
    let select = module.getattr("select")?;
    Ok((!select.is_instance_of::<PyCFunction>()).then_some(select))
}

/// Wait through `select`, attached: greenlets share one thread, and would entangle what the binding keeps for each
/// attached thread.
pub(super) fn through(select: &Bound<'_, PyAny>, sources: &[Arc<Source>], timeout: Duration) -> PyResult<()> {
    let any = one_for_all(sources).map_err(std::io::Error::from)?;
    let (reading, writing) = match &any {
        Some(any) => (vec![any.as_raw_fd()], vec![]),
        None => (numbers(sources, Source::wants_read), numbers(sources, Source::wants_write)),
    };
    select.call1((reading, writing, Vec::<RawFd>::new(), timeout.as_secs_f64()))?;
    blocking::poll(sources, Duration::ZERO).map_err(std::io::Error::from)?;
    Ok(())
}

fn numbers(sources: &[Arc<Source>], wanted: impl Fn(&Source) -> bool) -> Vec<RawFd> {
    sources.iter().filter(|source| wanted(source)).map(|source| source.as_fd().as_raw_fd()).collect()
}

/// One descriptor that is readable when any source is ready, where the system has such a thing. eventlet's `select`
/// switches to its caller once for each descriptor that is ready, and the second time it may be waiting for something
/// else.
#[cfg(target_os = "linux")]
fn one_for_all(sources: &[Arc<Source>]) -> Result<Option<OwnedFd>, Errno> {
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
    let all = create(CreateFlags::CLOEXEC)?;
    for source in sources {
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN, source.wants_read());
        interest.set(EventFlags::OUT, source.wants_write());
        add(&all, source, EventData::new_u64(0), interest)?;
    }
    Ok(Some(all))
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "the signature is Linux's")]
fn one_for_all(_: &[Arc<Source>]) -> Result<Option<OwnedFd>, Errno> {
    Ok(None)
}

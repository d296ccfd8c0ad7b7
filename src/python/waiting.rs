//! How a thread of Python's waits: by `poll(2)`, or, where gevent or eventlet have patched `select`, through that.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyDict, PyModule};
use rustix::io::Errno;

use crate::clock::{BootClock, Clock};
use crate::host::blocking;
use crate::host::pool::InProcess;
use crate::runtime::{Descriptor, Source};

/// Answers take less than this; what takes longer is worth a look at the signals.
const GLANCE: Duration = Duration::from_millis(20);

/// Who calls, and what may come between.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    /// What there is in the process that called.
    pub(super) home: &'a InProcess,
    /// Not at the interpreter's end, where destructors are run: nothing else could raise anything, and to come back to an
    /// interpreter that is about to go is not possible.
    hears: bool,
}

/// A function that does nothing, and `sys.is_finalizing`; looked up while the interpreter can still do so.
static TOOLS: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

/// Have at hand what is needed of the interpreter.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    let make = || -> PyResult<_> {
        let nothing = py.eval(c"lambda: None", Some(&PyDict::new(py)), None)?;
        Ok((nothing.unbind(), py.import("sys")?.getattr("is_finalizing")?.unbind()))
    };
    TOOLS.get_or_try_init(py, make).map(drop)
}

impl<'a> Caller<'a> {
    /// The one who calls now, in the process of `home`.
    pub(super) fn here(py: Python<'_>, home: &'a InProcess) -> PyResult<Self> {
        let is_finalizing = match TOOLS.get(py) {
            Some((_, is_finalizing)) => is_finalizing.call0(py)?.is_truthy(py)?,
            None => true,
        };
        Ok(Self { home, hears: !is_finalizing })
    }

    /// Run signal handlers, and raise what they raise, or what another thread has set to be raised in this one: the
    /// interpreter raises that when it runs a function. Fails in a forked child, too.
    pub(super) fn check(self, py: Python<'_>) -> PyResult<()> {
        if self.hears {
            py.check_signals()?;
            if let Some((nothing, _)) = TOOLS.get(py) {
                nothing.call0(py)?;
            }
        }
        self.must_be_home()
    }

    fn must_be_home(self) -> PyResult<()> {
        if self.home.is_here() {
            return Ok(());
        }
        Err(PyRuntimeError::new_err("forked in the middle of a call, which goes on in the parent process alone"))
    }

    /// The same, detached.
    fn look(self) -> PyResult<()> {
        if !self.hears {
            return Ok(());
        }
        // Without an interpreter the process is about to end, and nothing of Python's may be touched any more.
        Python::try_attach(|py| self.check(py)).unwrap_or_else(|| {
            loop {
                std::thread::park();
            }
        })
    }

    fn wait(self, sources: &[Arc<Source>], timeout: Duration) -> PyResult<bool> {
        match blocking::poll(sources, timeout) {
            Err(Errno::INTR) => self.look().map(|()| true),
            other => other.map_err(|error| std::io::Error::from(error).into()),
        }
    }

    /// Wait with the interpreter detached. A signal interrupts the wait, and its handlers run at once.
    ///
    /// One that came just before the wait interrupts nothing, so there is one more look in a wait that turns out to be
    /// long, and every now and then between short ones.
    pub(super) fn detached(self) -> impl FnMut(&[Arc<Source>], Duration) -> PyResult<()> {
        let mut looked = BootClock.now();
        move |sources, timeout| {
            let glance = timeout.min(GLANCE);
            let ready = self.wait(sources, glance)?;
            let now = BootClock.now();
            if ready && now.since(looked) < GLANCE {
                return Ok(());
            }
            looked = now;
            self.look()?;
            if !ready && timeout > glance {
                self.wait(sources, timeout.saturating_sub(glance))?;
                // An operation that ends now goes back to the interpreter, which must still be there.
                looked = BootClock.now();
                self.look()?;
            }
            Ok(())
        }
    }

    /// Wait through `select`, attached: greenlets share one thread, and would entangle what the binding keeps for each
    /// attached thread.
    pub(super) fn through(self, select: &Bound<'_, PyAny>, sources: &[Arc<Source>], timeout: Duration) -> PyResult<()> {
        let any = one_for_all(sources).map_err(std::io::Error::from)?;
        let (reading, writing) = match &any {
            Some(any) => (vec![any.as_fd().as_raw_fd()], vec![]),
            None => (numbers(sources, Source::wants_read), numbers(sources, Source::wants_write)),
        };
        select.call1((reading, writing, Vec::<RawFd>::new(), timeout.as_secs_f64()))?;
        self.must_be_home()?; // another greenlet may have forked
        blocking::poll(sources, Duration::ZERO).map_err(std::io::Error::from)?;
        Ok(())
    }
}

/// `select.select`, if it is not the interpreter's own: then other greenlets are to run while this one waits.
pub(super) fn patched_select(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static SELECT: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = SELECT.get_or_try_init(py, || py.import("select").map(Bound::unbind))?.bind(py);
    let select = module.getattr("select")?;
    Ok((!select.is_instance_of::<PyCFunction>()).then_some(select))
}

fn numbers(sources: &[Arc<Source>], wanted: impl Fn(&Source) -> bool) -> Vec<RawFd> {
    sources.iter().filter(|source| wanted(source)).map(|source| source.as_fd().as_raw_fd()).collect()
}

/// One descriptor that is readable when any source is ready, where the system has such a thing. eventlet's `select`
/// switches to its caller once for each descriptor that is ready, and the second time it may be waiting for something
/// else.
#[cfg(target_os = "linux")]
fn one_for_all(sources: &[Arc<Source>]) -> Result<Option<Descriptor>, Errno> {
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
    let all = Descriptor::new(create(CreateFlags::CLOEXEC)?);
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
fn one_for_all(_: &[Arc<Source>]) -> Result<Option<Descriptor>, Errno> {
    Ok(None)
}

//! Credentials that Python is asked for, in a thread of its own.

use std::io;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyModule};

use crate::master::endpoint::{Credentials, Login};
use crate::runtime::{Handle, Rung, bell, locked};

type Answer = Arc<Mutex<io::Result<Login>>>;

/// A function of Python's that is called with another, and calls that with user, password and failure.
///
/// It may take seconds, wait for locks and raise. In the caller's thread it would hold up the other masters, or an event
/// loop, and swallow what signal handlers raise meanwhile. So it runs in a thread of Python's, as names are looked up in
/// one, and the caller waits for a socket pair, as for any other descriptor. Where gevent or eventlet have patched
/// threads, that is a greenlet.
pub(super) struct Asked(pub(super) Py<PyAny>);

impl Credentials for Asked {
    fn ask(&self, handle: &Handle) -> BoxFuture<'static, io::Result<Login>> {
        let started = self.start(handle);
        async move {
            let (rung, answer) = started?;
            rung.heard().await;
            std::mem::replace(&mut *locked(&answer), unanswered())
        }
        .boxed()
    }
}

impl Asked {
    fn start(&self, handle: &Handle) -> io::Result<(Rung, Answer)> {
        let (done, rung) = bell(handle)?;
        let answer = Arc::new(Mutex::new(unanswered()));
        let result = Arc::clone(&answer);
        let in_thread = |py: Python<'_>| {
            // Starts no bytecode in this thread, and so no handler of a signal.
            let tell = PyCFunction::new_closure(py, None, None, move |arguments, _| -> PyResult<()> {
                let (username, password, failure): (_, _, Option<String>) = arguments.extract()?;
                *locked(&result) = match failure {
                    None => Ok(Login { username, password }),
                    Some(failure) => Err(io::Error::other(failure)),
                };
                done.ring();
                Ok(())
            })?;
            threads(py)?.getattr("start_new_thread")?.call1((&self.0, (tell,))).map(drop)
        };
        let unable = |why: &str| io::Error::other(format!("no thread to ask the credential provider: {why}"));
        // At the interpreter's end there is none to attach to.
        let begun = Python::try_attach(in_thread).ok_or_else(|| unable("the interpreter ends"))?;
        begun.map_err(|error| unable(&error.to_string()))?;
        Ok((rung, answer))
    }
}

fn unanswered() -> io::Result<Login> {
    Err(io::Error::other("the credential provider gave no answer"))
}

fn threads(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static THREADS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(THREADS.get_or_try_init(py, || py.import("_thread").map(Bound::unbind))?.bind(py))
}

//! Credentials that Python is asked for, in a thread of its own.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyModule};
use tokio::io::AsyncReadExt;

use crate::master::endpoint::{Credentials, Login};
use crate::runtime::{Handle, Socket, Source, locked};

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
        let started = self.start();
        let handle = handle.clone();
        async move {
            let (near, answer) = started?;
            let mut done = Socket::new(Source::new(near.into()), &handle);
            _ = done.read_u8().await;
            std::mem::replace(&mut *locked(&answer), unanswered())
        }
        .boxed()
    }
}

impl Asked {
    fn start(&self) -> io::Result<(UnixStream, Answer)> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let answer = Arc::new(Mutex::new(unanswered()));
        let result = Arc::clone(&answer);
        Python::attach(|py| {
            // Starts no bytecode in this thread, and so no handler of a signal.
            let tell = PyCFunction::new_closure(py, None, None, move |arguments, _| -> PyResult<()> {
                let (username, password, failure): (_, _, Option<String>) = arguments.extract()?;
                *locked(&result) = match failure {
                    None => Ok(Login { username, password }),
                    Some(failure) => Err(io::Error::other(failure)),
                };
                // Perhaps it is not waited for any more.
                _ = (&far).write_all(&[1]);
                Ok(())
            })?;
            threads(py)?.getattr("start_new_thread")?.call1((&self.0, (tell,))).map(drop)
        })
        .map_err(|error: PyErr| io::Error::other(format!("no thread to ask the credential provider: {error}")))?;
        Ok((near, answer))
    }
}

fn unanswered() -> io::Result<Login> {
    Err(io::Error::other("the credential provider gave no answer"))
}

fn threads(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static THREADS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(THREADS.get_or_try_init(py, || py.import("_thread").map(Bound::unbind))?.bind(py))
}

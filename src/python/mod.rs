//! The binding: arguments in, results out, the interpreter detached while the host waits.

mod credentials;
mod endpoint;
mod engine;
mod event_loop;
mod lease;
mod operation;
mod outcome;
mod rules;
mod waiting;

use crate::clock::{BootClock, Clock};
use crate::script;
use pyo3::prelude::*;

/// The Rust engine of `redlock`. Private: the public names are in the package.
#[pymodule(gil_used = false)]
mod _redlock {
    #[pymodule_export]
    use super::endpoint::Endpoint;
    #[pymodule_export]
    use super::engine::{Engine, close_unused, forget_parents};
    #[pymodule_export]
    use super::event_loop::LoopSession;
    #[pymodule_export]
    use super::lease::{Events, LeaseState, finish, pause_driver, resume_driver};
    #[pymodule_export]
    use super::operation::Operation;
    #[pymodule_export]
    use super::outcome::{Held, Vote};
    #[pymodule_export]
    use super::rules::{majority, pause, random_key, validity, why_not_extended, why_not_granted, why_not_released};
    use super::{BootClock, Bound, Clock, PyModule, PyModuleMethods, PyResult, pyfunction, script};

    /// Seconds on the clock of `Held.expires_at`.
    #[pyfunction]
    fn now() -> f64 {
        BootClock.now().since_zero().as_secs_f64()
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::waiting::prepare(module.py())?;
        module.add("UNLOCK_SCRIPT", script::UNLOCK)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

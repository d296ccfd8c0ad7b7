//! The binding: arguments in, results out, the interpreter detached while the host waits.

mod arguments;
mod endpoint;
mod engine;
mod outcome;
mod waiting;

use pyo3::prelude::*;

/// The Rust engine of `redlock`. Private: the public names are in the package.
#[pymodule(gil_used = false)]
mod _redlock {
    #[pymodule_export]
    use super::endpoint::Endpoint;
    #[pymodule_export]
    use super::engine::Engine;
    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

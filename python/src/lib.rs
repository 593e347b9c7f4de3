//! The Rust half of the Python package `oxidask`.
//!
//! Owns connections to schedulers and what travels over them, on a runtime of two threads that all
//! sessions of a process share. Never looks into a pickle, never runs a task.
//!
//! Invariants: nothing here waits with the interpreter's lock held; each callback is called once,
//! also when there is no scheduler; after a fork, and while the interpreter ends, a session says so
//! instead of hanging.

mod callback;
mod cluster;
mod credentials;
mod events;
mod memory;
mod results;
mod runtime;
mod session;
mod upload;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use callback::end_all;
use cluster::Cluster;
use credentials::Credentials;
use session::Session;

/// The place of each task in an order in which few results are held at a time.
///
/// `input_counts` has an entry a task, `inputs` the positions of their inputs one after the other.
#[pyfunction]
#[allow(
    clippy::needless_pass_by_value,
    reason = "Python's lists become vectors"
)]
fn order(py: Python<'_>, input_counts: Vec<u32>, inputs: Vec<u32>) -> PyResult<Vec<u32>> {
    py.detach(|| oxidask_client::futures::order(&input_counts, &inputs))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

#[pymodule]
fn _oxidask(module: &Bound<'_, PyModule>) -> PyResult<()> {
    oxidask_comm::install_crypto_provider();
    module.add("__version__", oxidask_proto::BUILD)?;
    module.add("PROTOCOL_VERSION", oxidask_proto::PROTOCOL_VERSION)?;
    module.add_class::<Cluster>()?;
    module.add_class::<Credentials>()?;
    module.add_class::<Session>()?;
    module.add_function(wrap_pyfunction!(order, module)?)?;
    let end_all = wrap_pyfunction!(end_all, module)?;
    module
        .py()
        .import("atexit")?
        .call_method1("register", (end_all,))?;
    Ok(())
}

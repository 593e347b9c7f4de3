//! The threads that all sessions of this process share.
//!
//! Owns their making, once a process. A child of a fork has none of its parent's threads, so it gets
//! a runtime of its own, and what belongs to its parent is left alone.

use std::sync::{Mutex, PoisonError};

use pyo3::PyResult;
use pyo3::exceptions::PyRuntimeError;
use tokio::runtime::{Builder, Handle, Runtime};

/// One for a connection, one for whoever waits for the interpreter's lock.
const THREADS: usize = 2;

static RUNTIME: Mutex<Option<(u32, Runtime)>> = Mutex::new(None);

/// The runtime of this process.
pub(crate) fn handle() -> PyResult<Handle> {
    let mut kept = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some((owner, runtime)) = &*kept
        && *owner == process
    {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("oxidask")
        .enable_all()
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("threads cannot be started: {error}")))?;
    let handle = runtime.handle().clone();
    // Dropping it would wait for threads that this process does not have.
    std::mem::forget(kept.replace((process, runtime)));
    Ok(handle)
}

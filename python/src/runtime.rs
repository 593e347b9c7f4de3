//! The threads that all sessions of this process share.
//!
//! Owns their making, once a process. A child of a fork has none of its parent's threads, so it gets
//! a runtime of its own, and what belongs to its parent is left alone.

use std::sync::{Mutex, PoisonError};

use oxidask_client::futures::Runtimes;
use pyo3::PyResult;
use pyo3::exceptions::PyRuntimeError;
use tokio::runtime::{Builder, Runtime};

/// Values of two workers are read at a time, each over a connection of its own.
const VALUE_THREADS: usize = 2;

struct Kept {
    process: u32,
    session: Runtime,
    values: Runtime,
}

static RUNTIMES: Mutex<Option<Kept>> = Mutex::new(None);

impl Kept {
    fn handles(&self) -> Runtimes {
        Runtimes {
            session: self.session.handle().clone(),
            values: self.values.handle().clone(),
        }
    }
}

/// The runtimes of this process.
pub(crate) fn handles() -> PyResult<Runtimes> {
    let mut kept = RUNTIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if let Some(kept) = &*kept
        && kept.process == process
    {
        return Ok(kept.handles());
    }
    let made = Kept {
        process,
        session: started("oxidask", 1)?,
        values: started("oxidask-values", VALUE_THREADS)?,
    };
    let handles = made.handles();
    // Dropping those of the parent would wait for threads that this process does not have.
    std::mem::forget(kept.replace(made));
    Ok(handles)
}

fn started(name: &str, threads: usize) -> PyResult<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| PyRuntimeError::new_err(format!("threads cannot be started: {error}")))
}

//! Calling Python from the runtime's threads.
//!
//! Owns the end: a thread that asks for the interpreter's lock while the interpreter is being taken
//! down would take the process with it, so nobody does any more once the end has begun.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use oxidask_diagnostic::Diagnostic;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::task::block_in_place;

/// How long calls that have begun may take at the interpreter's end.
const END_TIME_MAX: Duration = Duration::from_secs(2);
const END_PAUSE: Duration = Duration::from_millis(1);

static IS_ENDING: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Counts a call while it lives.
struct Call;

impl Drop for Call {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs something with the interpreter's lock; `None` if the interpreter ends. Whoever has the lock may
/// keep it for long: meanwhile other threads do the work of the runtime.
pub(crate) fn attached<T>(run: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    CALLS.fetch_add(1, Ordering::SeqCst);
    let _call = Call;
    if IS_ENDING.load(Ordering::SeqCst) {
        return None;
    }
    block_in_place(|| Python::try_attach(run))
}

/// Whether nobody may be called any more.
pub(crate) fn is_ending() -> bool {
    IS_ENDING.load(Ordering::SeqCst)
}

/// Calls a callback; what it raises is printed, as for every callback that nobody waits for.
pub(crate) fn call<'py>(
    py: Python<'py>,
    callback: &Py<PyAny>,
    arguments: impl pyo3::call::PyCallArgs<'py>,
) {
    if let Err(error) = callback.bind(py).call1(arguments) {
        error.write_unraisable(py, Some(callback.bind(py)));
    }
}

/// What callbacks are told of an error: code, message and hint.
pub(crate) fn fault(why: &Diagnostic) -> (String, String, String) {
    let mut message = why.message.clone();
    for cause in &why.causes {
        message.push_str(": ");
        message.push_str(cause);
    }
    (why.code.to_string(), message, why.hint.clone())
}

/// The exception of the package for it.
pub(crate) fn exception(py: Python<'_>, why: &Diagnostic) -> PyErr {
    let (code, message, hint) = fault(why);
    let made = py
        .import("oxidask._errors")
        .and_then(|module| module.getattr("OxidaskError"))
        .and_then(|class| class.call1((&code, &message, &hint)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(_) => PyRuntimeError::new_err(format!("error[{code}]: {message}\n\nhint: {hint}")),
    }
}

/// The interpreter ends: clients that Dask would close later are closed now, then nobody is called
/// any more.
#[pyfunction]
pub(crate) fn end_all(py: Python<'_>) {
    // Dask closes its clients in a function of its own, which may come after this one.
    let close = py
        .import("sys")
        .and_then(|sys| sys.getattr("modules"))
        .and_then(|modules| modules.get_item("distributed.client"))
        .and_then(|module| module.getattr("_close_global_client"));
    if let Ok(close) = close {
        // It would have been printed and forgotten as well.
        let _ = close.call0();
    }
    IS_ENDING.store(true, Ordering::SeqCst);
    py.detach(|| {
        let began = Instant::now();
        while CALLS.load(Ordering::SeqCst) > 0 && began.elapsed() < END_TIME_MAX {
            std::thread::sleep(END_PAUSE);
        }
    });
}

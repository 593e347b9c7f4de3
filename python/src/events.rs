//! What becomes of keys, as tuples of Python.

use std::sync::{Mutex, PoisonError};

use oxidask_client::futures::{FuturesEvent, FuturesSink};
use oxidask_proto::wire;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::callback::{attached, call, fault};

const MICROS_PER_SECOND: f64 = 1e6;

/// Hands events to a function of Python.
pub(crate) struct Events {
    /// Gone with the last event, so that nothing keeps its owner alive.
    callback: Mutex<Option<Py<PyAny>>>,
}

impl Events {
    pub(crate) fn new(callback: Py<PyAny>) -> Self {
        Self {
            callback: Mutex::new(Some(callback)),
        }
    }
}

impl FuturesSink for Events {
    fn take(&self, events: Vec<FuturesEvent>) {
        let last = events.last();
        let is_over = matches!(
            last,
            Some(FuturesEvent::Refused(_) | FuturesEvent::Closed(_))
        );
        let callback = {
            let mut kept = self.callback.lock().unwrap_or_else(PoisonError::into_inner);
            // It is put back below: cloning it needs the interpreter's lock.
            kept.take()
        };
        let Some(callback) = callback else {
            return;
        };
        attached(|py| match tuples(py, events) {
            Ok(events) => call(py, &callback, (events,)),
            Err(error) => error.write_unraisable(py, None),
        });
        if !is_over {
            let mut kept = self.callback.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(callback);
        }
    }
}

fn tuples(py: Python<'_>, events: Vec<FuturesEvent>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for event in events {
        list.append(tuple(py, event)?)?;
    }
    Ok(list)
}

fn tuple(py: Python<'_>, event: FuturesEvent) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        FuturesEvent::Ready {
            key,
            task,
            bytes,
            value,
        } => match value {
            Some((kind, data)) => {
                let data = PyBytes::new(py, &data);
                ("ready", key, task.0, task.1, bytes, kind, data).into_pyobject(py)
            }
            None => ("ready", key, task.0, task.1, bytes).into_pyobject(py),
        },
        FuturesEvent::Failed { key, fault } => failed(py, &key, &fault),
        FuturesEvent::Lost { key } => ("lost", key).into_pyobject(py),
        FuturesEvent::Cancelled {
            key,
            reason,
            message,
        } => ("cancelled", key, reason, message).into_pyobject(py),
        FuturesEvent::Retried { key } => ("retried", key).into_pyobject(py),
        FuturesEvent::Topic {
            topic,
            time_micros,
            content,
        } => {
            #[allow(
                clippy::cast_precision_loss,
                reason = "microseconds since 1970 have 51 bits"
            )]
            let time = time_micros as f64 / MICROS_PER_SECOND;
            ("topic", topic, time, PyBytes::new(py, &content)).into_pyobject(py)
        }
        FuturesEvent::Connected => ("connected",).into_pyobject(py),
        FuturesEvent::Restarted => ("restarted",).into_pyobject(py),
        FuturesEvent::Refused(why) => {
            let (code, message, hint) = fault(&why);
            ("refused", code, message, hint).into_pyobject(py)
        }
        FuturesEvent::Notice(text) => ("notice", text).into_pyobject(py),
        FuturesEvent::Reconnecting(text) => ("reconnecting", text).into_pyobject(py),
        FuturesEvent::Closed(text) => ("closed", text).into_pyobject(py),
    }
}

fn failed<'py>(py: Python<'py>, key: &str, fault: &wire::Fault) -> PyResult<Bound<'py, PyTuple>> {
    let attachment = (!fault.attachment.is_empty()).then(|| PyBytes::new(py, &fault.attachment));
    (
        "failed",
        key,
        fault.code.as_str(),
        fault.message.as_str(),
        fault.hint.as_str(),
        fault.causes.as_slice(),
        attachment,
    )
        .into_pyobject(py)
}

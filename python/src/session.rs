//! One client's session, as Python uses it.
//!
//! Owns the conversion of arguments and the refusal to be used after a fork. Invariant: nothing
//! waits with the interpreter's lock held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxidask_client::futures::{FuturesConfig, FuturesSession, PutSource};
use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;
use oxidask_store::PayloadKind;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::callback::{attached, call, exception, fault, is_ending};
use crate::credentials::Credentials;
use crate::events::Events;
use crate::results::Results;
use crate::runtime;
use crate::upload::Upload;

/// Slots, task resources, names of workers.
type Requirement = (u32, BTreeMap<String, u64>, Vec<String>);

/// A connection of one client to a scheduler, made again by itself when it breaks.
#[pyclass(frozen, module = "oxidask._oxidask")]
pub(crate) struct Session {
    /// Never dropped in a child of a fork, which has none of the threads behind it.
    inner: Option<FuturesSession>,
    process: u32,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            std::mem::forget(self.inner.take());
        }
    }
}

impl Session {
    fn inner(&self) -> PyResult<&FuturesSession> {
        if self.process != std::process::id() {
            return Err(PyRuntimeError::new_err(
                "this session with a scheduler was made before the process forked and cannot be \
                 used in the child: make a client of its own there, or start children with `spawn`",
            ));
        }
        if is_ending() {
            return Err(PyRuntimeError::new_err(
                "the interpreter ends: nothing more can be said to the scheduler",
            ));
        }
        let gone = || PyRuntimeError::new_err("this session is gone");
        self.inner.as_ref().ok_or_else(gone)
    }
}

#[pymethods]
impl Session {
    #[new]
    #[allow(
        clippy::too_many_arguments,
        reason = "a constructor of Python, called by name"
    )]
    fn new(
        py: Python<'_>,
        address: String,
        credentials: &Bound<'_, Credentials>,
        client: String,
        versions: BTreeMap<String, String>,
        on_events: Py<PyAny>,
        reconnect_seconds: f64,
    ) -> PyResult<Self> {
        if let Err(error) = oxidask_comm::check_address(&address) {
            return Err(exception(py, &Diagnostic::from_error(&error)));
        }
        let reconnect_time = Duration::try_from_secs_f64(reconnect_seconds).map_err(|_| {
            PyValueError::new_err("`reconnect_seconds` must be a number of seconds, 0 or more")
        })?;
        let config = FuturesConfig {
            address,
            credentials: credentials.get().inner.clone(),
            client,
            versions: versions.into_iter().collect(),
            reconnect_time,
        };
        let sink = Box::new(Events::new(on_events));
        let session = FuturesSession::start(runtime::handles()?, config, sink);
        Ok(Self {
            inner: Some(session),
            process: std::process::id(),
        })
    }

    /// New tasks with their keys, in columns.
    #[pyo3(signature = (keys, body, arguments, groups, group, input_counts, inputs, external,
                        wanted, priority=None, retries=None, requirement=None, requirements=None))]
    #[allow(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        reason = "columns of one table, called by name; Python's lists become vectors"
    )]
    fn submit(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        body: PyBackedBytes,
        arguments: Vec<PyBackedBytes>,
        groups: Vec<String>,
        group: Vec<u32>,
        input_counts: Vec<u32>,
        inputs: Vec<u32>,
        external: Vec<String>,
        wanted: Vec<u32>,
        priority: Option<Vec<i32>>,
        retries: Option<Vec<u32>>,
        requirement: Option<Vec<u32>>,
        requirements: Option<Vec<Requirement>>,
    ) -> PyResult<()> {
        let session = self.inner()?;
        let lengths: Result<Vec<u32>, _> =
            keys.iter().map(|key| u32::try_from(key.len())).collect();
        let submission = wire::Submission {
            key_lengths: lengths?,
            keys: keys.concat(),
            body: Bytes::copy_from_slice(&body),
            arguments: arguments.iter().map(copied).collect(),
            group,
            groups,
            priority: priority.unwrap_or_default(),
            retries: retries.unwrap_or_default(),
            requirement: requirement.unwrap_or_default(),
            requirements: requirements
                .unwrap_or_default()
                .into_iter()
                .map(required)
                .collect(),
            input_counts,
            inputs,
            external,
            wanted,
        };
        said(py, py.detach(|| session.submit(submission)))
    }

    /// These keys are wanted as well.
    fn want(&self, py: Python<'_>, keys: Vec<String>) -> PyResult<()> {
        let session = self.inner()?;
        said(py, py.detach(|| session.want(keys)))
    }

    /// These keys are no longer wanted.
    fn release(&self, py: Python<'_>, keys: Vec<String>) -> PyResult<()> {
        let session = self.inner()?;
        py.detach(|| session.release(keys));
        Ok(())
    }

    /// Stops the tasks of these keys.
    fn cancel(
        &self,
        py: Python<'_>,
        keys: Vec<String>,
        is_forced: bool,
        reason: String,
        message: String,
    ) -> PyResult<()> {
        let session = self.inner()?;
        let cancel = wire::CancelKeys {
            keys,
            is_forced,
            reason,
            message,
        };
        said(py, py.detach(|| session.cancel(cancel)))
    }

    /// Runs tasks that have failed once more.
    fn retry(&self, py: Python<'_>, keys: Vec<String>) -> PyResult<()> {
        let session = self.inner()?;
        said(py, py.detach(|| session.retry(keys)))
    }

    /// Asks the scheduler; `callback(fault, content, values)` is called once.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "Python's lists become vectors"
    )]
    fn ask(
        &self,
        py: Python<'_>,
        content: PyBackedBytes,
        values: Vec<PyBackedBytes>,
        callback: Py<PyAny>,
    ) -> PyResult<()> {
        let session = self.inner()?;
        let content = copied(&content);
        let values = values.iter().map(copied).collect();
        let answer = move |answered: oxidask_client::futures::Answered| {
            attached(|py| {
                let (why, content, values) = match answered {
                    Ok((content, values)) => (None, content, values),
                    Err(why) => (Some(fault(&why)), Bytes::new(), Vec::new()),
                };
                let values: Vec<_> = values.iter().map(|value| PyBytes::new(py, value)).collect();
                call(py, &callback, (why, PyBytes::new(py, &content), values));
            });
        };
        py.detach(|| session.ask(content, values, answer));
        Ok(())
    }

    /// Reads results; `callback(index, kind, content)` is called once a task, in any order.
    fn fetch(&self, py: Python<'_>, tasks: Vec<(u32, u32)>, callback: Py<PyAny>) -> PyResult<()> {
        let session = self.inner()?;
        let results = Arc::new(Results::new(callback));
        py.detach(|| session.fetch(tasks, results));
        Ok(())
    }

    /// Sends a value, which becomes the result of its key; `callback(fault)` is called once.
    #[allow(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        reason = "called by name, with lists that become vectors"
    )]
    fn put(
        &self,
        py: Python<'_>,
        key: String,
        kind: u32,
        buffers: Vec<Bound<'_, PyAny>>,
        workers: Vec<String>,
        is_shared: bool,
        callback: Py<PyAny>,
    ) -> PyResult<()> {
        let session = self.inner()?;
        if PayloadKind::from_number(kind).is_none() {
            let message = format!("{kind} is no kind of payload");
            return Err(PyValueError::new_err(message));
        }
        let upload = Upload::new(&buffers)?;
        let first = wire::PutPart {
            key,
            kind,
            total_bytes: upload.len(),
            workers,
            is_shared,
            ..wire::PutPart::default()
        };
        let upload: Arc<dyn PutSource> = Arc::new(upload);
        let done = move |outcome: Result<(), Diagnostic>| {
            attached(|py| {
                let why = outcome.err().map(|why| fault(&why));
                call(py, &callback, (why,));
            });
        };
        py.detach(|| session.put(first, upload, done));
        Ok(())
    }

    /// Releases all keys and ends the session; waits a moment until the scheduler has heard it.
    fn close(&self, py: Python<'_>) {
        if let Ok(session) = self.inner() {
            py.detach(|| session.close());
        }
    }
}

fn said(py: Python<'_>, outcome: Result<(), Diagnostic>) -> PyResult<()> {
    outcome.map_err(|why| exception(py, &why))
}

fn copied(bytes: &PyBackedBytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn required((slots, resources, workers): Requirement) -> wire::Requirement {
    wire::Requirement {
        slots,
        resources: resources
            .into_iter()
            .map(|(name, amount)| wire::Amount { name, amount })
            .collect(),
        workers,
    }
}

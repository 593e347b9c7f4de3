//! What whoever runs a cluster says to its scheduler, one call at a time.
//!
//! Owns calls that wait for their answers, for classes of Python that start and end workers. Each is
//! bounded in time by the client library.

use futures::future::BoxFuture;
use oxidask_client::{Client, ClientError};
use oxidask_proto::wire;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::runtime::Handle;

use crate::callback::exception;
use crate::credentials::Credentials;
use crate::runtime;

/// Workers that go, and others with the reasons why they may not.
type Retired = (Vec<String>, Vec<(String, String)>);

/// A connection of whoever runs a cluster.
#[pyclass(frozen, module = "oxidask._oxidask")]
pub(crate) struct Cluster {
    client: Client,
    runtime: Handle,
}

impl Cluster {
    fn answered<T: Send>(
        &self,
        py: Python<'_>,
        call: BoxFuture<'_, Result<T, ClientError>>,
    ) -> PyResult<T> {
        let answer = py.detach(|| self.runtime.block_on(call));
        answer.map_err(|error| exception(py, &error.diagnostic()))
    }
}

#[pymethods]
impl Cluster {
    /// Connects, and waits until the scheduler has answered.
    #[new]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "Python's text becomes one of its own"
    )]
    fn new(
        py: Python<'_>,
        address: String,
        credentials: &Bound<'_, Credentials>,
    ) -> PyResult<Self> {
        let runtime = runtime::handles()?.session;
        let credentials = credentials.get().inner.clone();
        let connected = py.detach(|| runtime.block_on(Client::connect(&address, &credentials)));
        let client = connected.map_err(|error| exception(py, &error.diagnostic()))?;
        Ok(Self { client, runtime })
    }

    /// Workers and groups as the scheduler sees them.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = self.answered(py, self.client.status())?;
        let workers = PyList::empty(py);
        for worker in &status.workers {
            workers.append(worker_dict(py, worker)?)?;
        }
        let groups = PyDict::new(py);
        for group in &status.groups {
            let entry = PyDict::new(py);
            entry.set_item("workers", group.workers)?;
            entry.set_item("workers_wanted", group.workers_wanted)?;
            entry.set_item("waiting_tasks", group.waiting_tasks)?;
            groups.set_item(&group.group, entry)?;
        }
        let found = PyDict::new(py);
        found.set_item("uptime_ms", status.uptime_ms)?;
        found.set_item("workers", workers)?;
        found.set_item("groups", groups)?;
        Ok(found)
    }

    /// So many workers of a group, those that can go most cheaply, hand over what they hold and end.
    /// The answer is their names, and why others may not go.
    #[pyo3(signature = (group, count, deadline_ms=0))]
    fn retire(
        &self,
        py: Python<'_>,
        group: String,
        count: u32,
        deadline_ms: u64,
    ) -> PyResult<Retired> {
        let request = wire::RetireRequest {
            group,
            count,
            deadline_ms,
            ends: true,
            ..wire::RetireRequest::default()
        };
        let reply = self.answered(py, self.client.retire(request))?;
        let refused = reply.refused.into_iter();
        let refused = refused.map(|refused| (refused.worker, refused.reason));
        Ok((reply.accepted, refused.collect()))
    }

    /// The process of a worker has ended, and how. Whether the scheduler knew it.
    fn worker_ended(
        &self,
        py: Python<'_>,
        worker: String,
        reason: String,
        process_id: u32,
    ) -> PyResult<bool> {
        let request = wire::WorkerEndedRequest {
            worker,
            reason,
            process_id,
            ..wire::WorkerEndedRequest::default()
        };
        let reply = self.answered(py, self.client.worker_ended(request))?;
        Ok(reply.was_known)
    }

    /// Log lines that are kept: worker (empty for the scheduler), level and text of each.
    #[pyo3(signature = (worker="", lines=1000))]
    fn logs(
        &self,
        py: Python<'_>,
        worker: &str,
        lines: u32,
    ) -> PyResult<Vec<(String, String, String)>> {
        let request = wire::LogsRequest {
            worker: worker.to_owned(),
            lines,
            ..wire::LogsRequest::default()
        };
        let collected = Box::pin(async {
            let mut inbound = self.client.logs(request).await?;
            let mut collected = Vec::new();
            while let Some(reply) = inbound.message().await? {
                collected.extend(reply.lines);
            }
            Ok(collected)
        });
        let collected = self.answered(py, collected)?;
        let line = |line: wire::LogLine| (line.worker, line.level, line.text);
        Ok(collected.into_iter().map(line).collect())
    }
}

fn worker_dict<'py>(py: Python<'py>, worker: &wire::WorkerStatus) -> PyResult<Bound<'py, PyDict>> {
    let standing = worker.standing().as_str_name();
    let standing = standing
        .trim_start_matches("STANDING_")
        .to_ascii_lowercase();
    let entry = PyDict::new(py);
    entry.set_item("name", &worker.name)?;
    entry.set_item("group", &worker.group)?;
    entry.set_item("slots", worker.slots)?;
    entry.set_item("running", worker.running)?;
    entry.set_item("queued", worker.queued)?;
    entry.set_item("held_bytes", worker.held_bytes)?;
    entry.set_item("spilled_bytes", worker.spilled_bytes)?;
    entry.set_item("resident_bytes", worker.resident_bytes)?;
    entry.set_item("limit_bytes", worker.limit_bytes)?;
    entry.set_item("data_address", &worker.data_address)?;
    entry.set_item("process_id", worker.process_id)?;
    entry.set_item("standing", standing)?;
    entry.set_item("silent_ms", worker.silent_ms)?;
    Ok(entry)
}

//! The state of the cluster as JSON. Pure; names are those of Dask where it has one.

use oxidask_core::{GraphProgress, GraphSummary};
use oxidask_proto::wire;
use serde_json::{Map, Value, json};

/// A worker.
pub(crate) fn worker(worker: &wire::WorkerStatus) -> Value {
    json!({
        "number": worker.worker,
        "name": worker.name,
        "group": worker.group,
        "address": address(worker),
        "standing": standing(worker),
        "slots": worker.slots,
        "running": worker.running,
        "queued": worker.queued,
        "held_bytes": worker.held_bytes,
        "spilled_bytes": worker.spilled_bytes,
        "resident_bytes": worker.resident_bytes,
        "memory_bytes": worker.memory_bytes,
        "limit_bytes": worker.limit_bytes,
        "idle_seconds": seconds(worker.idle_ms),
        "silent_seconds": seconds(worker.silent_ms),
        "process_id": worker.process_id,
        "node": worker.node,
        "pod_uid": worker.pod_uid,
    })
}

/// Where a worker's results are read.
pub(crate) fn address(worker: &wire::WorkerStatus) -> String {
    format!("tls://{}", worker.data_address)
}

/// How the scheduler regards a worker.
pub(crate) fn standing(worker: &wire::WorkerStatus) -> &'static str {
    match worker.standing() {
        wire::Standing::Unknown => "unknown",
        wire::Standing::Active => "active",
        wire::Standing::Paused => "paused",
        wire::Standing::Retiring => "retiring",
        wire::Standing::Empty => "empty",
        wire::Standing::Suspect => "suspect",
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown to people")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1_000.0
}

#[allow(clippy::cast_precision_loss, reason = "shown to people")]
fn from_micros(micros: u64) -> f64 {
    micros as f64 / 1_000_000.0
}

/// A graph.
pub(crate) fn graph(graph: &GraphSummary) -> Value {
    json!({
        "name": *graph.name,
        "number": graph.graph.0,
        "total": graph.total,
        "done": graph.done,
        "running": graph.running,
        "failed": graph.failed,
        "is_done": graph.is_done,
        "has_client": graph.client.is_some(),
    })
}

/// A graph with its groups of tasks.
pub(crate) fn graph_with_groups(summary: &GraphSummary, progress: &GraphProgress) -> Value {
    let mut value = graph(summary);
    let groups = progress.groups.iter().map(|group| {
        json!({
            "name": *group.name,
            "total": group.total,
            "done": group.done,
            "running": group.running,
            "failed": group.failed,
            "held_bytes": group.bytes,
            "rows": group.rows,
            "made_bytes": group.made_bytes,
        })
    });
    value["groups"] = groups.collect();
    value
}

/// What waits for a worker group.
pub(crate) fn group(group: &wire::GroupBacklog) -> Value {
    json!({
        "group": group.group,
        "workers": group.workers,
        "workers_open": group.workers_open,
        "workers_wanted": group.workers_wanted,
        "reason": group.reason,
        "slots": group.slots,
        "waiting_tasks": group.waiting_tasks,
        "waiting_seconds": from_micros(group.waiting_micros),
        "placed_seconds": from_micros(group.placed_micros),
        "tail_seconds": from_micros(group.tail_micros),
        "held_bytes": group.held_bytes,
        "expected_bytes": group.expected_bytes,
        "memory_bytes": group.memory_bytes,
        "idle_seconds": seconds(group.idle_ms),
        "classes": group.classes.iter().map(class).collect::<Vec<_>>(),
    })
}

/// Work that asks for the same of a worker.
pub(crate) fn class(class: &wire::ClassBacklog) -> Value {
    let requirement = class.requirement.clone().unwrap_or_default();
    let resources = requirement.resources.into_iter();
    let resources: Map<String, Value> = resources
        .map(|amount| (amount.name, amount.amount.into()))
        .collect();
    json!({
        "slots": requirement.slots,
        "resources": resources,
        "workers": requirement.workers,
        "ready_tasks": class.ready_tasks,
        "waiting_tasks": class.waiting_tasks,
        "waiting_seconds": from_micros(class.waiting_micros),
        "expected_bytes": class.expected_bytes,
    })
}

/// All that waits.
pub(crate) fn backlog(told: &wire::TelemetryReply) -> Value {
    json!({
        "ready": told.ready,
        "running": told.running,
        "parked": told.parked,
        "backlog_seconds": from_micros(told.backlog_micros),
        "groups": told.groups.iter().map(group).collect::<Vec<_>>(),
        "unplaceable": told.unplaceable.iter().map(class).collect::<Vec<_>>(),
        "graphs": told.graphs,
        "clients": told.clients,
        "idle_seconds": seconds(told.idle_ms),
    })
}

/// Why a task is as it is.
pub(crate) fn task(task: &wire::TaskExplanation) -> Value {
    let fault = task.fault.as_ref().map(|fault| {
        json!({
            "code": fault.code,
            "message": fault.message,
            "causes": fault.causes,
            "hint": fault.hint,
        })
    });
    json!({
        "graph": task.graph,
        "key": task.key,
        "state": task.state,
        "worker": task.worker,
        "attempts": task.attempts,
        "retries_left": task.retries_left,
        "crashes": task.crashes,
        "fetch_failures": task.fetch_failures,
        "lines": task.lines,
        "fault": fault,
    })
}

/// A line of a log.
pub(crate) fn line(line: &wire::LogLine) -> Value {
    json!({
        "time_micros": line.time_micros,
        "level": line.level,
        "target": line.target,
        "text": line.text,
        "graph": line.graph,
        "key": line.key,
        "attempt": line.attempt,
        "worker": line.worker,
    })
}

//! The core's views as messages: progress, status, telemetry.
//!
//! Pure conversions; called by the main loop, about ten times a second or when somebody asks.

use std::sync::atomic::Ordering;

use oxidask_core::{ClusterSummary, GraphId, GraphProgress, GraphSummary, WorkerSummary};
use oxidask_proto::wire;

use crate::links::WorkerLink;

/// Progress of one graph, with its rough size in bytes.
pub(crate) fn progress(
    graph: GraphId,
    progress: GraphProgress,
    cluster: &ClusterSummary,
) -> (wire::Progress, usize) {
    let mut bytes = 128 + cluster.parked_reason.as_ref().map_or(0, String::len);
    let groups = progress.groups.into_iter().map(|group| {
        bytes += 48 + group.name.len();
        wire::GroupProgress {
            name: group.name.to_string(),
            total: group.total,
            done: group.done,
            running: group.running,
            failed: group.failed,
            bytes: group.bytes,
            rows: group.rows,
            made_bytes: group.made_bytes,
        }
    });
    let groups = groups.collect();
    let cluster = wire::ClusterProgress {
        workers: cluster.workers,
        slots: cluster.slots,
        running: u32::try_from(cluster.running).unwrap_or(u32::MAX),
        held_bytes: cluster.held_bytes,
        memory_bytes: cluster.memory_bytes,
        parked: cluster.parked,
        parked_reason: cluster.parked_reason.clone().unwrap_or_default(),
    };
    (
        wire::Progress {
            graph: graph.0,
            groups,
            cluster: Some(cluster),
        },
        bytes,
    )
}

/// One worker: numbers of the core, and what only the worker knows.
pub(crate) fn worker(summary: WorkerSummary, link: Option<&WorkerLink>) -> wire::WorkerStatus {
    let held = link.map_or(0, |link| link.vitals.held_bytes.load(Ordering::Relaxed));
    wire::WorkerStatus {
        worker: summary.worker.0,
        name: summary.name,
        group: summary.group,
        slots: summary.slots,
        running: summary.running,
        queued: summary.queued,
        held_bytes: held.max(summary.held_bytes),
        memory_bytes: summary.memory_bytes,
        data_address: link.map_or_else(String::new, |link| link.address.to_string()),
        process_id: link.map_or(0, |link| link.hello.process_id),
    }
}

/// One graph.
pub(crate) fn graph(summary: &GraphSummary) -> wire::GraphStatus {
    wire::GraphStatus {
        graph: summary.graph.0,
        name: summary.name.to_string(),
        total: summary.total,
        done: summary.done,
        running: summary.running,
        failed: summary.failed,
    }
}

/// The backlog.
pub(crate) fn telemetry(
    cluster: &ClusterSummary,
    workers: Vec<wire::WorkerStatus>,
) -> wire::TelemetryReply {
    wire::TelemetryReply {
        ready: cluster.ready,
        running: cluster.running,
        parked: cluster.parked,
        backlog_micros: cluster.backlog_micros,
        workers,
    }
}

//! The core's views as messages: progress, status, telemetry.
//!
//! Pure conversions; called by the main loop, about ten times a second or when somebody asks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use oxidask_core::{
    ClassBacklog, ClusterSummary, GraphId, GraphProgress, GraphSummary, GroupBacklog, Timestamp,
    WorkerStanding, WorkerSummary,
};
use oxidask_proto::wire;

use crate::links::WorkerLink;
use crate::telemetry::since_ms;

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
    (
        wire::Progress {
            graph: graph.0,
            groups,
            cluster: Some(self::cluster(cluster)),
        },
        bytes,
    )
}

/// The cluster as a whole.
pub(crate) fn cluster(cluster: &ClusterSummary) -> wire::ClusterProgress {
    wire::ClusterProgress {
        workers: cluster.workers,
        slots: cluster.slots,
        running: u32::try_from(cluster.running).unwrap_or(u32::MAX),
        held_bytes: cluster.held_bytes,
        memory_bytes: cluster.memory_bytes,
        parked: cluster.parked,
        parked_reason: cluster.parked_reason.clone().unwrap_or_default(),
    }
}

/// One worker: numbers of the core, and what only the worker knows.
pub(crate) fn worker(
    summary: WorkerSummary,
    link: Option<&WorkerLink>,
    now: Timestamp,
) -> wire::WorkerStatus {
    let mut status = wire::WorkerStatus {
        worker: summary.worker.0,
        name: summary.name,
        group: summary.group,
        slots: summary.slots,
        running: summary.running,
        queued: summary.queued,
        held_bytes: summary.held_bytes,
        memory_bytes: summary.memory_bytes,
        idle_ms: since_ms(summary.idle_since, now),
        standing: standing(summary.standing, link).into(),
        ..wire::WorkerStatus::default()
    };
    if let Some(link) = link {
        let said = &link.vitals;
        status.held_bytes = status
            .held_bytes
            .max(said.held_bytes.load(Ordering::Relaxed));
        status.resident_bytes = said.resident_bytes.load(Ordering::Relaxed);
        status.spilled_bytes = said.spilled_bytes.load(Ordering::Relaxed);
        status.limit_bytes = said.limit_bytes.load(Ordering::Relaxed);
        status.silent_ms = said.silent_ms();
        status.loaded = said.loaded();
        status.data_address = link.address.to_string();
        status.process_id = link.hello.process_id;
        status.node.clone_from(&link.hello.node);
        status.pod_uid.clone_from(&link.hello.pod_uid);
    }
    status
}

/// The core knows that a worker retires, the loop that it is done with it.
fn standing(standing: WorkerStanding, link: Option<&WorkerLink>) -> wire::Standing {
    match standing {
        WorkerStanding::Active => wire::Standing::Active,
        WorkerStanding::Paused => wire::Standing::Paused,
        WorkerStanding::Retiring if link.is_some_and(|link| link.is_empty) => wire::Standing::Empty,
        WorkerStanding::Retiring => wire::Standing::Retiring,
        WorkerStanding::Suspect => wire::Standing::Suspect,
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

/// The backlog of one worker group.
pub(crate) fn group(group: GroupBacklog, now: Timestamp) -> wire::GroupBacklog {
    wire::GroupBacklog {
        group: group.group,
        workers: group.workers,
        workers_open: group.workers_open,
        slots: group.slots,
        waiting_tasks: group.waiting_tasks,
        waiting_micros: group.waiting_micros,
        placed_micros: group.placed_micros,
        tail_micros: group.tail_micros,
        held_bytes: group.held_bytes,
        expected_bytes: group.expected_bytes,
        memory_bytes: group.memory_bytes,
        workers_wanted: group.workers_wanted,
        idle_ms: since_ms(group.idle_since, now),
        reason: group.reason,
        classes: group.classes.into_iter().map(class).collect(),
    }
}

/// Work that asks for the same of a worker.
pub(crate) fn class(class: ClassBacklog) -> wire::ClassBacklog {
    let resources = class.requirement.resources.into_iter();
    let requirement = wire::Requirement {
        slots: class.requirement.slots,
        resources: resources
            .map(|(name, amount)| wire::Amount { name, amount })
            .collect(),
        workers: class.requirement.workers,
    };
    wire::ClassBacklog {
        requirement: Some(requirement),
        ready_tasks: class.ready_tasks,
        waiting_tasks: class.waiting_tasks,
        waiting_micros: class.waiting_micros,
        expected_bytes: class.expected_bytes,
    }
}

/// A time in the unit of messages.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! From a scheduler's telemetry to a planner's signal.
//!
//! Pure. Whatever a scheduler says is taken as it is, but for texts that are too long; what a planner
//! makes of it has bounds of its own.

use std::time::Duration;

use oxidask_operator_plan::Timestamp;
use oxidask_operator_plan::signal::{
    GroupSignal, Loaded, Signal, Standing, UnplacedWork, WorkerSignal,
};
use oxidask_proto::wire;

/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 256;

/// What the message says.
pub(super) fn signal(reply: wire::TelemetryReply, heard_at: Timestamp) -> Signal {
    let groups = reply.groups.into_iter();
    let workers = reply.workers.into_iter();
    Signal {
        heard_at,
        graphs: reply.graphs,
        clients: reply.clients,
        unfinished_tasks: reply
            .ready
            .saturating_add(reply.running)
            .saturating_add(reply.parked),
        // 0 means that there is something to do.
        idle: Some(milliseconds(reply.idle_ms)).filter(|idle| !idle.is_zero()),
        groups: groups
            .map(|mut backlog| (std::mem::take(&mut backlog.group), group(backlog)))
            .collect(),
        workers: workers
            .map(|mut status| (std::mem::take(&mut status.name), worker(status)))
            .collect(),
        loaded: reply.loaded.map(loaded),
        clients_loaded: Vec::new(),
        unplaced: reply.unplaceable.into_iter().map(unplaced).collect(),
    }
}

fn unplaced(class: wire::ClassBacklog) -> UnplacedWork {
    let requirement = class.requirement.unwrap_or_default();
    let resources = requirement.resources.into_iter();
    UnplacedWork {
        slots: requirement.slots,
        resources: resources
            .map(|amount| (amount.name, amount.amount))
            .collect(),
        workers: requirement.workers,
        tasks: class.ready_tasks.saturating_add(class.waiting_tasks),
        waiting: Duration::from_micros(class.waiting_micros),
    }
}

fn group(backlog: wire::GroupBacklog) -> GroupSignal {
    let mut reason = backlog.reason;
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    GroupSignal {
        workers_wanted: backlog.workers_wanted,
        waiting: Duration::from_micros(backlog.waiting_micros),
        idle: milliseconds(backlog.idle_ms),
        reason,
    }
}

fn worker(status: wire::WorkerStatus) -> WorkerSignal {
    let standing = standing(status.standing());
    WorkerSignal {
        host: host(&status.data_address),
        group: status.group,
        pod_uid: status.pod_uid,
        standing,
        running: status.running,
        held_bytes: status.held_bytes,
        idle: milliseconds(status.idle_ms),
        loaded: status.loaded.map(loaded),
    }
}

fn loaded(loaded: wire::Loaded) -> Loaded {
    Loaded {
        bundle: loaded.bundle,
        certificate: loaded.certificate,
    }
}

/// A standing of a newer scheduler is none that lets a worker go.
fn standing(standing: wire::Standing) -> Standing {
    match standing {
        wire::Standing::Unknown | wire::Standing::Active => Standing::Active,
        wire::Standing::Paused => Standing::Paused,
        wire::Standing::Retiring => Standing::Retiring,
        wire::Standing::Empty => Standing::Empty,
        wire::Standing::Suspect => Standing::Suspect,
    }
}

/// The host of `host:port`, without the brackets of an IPv6 literal.
fn host(address: &str) -> String {
    let host = address.rsplit_once(':').map_or("", |(host, _)| host);
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned()
}

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_planner_reads_is_there() {
        let reply = wire::TelemetryReply {
            ready: 3,
            running: 2,
            parked: u64::MAX,
            graphs: 1,
            clients: 4,
            groups: vec![wire::GroupBacklog {
                group: "default".to_owned(),
                workers_wanted: 8,
                waiting_micros: 1_500_000,
                idle_ms: 7,
                reason: "é".repeat(1000),
                ..wire::GroupBacklog::default()
            }],
            workers: vec![wire::WorkerStatus {
                name: "w".to_owned(),
                group: "default".to_owned(),
                pod_uid: "u".to_owned(),
                data_address: "[fd00::1]:9000".to_owned(),
                standing: wire::Standing::Empty.into(),
                running: 1,
                held_bytes: 5,
                ..wire::WorkerStatus::default()
            }],
            ..wire::TelemetryReply::default()
        };
        let now = Timestamp::now();
        let signal = signal(reply, now);
        assert_eq!((signal.graphs, signal.clients), (1, 4));
        assert_eq!(signal.unfinished_tasks, u64::MAX);
        assert_eq!((signal.heard_at, signal.idle), (now, None));
        let group = &signal.groups["default"];
        assert_eq!(group.workers_wanted, 8);
        assert_eq!(group.waiting, Duration::from_millis(1500));
        assert_eq!(group.idle, Duration::from_millis(7));
        assert_eq!(group.reason.len(), REASON_BYTES_MAX);
        let worker = &signal.workers["w"];
        assert_eq!(worker.standing, Standing::Empty);
        assert_eq!(worker.host, "fd00::1");
        assert_eq!((worker.running, worker.held_bytes), (1, 5));
    }

    #[test]
    fn what_is_not_known_lets_no_worker_go() {
        let status = wire::WorkerStatus {
            standing: 77,
            ..wire::WorkerStatus::default()
        };
        assert_eq!(worker(status).standing, Standing::Active);
        assert_eq!(host("nonsense"), "");
        assert_eq!(host("10.0.0.1:9000"), "10.0.0.1");
    }
}

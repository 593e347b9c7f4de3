//! `oxidask status`: workers, what waits for them, and graphs of a running cluster.

use std::fmt::Write as _;

use oxidask_proto::wire;
use serde_json::{Value, json};

use crate::arguments::{OutputForm, StatusArguments};
use crate::error::CliError;
use crate::look::{self, Site, columns, standing};
use crate::output;
use crate::progress::{bytes, count, duration};

/// Asks and prints.
pub(crate) fn status(arguments: &StatusArguments) -> Result<(), CliError> {
    let site = Site::new(&arguments.cluster)?;
    let runtime = crate::service::runtime(look::THREADS)?;
    let asking = site.ask(|client| async move { client.status().await });
    let reply = runtime.block_on(asking);
    runtime.shutdown_background();
    let reply = reply?;
    look::print(&match output::form(arguments.output) {
        OutputForm::Json => json_lines(&reply),
        OutputForm::Table => tables(&reply),
    })
}

/// Everything, an object a line.
fn json_lines(reply: &wire::StatusReply) -> String {
    let mut lines = vec![scheduler(reply)];
    lines.extend(reply.workers.iter().map(worker));
    lines.extend(reply.groups.iter().map(group));
    lines.extend(reply.graphs.iter().map(graph));
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Everything, one object.
pub(crate) fn json_object(reply: &wire::StatusReply) -> Value {
    json!({
        "scheduler": scheduler(reply),
        "workers": reply.workers.iter().map(worker).collect::<Vec<_>>(),
        "groups": reply.groups.iter().map(group).collect::<Vec<_>>(),
        "graphs": reply.graphs.iter().map(graph).collect::<Vec<_>>(),
    })
}

fn scheduler(reply: &wire::StatusReply) -> Value {
    let hello = reply.hello.clone().unwrap_or_default();
    let cluster = reply.cluster.clone().unwrap_or_default();
    json!({
        "kind": "scheduler", "build": hello.build, "uptimeMs": reply.uptime_ms,
        "epoch": hello.epoch, "incarnation": format!("{:016x}", hello.incarnation),
        "running": cluster.running, "heldBytes": cluster.held_bytes,
        "memoryBytes": cluster.memory_bytes, "parked": cluster.parked,
        "parkedReason": cluster.parked_reason, "backlogMicros": reply.backlog_micros,
    })
}

fn worker(worker: &wire::WorkerStatus) -> Value {
    json!({
        "kind": "worker", "name": worker.name, "group": worker.group,
        "standing": standing(worker), "slots": worker.slots,
        "running": worker.running, "queued": worker.queued, "heldBytes": worker.held_bytes,
        "memoryBytes": worker.memory_bytes, "spilledBytes": worker.spilled_bytes,
        "residentBytes": worker.resident_bytes, "limitBytes": worker.limit_bytes,
        "idleMs": worker.idle_ms, "silentMs": worker.silent_ms,
        "dataAddress": worker.data_address, "processId": worker.process_id,
        "node": worker.node, "podUid": worker.pod_uid,
    })
}

fn group(group: &wire::GroupBacklog) -> Value {
    json!({
        "kind": "group", "name": group.group, "workers": group.workers,
        "workersOpen": group.workers_open, "workersWanted": group.workers_wanted,
        "waitingTasks": group.waiting_tasks, "waitingMicros": group.waiting_micros,
        "placedMicros": group.placed_micros, "tailMicros": group.tail_micros,
        "idleMs": group.idle_ms, "reason": group.reason,
    })
}

fn graph(graph: &wire::GraphStatus) -> Value {
    json!({
        "kind": "graph", "name": graph.name, "total": graph.total, "done": graph.done,
        "running": graph.running, "failed": graph.failed,
    })
}

/// Everything, for people.
pub(crate) fn tables(reply: &wire::StatusReply) -> String {
    let hello = reply.hello.clone().unwrap_or_default();
    let uptime = duration(seconds(reply.uptime_ms.saturating_mul(1_000)));
    let mut text = format!("scheduler {}, up {uptime}", hello.build);
    if hello.epoch > 1 {
        let _ = write!(text, ", started {} times", hello.epoch);
    }
    text.push_str("\n\n");
    text.push_str(&workers(&reply.workers));
    text.push('\n');
    if !reply.groups.is_empty() {
        text.push_str(&groups(&reply.groups));
        text.push('\n');
    }
    let cluster = reply.cluster.clone().unwrap_or_default();
    if cluster.parked > 0 {
        let tasks = crate::progress::counted(cluster.parked, "task");
        let _ = writeln!(text, "{tasks} parked: {}\n", cluster.parked_reason);
    }
    if reply.graphs.is_empty() {
        text.push_str("no graphs\n");
    } else {
        text.push_str(&graphs(&reply.graphs));
    }
    text
}

fn workers(workers: &[wire::WorkerStatus]) -> String {
    let head = [
        "WORKER", "GROUP", "STANDING", "SLOTS", "RUNNING", "QUEUED", "HELD", "SPILLED", "MEMORY",
        "USED", "PID", "ADDRESS",
    ];
    let rows = workers.iter().map(|worker| {
        let silent = seconds(worker.silent_ms.saturating_mul(1_000));
        let standing = match worker.standing() {
            wire::Standing::Suspect => format!("suspect {}", duration(silent)),
            _ => standing(worker).to_owned(),
        };
        [
            worker.name.clone(),
            worker.group.clone(),
            standing,
            worker.slots.to_string(),
            worker.running.to_string(),
            worker.queued.to_string(),
            bytes(worker.held_bytes),
            bytes(worker.spilled_bytes),
            bytes(worker.memory_bytes),
            used(worker),
            worker.process_id.to_string(),
            worker.data_address.clone(),
        ]
    });
    columns(head, rows.collect())
}

/// Memory of the worker's processes, of all that it may use.
fn used(worker: &wire::WorkerStatus) -> String {
    match worker.limit_bytes {
        0 => bytes(worker.resident_bytes),
        limit => format!("{} of {}", bytes(worker.resident_bytes), bytes(limit)),
    }
}

fn groups(groups: &[wire::GroupBacklog]) -> String {
    let head = [
        "GROUP", "WORKERS", "OPEN", "WANTED", "WAITING", "BACKLOG", "TAIL", "WHY",
    ];
    let rows = groups.iter().map(|group| {
        let work = group.waiting_micros.saturating_add(group.placed_micros);
        [
            group.group.clone(),
            group.workers.to_string(),
            group.workers_open.to_string(),
            group.workers_wanted.to_string(),
            count(group.waiting_tasks),
            duration(seconds(work)),
            duration(seconds(group.tail_micros)),
            group.reason.clone(),
        ]
    });
    columns(head, rows.collect())
}

fn graphs(graphs: &[wire::GraphStatus]) -> String {
    let head = ["GRAPH", "TASKS", "DONE", "RUNNING", "FAILED"];
    let rows = graphs.iter().map(|graph| {
        [
            graph.name.clone(),
            count(graph.total),
            count(graph.done),
            count(graph.running),
            count(graph.failed),
        ]
    });
    columns(head, rows.collect())
}

#[allow(clippy::cast_precision_loss, reason = "shown rounded")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1_000_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> wire::StatusReply {
        wire::StatusReply {
            uptime_ms: 65_000,
            workers: vec![
                wire::WorkerStatus {
                    name: "default-0".to_owned(),
                    group: "default".to_owned(),
                    slots: 2,
                    memory_bytes: 2 << 30,
                    standing: wire::Standing::Active.into(),
                    resident_bytes: 1 << 30,
                    limit_bytes: 4 << 30,
                    ..Default::default()
                },
                wire::WorkerStatus {
                    name: "default-1".to_owned(),
                    group: "default".to_owned(),
                    standing: wire::Standing::Suspect.into(),
                    silent_ms: 3_100,
                    ..Default::default()
                },
            ],
            graphs: vec![wire::GraphStatus {
                name: "flights".to_owned(),
                total: 1_234,
                done: 12,
                ..Default::default()
            }],
            groups: vec![wire::GroupBacklog {
                group: "default".to_owned(),
                workers: 2,
                workers_wanted: 3,
                waiting_micros: 12_000_000,
                reason: "because".to_owned(),
                ..Default::default()
            }],
            cluster: Some(wire::ClusterProgress {
                parked: 2,
                parked_reason: "task `x` needs gpu".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_table_is_aligned() {
        let text = tables(&reply());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "scheduler , up 1 min 5 s");
        assert_eq!(lines[2].find("GROUP"), lines[3].find("default "));
        assert_eq!(lines[2].find("STANDING"), lines[3].find("active"));
        assert!(lines[3].contains("1.0 GiB of 4.0 GiB"), "{text}");
        assert!(lines[4].contains("suspect 3.1 s"), "{text}");
        assert!(lines[7].starts_with("default  2"), "{text}");
        assert!(lines[7].ends_with("12 s     0.0 s  because"), "{text}");
        assert_eq!(lines[9], "2 tasks parked: task `x` needs gpu");
        assert!(lines[12].starts_with("flights  1,234  12"), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = json_lines(&reply());
        assert_eq!(text.lines().count(), 5);
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert!(value["kind"].is_string());
        }
    }
}

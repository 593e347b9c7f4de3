//! What questions about workers and keys read off the main loop. Only looks.
//!
//! Workers are named by the address of their data plane, or by their names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use oxidask_core::{TaskRef, TaskState, WorkerId, WorkerStanding, WorkerSummary};
use oxidask_futures::keys::GRAPH_NAME_PREFIX;
use oxidask_futures::questions::{Identity, KEYS_ANSWERED_MAX, WorkerIdentity, WorkerMetrics};
use serde_json::{Map, Value, json};

use super::service::SCHEME;
use crate::links::WorkerLink;
use crate::main_loop::MainLoop;

/// A key with its task.
pub(super) type Keyed = Vec<(String, TaskRef)>;

/// The address of a worker as Dask clients see it.
pub(super) fn address(link: &WorkerLink) -> String {
    format!("{SCHEME}{}", link.address)
}

/// The addresses of those of the named workers that are there; of all without names.
fn chosen(main_loop: &MainLoop, named: Option<&[String]>) -> Vec<(WorkerId, String)> {
    let named: Option<HashSet<&str>> = named.map(|all| all.iter().map(String::as_str).collect());
    let summaries = main_loop.core.workers().into_iter();
    let links = summaries.filter_map(|summary| {
        let link = main_loop.workers.get(&summary.worker)?;
        Some((summary.worker, &*link.hello.name, address(link)))
    });
    let is_named = |name: &str, address: &str| {
        let named = named.as_ref();
        named.is_none_or(|named| named.contains(name) || named.contains(address))
    };
    links
        .filter(|(_, name, address)| is_named(name, address))
        .map(|(worker, _, address)| (worker, address))
        .collect()
}

/// Names of the workers by their addresses.
pub(super) fn names_by_address(main_loop: &MainLoop) -> HashMap<String, String> {
    let links = main_loop.workers.values();
    links
        .map(|link| (address(link), link.hello.name.clone()))
        .collect()
}

/// Names of the named workers, with their addresses.
pub(super) fn names(main_loop: &MainLoop, named: Option<&[String]>) -> Vec<(String, String)> {
    let chosen = chosen(main_loop, named).into_iter();
    let named = chosen.filter_map(|(worker, address)| {
        let link = main_loop.workers.get(&worker)?;
        Some((link.hello.name.clone(), address))
    });
    named.collect()
}

/// Who is there.
pub(super) fn identity(main_loop: &MainLoop, dashboard_port: Option<u16>) -> Identity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs_f64();
    let workers: Vec<WorkerIdentity> = main_loop
        .core
        .workers()
        .into_iter()
        .filter_map(|summary| {
            let link = main_loop.workers.get(&summary.worker)?;
            Some(worker(&summary, link, main_loop, now))
        })
        .collect();
    Identity {
        id: format!("Scheduler-{:016x}", main_loop.hello.incarnation),
        started: now - main_loop.started.elapsed().as_secs_f64(),
        dashboard_port,
        total_threads: workers.iter().map(|w| u64::from(w.nthreads)).sum(),
        total_memory: workers.iter().map(|w| w.memory_limit).sum(),
        workers,
    }
}

fn worker(
    summary: &WorkerSummary,
    link: &WorkerLink,
    main_loop: &MainLoop,
    now: f64,
) -> WorkerIdentity {
    let said = &link.vitals;
    let limit = said.limit_bytes.load(Ordering::Relaxed);
    let resources = link.hello.resources.iter();
    let status = match summary.standing {
        WorkerStanding::Active => "running",
        WorkerStanding::Paused => "paused",
        WorkerStanding::Retiring => "closing_gracefully",
        WorkerStanding::Suspect => "suspect",
    };
    let idle = summary.idle_since;
    let silent_ms = u32::try_from(said.silent_ms()).unwrap_or(u32::MAX);
    let host = link.address.rsplit_once(':').map_or("", |(host, _)| host);
    WorkerIdentity {
        name: summary.name.clone(),
        address: address(link),
        host: host.to_owned(),
        group: summary.group.clone(),
        status: status.to_owned(),
        nthreads: summary.slots,
        memory_limit: if limit > 0 {
            limit
        } else {
            summary.memory_bytes
        },
        resources: resources
            .map(|resource| (resource.name.clone(), resource.amount))
            .collect(),
        last_seen: now - f64::from(silent_ms) / 1_000.0,
        node: link.hello.node.clone(),
        process_id: link.hello.process_id,
        metrics: WorkerMetrics {
            executing: summary.running,
            ready: summary.queued,
            managed_bytes: said
                .held_bytes
                .load(Ordering::Relaxed)
                .max(summary.held_bytes),
            spilled_bytes: said.spilled_bytes.load(Ordering::Relaxed),
            memory: said.resident_bytes.load(Ordering::Relaxed),
            idle_ms: idle.map_or(0, |since| main_loop.now().micros_since(since) / 1_000),
        },
    }
}

/// Addresses of the workers that hold each key.
pub(super) fn who_has(main_loop: &MainLoop, keys: Keyed) -> Value {
    let addresses: HashMap<WorkerId, String> = chosen(main_loop, None).into_iter().collect();
    let held = keys.into_iter().map(|(key, task)| {
        let holders = main_loop.core.holders(task).iter();
        let found: Vec<&String> = holders.filter_map(|id| addresses.get(id)).collect();
        (key, json!(found))
    });
    Value::Object(held.collect())
}

/// Keys that each worker holds.
pub(super) fn has_what(main_loop: &MainLoop, keys: Keyed, named: Option<&[String]>) -> Value {
    let chosen = chosen(main_loop, named);
    let mut held: HashMap<WorkerId, Vec<String>> = HashMap::new();
    for (key, task) in keys {
        for holder in main_loop.core.holders(task) {
            held.entry(*holder).or_default().push(key.clone());
        }
    }
    let keys = chosen.into_iter().map(|(worker, address)| {
        let mut keys = held.remove(&worker).unwrap_or_default();
        keys.sort_unstable();
        (address, json!(keys))
    });
    Value::Object(keys.collect())
}

/// Sizes of the results that are there.
pub(super) fn nbytes(main_loop: &MainLoop, keys: Keyed) -> Value {
    let core = &main_loop.core;
    let held = keys
        .into_iter()
        .filter(|(_, task)| core.state(*task) == Some(TaskState::Finished));
    Value::Object(
        held.map(|(key, task)| (key, json!(core.bytes(task))))
            .collect(),
    )
}

/// Slots of each worker.
pub(super) fn slots(main_loop: &MainLoop, named: Option<&[String]>, is_running: bool) -> Value {
    let addresses: HashMap<WorkerId, String> = chosen(main_loop, named).into_iter().collect();
    let summaries = main_loop.core.workers().into_iter();
    let counted = summaries
        .filter(|summary| !is_running || summary.standing == WorkerStanding::Active)
        .filter_map(|summary| {
            let address = addresses.get(&summary.worker)?;
            Some((address.clone(), json!(summary.slots)))
        });
    Value::Object(counted.collect())
}

/// Keys of the tasks that each worker has.
pub(super) fn processing(main_loop: &MainLoop, named: Option<&[String]>) -> Value {
    let core = &main_loop.core;
    let placed = chosen(main_loop, named)
        .into_iter()
        .map(|(worker, address)| {
            let mut tasks = core.placed(worker);
            tasks.sort_unstable();
            tasks.truncate(KEYS_ANSWERED_MAX);
            let keys: Vec<&str> = tasks.iter().filter_map(|task| core.key(*task)).collect();
            (address, json!(keys))
        });
    Value::Object(placed.collect())
}

/// How far keys are, in the words that Dask has for it.
pub(super) fn task_status(main_loop: &MainLoop, keys: Vec<(String, Option<TaskRef>)>) -> Value {
    let core = &main_loop.core;
    let has_workers = core
        .workers()
        .iter()
        .any(|w| w.standing == WorkerStanding::Active);
    let status = keys.into_iter().map(|(key, task)| {
        let status = task
            .and_then(|task| core.state(task))
            .map(|state| match state {
                TaskState::Waiting => "waiting",
                TaskState::Ready if has_workers => "queued",
                TaskState::Ready => "no-worker",
                TaskState::Finished => "memory",
                TaskState::Released => "released",
                TaskState::Failed => "erred",
                _ => "processing",
            });
        (key, json!(status))
    });
    Value::Object(status.collect())
}

/// How far groups of tasks of Dask clients are, over all graphs.
pub(super) fn groups(main_loop: &MainLoop) -> Value {
    let core = &main_loop.core;
    let mut groups: BTreeMap<String, [u64; 5]> = BTreeMap::new();
    let graphs = core.graphs().into_iter();
    for graph in graphs.filter(|graph| graph.name.starts_with(GRAPH_NAME_PREFIX)) {
        for group in core.progress(graph.graph).unwrap_or_default().groups {
            let sums = groups.entry(group.name.to_string()).or_default();
            let own = [
                group.total,
                group.done,
                group.running,
                group.failed,
                group.bytes,
            ];
            for (sum, own) in sums.iter_mut().zip(own) {
                *sum += own;
            }
        }
    }
    let groups = groups
        .into_iter()
        .map(|(name, [total, done, running, failed, bytes])| {
            json!({
                "name": name, "total": total, "done": done, "running": running,
                "failed": failed, "bytes": bytes,
            })
        });
    Value::Array(groups.collect())
}

/// Addresses by name.
pub(super) fn worker_names(main_loop: &MainLoop) -> Value {
    let named = names(main_loop, None).into_iter();
    let named: Map<String, Value> = named.map(|(name, at)| (name, json!(at))).collect();
    Value::Object(named)
}

/// How many workers the work is enough for.
pub(super) fn adaptive_target(main_loop: &MainLoop, target_seconds: Option<f64>) -> u64 {
    let mut snapshot = main_loop.snapshot();
    let seconds = target_seconds.filter(|seconds| *seconds >= 1.0);
    if let Some(seconds) = seconds {
        let rounded = std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default();
        snapshot.backlog = main_loop.core.backlog(rounded.as_secs().max(1));
    }
    snapshot.desired_workers()
}

/// Idle workers that could go, those that hold the least first: so many, or down to a target.
pub(super) fn closable(
    main_loop: &MainLoop,
    count: Option<u64>,
    target: Option<u64>,
) -> Vec<String> {
    let all = main_loop.core.workers();
    let there = all.len() as u64;
    let target = target.unwrap_or_else(|| adaptive_target(main_loop, None));
    let count = count.unwrap_or_else(|| there.saturating_sub(target));
    let mut idle: Vec<&WorkerSummary> = all
        .iter()
        .filter(|worker| worker.running + worker.queued == 0)
        .filter(|worker| worker.standing == WorkerStanding::Active)
        .collect();
    idle.sort_unstable_by_key(|worker| (worker.held_bytes, worker.worker));
    idle.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    let links = idle
        .iter()
        .filter_map(|worker| main_loop.workers.get(&worker.worker));
    links.map(address).collect()
}

/// Which of these workers, by name, are there and not yet drained.
pub(super) fn still_there(main_loop: &MainLoop, names: &[String], ends: bool) -> bool {
    let mut links = main_loop.workers.values();
    links.any(|link| names.contains(&link.hello.name) && (ends || !link.is_empty))
}

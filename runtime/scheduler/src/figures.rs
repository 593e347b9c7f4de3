//! The metrics that are read off the state of the cluster.
//!
//! Owns the names and labels of what a scrape takes from the latest snapshot. The loop does nothing
//! for them but note its longest round.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oxidask_core::TaskState;
use oxidask_proto::wire;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::look::Snapshot;

/// Worker groups that metrics tell apart.
const GROUPS_MAX: usize = 200;

/// The latest snapshot, as metrics.
#[derive(Default)]
pub(crate) struct Figures {
    latest: Mutex<Option<(Arc<Snapshot>, usize)>>,
    longest_round_micros: AtomicU64,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

impl Figures {
    /// Takes a newer snapshot, with the number of inputs that wait for the loop.
    pub(crate) fn set(&self, snapshot: Arc<Snapshot>, inputs_waiting: usize) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some((snapshot, inputs_waiting));
    }

    /// A round of the loop lasted this long.
    pub(crate) fn note_round(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.longest_round_micros
            .fetch_max(micros, Ordering::Relaxed);
    }
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauges = Gauges(encoder);
        let longest = self.longest_round_micros.swap(0, Ordering::Relaxed);
        gauges.one(
            "dask_scheduler_tick_duration_maximum_seconds",
            "Longest round of the main loop since the last scrape",
            Duration::from_micros(longest).as_secs_f64(),
        )?;
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((snapshot, inputs_waiting)) = latest.clone() else {
            return Ok(());
        };
        drop(latest);
        cluster(&mut gauges, &snapshot, inputs_waiting)?;
        tasks(&mut gauges, &snapshot)?;
        workers(&mut gauges, &snapshot.workers)?;
        groups(&mut gauges, &snapshot)?;
        dask(&mut gauges, &snapshot)
    }
}

/// Writes gauges.
struct Gauges<'a>(DescriptorEncoder<'a>);

impl Gauges<'_> {
    fn one(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn by<'l, V: EncodeGaugeValue>(
        &mut self,
        (name, help, label): (&str, &str, &str),
        values: impl IntoIterator<Item = (&'l str, V)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (is, value) in values {
            metric.encode_family(&[(label, is)])?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a gauge is a float for whoever reads it"
)]
fn float(number: u64) -> f64 {
    number as f64
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

fn cluster(gauges: &mut Gauges<'_>, snapshot: &Snapshot, inputs_waiting: usize) -> fmt::Result {
    let cluster = &snapshot.cluster;
    let open = snapshot.graphs.iter().filter(|graph| !graph.is_done);
    let (open, all) = (open.count() as u64, snapshot.graphs.len() as u64);
    let (slots, clients) = (u64::from(cluster.slots), snapshot.clients as u64);
    let listeners = snapshot.listeners as u64;
    let desired = snapshot.desired_workers();
    for (name, help, value) in [
        (
            "workers",
            "Workers that have joined",
            cluster.workers.into(),
        ),
        ("slots", "Slots of all workers", slots),
        ("clients", "Sessions of clients", clients),
        ("graphs", "Graphs that are held", all),
        ("graphs_open", "Graphs that are not done", open),
        (
            "desired_workers",
            "Workers that all groups together should have",
            desired,
        ),
        (
            "queue_inputs",
            "Inputs that wait for the main loop",
            inputs_waiting as u64,
        ),
        (
            "telemetry_listeners",
            "Operators and scalers that are told of changes",
            listeners,
        ),
        (
            "spans",
            "Spans of tasks that are kept",
            snapshot.spans as u64,
        ),
        (
            "epoch",
            "How often a scheduler has started from this journal",
            u64::from(snapshot.hello.epoch),
        ),
    ] {
        gauges.one(&format!("oxidask_scheduler_{name}"), help, float(value))?;
    }
    memory(gauges, snapshot)?;
    times(gauges, snapshot)
}

fn memory(gauges: &mut Gauges<'_>, snapshot: &Snapshot) -> fmt::Result {
    let cluster = &snapshot.cluster;
    let sum = |of: fn(&wire::WorkerStatus) -> u64| snapshot.workers.iter().map(of).sum::<u64>();
    for (name, help, value) in [
        (
            "held",
            "Bytes of results that workers hold",
            cluster.held_bytes,
        ),
        (
            "memory",
            "Bytes of results that workers may hold",
            cluster.memory_bytes,
        ),
        (
            "spilled",
            "Bytes of results on the disks of workers",
            sum(|worker| worker.spilled_bytes),
        ),
        (
            "resident",
            "Bytes of memory that the workers' processes use",
            sum(|worker| worker.resident_bytes),
        ),
        (
            "outbox",
            "Bytes that wait to be sent to workers and clients",
            snapshot.outbox_bytes as u64,
        ),
    ] {
        gauges.one(
            &format!("oxidask_scheduler_{name}_bytes"),
            help,
            float(value),
        )?;
    }
    Ok(())
}

fn times(gauges: &mut Gauges<'_>, snapshot: &Snapshot) -> fmt::Result {
    gauges.one(
        "oxidask_scheduler_backlog_seconds",
        "Expected run time of all unfinished tasks, one after the other",
        seconds(snapshot.cluster.backlog_micros),
    )?;
    gauges.one(
        "oxidask_scheduler_idle_seconds",
        "How long nothing has been to do",
        snapshot.idle.unwrap_or_default().as_secs_f64(),
    )?;
    gauges.one(
        "oxidask_scheduler_uptime_seconds",
        "How long this process has been running",
        snapshot.uptime.as_secs_f64(),
    )
}

fn tasks(gauges: &mut Gauges<'_>, snapshot: &Snapshot) -> fmt::Result {
    // Ready and parked are told apart by whether a worker could run the task.
    let parked = snapshot.cluster.parked;
    let mut states: Vec<(&str, f64)> = Vec::new();
    for (state, count) in &snapshot.tasks {
        let (name, count) = match state {
            TaskState::Waiting => ("waiting", *count),
            TaskState::Ready => ("ready", count.saturating_sub(parked)),
            TaskState::Assigned => ("assigned", *count),
            TaskState::Retracting => ("retracting", *count),
            TaskState::Running => ("running", *count),
            TaskState::Finished => ("finished", *count),
            TaskState::Released => ("released", *count),
            TaskState::Failed => ("failed", *count),
        };
        states.push((name, float(count)));
    }
    states.push(("parked", float(parked)));
    gauges.by(
        ("oxidask_scheduler_tasks", "Tasks by state", "state"),
        states,
    )?;
    let name = "oxidask_scheduler_tasks_recomputed";
    let help = "Results that were lost and had to be made again";
    let mut metric = gauges
        .0
        .encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, _, f64>(&snapshot.recomputed, None)
}

fn workers(gauges: &mut Gauges<'_>, workers: &[wire::WorkerStatus]) -> fmt::Result {
    let standings = [
        ("active", wire::Standing::Active),
        ("paused", wire::Standing::Paused),
        ("retiring", wire::Standing::Retiring),
        ("empty", wire::Standing::Empty),
        ("suspect", wire::Standing::Suspect),
    ];
    let count = |standing| {
        let of = workers
            .iter()
            .filter(|worker| worker.standing() == standing);
        float(of.count() as u64)
    };
    gauges.by(
        (
            "oxidask_scheduler_workers_by_standing",
            "Workers by how the scheduler regards them",
            "standing",
        ),
        standings.map(|(name, standing)| (name, count(standing))),
    )
}

fn groups(gauges: &mut Gauges<'_>, snapshot: &Snapshot) -> fmt::Result {
    type Read = fn(&oxidask_core::GroupBacklog) -> f64;
    let figures: [(&str, &str, Read); 8] = [
        ("workers", "Workers of a group", |g| f64::from(g.workers)),
        (
            "workers_open",
            "Workers of a group that take new work",
            |g| f64::from(g.workers_open),
        ),
        (
            "workers_wanted",
            "Workers that it would take to finish the group's work within the target time",
            |g| float(g.workers_wanted),
        ),
        (
            "waiting_tasks",
            "Tasks for a group that no worker has",
            |g| float(g.waiting_tasks),
        ),
        (
            "backlog_seconds",
            "Expected run time of those tasks, times the slots that each takes",
            |g| seconds(g.waiting_micros),
        ),
        (
            "placed_seconds",
            "Expected run time of what is on the group's workers, times slots",
            |g| seconds(g.placed_micros),
        ),
        (
            "tail_seconds",
            "How long the worker of the group that has the most to do is busy with it",
            |g| seconds(g.tail_micros),
        ),
        (
            "held_bytes",
            "Bytes of results on the group's workers",
            |g| float(g.held_bytes),
        ),
    ];
    for (name, help, read) in figures {
        let name = format!("oxidask_scheduler_group_{name}");
        let groups = snapshot.backlog.groups.iter().take(GROUPS_MAX);
        let values = groups.map(|group| (group.group.as_str(), read(group)));
        gauges.by((&name, help, "group"), values)?;
    }
    Ok(())
}

fn dask(gauges: &mut Gauges<'_>, snapshot: &Snapshot) -> fmt::Result {
    gauges.one(
        "dask_scheduler_clients",
        "Sessions of clients",
        float(snapshot.clients as u64),
    )?;
    gauges.one(
        "dask_scheduler_desired_workers",
        "Workers that all groups together should have",
        float(snapshot.desired_workers()),
    )?;
    gauges.one(
        "dask_scheduler_task_groups",
        "Groups of tasks",
        float(snapshot.task_groups),
    )?;
    let states = DaskStates::of(snapshot);
    gauges.by(
        ("dask_scheduler_tasks", "Tasks by state", "state"),
        [
            ("released", states.released),
            ("waiting", states.waiting),
            ("no-worker", states.unrunnable),
            ("queued", states.queued),
            ("processing", states.processing),
            ("memory", states.memory),
            ("erred", states.erred),
        ]
        .map(|(state, count)| (state, float(count))),
    )?;
    let loads = DaskLoads::of(&snapshot.workers);
    gauges.by(
        ("dask_scheduler_workers", "Workers by load", "state"),
        [
            ("idle", loads.idle),
            ("partially_saturated", loads.partially_saturated),
            ("saturated", loads.saturated),
            ("paused", loads.paused),
            ("retiring", loads.retiring),
        ]
        .map(|(state, count)| (state, float(count))),
    )?;
    let bytes = snapshot.prefixes.iter();
    gauges.by(
        (
            "dask_scheduler_tasks_output_bytes",
            "Bytes of results that are held, by prefix of the key",
            "task_prefix_name",
        ),
        bytes.map(|prefix| (prefix.name.as_str(), float(prefix.bytes))),
    )
}

/// Tasks by the states that Dask knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DaskStates {
    pub(crate) released: u64,
    pub(crate) waiting: u64,
    pub(crate) unrunnable: u64,
    pub(crate) queued: u64,
    pub(crate) processing: u64,
    pub(crate) memory: u64,
    pub(crate) erred: u64,
}

impl DaskStates {
    /// Ours, as Dask would call them.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let parked = snapshot.cluster.parked;
        let mut states = Self {
            unrunnable: parked,
            ..Self::default()
        };
        for (state, count) in &snapshot.tasks {
            match state {
                TaskState::Waiting => states.waiting += count,
                TaskState::Ready => states.queued += count.saturating_sub(parked),
                TaskState::Assigned | TaskState::Retracting | TaskState::Running => {
                    states.processing += count;
                }
                TaskState::Finished => states.memory += count,
                TaskState::Released => states.released += count,
                TaskState::Failed => states.erred += count,
            }
        }
        states
    }
}

/// Workers by load, as Dask counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DaskLoads {
    pub(crate) idle: u64,
    pub(crate) partially_saturated: u64,
    pub(crate) saturated: u64,
    pub(crate) paused: u64,
    pub(crate) retiring: u64,
}

impl DaskLoads {
    /// Suspects count by what they have to do.
    pub(crate) fn of(workers: &[wire::WorkerStatus]) -> Self {
        let mut loads = Self::default();
        for worker in workers {
            let place = match worker.standing() {
                wire::Standing::Paused => &mut loads.paused,
                wire::Standing::Retiring | wire::Standing::Empty => &mut loads.retiring,
                _ if worker.running + worker.queued == 0 => &mut loads.idle,
                _ if worker.running + worker.queued > worker.slots => &mut loads.saturated,
                _ => &mut loads.partially_saturated,
            };
            *place += 1;
        }
        loads
    }
}

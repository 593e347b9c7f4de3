//! What the scheduler counts about itself.
//!
//! Owns the registry behind `/metrics`. The loop adds to counters as it goes and sets gauges about
//! ten times a second. Labels are bounded: task states only.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use oxidask_core::ClusterSummary;
use oxidask_proto::BUILD;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

type TaskStates = Family<[(&'static str, &'static str); 1], Gauge>;

/// All metrics of the scheduler.
pub(crate) struct Metrics {
    registry: Registry,
    workers: Gauge,
    slots: Gauge,
    clients: Gauge,
    tasks: TaskStates,
    held_bytes: Gauge,
    events: Counter,
    loop_busy: Counter<f64, AtomicU64>,
    slow_peers: Counter,
    relayed_bytes: Counter,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("oxidask_scheduler");
        let metrics = Self {
            workers: Gauge::default(),
            slots: Gauge::default(),
            clients: Gauge::default(),
            tasks: Family::default(),
            held_bytes: Gauge::default(),
            events: Counter::default(),
            loop_busy: Counter::default(),
            slow_peers: Counter::default(),
            relayed_bytes: Counter::default(),
            registry: Registry::default(),
        };
        let build = Info::new(vec![("version", BUILD)]);
        registry.register("build", "The build of this program", build);
        registry.register(
            "workers",
            "Workers that have joined",
            metrics.workers.clone(),
        );
        registry.register("slots", "Slots of all workers", metrics.slots.clone());
        registry.register("clients", "Sessions of clients", metrics.clients.clone());
        registry.register("tasks", "Tasks by state", metrics.tasks.clone());
        let held = metrics.held_bytes.clone();
        registry.register("held_bytes", "Bytes of results that workers hold", held);
        registry.register(
            "events",
            "Events taken by the main loop",
            metrics.events.clone(),
        );
        let busy = metrics.loop_busy.clone();
        registry.register(
            "loop_busy_seconds",
            "Time that the main loop was busy",
            busy,
        );
        let slow = metrics.slow_peers.clone();
        registry.register("slow_peers", "Peers closed because they did not read", slow);
        let relayed = metrics.relayed_bytes.clone();
        registry.register(
            "relayed_bytes",
            "Bytes of results relayed to clients",
            relayed,
        );
        Self {
            registry,
            ..metrics
        }
    }

    /// The loop took this many events.
    pub(crate) fn count_events(&self, events: u64) {
        self.events.inc_by(events);
    }

    /// The loop was busy for this long.
    pub(crate) fn count_busy(&self, time: Duration) {
        self.loop_busy.inc_by(time.as_secs_f64());
    }

    /// A peer was closed because it did not read.
    pub(crate) fn count_slow_peer(&self) {
        self.slow_peers.inc();
    }

    /// Bytes went from a worker through us to a client.
    pub(crate) fn count_relayed(&self, bytes: usize) {
        self.relayed_bytes.inc_by(bytes as u64);
    }

    /// The state of the cluster.
    pub(crate) fn set_cluster(&self, cluster: &ClusterSummary, clients: usize) {
        self.workers.set(gauge(cluster.workers));
        self.slots.set(gauge(cluster.slots));
        self.clients.set(gauge(clients as u64));
        self.held_bytes.set(gauge(cluster.held_bytes));
        for (state, tasks) in [
            ("ready", cluster.ready),
            ("running", cluster.running),
            ("parked", cluster.parked),
        ] {
            self.tasks
                .get_or_create(&[("state", state)])
                .set(gauge(tasks));
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

fn gauge(value: impl Into<u64>) -> i64 {
    i64::try_from(value.into()).unwrap_or(i64::MAX)
}

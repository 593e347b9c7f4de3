//! What the scheduler counts about itself.
//!
//! Owns the registry behind `/metrics`. Whoever does something counts it here as it happens; what
//! can be read off the state of the cluster is not kept but taken from the latest snapshot, which a
//! scrape asks for. Labels are bounded: states, standings, worker groups and task prefixes, never
//! keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oxidask_proto::BUILD;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::figures::Figures;
use crate::look::Snapshot;

/// Upper bounds of the histograms of times, in seconds.
const TIME_BOUNDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

type Seconds = Counter<f64, AtomicU64>;
type Fraction = Gauge<f64, AtomicU64>;

/// All metrics of the scheduler.
pub(crate) struct Metrics {
    registry: Registry,
    figures: Arc<Figures>,
    is_recovering: AtomicBool,
    recovering: Gauge,
    events: Counter,
    rounds: Counter,
    loop_busy: Seconds,
    loop_lag: Histogram,
    slow_peers: Counter,
    relayed_bytes: Counter,
    task_seconds: Seconds,
    log_lines: Counter,
    log_lines_dropped: Counter,
    /// Workers come and go.
    pub(crate) fleet: FleetMetrics,
    /// The journal.
    pub(crate) journal: JournalMetrics,
    /// Dask clients and their keys.
    pub(crate) futures: FuturesMetrics,
}

/// Dask clients and their keys.
#[derive(Debug, Default)]
pub(crate) struct FuturesMetrics {
    /// Clients that are connected.
    pub(crate) clients: Gauge,
    /// Keys that somebody wants.
    pub(crate) keys: Gauge,
}

/// What becomes of workers.
#[derive(Debug, Default)]
pub(crate) struct FleetMetrics {
    /// Workers that joined, also those that came back.
    pub(crate) added: Counter,
    /// Workers that are gone, whatever the reason.
    pub(crate) removed: Counter,
    /// Workers that nobody heard of for a while.
    pub(crate) suspected: Counter,
    /// Suspects that came back in time.
    pub(crate) returned: Counter,
    /// Suspects that did not.
    pub(crate) given_up: Counter,
    /// Workers that were not let in.
    pub(crate) rejected: Counter,
    /// Workers whose belief differed from ours, and was asked for.
    pub(crate) repairs: Counter,
    /// Workers that were drained.
    pub(crate) retired: Counter,
    /// Workers that could not be drained.
    pub(crate) retire_refused: Counter,
}

/// The journal, filled in by whoever writes it.
#[derive(Debug)]
pub(crate) struct JournalMetrics {
    /// Records that were written.
    pub(crate) records: Counter,
    /// Bytes that were written.
    pub(crate) bytes: Counter,
    /// How long a commit took.
    pub(crate) commit_seconds: Histogram,
    /// Age of the oldest record that is not durable.
    pub(crate) lag_seconds: Fraction,
    /// Bytes of all files of the journal.
    pub(crate) size_bytes: Gauge,
    /// Snapshots that were completed.
    pub(crate) snapshots: Counter,
    /// 1 while new graphs are refused because the disk is full or the journal is behind.
    pub(crate) refusing: Gauge,
    /// Records that were replayed at the start.
    pub(crate) replayed: Gauge,
}

impl Default for JournalMetrics {
    fn default() -> Self {
        Self {
            records: Counter::default(),
            bytes: Counter::default(),
            commit_seconds: Histogram::new(TIME_BOUNDS),
            lag_seconds: Fraction::default(),
            size_bytes: Gauge::default(),
            snapshots: Counter::default(),
            refusing: Gauge::default(),
            replayed: Gauge::default(),
        }
    }
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            figures: Arc::default(),
            is_recovering: AtomicBool::new(false),
            recovering: Gauge::default(),
            events: Counter::default(),
            rounds: Counter::default(),
            loop_busy: Seconds::default(),
            loop_lag: Histogram::new(TIME_BOUNDS),
            slow_peers: Counter::default(),
            relayed_bytes: Counter::default(),
            task_seconds: Seconds::default(),
            log_lines: Counter::default(),
            log_lines_dropped: Counter::default(),
            fleet: FleetMetrics::default(),
            journal: JournalMetrics::default(),
            futures: FuturesMetrics::default(),
        };
        let mut registry = Registry::default();
        metrics.register(registry.sub_registry_with_prefix("oxidask_scheduler"));
        metrics.register_dask(registry.sub_registry_with_prefix("dask_scheduler"));
        registry.register_collector(Box::new(Arc::clone(&metrics.figures)));
        metrics.registry = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let build = Info::new(vec![("version", BUILD)]);
        registry.register("build", "The build of this program", build);
        let mut own = Own(registry);
        own.add(
            "recovering",
            "1 while the journal is read",
            &self.recovering,
        );
        own.add("events", "Events taken by the main loop", &self.events);
        own.add("rounds", "Rounds of the main loop", &self.rounds);
        own.timed(
            "loop_busy",
            "Time that the main loop was busy",
            &self.loop_busy,
        );
        let help = "Time that an input waited for the main loop";
        own.timed("loop_lag", help, &self.loop_lag);
        let help = "Peers closed because they did not read";
        own.add("slow_peers", help, &self.slow_peers);
        let help = "Bytes of results relayed to clients";
        own.add("relayed_bytes", help, &self.relayed_bytes);
        own.timed("task", "Time that tasks ran on workers", &self.task_seconds);
        let help = "Lines of logs that workers sent";
        own.add("log_lines", help, &self.log_lines);
        let help = "Lines of logs that did not fit";
        own.add("log_lines_dropped", help, &self.log_lines_dropped);
        let help = "Dask clients that are connected";
        own.add("futures_clients", help, &self.futures.clients);
        let help = "Keys that Dask clients want";
        own.add("futures_keys", help, &self.futures.keys);
        self.register_fleet(&mut own);
        self.register_journal(&mut own);
    }

    fn register_fleet(&self, own: &mut Own<'_>) {
        let fleet = &self.fleet;
        for (name, help, counter) in [
            ("workers_added", "Workers that joined", &fleet.added),
            ("workers_removed", "Workers that are gone", &fleet.removed),
            (
                "workers_suspected",
                "Times that nobody heard of a worker",
                &fleet.suspected,
            ),
            (
                "workers_returned",
                "Suspects that came back in time",
                &fleet.returned,
            ),
            (
                "workers_given_up",
                "Suspects that did not come back in time",
                &fleet.given_up,
            ),
            (
                "workers_rejected",
                "Workers that were not let in",
                &fleet.rejected,
            ),
            (
                "repairs",
                "Times that a worker and the scheduler believed different things",
                &fleet.repairs,
            ),
            (
                "workers_retired",
                "Workers that were drained",
                &fleet.retired,
            ),
            (
                "retirements_refused",
                "Workers that could not be drained",
                &fleet.retire_refused,
            ),
        ] {
            own.add(name, help, counter);
        }
    }

    fn register_journal(&self, own: &mut Own<'_>) {
        let journal = &self.journal;
        let help = "Records written to the journal";
        own.add("journal_records", help, &journal.records);
        let help = "Bytes written to the journal";
        own.add("journal_written_bytes", help, &journal.bytes);
        let help = "Time that a commit of the journal took";
        own.timed("journal_commit", help, &journal.commit_seconds);
        let help = "Age of the oldest record that is not durable yet";
        own.timed("journal_lag", help, &journal.lag_seconds);
        let help = "Bytes of the files of the journal";
        own.add("journal_size_bytes", help, &journal.size_bytes);
        let help = "Snapshots that were completed";
        own.add("journal_snapshots", help, &journal.snapshots);
        let help = "1 while new graphs are refused because of the journal";
        own.add("journal_refusing", help, &journal.refusing);
        let help = "Records that were replayed at the start";
        own.add("journal_replayed_records", help, &journal.replayed);
    }

    /// What Dask's scheduler calls by these names.
    fn register_dask(&self, registry: &mut Registry) {
        let mut dask = Own(registry);
        let fleet = &self.fleet;
        dask.add("workers_added", "Workers that joined", &fleet.added);
        dask.add("workers_removed", "Workers that are gone", &fleet.removed);
        dask.add("tick_count", "Rounds of the main loop", &self.rounds);
    }

    /// The loop took this many events in a round.
    pub(crate) fn count_events(&self, events: u64) {
        self.rounds.inc();
        self.events.inc_by(events);
    }

    /// The loop was busy for this long in a round.
    pub(crate) fn count_busy(&self, time: Duration) {
        self.loop_busy.inc_by(time.as_secs_f64());
        self.figures.note_round(time);
    }

    /// An input waited for this long.
    pub(crate) fn observe_lag(&self, time: Duration) {
        self.loop_lag.observe(time.as_secs_f64());
    }

    /// Tasks ran for this long.
    pub(crate) fn count_task_time(&self, micros: u64) {
        if micros > 0 {
            let seconds = Duration::from_micros(micros).as_secs_f64();
            self.task_seconds.inc_by(seconds);
        }
    }

    /// A peer was closed because it did not read.
    pub(crate) fn count_slow_peer(&self) {
        self.slow_peers.inc();
    }

    /// Bytes went from a worker through us to a client.
    pub(crate) fn count_relayed(&self, bytes: usize) {
        self.relayed_bytes.inc_by(bytes as u64);
    }

    /// Lines of logs came.
    pub(crate) fn count_log_lines(&self, kept: u64, dropped: u64) {
        self.log_lines.inc_by(kept);
        self.log_lines_dropped.inc_by(dropped);
    }

    /// Whether the journal is being read, and work is not taken yet.
    pub(crate) fn set_recovering(&self, is_recovering: bool) {
        self.is_recovering.store(is_recovering, Ordering::Relaxed);
        self.recovering.set(i64::from(is_recovering));
    }

    /// Whether the journal is being read.
    pub(crate) fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::Relaxed)
    }

    /// The state of the cluster.
    pub(crate) fn set_snapshot(&self, snapshot: Arc<Snapshot>, inputs_waiting: usize) {
        self.figures.set(snapshot, inputs_waiting);
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

/// A registry to which metrics are added that others keep a hold of.
struct Own<'a>(&'a mut Registry);

impl Own<'_> {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: &M) {
        self.0.register(name, help, metric.clone());
    }

    fn timed<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: &M) {
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
    }
}

//! The figures of a worker, as Prometheus reads them.

use std::fmt;
use std::sync::atomic::Ordering;

use oxidask_store::Store;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The figures. Cheap to change from the loop, read by the HTTP server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    memory: MemoryFigures,
    pub(crate) tasks_running: Gauge,
    pub(crate) tasks_queued: Gauge,
    pub(crate) tasks_finished: Counter,
    pub(crate) tasks_failed: Counter,
    pub(crate) fetched_bytes: Counter,
    pub(crate) streamed_bytes: Counter,
    pub(crate) stream_requests: Counter,
}

/// Those that are taken from the store when they are read.
#[derive(Debug)]
struct MemoryFigures {
    held_bytes: Gauge,
    limit_bytes: Gauge,
    reserved_bytes: Gauge,
    is_paused: Gauge,
    disk_bytes: Gauge,
    is_disk_full: Gauge,
    spilled_bytes: Counter,
    read_back_bytes: Counter,
    copies_dropped: Counter,
    spill_damaged: Counter,
    failed_writes: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("oxidask_worker");
        let memory = MemoryFigures::new(&mut registry);
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let tasks_running = gauge("tasks_running", "Tasks that run");
        let tasks_queued = gauge(
            "tasks_queued",
            "Tasks that wait for inputs, slots or memory",
        );
        // The text format appends `_total`.
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let tasks_finished = counter("tasks_finished", "Attempts that made a result");
        let tasks_failed = counter("tasks_failed", "Attempts that failed");
        let fetched_bytes = counter(
            "fetched_bytes",
            "Bytes of whole results that were fetched from peers",
        );
        let streamed_bytes = counter(
            "streamed_bytes",
            "Bytes of pieces that running tasks read from peers",
        );
        let stream_requests = counter(
            "stream_requests",
            "Requests for pieces that running tasks made to peers",
        );
        Self {
            registry,
            memory,
            tasks_running,
            tasks_queued,
            tasks_finished,
            tasks_failed,
            fetched_bytes,
            streamed_bytes,
            stream_requests,
        }
    }

    /// The worker has no scheduler.
    pub(crate) fn nothing_runs(&self) {
        self.tasks_running.set(0);
        self.tasks_queued.set(0);
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self, store: &Store) -> Result<String, fmt::Error> {
        self.memory.take_from(store);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl MemoryFigures {
    fn new(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let held_bytes = gauge("held_bytes", "Bytes of results and copies in memory");
        let limit_bytes = gauge("memory_limit_bytes", "Bytes of memory that may be used");
        let reserved_bytes = gauge(
            "memory_reserved_bytes",
            "Bytes of memory that running tasks have taken",
        );
        let is_paused = gauge("paused", "1 while no task starts because memory is short");
        let disk_bytes = gauge("disk_bytes", "Bytes of spilled results on the disk");
        let is_disk_full = gauge("disk_full", "1 while the disk takes no spilled results");
        // The text format appends `_total`.
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            held_bytes,
            limit_bytes,
            reserved_bytes,
            is_paused,
            disk_bytes,
            is_disk_full,
            spilled_bytes: counter("spilled_bytes", "Bytes that were spilled to the disk"),
            read_back_bytes: counter("read_back_bytes", "Bytes that were read back from the disk"),
            copies_dropped: counter(
                "copies_dropped",
                "Copies of peers' results that were dropped because memory was short",
            ),
            spill_damaged: counter(
                "spill_damaged",
                "Spilled results that could not be read back",
            ),
            failed_writes: counter("failed_writes", "Spilled results that could not be written"),
        }
    }

    fn take_from(&self, store: &Store) {
        let (held, pressure, figures) = (store.held(), store.pressure(), store.spill_figures());
        self.held_bytes.set(signed(held.bytes()));
        self.limit_bytes.set(signed(pressure.limit_bytes));
        self.reserved_bytes.set(signed(held.reserved_bytes));
        self.is_paused.set(i64::from(pressure.is_paused));
        self.disk_bytes.set(signed(held.disk_bytes));
        self.is_disk_full.set(i64::from(figures.is_disk_full));
        for (counter, figure) in [
            (&self.spilled_bytes, figures.spilled_bytes),
            (&self.read_back_bytes, figures.read_back_bytes),
            (&self.copies_dropped, figures.copies_dropped),
            (&self.spill_damaged, figures.damaged),
            (&self.failed_writes, figures.failed_writes),
        ] {
            // The store counts; here it is only shown.
            counter.inner().store(figure, Ordering::Relaxed);
        }
    }
}

/// A figure as gauges hold it.
pub(crate) fn signed(figure: impl TryInto<i64>) -> i64 {
    figure.try_into().unwrap_or(i64::MAX)
}

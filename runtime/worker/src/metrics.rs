//! The figures of a worker, as Prometheus reads them.

use std::fmt;

use oxidask_store::Store;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The figures. Cheap to change from the loop, read by the HTTP server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    held_bytes: Gauge,
    pub(crate) tasks_running: Gauge,
    pub(crate) tasks_queued: Gauge,
    pub(crate) tasks_finished: Counter,
    pub(crate) tasks_failed: Counter,
    pub(crate) fetched_bytes: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("oxidask_worker");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let held_bytes = gauge("held_bytes", "Bytes of results and copies that are held");
        let tasks_running = gauge("tasks_running", "Tasks that run");
        let tasks_queued = gauge("tasks_queued", "Tasks that wait for inputs or slots");
        // The text format appends `_total`.
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let tasks_finished = counter("tasks_finished", "Attempts that made a result");
        let tasks_failed = counter("tasks_failed", "Attempts that failed");
        let fetched_bytes = counter("fetched_bytes", "Bytes that were fetched from peers");
        Self {
            registry,
            held_bytes,
            tasks_running,
            tasks_queued,
            tasks_finished,
            tasks_failed,
            fetched_bytes,
        }
    }

    /// The worker has no scheduler.
    pub(crate) fn nothing_runs(&self) {
        self.tasks_running.set(0);
        self.tasks_queued.set(0);
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self, store: &Store) -> Result<String, fmt::Error> {
        self.held_bytes.set(signed(store.held().bytes()));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A figure as gauges hold it.
pub(crate) fn signed(figure: impl TryInto<i64>) -> i64 {
    figure.try_into().unwrap_or(i64::MAX)
}

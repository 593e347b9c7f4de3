//! The figures of a worker, as Prometheus reads them.

use std::fmt;
use std::sync::atomic::Ordering;

use oxidask_store::Store;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::memory::watch::MemoryWatch;

/// The figures. Cheap to change from the loop, read by the HTTP server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    memory: MemoryFigures,
    process: ProcessFigures,
    dask: DaskFigures,
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

/// Those of the whole process and its programs.
#[derive(Debug)]
struct ProcessFigures {
    resident_bytes: Gauge,
    program_bytes: Gauge,
    programs: Gauge,
    used_bytes: Gauge,
    used_limit_bytes: Gauge,
    is_paused: Gauge,
    is_stuck: Gauge,
    is_helpless: Gauge,
    programs_ended: Counter,
    runs_ended: Counter,
}

type Labels = Vec<(&'static str, &'static str)>;

/// What Dask's workers show under the same names.
#[derive(Debug)]
struct DaskFigures {
    memory_bytes: Family<Labels, Gauge>,
    tasks: Family<Labels, Gauge>,
    spill_bytes: Family<Labels, Counter>,
    spill_count: Family<Labels, Counter>,
}

impl Metrics {
    pub(crate) fn new(slots: u32) -> Self {
        let mut all = Registry::default();
        let dask = DaskFigures::new(all.sub_registry_with_prefix("dask_worker"), slots);
        let registry = all.sub_registry_with_prefix("oxidask_worker");
        let memory = MemoryFigures::new(registry);
        let process = ProcessFigures::new(registry);
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
            registry: all,
            memory,
            process,
            dask,
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
    pub(crate) fn text(&self, store: &Store, watch: &MemoryWatch) -> Result<String, fmt::Error> {
        self.memory.take_from(store, watch);
        self.process.take_from(watch);
        let tasks = (self.tasks_running.get(), self.tasks_queued.get());
        self.dask.take_from(store, watch, tasks);
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

    fn take_from(&self, store: &Store, watch: &MemoryWatch) {
        let (held, pressure, figures) = (store.held(), store.pressure(), store.spill_figures());
        self.held_bytes.set(signed(held.bytes()));
        self.limit_bytes.set(signed(pressure.limit_bytes));
        self.reserved_bytes.set(signed(held.reserved_bytes));
        let is_paused = pressure.is_paused || watch.strain_now().is_paused;
        self.is_paused.set(i64::from(is_paused));
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

impl ProcessFigures {
    fn new(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let resident_bytes = gauge(
            "resident_bytes",
            "Bytes of memory of this process and its programs",
        );
        let program_bytes = gauge("program_bytes", "Bytes of memory of programs of exec tasks");
        let programs = gauge("programs", "Programs of exec tasks that run");
        let used_bytes = gauge(
            "memory_used_bytes",
            "Bytes that count against the limit of the whole worker",
        );
        let used_limit_bytes = gauge(
            "memory_used_limit_bytes",
            "The limit against which they count: the worker's or that of its control group",
        );
        let is_paused = gauge(
            "memory_paused",
            "1 while no task starts because the whole worker uses too much memory",
        );
        let is_stuck = gauge(
            "memory_stuck",
            "1 while that will not end by itself: nothing runs, nothing can go to the disk",
        );
        let is_helpless = gauge(
            "memory_helpless",
            "1 while memory runs out and ending what runs would not help",
        );
        // The text format appends `_total`.
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            resident_bytes,
            program_bytes,
            programs,
            used_bytes,
            used_limit_bytes,
            is_paused,
            is_stuck,
            is_helpless,
            programs_ended: counter(
                "memory_programs_ended",
                "Programs of exec tasks that were ended because memory ran out",
            ),
            runs_ended: counter(
                "memory_tasks_ended",
                "Tasks that were cancelled because memory ran out",
            ),
        }
    }

    fn take_from(&self, watch: &MemoryWatch) {
        let (figures, strain) = (&watch.figures, watch.strain_now());
        for (gauge, figure) in [
            (&self.resident_bytes, &figures.resident_bytes),
            (&self.program_bytes, &figures.program_bytes),
            (&self.programs, &figures.programs),
            (&self.used_bytes, &figures.used_bytes),
            (&self.used_limit_bytes, &figures.limit_bytes),
        ] {
            gauge.set(signed(figure.load(Ordering::Relaxed)));
        }
        self.is_paused.set(i64::from(strain.is_paused));
        self.is_stuck.set(i64::from(strain.is_stuck));
        let is_helpless = figures.is_helpless.load(Ordering::Relaxed);
        self.is_helpless.set(i64::from(is_helpless));
        for (counter, figure) in [
            (&self.programs_ended, &figures.programs_ended),
            (&self.runs_ended, &figures.runs_ended),
        ] {
            counter
                .inner()
                .store(figure.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl DaskFigures {
    fn new(registry: &mut Registry, slots: u32) -> Self {
        let threads = Gauge::<i64>::default();
        threads.set(signed(slots));
        registry.register("threads", "Tasks that may run at a time", threads);
        let mut gauges = |name: &str, help: &str| {
            let family = Family::<Labels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let memory_bytes = gauges(
            "memory_bytes",
            "Bytes of results, of other memory of the process, and of results on the disk",
        );
        let tasks = gauges(
            "tasks",
            "Tasks that run and wait, and results that are held",
        );
        let mut counters = |name: &str, help: &str| {
            let family = Family::<Labels, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        Self {
            memory_bytes,
            tasks,
            spill_bytes: counters("spill_bytes", "Bytes to and from the disk"),
            spill_count: counters("spill_count", "Results that went to the disk"),
        }
    }

    fn take_from(&self, store: &Store, watch: &MemoryWatch, (running, queued): (i64, i64)) {
        let (held, spilled) = (store.held(), store.spill_figures());
        let resident_bytes = watch.figures.resident_bytes.load(Ordering::Relaxed);
        let gauge = |family: &Family<Labels, Gauge>, name, value, figure| {
            family.get_or_create(&vec![(name, value)]).set(figure);
        };
        let unmanaged = resident_bytes.saturating_sub(held.bytes());
        for (kind, bytes) in [
            ("managed", held.bytes()),
            ("unmanaged", unmanaged),
            ("spilled", held.disk_bytes),
        ] {
            gauge(&self.memory_bytes, "type", kind, signed(bytes));
        }
        for (state, count) in [
            ("executing", running),
            ("ready", queued),
            ("memory", signed(held.results.saturating_add(held.copies))),
        ] {
            gauge(&self.tasks, "state", state, count);
        }
        for (family, activity, figure) in [
            (&self.spill_bytes, "disk-write", spilled.spilled_bytes),
            (&self.spill_bytes, "disk-read", spilled.read_back_bytes),
            (&self.spill_count, "disk-write", spilled.spilled_files),
        ] {
            let counter = family.get_or_create(&vec![("activity", activity)]);
            counter.inner().store(figure, Ordering::Relaxed);
        }
    }
}

/// A figure as gauges hold it.
pub(crate) fn signed(figure: impl TryInto<i64>) -> i64 {
    figure.try_into().unwrap_or(i64::MAX)
}

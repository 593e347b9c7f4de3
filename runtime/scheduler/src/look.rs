//! What the main loop keeps and does only for those who look at the cluster.
//!
//! Owns the hooks in the loop's round: spans of tasks, who listens to telemetry, since when nothing
//! is to do; and the one snapshot from which HTTP, metrics and telemetry are made. Never changes the
//! core. Without listeners a round costs a few comparisons.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use oxidask_comm::Credentials;
use oxidask_core::{Backlog, ClusterSummary, Event, GraphId, GraphSummary, TaskState};
use oxidask_proto::wire;

use crate::links::{ClientLink, WorkerLink};
use crate::main_loop::MainLoop;
use crate::spans::Spans;
use crate::telemetry::Listeners;
use crate::views;

/// Work that a worker should have at most, to size groups by, unless somebody asks otherwise.
pub(crate) const TARGET_SECONDS: u64 = 5;

/// Groups of tasks that metrics tell apart; the others are counted together.
const PREFIXES_MAX: usize = 100;

/// The name under which the others are counted.
const OTHER_PREFIXES: &str = "(other)";

/// Held by the loop.
pub(crate) struct Watch {
    /// What tasks did lately.
    pub(crate) spans: Spans,
    /// Who is told of changes.
    pub(crate) listeners: Listeners,
    /// When something was to do, or happened to a task, the last time.
    busy_at: Instant,
    /// The same, and a client was there.
    needed_at: Instant,
    /// Of this process, for those who renew them.
    pub(crate) credentials: Option<Credentials>,
    /// Up to this the logs know the names of graphs.
    newest_graph: GraphId,
}

/// Everything about the cluster that is not about one task: copied out at one moment.
pub(crate) struct Snapshot {
    pub(crate) hello: wire::Hello,
    pub(crate) uptime: Duration,
    pub(crate) cluster: ClusterSummary,
    pub(crate) workers: Vec<wire::WorkerStatus>,
    pub(crate) graphs: Vec<GraphSummary>,
    pub(crate) backlog: Backlog,
    pub(crate) tasks: Vec<(TaskState, u64)>,
    pub(crate) prefixes: Vec<Prefix>,
    pub(crate) task_groups: u64,
    pub(crate) clients: usize,
    /// Bytes that wait to be sent to workers and clients.
    pub(crate) outbox_bytes: usize,
    pub(crate) recomputed: u64,
    /// How long nothing has been to do; nothing while something is.
    pub(crate) idle: Option<Duration>,
    pub(crate) spans: usize,
    pub(crate) listeners: usize,
}

/// One group of tasks, over all graphs.
#[derive(Default)]
pub(crate) struct Prefix {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

impl Snapshot {
    /// The workers that all groups together should have.
    pub(crate) fn desired_workers(&self) -> u64 {
        let mut wanted = self.backlog.groups.iter().map(|group| group.workers_wanted);
        let mut sum: u64 = wanted.by_ref().sum();
        if self.backlog.groups.is_empty() {
            sum += unplaced_workers(&self.backlog);
        }
        sum
    }

    /// Seconds since 1970 since which nothing has been to do.
    pub(crate) fn idle_since(&self) -> Option<f64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(now.saturating_sub(self.idle?).as_secs_f64())
    }
}

/// Before a first worker has joined nobody knows how large workers are: one slot each is assumed.
fn unplaced_workers(backlog: &Backlog) -> u64 {
    let target = TARGET_SECONDS * 1_000_000;
    let classes = backlog.unplaceable.iter();
    let (tasks, micros) = classes.fold((0_u64, 0_u64), |(tasks, micros), class| {
        let own = class.ready_tasks + class.waiting_tasks;
        let sum = micros.saturating_add(class.waiting_micros);
        (tasks.saturating_add(own), sum)
    });
    micros.div_ceil(target).max(u64::from(tasks > 0)).min(tasks)
}

impl Watch {
    /// Nobody looks yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            spans: Spans::default(),
            listeners: Listeners::default(),
            busy_at: now,
            needed_at: now,
            credentials: None,
            newest_graph: GraphId(0),
        }
    }
}

impl MainLoop {
    /// Notes what an event says of tasks, before the core takes it.
    pub(crate) fn watch_event(&mut self, event: &Event) {
        if let Event::TaskReported { worker, reports } = event {
            let micros = self.watch.spans.note(*worker, reports, &self.core);
            self.metrics.count_task_time(micros);
        }
    }

    /// At the end of each round.
    pub(crate) fn look_after_round(&mut self, events: u64) {
        if self.watch.listeners.is_due(events > 0) {
            self.tell_listeners();
        }
    }

    /// With each tick: whether something is to do.
    pub(crate) fn look_at_tick(&mut self, cluster: &ClusterSummary) {
        let now = Instant::now();
        if cluster.backlog_micros > 0 {
            self.watch.busy_at = now;
        }
        if cluster.backlog_micros > 0 || self.sessions() > 0 {
            self.watch.needed_at = now;
        }
        self.name_graphs();
    }

    /// Clients that are connected. The one that stands for all Dask clients counts as those.
    pub(crate) fn sessions(&self) -> usize {
        let own = self.clients.values().filter(|link| !link.is_own()).count();
        let of_dask = usize::try_from(self.metrics.futures.clients.get()).unwrap_or(0);
        own + of_dask
    }

    /// How long nothing has been to do and nobody was connected.
    pub(crate) fn unneeded_for(&self) -> Duration {
        self.watch.needed_at.elapsed()
    }

    /// Workers, their work and graphs, as clients are told.
    pub(crate) fn status(&self) -> wire::StatusReply {
        let cluster = self.core.cluster();
        let backlog = self.core.backlog(TARGET_SECONDS);
        let now = self.now();
        let groups = backlog.groups.into_iter();
        let unplaceable = backlog.unplaceable.into_iter();
        wire::StatusReply {
            hello: Some(self.hello.clone()),
            uptime_ms: views::milliseconds(self.started.elapsed()),
            workers: self.worker_statuses(),
            graphs: self.core.graphs().iter().map(views::graph).collect(),
            groups: groups.map(|group| views::group(group, now)).collect(),
            unplaceable: unplaceable.map(views::class).collect(),
            cluster: Some(views::cluster(&cluster)),
            backlog_micros: cluster.backlog_micros,
        }
    }

    /// Log lines of workers name graphs by their numbers.
    fn name_graphs(&mut self) {
        let named = self.watch.newest_graph;
        let Some(newest) = self
            .graphs
            .keys()
            .copied()
            .max()
            .filter(|graph| *graph > named)
        else {
            return;
        };
        for graph in self.core.graphs().iter().filter(|g| g.graph > named) {
            self.logs.name_graph(graph.graph.0, &graph.name);
        }
        self.watch.newest_graph = newest;
    }

    /// Everything, copied out.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let cluster = self.core.cluster();
        let graphs = self.core.graphs();
        let (prefixes, task_groups) = self.prefixes(&graphs);
        let workers = self.workers.values().map(WorkerLink::outbox_bytes);
        let clients = self.clients.values().map(ClientLink::outbox_bytes);
        let idle = (cluster.backlog_micros == 0).then(|| self.watch.busy_at.elapsed());
        Snapshot {
            hello: self.hello.clone(),
            uptime: self.started.elapsed(),
            workers: self.worker_statuses(),
            backlog: self.core.backlog(TARGET_SECONDS),
            tasks: self.core.tasks_by_state(),
            clients: self.sessions(),
            outbox_bytes: workers.chain(clients).sum(),
            recomputed: self.core.recomputed(),
            spans: self.watch.spans.len(),
            listeners: self.watch.listeners.len(),
            idle,
            prefixes,
            task_groups,
            cluster,
            graphs,
        }
    }

    fn prefixes(&self, graphs: &[GraphSummary]) -> (Vec<Prefix>, u64) {
        let mut found: Vec<Prefix> = Vec::new();
        let mut task_groups = 0;
        for graph in graphs {
            let progress = self.core.progress(graph.graph).unwrap_or_default();
            for group in progress.groups {
                task_groups += 1;
                let same = found.iter().position(|prefix| *prefix.name == *group.name);
                let at = same.unwrap_or_else(|| {
                    if found.len() <= PREFIXES_MAX {
                        let is_last = found.len() == PREFIXES_MAX;
                        let name = if is_last { OTHER_PREFIXES } else { &group.name };
                        found.push(Prefix {
                            name: name.to_owned(),
                            ..Prefix::default()
                        });
                    }
                    found.len() - 1
                });
                let prefix = &mut found[at];
                prefix.bytes += group.bytes;
                prefix.done += group.done;
                prefix.failed += group.failed;
            }
        }
        (found, task_groups)
    }
}

#[cfg(test)]
mod tests {
    use oxidask_core::ClassBacklog;

    use super::*;

    fn unplaced(tasks: u64, seconds: u64) -> u64 {
        unplaced_workers(&Backlog {
            unplaceable: vec![ClassBacklog {
                ready_tasks: tasks,
                waiting_micros: seconds * 1_000_000,
                ..ClassBacklog::default()
            }],
            ..Backlog::default()
        })
    }

    #[test]
    fn work_without_any_worker_asks_for_at_least_one_and_not_more_than_tasks() {
        assert_eq!(unplaced(0, 0), 0);
        assert_eq!(unplaced(3, 0), 1);
        assert_eq!(unplaced(100, 11), 3);
        assert_eq!(unplaced(2, 1_000), 2);
    }
}

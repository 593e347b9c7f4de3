//! `Core`: the tables and their public face.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backlog::{self, Backlog};
use crate::chunk::Requirement;
use crate::config::CoreConfig;
use crate::digest::Digest;
use crate::effect::Effect;
use crate::event::Event;
use crate::explain::{self, Explanation};
use crate::fleet::{Fleet, Worker};
use crate::graph::Graph;
use crate::ids::{Attempt, GraphId, IdMap, TaskIndex, TaskRef, Timestamp, WorkerId};
use crate::invariants::{self, Violation};
use crate::notes::Notes;
use crate::place::{self, Classes, Placement};
use crate::react;
use crate::scope::Scope;
use crate::transitions::TaskState;
use crate::view::{
    self, ClusterSummary, GraphProgress, GraphSummary, WorkerStanding, WorkerSummary,
};

/// The scheduler's state. One thread owns it.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) graphs: IdMap<GraphId, Box<Graph>>,
    pub(crate) names: BTreeMap<Arc<str>, GraphId>,
    pub(crate) last_graph: u32,
    pub(crate) last_restored_worker: Option<WorkerId>,
    /// Former workers are waited for until then.
    pub(crate) reunion_until: Option<Timestamp>,
    pub(crate) fleet: Fleet,
    pub(crate) classes: Classes,
    pub(crate) placement: Placement,
    pub(crate) notes: Notes,
}

impl Core {
    /// An empty scheduler.
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            graphs: IdMap::default(),
            names: BTreeMap::new(),
            last_graph: 0,
            last_restored_worker: None,
            reunion_until: None,
            fleet: Fleet::default(),
            classes: Classes::default(),
            placement: Placement::default(),
            notes: Notes::default(),
        }
    }

    /// Takes in one event and appends what is to be done.
    pub fn react(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        self.fleet.now = now;
        react::react(self, event, now, effects);
    }

    /// Hands out work. Called once after each batch of events, and with each tick. Stops after some
    /// milliseconds of work; true if there is more, and it is to be called again soon.
    pub fn place(&mut self, now: Timestamp, effects: &mut Vec<Effect>) -> bool {
        if self.reunion_until.is_some_and(|until| now < until) && self.fleet.suspects > 0 {
            return false;
        }
        self.reunion_until = None;
        self.fleet.now = now;
        place::place(self, now, effects)
    }

    /// Recomputes everything that is kept incrementally and compares. Slow; for tests.
    pub fn invariants(&self) -> Result<(), Violation> {
        invariants::check(self)
    }

    /// Where the task is in its life.
    pub fn state(&self, task: TaskRef) -> Option<TaskState> {
        self.task(task, |graph, task| graph.state[task as usize])
    }

    /// Where the task is, and the attempt whose reports count; nothing while it is on no worker.
    pub fn attempt(&self, task: TaskRef) -> Option<(WorkerId, Attempt)> {
        let epoch = self.config.epoch;
        self.task(task, |graph, task| {
            let worker = WorkerId(graph.worker_or_failure[task as usize]);
            let is_placed = graph.state[task as usize].is_placed();
            is_placed.then(|| (worker, graph.current_attempt(task, epoch)))
        })?
    }

    /// The task's key.
    pub fn key(&self, task: TaskRef) -> Option<&str> {
        self.task(task, Graph::key)
    }

    /// The task's body, an index into its graph's bodies.
    pub fn body(&self, task: TaskRef) -> Option<u32> {
        self.task(task, |graph, task| graph.body[task as usize])
    }

    /// The task's priority, 0 for an unknown task.
    pub fn priority(&self, task: TaskRef) -> i32 {
        self.task(task, |graph, task| graph.priority[task as usize])
            .unwrap_or(0)
    }

    /// The slots that the task asks for, 1 for an unknown task.
    pub fn slots(&self, task: TaskRef) -> u32 {
        let class = self
            .task(task, Graph::class_of)
            .and_then(|class| self.classes.get(class));
        class.map_or(1, |class| class.requirement.slots)
    }

    /// What the task asks of a worker.
    pub fn requirement(&self, task: TaskRef) -> Option<&Requirement> {
        let class = self.task(task, Graph::class_of)?;
        Some(&self.classes.get(class)?.requirement)
    }

    /// The task's inputs in order, with repetitions.
    pub fn inputs(&self, task: TaskRef) -> &[TaskIndex] {
        self.task(task, Graph::inputs).unwrap_or_default()
    }

    /// Workers that hold the task's result.
    pub fn holders(&self, task: TaskRef) -> &[WorkerId] {
        self.task(task, Graph::holders).unwrap_or_default()
    }

    /// Size of the task's result, 0 while there is none.
    pub fn bytes(&self, task: TaskRef) -> u64 {
        self.task(task, |graph, task| graph.bytes[task as usize])
            .unwrap_or(0)
    }

    /// Whether the task's result is there, but only with workers that nobody hears of. It can be
    /// read if they still answer others.
    pub fn is_stranded(&self, task: TaskRef) -> bool {
        self.task(task, Graph::is_stranded).unwrap_or(false)
    }

    /// How the scheduler regards a worker; nothing for an unknown one.
    pub fn standing(&self, worker: WorkerId) -> Option<WorkerStanding> {
        self.fleet.get(worker).map(view::standing)
    }

    /// What the scheduler believes of a worker, to be compared with what the worker says of itself
    /// when nothing is on its way. Costs a look at each of its attempts.
    pub fn digest(&self, worker: WorkerId) -> Option<Digest> {
        let record = self.fleet.get(worker)?;
        let mut digest = record.held_digest;
        for entry in record.entries.iter().flatten() {
            if let Some(graph) = self.graphs.get(&entry.task.graph) {
                let attempt = graph.current_attempt(entry.task.task.0, self.config.epoch);
                digest.add_attempt(entry.task, attempt, entry.state());
            }
        }
        Some(digest)
    }

    /// The work that waits, by worker group and class of requirement, and the workers it takes to
    /// finish it in this time. Costs a look at each worker and each group of tasks.
    pub fn backlog(&self, target_seconds: u64) -> Backlog {
        backlog::backlog(self, target_seconds)
    }

    /// Why the task waits, why it is where it is, or why it failed.
    pub fn explain(&self, task: TaskRef) -> Option<Explanation> {
        explain::explain(self, task)
    }

    /// The task of a graph that has this key. Looks at the length of each key of the graph.
    pub fn find(&self, graph: GraphId, key: &str) -> Option<TaskRef> {
        let tasks = self.graphs.get(&graph)?;
        let found = (0..tasks.len()).find(|task| tasks.key(*task) == key)?;
        let task = TaskIndex(found);
        Some(TaskRef { graph, task })
    }

    /// The name of the group of tasks that the task belongs to.
    pub fn group_name(&self, task: TaskRef) -> Option<&Arc<str>> {
        self.task(task, |graph, task| {
            &graph.groups[usize::from(graph.group[task as usize])].name
        })
    }

    /// How often the task was handed to a worker, 0 for an unknown one.
    pub fn attempts(&self, task: TaskRef) -> u32 {
        self.task(task, |graph, task| graph.attempt[task as usize])
            .unwrap_or(0)
    }

    /// How many tasks of all graphs are in each state, in the order of their lives.
    pub fn tasks_by_state(&self) -> Vec<(TaskState, u64)> {
        let count = |state| self.graphs.values().map(|graph| graph.count(state)).sum();
        let states = TaskState::ALL.into_iter();
        states.map(|state| (state, count(state))).collect()
    }

    /// Tasks that were handed out before, whose results were lost or dropped or not made to the end,
    /// and were asked for again, since the start.
    pub fn recomputed(&self) -> u64 {
        self.fleet.recomputed
    }

    /// How far the graph is.
    pub fn progress(&self, graph: GraphId) -> Option<GraphProgress> {
        self.graphs.get(&graph).map(|graph| view::progress(graph))
    }

    /// All graphs, oldest first.
    pub fn graphs(&self) -> Vec<GraphSummary> {
        view::graphs(self)
    }

    /// All workers, in order of joining.
    pub fn workers(&self) -> Vec<WorkerSummary> {
        view::workers(self)
    }

    /// The cluster as a whole.
    pub fn cluster(&self) -> ClusterSummary {
        view::cluster(self)
    }

    /// Whether a worker has been given more than it can run at a time. Looks at each worker.
    pub fn has_queues(&self) -> bool {
        let mut workers = self.fleet.iter();
        workers.any(|(_, worker)| worker.load > u64::from(worker.slots))
    }

    fn task<'a, T>(&'a self, task: TaskRef, read: impl FnOnce(&'a Graph, u32) -> T) -> Option<T> {
        let graph = self.graphs.get(&task.graph)?;
        graph.has(task.task).then(|| read(graph, task.task.0))
    }

    /// Changes the standing of a worker, and who may give it work.
    pub(crate) fn restand(&mut self, place: u32, change: impl FnOnce(&mut Worker)) {
        self.fleet.restand(place, change);
        if let Some(worker) = self.fleet.at(place) {
            self.classes.worker_changed(place, worker);
        }
    }

    /// A graph with what its tasks touch.
    pub(crate) fn scope<'a>(
        &'a mut self,
        graph: GraphId,
        effects: &'a mut Vec<Effect>,
    ) -> Option<Scope<'a>> {
        Some(Scope {
            graph: self.graphs.get_mut(&graph)?,
            fleet: &mut self.fleet,
            classes: &mut self.classes,
            config: &self.config,
            notes: &mut self.notes,
            effects,
        })
    }
}

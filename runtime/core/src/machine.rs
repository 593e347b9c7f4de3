//! `Core`: the tables and their public face.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::chunk::Requirement;
use crate::config::CoreConfig;
use crate::effect::Effect;
use crate::event::Event;
use crate::fleet::Fleet;
use crate::graph::Graph;
use crate::ids::{GraphId, IdMap, TaskIndex, TaskRef, Timestamp, WorkerId};
use crate::invariants::{self, Violation};
use crate::place::{self, Classes, Placement};
use crate::react;
use crate::scope::Scope;
use crate::transitions::TaskState;
use crate::view::{self, ClusterSummary, GraphProgress, GraphSummary, WorkerSummary};

/// The scheduler's state. One thread owns it.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) graphs: IdMap<GraphId, Box<Graph>>,
    pub(crate) names: BTreeMap<Arc<str>, GraphId>,
    pub(crate) last_graph: u32,
    pub(crate) fleet: Fleet,
    pub(crate) classes: Classes,
    pub(crate) placement: Placement,
}

impl Core {
    /// An empty scheduler.
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            graphs: IdMap::default(),
            names: BTreeMap::new(),
            last_graph: 0,
            fleet: Fleet::default(),
            classes: Classes::default(),
            placement: Placement::default(),
        }
    }

    /// Takes in one event and appends what is to be done.
    pub fn react(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        react::react(self, event, now, effects);
    }

    /// Hands out work. Called once after each batch of events, and with each tick.
    pub fn place(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        place::place(self, now, effects);
    }

    /// Recomputes everything that is kept incrementally and compares. Slow; for tests.
    pub fn invariants(&self) -> Result<(), Violation> {
        invariants::check(self)
    }

    /// Where the task is in its life.
    pub fn state(&self, task: TaskRef) -> Option<TaskState> {
        self.task(task, |graph, task| graph.state[task as usize])
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

    fn task<'a, T>(&'a self, task: TaskRef, read: impl FnOnce(&'a Graph, u32) -> T) -> Option<T> {
        let graph = self.graphs.get(&task.graph)?;
        graph.has(task.task).then(|| read(graph, task.task.0))
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
            effects,
        })
    }
}

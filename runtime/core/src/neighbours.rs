//! What a client of an open-ended graph reads to go on with it: how large it is, which tasks are
//! wanted, and what a failed task was, so that it can be made anew.
//!
//! Only looks.

use std::sync::Arc;

use crate::chunk::Requirement;
use crate::graph::{Graph, NONE};
use crate::ids::{GraphId, TaskIndex, TaskRef, WorkerId};
use crate::machine::Core;

/// Where the next chunk of a graph begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphShape {
    /// The chunk that is expected next.
    pub next_chunk: u32,
    /// Tasks that have arrived.
    pub tasks: u32,
    /// Their edges.
    pub edges: u64,
    /// Bytes of their keys.
    pub key_bytes: u64,
    /// Bodies that have arrived.
    pub bodies: u64,
    /// Names of groups, in order.
    pub groups: Vec<Arc<str>>,
    /// Requirements in order; the first is the default one.
    pub requirements: Vec<Requirement>,
    /// Tasks that the client wants, in order.
    pub wanted: Vec<TaskIndex>,
}

impl Core {
    /// Where the next chunk of a graph begins. Costs a look at each task.
    pub fn shape(&self, graph: GraphId) -> Option<GraphShape> {
        let table = self.graphs.get(&graph)?;
        let wanted = (0..).zip(&table.is_wanted);
        let requirements = table.classes.iter().map(|class| {
            let class = self.classes.get(*class);
            class.map_or_else(Requirement::default, |class| class.requirement.clone())
        });
        Some(GraphShape {
            next_chunk: table.next_chunk,
            tasks: table.len(),
            edges: table.edges() as u64,
            key_bytes: table.key_bytes() as u64,
            bodies: table.bodies,
            groups: table.groups.iter().map(|g| Arc::clone(&g.name)).collect(),
            requirements: requirements.collect(),
            wanted: wanted
                .filter(|(_, is_wanted)| **is_wanted)
                .map(|(task, _)| TaskIndex(task))
                .collect(),
        })
    }

    /// Whether a client wants the task's result.
    pub fn is_wanted(&self, task: TaskRef) -> bool {
        let table = self.table(task);
        table.is_some_and(|table| table.is_wanted[task.task.0 as usize])
    }

    /// The numbers of the task's group and requirement in its graph.
    pub fn numbers(&self, task: TaskRef) -> Option<(u32, u32)> {
        let table = self.table(task)?;
        let at = task.task.0 as usize;
        Some((u32::from(table.group[at]), u32::from(table.requirement[at])))
    }

    /// Tasks that have this one as an input, latest first, with repetitions.
    pub fn consumers(&self, task: TaskRef) -> Vec<TaskIndex> {
        let mut found = Vec::new();
        let Some(table) = self.table(task) else {
            return found;
        };
        let mut edge = table.first_consumer(task.task.0);
        while edge != NONE {
            let (consumer, next) = table.consumer(edge);
            found.push(TaskIndex(consumer));
            edge = next;
        }
        found
    }

    /// Tasks that were handed to a worker and have not ended, in no order.
    pub fn placed(&self, worker: WorkerId) -> Vec<TaskRef> {
        let record = self.fleet.get(worker);
        let entries = record.into_iter().flat_map(|record| &record.entries);
        entries.flatten().map(|entry| entry.task).collect()
    }

    fn table(&self, task: TaskRef) -> Option<&Graph> {
        let table = self.graphs.get(&task.graph)?;
        table.has(task.task).then_some(&**table)
    }
}

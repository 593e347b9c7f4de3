//! A core that begins with what a journal has kept.
//!
//! First [`Core::restore`] for each item in the order in which things happened, then
//! [`Core::begin_restored`] once, before anything else. Every item costs what it is long; all that
//! follows from them (who waits, who is ready, what nobody needs) is found once, at the beginning.
//! Nothing is placed and nothing is said.
//!
//! Items may come twice, and may be about what is gone. Between the two calls the tables are not as
//! the rest of this crate expects: every task counts as waiting, and its state says only whether it
//! has ever finished or has failed.

use std::fmt;
use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::chunk::{GraphChunk, Requirement};
use crate::effect::Effect;
use crate::event::WorkerInfo;
use crate::graph::{Failure, Graph, NONE};
use crate::ids::{ClientId, GraphId, TaskRef, Timestamp, WorkerId};
use crate::machine::Core;
use crate::react::chunk;
use crate::scope::Scope;
use crate::transitions::TaskState;

/// What a journal has kept, given to an empty core in the order in which it happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Restored {
    /// A worker was accepted.
    WorkerJoined {
        /// Its number.
        worker: WorkerId,
        /// What it said of itself.
        info: WorkerInfo,
    },
    /// A worker was lost or given up, with all it held.
    WorkerGone {
        /// Who.
        worker: WorkerId,
    },
    /// A graph was opened for the first time.
    GraphOpened {
        /// The graph.
        graph: GraphId,
        /// Its name space.
        name: Arc<str>,
        /// What nobody needs goes at once.
        is_open_ended: bool,
    },
    /// A chunk was accepted.
    Chunk {
        /// The graph.
        graph: GraphId,
        /// Its position.
        number: u32,
        /// The tasks.
        chunk: Box<GraphChunk>,
    },
    /// A worker has made results.
    Finished {
        /// Who.
        worker: WorkerId,
        /// The tasks, with the bytes and the rows of their results.
        results: Vec<(TaskRef, u64, u64)>,
    },
    /// A worker keeps copies of results.
    CopiesAdded {
        /// Who.
        worker: WorkerId,
        /// The results.
        tasks: Vec<TaskRef>,
    },
    /// A task has failed for good by itself. Those that depend on it follow from that.
    Failed {
        /// The task.
        task: TaskRef,
        /// What the user reads.
        error: Arc<Diagnostic>,
    },
    /// The client does not want these results any more.
    Released {
        /// The tasks.
        tasks: Vec<TaskRef>,
    },
    /// The graph was cancelled by its client.
    Cancelled {
        /// The graph.
        graph: GraphId,
    },
    /// The graph has failed because of a chunk that was refused.
    Refused {
        /// The graph.
        graph: GraphId,
        /// Why.
        error: Arc<Diagnostic>,
    },
    /// Everything of the graph is gone: it was closed, or its client did not come back.
    Closed {
        /// The graph.
        graph: GraphId,
    },
}

/// The items do not fit each other: the journal is not what was written, or something is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreError {
    /// A chunk does not follow the one before it, or cannot be what was accepted.
    Chunk {
        /// The graph.
        graph: GraphId,
        /// The chunk's position.
        number: u32,
        /// What is wrong with it.
        error: Box<Diagnostic>,
    },
    /// Something is said of a task that no chunk has brought.
    UnknownTask {
        /// The task.
        task: TaskRef,
    },
    /// A number was given to two graphs, or a name.
    GraphTwice {
        /// The graph.
        graph: GraphId,
        /// Its name.
        name: Arc<str>,
    },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chunk {
                graph,
                number,
                error,
            } => write!(f, "chunk {number} of graph {graph}: {}", error.message),
            Self::UnknownTask { task } => write!(f, "task {task} is in no chunk"),
            Self::GraphTwice { graph, name } => {
                write!(
                    f,
                    "graph {graph} `{name}` is there under another number or name"
                )
            }
        }
    }
}

impl std::error::Error for RestoreError {}

impl Core {
    /// Takes in one item of a journal, before [`Self::begin_restored`].
    pub fn restore(&mut self, item: Restored) -> Result<(), RestoreError> {
        match item {
            Restored::WorkerJoined { worker, info } => self.restore_worker(worker, info),
            Restored::WorkerGone { worker } => self.restore_loss(worker),
            Restored::GraphOpened {
                graph,
                name,
                is_open_ended,
            } => self.restore_graph(graph, name, is_open_ended)?,
            Restored::Chunk {
                graph,
                number,
                chunk,
            } => self.restore_chunk(graph, number, &chunk)?,
            Restored::Finished { worker, results } => self.restore_results(worker, &results)?,
            Restored::CopiesAdded { worker, tasks } => {
                for task in tasks {
                    self.restore_copy(worker, task)?;
                }
            }
            Restored::Failed { task, error } => self.restore_failure(task, error)?,
            Restored::Released { tasks } => {
                for task in tasks {
                    self.restore_release(task)?;
                }
            }
            Restored::Cancelled { graph } => {
                if let Some(table) = self.graphs.get_mut(&graph) {
                    let error = Arc::new(table.cancellation());
                    end(table, error, false);
                }
            }
            Restored::Refused { graph, error } => {
                if let Some(table) = self.graphs.get_mut(&graph) {
                    end(table, error, true);
                }
            }
            Restored::Closed { graph } => self.restore_closing(graph),
        }
        Ok(())
    }

    /// Goes on from what was restored. Former workers are suspects that hold what the journal says,
    /// graphs wait for a client to open them by name, and new graphs are numbered from `next_graph`,
    /// which is beyond all that were handed out.
    pub fn begin_restored(
        &mut self,
        now: Timestamp,
        next_graph: GraphId,
        effects: &mut Vec<Effect>,
    ) {
        self.last_graph = self.last_graph.max(next_graph.0.saturating_sub(1));
        self.reunion_until = Some(now.plus_micros(self.config.reunion_micros));
        let places: Vec<u32> = self.fleet.iter().map(|(place, _)| place).collect();
        for place in &places {
            self.restand(*place, |worker| worker.suspect_since = Some(now));
        }
        let mut graphs: Vec<GraphId> = self.graphs.keys().copied().collect();
        graphs.sort_unstable();
        for graph in graphs {
            if let Some(mut scope) = self.scope(graph, effects) {
                scope.graph.orphaned_at = now;
                settle(&mut scope);
            }
        }
        let graphs = &self.graphs;
        for worker in self.fleet.iter_mut() {
            let id = worker.id;
            let mut log = std::mem::take(&mut worker.held_log);
            log.retain(|held| {
                let graph = graphs.get(&held.graph);
                graph.is_some_and(|graph| graph.holders(held.task.0).contains(&id))
            });
            worker.held_log.reserve_exact(log.len());
            for held in log {
                let bytes = graphs
                    .get(&held.graph)
                    .map_or(0, |graph| graph.bytes[held.task.0 as usize]);
                worker.hold(held, bytes);
            }
        }
    }

    fn restore_worker(&mut self, worker: WorkerId, info: WorkerInfo) {
        if self.last_restored_worker.is_some_and(|last| worker <= last) {
            return;
        }
        self.last_restored_worker = Some(worker);
        let namesake = self.fleet.iter().find(|(_, other)| other.name == info.name);
        if let Some(other) = namesake.map(|(_, other)| other.id) {
            self.restore_loss(other);
        }
        let place = self.fleet.add(worker, info);
        if let Some(record) = self.fleet.at(place) {
            self.classes.worker_changed(place, record);
        }
    }

    fn restore_loss(&mut self, worker: WorkerId) {
        let Some((place, record)) = self.fleet.remove(worker) else {
            return;
        };
        self.classes.worker_lost(place);
        self.fleet.pools.worker_left(&record);
        for held in &record.held_log {
            if let Some(graph) = self.graphs.get_mut(&held.graph) {
                graph.remove_holder(held.task.0, worker);
            }
        }
    }

    fn restore_graph(
        &mut self,
        graph: GraphId,
        name: Arc<str>,
        is_open_ended: bool,
    ) -> Result<(), RestoreError> {
        let numbered = self.graphs.get(&graph).map(|table| &table.name);
        let named = self.names.get(&name);
        match (numbered, named) {
            // It was closed since.
            (None, _) if graph.0 <= self.last_graph => return Ok(()),
            (None, None) => {}
            (Some(own), Some(number)) if *own == name && *number == graph => return Ok(()),
            _ => return Err(RestoreError::GraphTwice { graph, name }),
        }
        let class = self.classes.enter(&Requirement::default(), &self.fleet);
        let mut table = Graph::new(graph, Arc::clone(&name), ClientId(0), class);
        table.client = None;
        table.is_open_ended = is_open_ended;
        self.graphs.insert(graph, Box::new(table));
        self.names.insert(name, graph);
        self.last_graph = self.last_graph.max(graph.0);
        Ok(())
    }

    fn restore_chunk(
        &mut self,
        graph: GraphId,
        number: u32,
        chunk: &GraphChunk,
    ) -> Result<(), RestoreError> {
        let mut effects = Vec::new();
        let Some(mut scope) = self.scope(graph, &mut effects) else {
            return Ok(());
        };
        if number < scope.graph.next_chunk {
            chunk::restore_wanted(scope.graph, chunk);
            return Ok(());
        }
        chunk::restore(&mut scope, number, chunk).map_err(|error| RestoreError::Chunk {
            graph,
            number,
            error: Box::new(error),
        })
    }

    fn restore_results(
        &mut self,
        worker: WorkerId,
        results: &[(TaskRef, u64, u64)],
    ) -> Result<(), RestoreError> {
        let mut holder = self.fleet.get_mut(worker);
        for results in results.chunk_by(|one, other| one.0.graph == other.0.graph) {
            let Some(graph) = self.graphs.get_mut(&results[0].0.graph) else {
                continue;
            };
            for (task, bytes, rows) in results.iter().copied() {
                let (index, at) = (task.task.0, task.task.0 as usize);
                if !graph.has(task.task) {
                    return Err(RestoreError::UnknownTask { task });
                }
                if graph.state[at] == TaskState::Failed {
                    continue;
                }
                let mut is_new = graph.state[at] != TaskState::Finished;
                if let Some(holder) = &mut holder {
                    is_new = graph.add_holder(index, worker);
                    if is_new {
                        holder.held_log.push(task);
                    }
                }
                if is_new {
                    graph.group_of_mut(index).made(bytes, rows);
                    graph.finishes += 1;
                }
                graph.state[at] = TaskState::Finished;
                graph.bytes[at] = bytes;
            }
        }
        Ok(())
    }

    fn restore_copy(&mut self, worker: WorkerId, task: TaskRef) -> Result<(), RestoreError> {
        let Some(graph) = known(self.graphs.get_mut(&task.graph), task)? else {
            return Ok(());
        };
        if graph.state[task.task.0 as usize] == TaskState::Finished
            && let Some(record) = self.fleet.get_mut(worker)
            && graph.add_holder(task.task.0, worker)
        {
            record.held_log.push(task);
        }
        Ok(())
    }

    fn restore_failure(
        &mut self,
        task: TaskRef,
        error: Arc<Diagnostic>,
    ) -> Result<(), RestoreError> {
        let Some(graph) = known(self.graphs.get_mut(&task.graph), task)? else {
            return Ok(());
        };
        let (index, at) = (task.task.0, task.task.0 as usize);
        if graph.state[at] != TaskState::Failed {
            graph.clear_holders(index);
            graph.state[at] = TaskState::Failed;
            graph.worker_or_failure[at] = position(graph.failures.len());
            graph.failures.push(Failure {
                error,
                origin: index,
            });
        }
        Ok(())
    }

    fn restore_release(&mut self, task: TaskRef) -> Result<(), RestoreError> {
        if let Some(graph) = known(self.graphs.get_mut(&task.graph), task)? {
            let is_wanted = &mut graph.is_wanted[task.task.0 as usize];
            graph.wanted_pending -= u32::from(*is_wanted);
            *is_wanted = false;
        }
        Ok(())
    }

    fn restore_closing(&mut self, graph: GraphId) {
        if let Some(table) = self.graphs.remove(&graph) {
            self.names.remove(&table.name);
            for class in &table.classes {
                self.classes.leave(*class, graph);
            }
        }
    }
}

/// The graph of a task, which it must have; nothing if the graph is gone.
fn known(
    graph: Option<&mut Box<Graph>>,
    task: TaskRef,
) -> Result<Option<&mut Graph>, RestoreError> {
    match graph {
        None => Ok(None),
        Some(graph) if graph.has(task.task) => Ok(Some(graph)),
        Some(_) => Err(RestoreError::UnknownTask { task }),
    }
}

fn position(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(NONE)
}

/// Nothing that has not finished will.
fn end(graph: &mut Graph, error: Arc<Diagnostic>, is_refused: bool) {
    graph.is_sealed = true;
    if graph.ended.is_none() {
        graph.ended = Some(position(graph.failures.len()));
        graph.is_refused = is_refused;
        graph.failures.push(Failure {
            error,
            origin: NONE,
        });
    }
}

/// Finds out how each task of a graph stands. Nobody is heard yet, so every result that is there is
/// stranded, and every input of a task that is to run is missing.
fn settle(scope: &mut Scope<'_>) {
    let count = scope.graph.len();
    let kept = std::mem::take(&mut scope.graph.state);
    scope.graph.state = vec![TaskState::Waiting; kept.len()];
    let doomed = doomed(scope.graph, &kept);
    let states = states(scope.graph, kept, &doomed);
    for task in 0..count {
        let at = task as usize;
        match states[at] {
            TaskState::Failed => {
                scope.graph.worker_or_failure[at] = doomed[at];
                scope.transition(task, TaskState::Failed);
            }
            TaskState::Finished => {
                let bytes = scope.graph.bytes[at];
                let group = scope.graph.group_of_mut(task);
                group.bytes = group.bytes.saturating_add(bytes);
                scope.graph.stranded.insert(task);
                scope.transition(task, TaskState::Finished);
            }
            TaskState::Released => {
                scope.graph.clear_holders(task);
                scope.transition(task, TaskState::Released);
            }
            _ => {
                let inputs = scope.graph.inputs(task).len();
                scope.graph.unfinished.set(at, position(inputs));
                if inputs == 0 {
                    scope.transition(task, TaskState::Ready);
                }
            }
        }
    }
    scope.graph.is_done_told = scope.graph.is_done();
}

/// For each task the failure that it would have if it were to run; empty if there are none.
fn doomed(graph: &Graph, kept: &[TaskState]) -> Vec<u32> {
    if graph.failures.is_empty() {
        return Vec::new();
    }
    let mut doomed = vec![NONE; kept.len()];
    for task in 0..graph.len() {
        let at = task as usize;
        if kept[at] == TaskState::Failed {
            doomed[at] = graph.worker_or_failure[at];
        } else if graph.holders(task).is_empty() {
            let inputs = graph.inputs(task).iter();
            let mut failures = inputs.map(|input| doomed[input.0 as usize]);
            let failed = failures.find(|failure| *failure != NONE);
            doomed[at] = failed.or(graph.ended).unwrap_or(NONE);
        }
    }
    doomed
}

/// What each task comes to, `Waiting` for those that are to run. Consumers come after their inputs,
/// so who needs a result is known when its task is looked at.
fn states(graph: &mut Graph, mut kept: Vec<TaskState>, doomed: &[u32]) -> Vec<TaskState> {
    for task in (0..graph.len()).rev() {
        let at = task as usize;
        let is_needed = graph.consumers_left[at] > 0 || graph.is_wanted[at];
        let is_held = !graph.holders(task).is_empty();
        let has_finished = kept[at] == TaskState::Finished;
        let is_gone = has_finished && (is_held || !is_needed);
        let is_stopped = graph.is_moot(task) && kept[at] != TaskState::Failed;
        let is_doomed = doomed.get(at).is_some_and(|failure| *failure != NONE);
        let state = if has_finished && is_held && !graph.is_unneeded(task) {
            TaskState::Finished
        } else if is_gone || is_stopped {
            TaskState::Released
        } else if is_doomed {
            TaskState::Failed
        } else {
            TaskState::Waiting
        };
        if !state.is_pending() {
            for edge in graph.input_edges(task) {
                let input = graph.input(edge) as usize;
                graph.consumers_left[input] -= 1;
            }
        }
        kept[at] = state;
    }
    kept
}

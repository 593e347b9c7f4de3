//! Events of graphs: opened or attached to, cancelled, closed.

use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::chunk::Requirement;
use crate::effect::Effect;
use crate::graph::Graph;
use crate::ids::{ClientId, GraphId};
use crate::machine::Core;
use crate::restore::Restored;

/// A client opens a graph, or attaches to one that is there.
pub(super) fn opened(
    core: &mut Core,
    client: ClientId,
    (name, is_open_ended): (Arc<str>, bool),
    effects: &mut Vec<Effect>,
) {
    if let Some(graph) = core.names.get(&name).copied() {
        attach(core, client, graph, effects);
        return;
    }
    let Some(number) = core.last_graph.checked_add(1) else {
        return;
    };
    core.last_graph = number;
    let graph = GraphId(number);
    let class = core.classes.enter(&Requirement::default(), &core.fleet);
    let mut table = Graph::new(graph, Arc::clone(&name), client, class);
    table.is_open_ended = is_open_ended;
    core.graphs.insert(graph, Box::new(table));
    core.names.insert(Arc::clone(&name), graph);
    core.notes.note(|| Restored::GraphOpened {
        graph,
        name: Arc::clone(&name),
        is_open_ended,
    });
    effects.push(Effect::GraphAttached {
        client,
        name,
        graph,
        next_chunk: 0,
    });
}

/// The client takes the graph over and hears what it would have heard.
fn attach(core: &mut Core, client: ClientId, graph: GraphId, effects: &mut Vec<Effect>) {
    let Some(mut scope) = core.scope(graph, effects) else {
        return;
    };
    scope.graph.client = Some(client);
    scope.effects.push(Effect::GraphAttached {
        client,
        name: Arc::clone(&scope.graph.name),
        graph,
        next_chunk: scope.graph.next_chunk,
    });
    if let Some(error) = scope.graph.ended_error()
        && scope.graph.is_refused
    {
        scope.effects.push(Effect::GraphRefused {
            client,
            graph,
            error,
        });
    }
    for task in 0..scope.graph.len() {
        let is_origin = scope
            .graph
            .failure(task)
            .is_some_and(|failure| failure.origin == task);
        if is_origin || scope.graph.is_wanted[task as usize] {
            scope.tell_state(task);
        }
    }
    scope.graph.is_done_told = false;
    scope.conclude();
}

/// The graph is to stop; its results stay.
pub(super) fn cancelled(
    core: &mut Core,
    client: ClientId,
    graph: GraphId,
    effects: &mut Vec<Effect>,
) {
    let Some(mut scope) = core.scope(graph, effects) else {
        return;
    };
    if scope.graph.client != Some(client) || scope.graph.ended.is_some() {
        return;
    }
    let error = scope.graph.cancellation();
    scope.notes.note(|| Restored::Cancelled { graph });
    scope.stop(Arc::new(error));
    scope.conclude();
}

/// The client is done with the graph.
pub(super) fn closed(core: &mut Core, client: ClientId, graph: GraphId, effects: &mut Vec<Effect>) {
    if core
        .graphs
        .get(&graph)
        .is_some_and(|table| table.client == Some(client))
    {
        close(core, graph, effects);
    }
}

/// Stops the attempts of a graph and drops its tables. Workers drop its results when they hear
/// that it is forgotten.
pub(super) fn close(core: &mut Core, graph: GraphId, effects: &mut Vec<Effect>) {
    if let Some(mut scope) = core.scope(graph, effects) {
        scope.abandon();
    }
    let Some(table) = core.graphs.remove(&graph) else {
        return;
    };
    core.names.remove(&table.name);
    core.notes.note(|| Restored::Closed { graph });
    core.fleet.copies.forget(graph);
    for worker in core.fleet.iter_mut() {
        worker.held_log.retain(|held| held.graph != graph);
    }
    for class in &table.classes {
        core.classes.leave(*class, graph);
    }
    effects.push(Effect::GraphForgotten { graph });
}

impl Graph {
    /// The error of tasks that a cancellation has ended.
    pub(crate) fn cancellation(&self) -> Diagnostic {
        let message = format!("graph `{}` was cancelled", self.name);
        Diagnostic::new(Code::GraphCancelled, message)
    }
}

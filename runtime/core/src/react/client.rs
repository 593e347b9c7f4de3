//! Events of clients: results they no longer want, and clients that went away.

use crate::effect::Effect;
use crate::ids::{ClientId, GraphId, TaskRef, Timestamp};
use crate::machine::Core;
use crate::react::graph::close;

/// The client no longer wants these results.
pub(super) fn released(
    core: &mut Core,
    client: ClientId,
    tasks: &[TaskRef],
    effects: &mut Vec<Effect>,
) {
    for task in tasks {
        let Some(mut scope) = core.scope(task.graph, effects) else {
            continue;
        };
        if scope.graph.client != Some(client) || !scope.graph.has(task.task) {
            continue;
        }
        let at = task.task.0 as usize;
        if !scope.graph.is_wanted[at] {
            continue;
        }
        scope.graph.is_wanted[at] = false;
        scope.notes.released(*task);
        scope.graph.wanted_pending -= u32::from(scope.graph.state[at].is_pending());
        scope.release_if_unneeded(task.task.0);
        scope.conclude();
    }
}

/// The client's connection ended: its graphs go on for a while.
pub(super) fn lost(core: &mut Core, client: ClientId, now: Timestamp) {
    for graph in core.graphs.values_mut() {
        if graph.client == Some(client) {
            graph.client = None;
            graph.orphaned_at = now;
        }
    }
}

/// Ends the graphs whose client has not come back in time.
pub(super) fn tick(core: &mut Core, now: Timestamp, effects: &mut Vec<Effect>) {
    let grace = core.config.client_grace_micros;
    let mut expired: Vec<GraphId> = core
        .graphs
        .values()
        .filter(|graph| graph.client.is_none() && now.micros_since(graph.orphaned_at) >= grace)
        .map(|graph| graph.id)
        .collect();
    expired.sort_unstable();
    for graph in expired {
        close(core, graph, effects);
    }
}

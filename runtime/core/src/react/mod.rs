//! Reactions: one module for each family of events.
//!
//! A reaction changes the tables and says what follows; it never places a task. An event that
//! names something unknown, or something of another client, changes nothing.

mod chunk;
mod client;
mod graph;
mod report;
mod worker;

use crate::effect::Effect;
use crate::event::Event;
use crate::ids::Timestamp;
use crate::machine::Core;

/// Takes in one event.
pub(crate) fn react(core: &mut Core, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
    match event {
        Event::GraphOpened { client, name } => graph::opened(core, client, name, effects),
        Event::ChunkArrived {
            client,
            graph,
            number,
            chunk,
        } => {
            chunk::arrived(core, (client, graph, number), &chunk, effects);
        }
        Event::ResultsReleased { client, tasks } => {
            client::released(core, client, &tasks, effects);
        }
        Event::GraphCancelled { client, graph } => graph::cancelled(core, client, graph, effects),
        Event::GraphClosed { client, graph } => graph::closed(core, client, graph, effects),
        Event::ClientLost { client } => client::lost(core, client, now),
        Event::WorkerJoined { worker, info } => worker::joined(core, worker, info, effects),
        Event::WorkerLost { worker, loss } => worker::lost(core, worker, &loss, effects),
        Event::TaskReported { worker, reports } => {
            report::reported(core, worker, reports, effects);
        }
        Event::CopiesAdded { worker, tasks } => {
            report::copies_added(core, worker, &tasks, effects);
        }
        Event::CopiesMissing { worker, tasks } => {
            report::copies_missing(core, worker, &tasks, effects);
        }
        Event::Tick => client::tick(core, now, effects),
    }
}

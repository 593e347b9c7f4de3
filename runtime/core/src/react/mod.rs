//! Reactions: one module for each family of events.
//!
//! A reaction changes the tables and says what follows; it never places a task. An event that
//! names something unknown, or something of another client, changes nothing.

pub(crate) mod chunk;
mod client;
mod graph;
mod report;
mod retire;
mod suspect;
mod worker;

use crate::effect::Effect;
use crate::event::Event;
use crate::ids::Timestamp;
use crate::machine::Core;

/// Takes in one event.
pub(crate) fn react(core: &mut Core, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
    match event {
        Event::GraphOpened {
            client,
            name,
            is_open_ended,
        } => graph::opened(core, client, (name, is_open_ended), effects),
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
        Event::TaskReported { worker, reports } => {
            report::reported(core, worker, reports, effects);
        }
        Event::Tick => {
            client::tick(core, now, effects);
            suspect::tick(core, now, effects);
            worker::tick(core, now);
        }
        other => react_to_worker(core, other, now, effects),
    }
}

/// Events about the standing of workers and about copies.
fn react_to_worker(core: &mut Core, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
    match event {
        Event::WorkerJoined { worker, info } => worker::joined(core, worker, info, effects),
        Event::WorkerLost { worker, loss } => worker::lost(core, worker, &loss, effects),
        Event::WorkerSuspected { worker } => suspect::suspected(core, worker, now, effects),
        Event::WorkerReturned { worker, inventory } => {
            suspect::returned(core, worker, &inventory, effects);
        }
        Event::WorkerPaused { worker, is_paused } => {
            retire::paused(core, worker, is_paused, effects);
        }
        Event::WorkersRetiring {
            workers,
            deadline_micros,
        } => {
            let deadline = now.plus_micros(deadline_micros);
            retire::retiring(core, &workers, deadline, effects);
        }
        Event::RetirementCancelled { workers } => retire::cancelled(core, &workers),
        Event::CopiesAdded { worker, tasks } => {
            report::copies_added(core, worker, &tasks, effects);
        }
        Event::CopiesMissing { worker, tasks } => {
            report::copies_missing(core, worker, &tasks, effects);
        }
        Event::TaskHopeless { task, error } => report::hopeless(core, task, error, effects),
        Event::CopiesFailed { worker, tasks } => retire::copies_failed(core, worker, &tasks),
        // Taken by `react`.
        _ => {}
    }
}

//! Where the main loop meets its journal.
//!
//! Owns the choice of what is put on record when events come and effects go, and what becomes of
//! inputs while the disk is full or slow: a graph that is new is refused, because nothing of it is
//! lost; a part of a graph that is there waits, and with it whatever its client says afterwards.
//! Without a journal every hook does nothing.

use oxidask_core::{ClientId, Effect, Event, GraphId};
use oxidask_proto::fault::to_status;
use oxidask_proto::wire;

use super::keep::Keeper;
use super::recover::Beginning;
use crate::bodies::BodiesSent;
use crate::input::Input;
use crate::main_loop::MainLoop;

/// Bytes counted for an acknowledgement.
const ACCEPTED_BYTES: usize = 32;

impl MainLoop {
    /// Goes on from what was recovered: its workers are suspects until they come back.
    pub(crate) fn begin(mut self, beginning: Beginning) -> Self {
        self.core = beginning.core;
        self.graphs = beginning.graphs;
        self.journal = beginning.keeper;
        self.watch_uploads();
        self.commands
            .restore(self.hello.epoch, beginning.commands.into_values());
        for (worker, hello) in beginning.workers {
            self.add_former(worker, hello);
            // It may have bodies of any of them, and must hear when a graph ends.
            if let Some(link) = self.workers.get_mut(&worker) {
                let graphs = self.graphs.keys();
                link.graphs
                    .extend(graphs.map(|graph| (*graph, BodiesSent::default())));
            }
        }
        let mut effects = Vec::new();
        let now = self.now();
        self.core
            .begin_restored(now, beginning.next_graph, &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        self
    }

    /// After the core has reacted to something, and before its effects are carried out: puts on
    /// record what the core has noted.
    pub(crate) fn journal_notes(&mut self) {
        let Some(keeper) = &mut self.journal else {
            return;
        };
        for note in self.core.notes().drain(..) {
            keeper.note(note, |worker| {
                self.workers.get(&worker).map(|link| &link.hello)
            });
        }
    }

    /// A chunk was accepted for the first time.
    pub(crate) fn journal_chunk(&mut self, graph: GraphId, message: &[u8]) {
        if let Some(keeper) = &mut self.journal {
            keeper.chunk(graph, message);
        }
    }

    /// Before an effect is carried out; true if that has to wait, and is seen to.
    pub(crate) fn journal_effect(&mut self, effect: &Effect) -> bool {
        let Some(keeper) = &mut self.journal else {
            return false;
        };
        match effect {
            Effect::GraphAttached { client, graph, .. } => {
                if keeper.gates(*client, *graph)
                    && let Some(link) = self.clients.get_mut(client)
                {
                    link.gate(true);
                }
            }
            Effect::ChunkAccepted {
                client,
                graph,
                number,
            } => {
                let (graph, number) = (graph.0, *number);
                return keeper.holds_accepted(*client, wire::ChunkAccepted { graph, number });
            }
            _ => {}
        }
        false
    }

    /// An input that may be taken now. Others are kept for later, or refused.
    pub(crate) fn journal_admit(&mut self, input: Input) -> Option<Input> {
        let Some(keeper) = &mut self.journal else {
            return Some(input);
        };
        match &input {
            Input::Chunk(chunk)
                if keeper.has_stalled() || !keeper.takes_chunk(chunk.message.len()) =>
            {
                return keeper.stall(input);
            }
            Input::Events(events) => {
                let client = events.first().and_then(client_of);
                if let Some(client) = client
                    && keeper.has_stalled()
                    && keeper.stalled().any(|input| is_from(input, client))
                {
                    return keeper.stall(input);
                }
                if let Some(Event::GraphOpened { client, name, .. }) = events.first()
                    && let Some(refusal) = keeper.refusal(name)
                {
                    if let Some(link) = self.clients.get_mut(client) {
                        link.end(to_status(&refusal));
                    }
                    return None;
                }
            }
            _ => {}
        }
        Some(input)
    }

    /// The next input that had to wait and may be taken now.
    pub(crate) fn journal_resumed(&mut self) -> Option<Input> {
        self.journal.as_mut()?.next_stalled()
    }

    /// At the end of a round: its records go to the disk, and what was promised and is durable now
    /// goes to the clients.
    pub(crate) fn journal_round(&mut self) {
        self.journal_notes();
        let Some(keeper) = &mut self.journal else {
            return;
        };
        keeper.hand_over();
        keeper.wait();
        while let Some(client) = keeper.next_ungated() {
            if let Some(link) = self.clients.get_mut(&client) {
                link.gate(false);
                self.clients_to_flush.push(client);
            }
        }
        while let Some((client, accepted)) = self.journal.as_mut().and_then(Keeper::next_accepted) {
            self.tell_client(client, ACCEPTED_BYTES, |batch| {
                batch.accepted.push(accepted);
            });
        }
        self.tell_of_journal();
    }

    /// Tells clients in a line when the journal cannot be written, and when it can again.
    fn tell_of_journal(&mut self) {
        let Some(keeper) = &mut self.journal else {
            return;
        };
        let changes = keeper.health.changes();
        if changes == keeper.changes_seen {
            return;
        }
        keeper.changes_seen = changes;
        let text = match keeper.health.trouble() {
            Some(trouble) => format!(
                "{}: {}; running work goes on, new work waits",
                trouble.code, trouble.message
            ),
            None => "the journal is written again".to_owned(),
        };
        let clients: Vec<ClientId> = self.clients.keys().copied().collect();
        for client in clients {
            let text = text.clone();
            self.tell_client(client, text.len(), |batch| {
                batch.notices.push(wire::Notice { text });
            });
        }
    }
}

fn client_of(event: &Event) -> Option<ClientId> {
    match event {
        Event::GraphOpened { client, .. }
        | Event::ResultsReleased { client, .. }
        | Event::GraphCancelled { client, .. }
        | Event::GraphClosed { client, .. }
        | Event::ClientLost { client } => Some(*client),
        _ => None,
    }
}

fn is_from(input: &Input, client: ClientId) -> bool {
    match input {
        Input::Chunk(chunk) => chunk.client == client,
        Input::Events(events) => events.first().and_then(client_of) == Some(client),
        _ => false,
    }
}

//! Keys, the clients that want them, and the graph that makes them.
//!
//! Owns which client wants which key, the task that makes a key, and what clients are told.
//! [`Futures::react`] changes state and appends effects; the shell is a client of the core for all
//! of them together. Never opens a body or a value, never decides where a task runs.
//!
//! Invariants: a task is wanted in the core exactly while some client wants its key; a key that
//! nobody wants has no entry, and is made anew if it is submitted again; every wanted key has a task
//! in the core or is told as lost, cancelled or failed, so that nobody waits for ever; what reaches
//! the core was checked, because a chunk that it refuses would end the graph of all clients.

mod client;
mod command;
mod event;
mod graph;
mod submit;
mod table;

pub use event::{
    Cancel, Command, Connection, Effect, Event, KeyEvent, NewChunk, Regrown, RegrownTask,
    RestoredGraph, SmallValue, Submission,
};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use oxidask_core::{GraphId, TaskIndex, TaskRef, Timestamp};
use oxidask_diagnostic::{Code, Diagnostic};

use client::{Clients, NAMED, UNKNOWN};
use graph::TaskGraph;
use table::{Fixed, KeyId, KeyState, KeyTable, Slot};

/// How long the keys of a client that vanished stay; as long as graphs stay without their client.
pub const CLIENT_GRACE_MICROS: u64 = 60_000_000;
/// How long somebody may want a key before its submission comes, by another way.
pub const AWAITED_MICROS: u64 = 5_000_000;
/// Keys that are wanted before their submission comes.
pub const AWAITED_KEYS_MAX: usize = 100_000;
/// A graph with more tasks is left when nobody wants anything.
pub const GRAPH_TASKS_LEFT: u32 = 100_000;
/// Clients at a time, with those whose keys wait for them.
pub const CLIENTS_MAX: usize = 10_000;
/// Keys that are wanted at a time.
pub const KEYS_MAX: usize = 50_000_000;
/// Groups of tasks (key prefixes) that a graph tells apart.
pub const GROUPS_MAX: usize = 1_000;
/// The group of the others.
pub const OTHER_GROUP: &str = "other";
/// Different requirements of one graph.
pub const REQUIREMENTS_MAX: usize = 1_000;
/// Bytes of one submission.
pub const SUBMISSION_BYTES_MAX: usize = 60 * 1024 * 1024;
/// Bytes of the name of a client.
pub const CLIENT_NAME_BYTES_MAX: usize = 1_024;
/// Names of graphs begin with it.
pub const GRAPH_NAME_PREFIX: &str = "futures-";

/// The code of a value that was put by a client and is gone with its worker: it cannot be made
/// again, so its key is told as lost.
const VALUE_LOST: u16 = 344;

/// Keys and clients.
#[derive(Debug, Default)]
pub struct Futures {
    clients: Clients,
    keys: KeyTable,
    graph: Option<TaskGraph>,
    /// Why there is no graph, if one could not be opened.
    trouble: Option<Arc<Diagnostic>>,
    /// The number of the graph after this one.
    next_name: u64,
    /// Chunks that were sent and accepted, of all graphs.
    chunks_sent: u64,
    chunks_accepted: u64,
    /// Commands that are acknowledged when so many chunks are accepted.
    unacknowledged: VecDeque<(u64, Slot, u64)>,
    /// Keys that somebody wants and nobody has submitted.
    awaited: HashMap<Arc<str>, Vec<(Slot, Timestamp)>, Fixed>,
}

impl Futures {
    /// Nobody is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something happens.
    pub fn react(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        match event {
            Event::Joined {
                connection,
                name,
                is_back,
                wanted,
            } => self.joined(connection, &name, (is_back, &wanted), now, effects),
            Event::Said {
                connection,
                number,
                command,
            } => self.said((connection, number), command, now, effects),
            Event::Left {
                connection,
                is_clean,
            } => {
                if let Some(slot) = self.clients.disconnect(connection, now)
                    && is_clean
                {
                    self.forget_clients(&[slot], effects);
                }
            }
            Event::GraphOpened { graph, name } => self.graph_opened(graph, &name, effects),
            Event::GraphUnavailable { error } => self.trouble = Some(error),
            Event::Restored(known) => self.restored(&known, now, effects),
            Event::ChunkAccepted { graph, number } => self.accepted(graph, number, effects),
            Event::GraphRefused { graph, error } => self.refused(graph, &error, effects),
            Event::TaskReady { task, bytes, value } => {
                self.changed(task, KeyState::Ready(bytes), value, effects);
            }
            Event::TaskFailed { task, error } => {
                self.changed(task, KeyState::Failed(error), None, effects);
            }
            Event::Placed { client, submission } => {
                if let Some(slot) = self.clients.named(&client) {
                    self.submit(slot, &submission, effects);
                }
            }
            Event::Named { key, is_named } => self.named(&key, is_named, now, effects),
            Event::Restarted => self.restart(effects),
            Event::Tick => self.tick(now, effects),
        }
    }

    // ---- what the shell may see ----

    /// Whether a graph must be opened before the next submission is taken.
    pub fn needs_graph(&self) -> bool {
        match &self.graph {
            None => true,
            Some(graph) => self.keys.len() == 0 && graph.tasks > GRAPH_TASKS_LEFT,
        }
    }

    /// The name of the next graph.
    pub fn next_graph_name(&self) -> String {
        format!("{GRAPH_NAME_PREFIX}{}", self.next_name.max(1))
    }

    /// The graph that tasks are in.
    pub fn graph(&self) -> Option<GraphId> {
        self.graph.as_ref().map(|graph| graph.id)
    }

    /// Clients that are connected.
    pub fn clients_connected(&self) -> usize {
        self.clients.connected()
    }

    /// Clients that are connected or may come back.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Keys that somebody wants.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// The stream of a client.
    pub fn connection_of(&self, client: &str) -> Option<Connection> {
        let slot = self.clients.named(client)?;
        self.clients.get(slot)?.connection
    }

    /// The name of the client at a stream.
    pub fn name_of(&self, connection: Connection) -> Option<Arc<str>> {
        let slot = self.clients.of(connection)?;
        Some(Arc::clone(&self.clients.get(slot)?.name))
    }

    /// Whether a client of this name is there or may come back.
    pub fn has_client(&self, client: &str) -> bool {
        self.clients.named(client).is_some()
    }

    /// The task of a key that somebody wants.
    pub fn task_of(&self, key: &str) -> Option<TaskRef> {
        self.keys.get(self.keys.find(key)?).map(|entry| entry.task)
    }

    /// The keys that somebody wants, with their tasks, in no order.
    pub fn tasks(&self) -> impl Iterator<Item = (&str, TaskRef)> {
        self.keys.iter().map(|(_, entry)| (&*entry.key, entry.task))
    }

    // ---- clients ----

    fn joined(
        &mut self,
        connection: Connection,
        name: &str,
        (is_back, wanted): (bool, &[String]),
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.clients.named(name);
        let is_full = known.is_none() && self.clients.len() >= CLIENTS_MAX;
        if is_full || name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX {
            let message = if is_full {
                format!("{CLIENTS_MAX} clients of Dask are connected already")
            } else {
                "a client of Dask gave no name, or one that is too long".to_owned()
            };
            let error = Arc::new(Diagnostic::new(Code::SubmissionRefused, message));
            effects.push(Effect::HangUp { connection, error });
            return;
        }
        if let Some(slot) = known
            && !is_back
        {
            // Another client that took the same name, or one that has forgotten what it wanted.
            self.hang_up(slot, effects);
            self.forget_clients(&[slot], effects);
        }
        let known = known.filter(|_| is_back);
        let slot = known.unwrap_or_else(|| self.clients.add(name));
        if known.is_some() {
            self.hang_up(slot, effects);
        }
        self.clients.connect(slot, connection);
        if is_back {
            self.take_back(slot, wanted, now, effects);
        }
    }

    fn hang_up(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        let before = self.clients.get(slot).and_then(|client| client.connection);
        if let Some(connection) = before {
            let message = "the client has connected again, and this connection ends";
            let error = Arc::new(Diagnostic::new(Code::SubmissionRefused, message));
            effects.push(Effect::HangUp { connection, error });
            self.clients.disconnect(connection, Timestamp::default());
        }
    }

    /// A client that is back wants exactly these.
    fn take_back(
        &mut self,
        slot: Slot,
        wanted: &[String],
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.clients.get_mut(slot);
        let before = before.map(|client| std::mem::take(&mut client.wanted));
        for key in wanted {
            self.want_key(slot, key, now, effects);
        }
        let mut before: Vec<KeyId> = before.unwrap_or_default().into_iter().collect();
        let kept = self.clients.get(slot).map(|client| &client.wanted);
        before.retain(|id| kept.is_none_or(|kept| !kept.contains(id)));
        self.drop_wants(slot, before, effects);
    }

    /// These clients will not come back: nobody wants for them.
    fn forget_clients(&mut self, slots: &[Slot], effects: &mut Vec<Effect>) {
        for slot in slots {
            let Some(client) = self.clients.remove(*slot) else {
                continue;
            };
            self.drop_wants(*slot, client.wanted.into_iter().collect(), effects);
            if !client.name.is_empty() {
                effects.push(Effect::ClientGone { name: client.name });
            }
        }
        self.awaited.retain(|_, wanters| {
            wanters.retain(|(slot, _)| !slots.contains(slot));
            !wanters.is_empty()
        });
    }

    /// What clients coordinate by names a key, or no longer.
    fn named(&mut self, key: &str, is_named: bool, now: Timestamp, effects: &mut Vec<Effect>) {
        self.clients.add_named();
        if is_named {
            self.want_key(NAMED, key, now, effects);
        } else {
            self.release(NAMED, &[key.to_owned()], effects);
        }
    }

    /// A client no longer wants these; those that nobody wants go.
    fn drop_wants(&mut self, slot: Slot, mut keys: Vec<KeyId>, effects: &mut Vec<Effect>) {
        keys.sort_unstable();
        let tasks: Vec<TaskRef> = keys
            .into_iter()
            .filter_map(|id| {
                if let Some(client) = self.clients.get_mut(slot) {
                    client.wanted.remove(&id);
                }
                self.keys.remove_wanter(id, slot)
            })
            .collect();
        if !tasks.is_empty() {
            effects.push(Effect::Release { tasks });
        }
    }

    fn tick(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let is_over = |slot: &Slot| {
            self.clients.get(*slot).is_some_and(|client| {
                *slot != NAMED
                    && client.connection.is_none()
                    && now.micros_since(client.gone_at) >= CLIENT_GRACE_MICROS
            })
        };
        let over: Vec<Slot> = self.clients.slots().into_iter().filter(is_over).collect();
        if !over.is_empty() {
            self.forget_clients(&over, effects);
        }
        let mut lost = Vec::new();
        self.awaited.retain(|key, wanters| {
            wanters.retain(|(slot, until)| {
                let is_waiting = now < *until;
                if !is_waiting {
                    lost.push((*slot, Arc::clone(key)));
                }
                is_waiting
            });
            !wanters.is_empty()
        });
        lost.sort_unstable();
        for (slot, key) in lost {
            self.tell(slot, &key, KeyEvent::Lost, effects);
        }
    }

    // ---- the graph ----

    fn graph_opened(&mut self, graph: GraphId, name: &str, effects: &mut Vec<Effect>) {
        self.note_name(name);
        if self.graph.as_ref().is_some_and(|known| known.id == graph) {
            return;
        }
        if let Some(before) = self.graph.take() {
            effects.push(Effect::CloseGraph { graph: before.id });
        }
        self.begin_graph(TaskGraph::new(graph, self.chunks_sent), effects);
    }

    fn begin_graph(&mut self, graph: TaskGraph, effects: &mut Vec<Effect>) {
        self.keys.begin_graph(graph.id);
        self.graph = Some(graph);
        // Nothing of the graph before is waited for: nobody wants any of it.
        self.chunks_accepted = self.chunks_sent;
        self.acknowledge(effects);
    }

    fn note_name(&mut self, name: &str) {
        let number = name.strip_prefix(GRAPH_NAME_PREFIX);
        let number: Option<u64> = number.and_then(|number| number.parse().ok());
        let after = number.map_or(1, |number| number.saturating_add(1));
        self.next_name = self.next_name.max(after);
    }

    /// A graph from before a restart. Its keys stay for a grace time, for clients that come back.
    fn restored(&mut self, known: &RestoredGraph, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(graph) = known.graph else {
            return;
        };
        self.note_name(&known.name);
        let mut table = TaskGraph::restored(graph, known);
        // So that the sum of both is the number of chunks that were sent of this graph.
        table.chunks_before = 0;
        self.chunks_sent = u64::from(known.next_chunk);
        self.begin_graph(table, effects);
        self.clients.add_unknown(now);
        let mut superseded = Vec::new();
        // The newest task of a key counts.
        for (key, task) in known.wanted.iter().rev() {
            let task = table::task_ref(graph, task.0);
            if self.keys.find(key).is_some() {
                superseded.push(task);
                continue;
            }
            let id = self.keys.insert(key, task, UNKNOWN);
            if let Some(client) = self.clients.get_mut(UNKNOWN) {
                client.wanted.insert(id);
            }
        }
        if !superseded.is_empty() {
            effects.push(Effect::Release { tasks: superseded });
        }
    }

    fn accepted(&mut self, graph: GraphId, number: u32, effects: &mut Vec<Effect>) {
        let Some(known) = self.graph.as_ref().filter(|known| known.id == graph) else {
            return;
        };
        let accepted = known.chunks_before + u64::from(number) + 1;
        self.chunks_accepted = self.chunks_accepted.max(accepted);
        self.acknowledge(effects);
    }

    fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        while let Some((chunks, slot, number)) = self.unacknowledged.front().copied() {
            if chunks > self.chunks_accepted {
                return;
            }
            self.unacknowledged.pop_front();
            let Some(client) = self.clients.get_mut(slot) else {
                continue;
            };
            client.acknowledged = client.acknowledged.max(number);
            if let Some(connection) = client.connection {
                effects.push(Effect::Acknowledge { connection, number });
            }
        }
    }

    /// The core has ended the graph: everything in it that is not there fails.
    fn refused(&mut self, graph: GraphId, error: &Arc<Diagnostic>, effects: &mut Vec<Effect>) {
        if self.graph.as_ref().is_none_or(|known| known.id != graph) {
            return;
        }
        let pending = self.keys.iter().filter(|(_, entry)| {
            entry.task.graph == graph && !matches!(entry.state, KeyState::Failed(_))
        });
        let pending: Vec<TaskRef> = pending.map(|(_, entry)| entry.task).collect();
        for task in pending {
            self.changed(task, KeyState::Failed(Arc::clone(error)), None, effects);
        }
        self.graph = None;
        self.chunks_accepted = self.chunks_sent;
        self.acknowledge(effects);
        effects.push(Effect::CloseGraph { graph });
    }

    /// All keys go, for all clients.
    fn restart(&mut self, effects: &mut Vec<Effect>) {
        self.keys = KeyTable::default();
        self.awaited.clear();
        for slot in self.clients.slots() {
            let Some(client) = self.clients.get_mut(slot) else {
                continue;
            };
            client.wanted.clear();
            if let Some(connection) = client.connection {
                effects.push(Effect::TellRestarted { connection });
            }
        }
        if let Some(graph) = self.graph.take() {
            effects.push(Effect::CloseGraph { graph: graph.id });
        }
        self.chunks_accepted = self.chunks_sent;
        self.acknowledge(effects);
    }

    // ---- telling ----

    fn changed(
        &mut self,
        task: TaskRef,
        state: KeyState,
        value: Option<SmallValue>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(id) = self.keys.of_task(task) else {
            return;
        };
        if let Some(entry) = self.keys.get_mut(id) {
            entry.state = state;
        }
        let Some(entry) = self.keys.get(id) else {
            return;
        };
        if let Some(event) = state_event(&entry.state, entry.task, value) {
            for slot in entry.wanters.slots() {
                self.tell(*slot, &entry.key, event.clone(), effects);
            }
        }
    }

    fn tell(&self, slot: Slot, key: &Arc<str>, event: KeyEvent, effects: &mut Vec<Effect>) {
        let client = self.clients.get(slot);
        if let Some(connection) = client.and_then(|client| client.connection) {
            effects.push(Effect::Tell {
                connection,
                key: Arc::clone(key),
                event,
            });
        }
    }

    /// Whether everything fits together; for tests.
    pub fn check(&self) -> Result<(), String> {
        for (id, entry) in self.keys.iter() {
            let slots = entry.wanters.slots();
            if slots.is_empty() {
                return Err(format!("nobody wants `{}`", entry.key));
            }
            for slot in slots {
                let client = self.clients.get(*slot);
                if client.is_none_or(|client| !client.wanted.contains(&id)) {
                    return Err(format!("`{}` is wanted by a client without it", entry.key));
                }
            }
            let found = self.keys.of_task(entry.task);
            if self.graph() == Some(entry.task.graph) && found != Some(id) {
                return Err(format!("`{}` is not found by its task", entry.key));
            }
        }
        let wants: usize = self.keys.iter().map(|(_, e)| e.wanters.slots().len()).sum();
        let clients = self.clients.slots().into_iter();
        let said: usize = clients
            .filter_map(|slot| self.clients.get(slot))
            .map(|client| client.wanted.len())
            .sum();
        if wants == said {
            Ok(())
        } else {
            Err(format!("{wants} wants by keys, {said} by clients"))
        }
    }
}

/// What a client that wants a key in this state is told; nothing while it is pending.
fn state_event(state: &KeyState, task: TaskRef, value: Option<SmallValue>) -> Option<KeyEvent> {
    match state {
        KeyState::Pending => None,
        KeyState::Ready(bytes) => Some(KeyEvent::Ready {
            task,
            bytes: *bytes,
            value,
        }),
        KeyState::Failed(error) if error.code.number() == VALUE_LOST => Some(KeyEvent::Lost),
        KeyState::Failed(error) => Some(KeyEvent::Failed(Arc::clone(error))),
    }
}

/// A position among many, which was checked to fit.
fn index(at: usize) -> TaskIndex {
    TaskIndex(u32::try_from(at).unwrap_or(u32::MAX))
}

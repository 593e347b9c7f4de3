//! The main loop's side of the journal: what becomes a record, and what waits until it is durable.
//!
//! Owns the records of a round, and the acknowledgements that promise that something is kept.
//! Never waits for the disk, allocates nothing for a task.
//!
//! Invariants: records are handed over in the order in which things happened, a whole round at once;
//! a promise leaves only when all records up to it are durable; what waits is bounded, and only
//! results are left out when it is too much: workers say what they hold when they come back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use oxidask_core::{ClientId, GraphId, Restored, TaskRef, WorkerId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_journal::{Committer, JournalError, Records, Target};
use oxidask_proto::wire;
use prost::Message;

use super::columns::Columns;
use super::compact::{COLUMNS_BYTES_MAX, Order};
use super::health::Health;
use super::record::{Kind, NOBODY};
use crate::input::Input;

/// Bytes of records that may wait for the disk.
pub(crate) const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Chunks wait when this much does, so that running work always finds room.
const CHUNK_QUEUE_BYTES_MAX: usize = QUEUE_BYTES_MAX / 2;

/// Records that found no room wait with the loop. Beyond this results are left out.
const UNSENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// New graphs are refused when a record waits for longer than this.
const LAG_MAX: Duration = Duration::from_secs(5);

/// Inputs that wait behind a chunk that waits for the journal; further ones overtake it.
const STALLED_INPUTS_MAX: usize = 4096;

/// What the journal knows of a graph.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) name: Arc<str>,
    /// The record of its opening or of its last chunk.
    pub(crate) promised: u64,
}

/// A journal that is kept.
pub(crate) struct Keeper {
    pub(crate) health: Arc<Health>,
    committer: Option<Arc<Committer>>,
    compactor: Option<(Sender<Order>, JoinHandle<()>)>,
    records: Records,
    columns: Columns,
    open: Kind,
    appended: u64,
    is_urgent: bool,
    pub(crate) graphs: HashMap<GraphId, Kept>,
    names: HashSet<Arc<str>>,
    /// Acknowledgements of chunks, by the sequence number that they wait for.
    accepted: VecDeque<(u64, ClientId, wire::ChunkAccepted)>,
    /// Clients that hear nothing before they hear that their graph is opened.
    gated: VecDeque<(u64, ClientId)>,
    stalled: VecDeque<Input>,
    pub(crate) changes_seen: u64,
    /// Results that were left out since the journal is too far behind.
    left_out: u64,
    /// A record that is not durable, and when it was looked at first.
    behind: Option<(u64, Instant)>,
}

impl Keeper {
    /// Goes on behind what was recovered.
    pub(crate) fn new(
        committer: Arc<Committer>,
        compactor: (Sender<Order>, JoinHandle<()>),
        health: Arc<Health>,
        graphs: HashMap<GraphId, Kept>,
    ) -> Self {
        Self {
            appended: committer.durable(),
            names: graphs.values().map(|kept| Arc::clone(&kept.name)).collect(),
            committer: Some(committer),
            compactor: Some(compactor),
            health,
            records: Records::new(Target::Tail),
            columns: Columns::default(),
            open: Kind::Finished,
            is_urgent: false,
            graphs,
            accepted: VecDeque::new(),
            gated: VecDeque::new(),
            stalled: VecDeque::new(),
            changes_seen: 0,
            left_out: 0,
            behind: None,
        }
    }

    // ---- records ----

    /// Puts on record what the core has noted.
    pub(crate) fn note<'a>(
        &mut self,
        note: Restored,
        hello_of: impl FnOnce(WorkerId) -> Option<&'a wire::WorkerHello>,
    ) {
        match note {
            Restored::Finished { worker, results } => self.finished(worker, &results),
            Restored::CopiesAdded { worker, tasks } => self.copies(worker, &tasks),
            Restored::Released { tasks } => self.released(&tasks),
            Restored::GraphOpened {
                graph,
                name,
                is_open_ended,
            } => self.graph_opened(graph, &name, is_open_ended),
            Restored::Failed { task, error } => self.failed(task, &error),
            Restored::Cancelled { graph } => self.cancelled(graph),
            Restored::Refused { graph, error } => self.refused(graph, &error),
            Restored::Closed { graph } => self.closed(graph),
            Restored::WorkerJoined { worker, .. } => {
                if let Some(hello) = hello_of(worker) {
                    self.worker_joined(worker, hello);
                }
            }
            Restored::WorkerGone { worker } => self.worker_gone(worker),
            // The core does not note chunks: they are kept as they came.
            Restored::Chunk { .. } => {}
        }
    }

    /// A graph was opened for the first time.
    fn graph_opened(&mut self, graph: GraphId, name: &Arc<str>, is_open_ended: bool) {
        let kind = if is_open_ended {
            Kind::OpenEndedGraphOpened
        } else {
            Kind::GraphOpened
        };
        let promised = self.push(kind, &[&graph.0.to_le_bytes(), name.as_bytes()]);
        let name = Arc::clone(name);
        self.names.insert(Arc::clone(&name));
        self.graphs.insert(graph, Kept { name, promised });
        self.is_urgent = true;
    }

    /// A chunk was accepted for the first time.
    pub(crate) fn chunk(&mut self, graph: GraphId, message: &[u8]) {
        let promised = self.push(Kind::Chunk, &[&graph.0.to_le_bytes(), message]);
        if let Some(kept) = self.graphs.get_mut(&graph) {
            kept.promised = promised;
        }
    }

    /// A worker has results.
    fn finished(&mut self, worker: WorkerId, results: &[(TaskRef, u64, u64)]) {
        if self.is_overfull(results.len()) {
            return;
        }
        for (task, bytes, rows) in results {
            self.open_columns(Kind::Finished);
            self.columns.task(worker, *task);
            self.columns.number(*bytes);
            self.columns.number(*rows);
        }
    }

    /// A worker keeps copies.
    fn copies(&mut self, worker: WorkerId, tasks: &[TaskRef]) {
        if self.is_overfull(tasks.len()) {
            return;
        }
        for task in tasks {
            self.open_columns(Kind::Copies);
            self.columns.task(worker, *task);
        }
    }

    /// Whether results are left out, because too much waits already.
    fn is_overfull(&mut self, results: usize) -> bool {
        let is_overfull = self.records.bytes() > UNSENT_BYTES_MAX;
        if is_overfull {
            if self.left_out == 0 {
                tracing::warn!("the journal is too far behind: results are left out of it");
            }
            self.left_out += results as u64;
        } else if self.left_out > 0 {
            let results = std::mem::take(&mut self.left_out);
            tracing::info!(results, "the journal keeps results again");
        }
        is_overfull
    }

    /// The client does not want these results any more.
    fn released(&mut self, tasks: &[TaskRef]) {
        for task in tasks {
            self.open_columns(Kind::Released);
            self.columns.task(NOBODY, *task);
        }
    }

    /// A task has failed for good by itself.
    fn failed(&mut self, task: TaskRef, error: &Diagnostic) {
        let fault = wire::Fault::from(error).encode_to_vec();
        let (graph, task) = (task.graph.0.to_le_bytes(), task.task.0.to_le_bytes());
        self.push(Kind::Failed, &[&graph, &task, &fault]);
    }

    /// The graph has failed with a chunk.
    fn refused(&mut self, graph: GraphId, error: &Diagnostic) {
        let fault = wire::Fault::from(error).encode_to_vec();
        self.push(Kind::Refused, &[&graph.0.to_le_bytes(), &fault]);
    }

    /// The graph was cancelled.
    fn cancelled(&mut self, graph: GraphId) {
        self.push(Kind::Cancelled, &[&graph.0.to_le_bytes()]);
    }

    /// Everything of the graph is gone.
    fn closed(&mut self, graph: GraphId) {
        if let Some(kept) = self.graphs.remove(&graph) {
            self.names.remove(&kept.name);
            self.push(Kind::Closed, &[&graph.0.to_le_bytes()]);
            self.is_urgent = true;
        }
    }

    /// A worker was accepted.
    fn worker_joined(&mut self, worker: WorkerId, hello: &wire::WorkerHello) {
        let hello = hello.encode_to_vec();
        self.push(Kind::WorkerJoined, &[&worker.0.to_le_bytes(), &hello]);
        self.is_urgent = true;
    }

    /// A worker is gone.
    fn worker_gone(&mut self, worker: WorkerId) {
        self.push(Kind::WorkerGone, &[&worker.0.to_le_bytes()]);
    }

    /// A command stands.
    pub(crate) fn command(&mut self, name: &str, command: &wire::WorkerCommand) {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes();
        let message = command.encode_to_vec();
        self.push(Kind::Command, &[&length, name.as_bytes(), &message]);
        self.is_urgent = true;
    }

    /// A command stands no longer.
    pub(crate) fn command_ended(&mut self, number: u64) {
        let zero = 0_u32.to_le_bytes();
        self.push(Kind::CommandEnded, &[&zero, &number.to_le_bytes()]);
        self.is_urgent = true;
    }

    fn open_columns(&mut self, kind: Kind) {
        if self.open != kind || self.columns.bytes().len() > COLUMNS_BYTES_MAX {
            self.seal();
            self.open = kind;
        }
    }

    fn seal(&mut self) {
        if !self.columns.is_empty() {
            // Columns are far below the limit of a record.
            let _ = self.records.push(self.open as u16, &[self.columns.bytes()]);
            self.columns.clear();
        }
    }

    /// The sequence number of the record.
    fn push(&mut self, kind: Kind, parts: &[&[u8]]) -> u64 {
        self.seal();
        if let Err(error) = self.records.push(kind as u16, parts) {
            // Chunks were measured before. The error of a task may be longer than a record.
            tracing::warn!(%error, ?kind, "something is not in the journal");
        }
        self.appended + self.records.len()
    }

    /// Hands over the records of a round.
    pub(crate) fn hand_over(&mut self) {
        self.seal();
        let Some(committer) = &self.committer else {
            return;
        };
        let metrics = &self.health.metrics.journal;
        if !self.records.is_empty() {
            let (count, bytes) = (self.records.len(), self.records.bytes());
            match committer.try_append(&mut self.records) {
                Ok(appended) => {
                    self.appended = appended;
                    metrics.records.inc_by(count);
                    metrics.bytes.inc_by(bytes as u64);
                }
                Err(JournalError::Behind { .. }) => {}
                Err(error) => {
                    self.health.fail(&error);
                }
            }
        }
        if std::mem::take(&mut self.is_urgent) {
            committer.hurry();
        }
        let lag = self.lag();
        self.health
            .metrics
            .journal
            .lag_seconds
            .set(lag.as_secs_f64());
    }

    /// For how long the oldest record that is not durable has waited, roughly.
    fn lag(&mut self) -> Duration {
        let durable = self.health.durable();
        if self.behind.is_none_or(|(sequence, _)| sequence <= durable) {
            let last = self.appended + self.records.len();
            self.behind = (last > durable).then(|| (last, Instant::now()));
        }
        self.behind
            .map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    // ---- promises ----

    /// Whether the acknowledgement has to wait; then it is kept.
    pub(crate) fn holds_accepted(
        &mut self,
        client: ClientId,
        accepted: wire::ChunkAccepted,
    ) -> bool {
        let promised = self.promised(GraphId(accepted.graph));
        let must_wait = promised > self.health.durable();
        if must_wait {
            self.accepted.push_back((promised, client, accepted));
        }
        must_wait
    }

    /// Whether the client may hear nothing before its graph is durable; then that is kept.
    pub(crate) fn gates(&mut self, client: ClientId, graph: GraphId) -> bool {
        let promised = self.promised(graph);
        let must_wait = promised > self.health.durable();
        if must_wait {
            self.gated.push_back((promised, client));
            self.is_urgent = true;
        }
        must_wait
    }

    fn promised(&self, graph: GraphId) -> u64 {
        self.graphs.get(&graph).map_or(0, |kept| kept.promised)
    }

    /// The next acknowledgement that may leave.
    pub(crate) fn next_accepted(&mut self) -> Option<(ClientId, wire::ChunkAccepted)> {
        let durable = self.health.durable();
        self.accepted
            .pop_front_if(|(sequence, ..)| *sequence <= durable)
            .map(|(_, client, accepted)| (client, accepted))
    }

    /// The next client that may hear again.
    pub(crate) fn next_ungated(&mut self) -> Option<ClientId> {
        let durable = self.health.durable();
        loop {
            let (_, client) = self
                .gated
                .pop_front_if(|(sequence, _)| *sequence <= durable)?;
            // It may wait for another graph too.
            if self.gated.iter().all(|(_, other)| *other != client) {
                return Some(client);
            }
        }
    }

    /// Asks to be woken if something waits.
    pub(crate) fn wait(&self) {
        if !self.accepted.is_empty() || !self.gated.is_empty() || !self.stalled.is_empty() {
            self.health.wait();
        }
    }

    // ---- a disk that is full or slow ----

    /// Why a graph of this name cannot be opened now.
    pub(crate) fn refusal(&mut self, name: &str) -> Option<Diagnostic> {
        if self.names.contains(name) {
            return None;
        }
        match self.health.trouble() {
            Some(trouble) => Some((*trouble).clone()),
            None if self.lag() > LAG_MAX => Some(Diagnostic::new(
                Code::JournalBehind,
                "the journal cannot keep up: new graphs are refused",
            )),
            None => None,
        }
    }

    /// Whether chunks wait. What their clients say afterwards waits behind them.
    pub(crate) fn has_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Whether a chunk of so many bytes can be taken.
    pub(crate) fn takes_chunk(&self, bytes: usize) -> bool {
        self.has_room(bytes) && self.health.trouble().is_none()
    }

    fn has_room(&self, bytes: usize) -> bool {
        let Some(committer) = &self.committer else {
            return true;
        };
        let waiting = committer.waiting_bytes() + self.records.bytes();
        waiting == 0 || waiting + bytes <= CHUNK_QUEUE_BYTES_MAX
    }

    /// Keeps an input for later; back if there are too many.
    pub(crate) fn stall(&mut self, input: Input) -> Option<Input> {
        let is_chunk = matches!(input, Input::Chunk(_));
        if !is_chunk && self.stalled.len() >= STALLED_INPUTS_MAX {
            return Some(input);
        }
        self.stalled.push_back(input);
        None
    }

    /// The inputs that wait.
    pub(crate) fn stalled(&self) -> impl Iterator<Item = &Input> {
        self.stalled.iter()
    }

    /// The next input that need not wait any more.
    pub(crate) fn next_stalled(&mut self) -> Option<Input> {
        let can_go = match self.stalled.front()? {
            Input::Chunk(chunk) => self.takes_chunk(chunk.message.len()),
            _ => true,
        };
        can_go.then(|| self.stalled.pop_front()).flatten()
    }
}

impl Drop for Keeper {
    /// Commits what was handed over, and frees the folder.
    fn drop(&mut self) {
        self.hand_over();
        if let Some((orders, thread)) = self.compactor.take() {
            let _ = orders.send(Order::Stop);
            let _ = thread.join();
        }
        if let Some(committer) = self.committer.take().and_then(Arc::into_inner)
            && let Err(error) = committer.close()
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the end of the journal was not written"
            );
        }
    }
}

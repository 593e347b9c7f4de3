//! Results, small ones and those out of reach through the scheduler's relay.
//!
//! Owns the reading of one list of tasks, and what is asked for again when a stream breaks.
//! Invariants: each task is answered exactly once; HTTP/2 makes the scheduler wait for a reader that is
//! slow; what cannot be read where it is comes through the scheduler after all.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, wire};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::Streaming;

use super::Shared;
use super::direct::Place;
use crate::error::{may_pass, session_ended};
use crate::link::{PAUSE_FIRST, PAUSE_MAX};
use crate::pauses::Pauses;

/// Tasks in one request.
const TASKS_PER_REQUEST: usize = 10_000;
/// Requests in a row that may break before anything is answered.
const BREAKS_MAX: u32 = 10;

/// Whoever takes results. Called on threads of the runtime, also on several at a time.
pub trait FetchSink: Send + Sync {
    /// Whole results, each with its position in the list and its kind.
    fn whole(&self, results: Vec<(usize, u32, Bytes)>);
    /// A large result begins, perhaps once more. Several may arrive at the same time.
    fn start(&self, index: usize, kind: u32, bytes: u64) -> Box<dyn LargeSink>;
    /// There is no result, and why.
    fn fault(&self, index: usize, why: Diagnostic);
}

/// Whoever puts a large result together. Dropped before its end, it is forgotten.
pub trait LargeSink: Send {
    /// The next part.
    fn part(&mut self, data: Bytes);
    /// All of it has arrived.
    fn end(self: Box<Self>);
}

/// A reader of one list.
struct Reader {
    shared: Arc<Shared>,
    /// Positions in the list of whoever asks, and tasks.
    tasks: Vec<(usize, wire::TaskId)>,
    /// The first task that is not answered.
    next: usize,
    sink: Arc<dyn FetchSink>,
    /// The large result that arrives, and how much of it is missing.
    large: Option<(Box<dyn LargeSink>, u64)>,
    /// Whether large results are read where they are.
    is_direct: bool,
    /// Those that are being read there; they come back if that fails.
    direct: JoinSet<Option<Place>>,
    breaks: u32,
    pauses: Pauses,
}

/// Reads all of them.
pub(super) async fn fetch(shared: Arc<Shared>, tasks: Vec<(u32, u32)>, sink: Arc<dyn FetchSink>) {
    let turn = Arc::clone(&shared.fetches).acquire_owned().await;
    let tasks = tasks
        .into_iter()
        .map(|(graph, task)| wire::TaskId { graph, task });
    let is_direct = shared.direct.is_worth_asking();
    let mut reader = Reader::new(shared, tasks.enumerate().collect(), sink, is_direct);
    reader.read_all().await;
    let mut again = Vec::new();
    while let Some(ended) = reader.direct.join_next().await {
        if let Ok(Some(place)) = ended {
            again.push((place.index, place.task));
        }
    }
    if !again.is_empty() {
        again.sort_unstable_by_key(|(index, _)| *index);
        let mut relayed = Reader::new(reader.shared, again, reader.sink, false);
        relayed.read_all().await;
    }
    drop(turn);
}

impl Reader {
    fn new(
        shared: Arc<Shared>,
        tasks: Vec<(usize, wire::TaskId)>,
        sink: Arc<dyn FetchSink>,
        is_direct: bool,
    ) -> Self {
        Self {
            shared,
            tasks,
            next: 0,
            sink,
            large: None,
            is_direct,
            direct: JoinSet::new(),
            breaks: 0,
            pauses: Pauses::new(PAUSE_FIRST, PAUSE_MAX),
        }
    }

    async fn read_all(&mut self) {
        while self.next < self.tasks.len() {
            self.request().await;
        }
    }

    /// One request, until it is answered or breaks.
    async fn request(&mut self) {
        let channel = match self.shared.connected().await {
            Ok(channel) => channel,
            Err(why) => return self.fail_rest(&why),
        };
        let end = self.tasks.len().min(self.next + TASKS_PER_REQUEST);
        let tasks = self.tasks[self.next..end].iter();
        let request = wire::FetchRequest {
            tasks: tasks.map(|(_, task)| *task).collect(),
            places_wanted: self.is_direct,
        };
        let mut scheduler =
            SchedulerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut inbound = match scheduler.fetch(request).await {
            Ok(inbound) => inbound.into_inner(),
            Err(status) => return self.broke(&session_ended(Some(&status))).await,
        };
        while self.next < end {
            if let Err(why) = self.read(&mut inbound).await {
                return self.broke(&why).await;
            }
        }
    }

    async fn read(&mut self, inbound: &mut Streaming<wire::FetchChunk>) -> Result<(), Diagnostic> {
        match inbound.message().await {
            Ok(Some(chunk)) => self.take(chunk).map_err(misunderstood),
            Ok(None) => Err(session_ended(None)),
            Err(status) => Err(session_ended(Some(&status))),
        }
    }

    fn take(&mut self, chunk: wire::FetchChunk) -> Result<(), &'static str> {
        let mut whole = Vec::with_capacity(chunk.small.len());
        for small in chunk.small {
            self.expect(small.task)?;
            whole.push((self.answered(), small.kind, small.data));
        }
        if !whole.is_empty() {
            self.sink.whole(whole);
        }
        if let Some(fault) = chunk.fault {
            self.expect(chunk.task)?;
            let index = self.answered();
            self.sink.fault(index, fault.into());
            return Ok(());
        }
        if !chunk.data_address.is_empty() {
            self.expect(chunk.task)?;
            self.read_at(chunk.data_address);
            return Ok(());
        }
        if chunk.is_start {
            self.expect(chunk.task)?;
            let index = self.tasks[self.next].0;
            let sink = self.sink.start(index, chunk.kind, chunk.total_bytes);
            self.large = Some((sink, chunk.total_bytes));
        }
        if !chunk.data.is_empty() {
            let (sink, missing) = self.large.as_mut().ok_or("data without a start")?;
            let left = missing.checked_sub(chunk.data.len() as u64);
            *missing = left.ok_or("more data than was announced")?;
            sink.part(chunk.data);
        }
        if chunk.is_end {
            match self.large.take() {
                Some((sink, 0)) => sink.end(),
                _ => return Err("less data than was announced"),
            }
            self.answered();
        }
        Ok(())
    }

    /// Begins to read a result where it is.
    fn read_at(&mut self, address: String) {
        let task = self.tasks[self.next].1;
        let index = self.answered();
        let place = Place {
            index,
            task,
            address,
        };
        let (shared, sink) = (Arc::clone(&self.shared), Arc::clone(&self.sink));
        self.direct.spawn(async move {
            let is_whole = shared.direct.read(&place, &sink).await;
            (!is_whole).then_some(place)
        });
    }

    fn expect(&self, task: Option<wire::TaskId>) -> Result<(), &'static str> {
        let expected = self.tasks.get(self.next).map(|(_, task)| *task);
        if expected.is_some() && task == expected {
            Ok(())
        } else {
            Err("an answer out of order")
        }
    }

    /// The position of the task that is answered with this.
    fn answered(&mut self) -> usize {
        self.large = None;
        self.breaks = 0;
        self.pauses.reset();
        self.next += 1;
        self.tasks[self.next - 1].0
    }

    async fn broke(&mut self, why: &Diagnostic) {
        self.large = None;
        self.breaks += 1;
        if self.breaks > BREAKS_MAX || !may_pass(why) {
            return self.fail_rest(why);
        }
        sleep(self.pauses.next_pause()).await;
    }

    fn fail_rest(&mut self, why: &Diagnostic) {
        for (index, _) in &self.tasks[self.next..] {
            self.sink.fault(*index, why.clone());
        }
        self.next = self.tasks.len();
    }
}

fn misunderstood(what: &'static str) -> Diagnostic {
    let message = format!("the scheduler's answer cannot be understood: {what}");
    Diagnostic::new(Code::ProtocolMismatch, message)
}

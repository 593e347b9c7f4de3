//! Snapshots of the journal, made of the journal itself.
//!
//! Owns a thread that reads the segments that are not written any more, leaves out what does not
//! count any longer, and hands the rest over as a snapshot. Never touches the main loop's state, so
//! the loop never waits for it.
//!
//! Invariant: a core that is restored from the snapshot is the one that would have been restored from
//! what the snapshot replaces. Closed graphs are left out, and workers that are gone; that a task
//! once finished stays, because a result that nobody needs is not computed again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use oxidask_core::{GraphId, TaskRef, WorkerId};
use oxidask_journal::{Committer, Disk, JournalError, Records, Sealed, SealedSegment, Target};

use super::columns::{Columns, ColumnsReader, Malformed};
use super::record::{self, Kind, NOBODY};

/// A tail that is shorter than this is left as it is.
pub(crate) const SNAPSHOT_TAIL_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Time between the start of a scheduler and its first snapshot.
pub(crate) const FIRST_SNAPSHOT_AFTER: Duration = Duration::from_secs(15);

/// Time between a snapshot that was given up and the next.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Bytes of a snapshot that may wait for the thread that writes, which has more urgent work.
const SNAPSHOT_WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Time between two looks at how much waits.
const WAIT_STEP: Duration = Duration::from_millis(2);

/// Columns are cut into records of about this many bytes.
pub(crate) const COLUMNS_BYTES_MAX: usize = 256 * 1024;

/// What the compacting thread is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// Bytes of the tail.
    Tail(u64),
    /// The snapshot has begun: it replaces these.
    Begun(Vec<SealedSegment>),
    /// The snapshot is complete, with so many bytes, or was given up.
    Ended(Option<u64>),
    /// The scheduler ends.
    Stop,
}

/// When snapshots are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) tail_bytes_min: u64,
    /// The first one, whatever the tail is.
    pub(crate) first_at: Option<Instant>,
}

/// The thread's state.
pub(crate) struct Compactor<D: Disk> {
    pub(crate) disk: D,
    pub(crate) committer: Arc<Committer>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) schedule: Schedule,
    pub(crate) snapshot_bytes: u64,
}

/// Why a snapshot was not finished.
#[derive(Debug, thiserror::Error)]
enum CompactError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("a record of the journal cannot be understood")]
    Malformed,
    #[error("the disk has refused it")]
    Disk,
    #[error("the scheduler ends")]
    Stopped,
}

impl From<Malformed> for CompactError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl<D: Disk> Compactor<D> {
    /// Makes snapshots until the scheduler ends.
    pub(crate) fn run(mut self) {
        let mut is_running = false;
        let mut not_before = Instant::now();
        let mut tail_bytes = 0;
        loop {
            match self.next_order() {
                Err(RecvTimeoutError::Disconnected) | Ok(Order::Stop) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::Tail(bytes)) => tail_bytes = bytes,
                Ok(Order::Begun(segments)) => match self.write(&segments) {
                    Ok(()) => {}
                    Err(CompactError::Stopped) => return,
                    Err(error) => {
                        tracing::warn!(%error, "a snapshot of the journal was given up");
                        let _ = self.committer.abort_snapshot();
                        is_running = false;
                        not_before = Instant::now() + PAUSE_AFTER_FAILURE;
                    }
                },
                Ok(Order::Ended(bytes)) => {
                    is_running = false;
                    match bytes {
                        Some(bytes) => self.snapshot_bytes = bytes,
                        None => not_before = Instant::now() + PAUSE_AFTER_FAILURE,
                    }
                }
            }
            let now = Instant::now();
            let limit = self.schedule.tail_bytes_min.max(2 * self.snapshot_bytes);
            let is_first = self.schedule.first_at.is_some_and(|at| now >= at);
            if !is_running && now >= not_before && (is_first || tail_bytes > limit) {
                self.schedule.first_at = None;
                is_running = self.committer.begin_snapshot().is_ok();
            }
        }
    }

    fn next_order(&self) -> Result<Order, RecvTimeoutError> {
        match self.schedule.first_at {
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                self.orders.recv_timeout(left)
            }
            None => self
                .orders
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn write(&self, segments: &[SealedSegment]) -> Result<(), CompactError> {
        let mut survey = Survey::default();
        self.each(segments, &mut |kind, payload| {
            survey.look(kind, payload).map_err(CompactError::from)
        })?;
        let mut records = Records::new(Target::Snapshot);
        let mut rewriter = Rewriter::new(&survey);
        rewriter.begin(&mut |kind, parts| push(&mut records, kind, parts))?;
        self.each(segments, &mut |kind, payload| {
            rewriter.take(kind, payload, &mut |kind, parts| {
                push(&mut records, kind, parts)
            })?;
            self.hand_over(&mut records, SNAPSHOT_WAITING_BYTES_MAX / 2)
        })?;
        rewriter.finish(&mut |kind, parts| push(&mut records, kind, parts))?;
        self.hand_over(&mut records, 0)?;
        Ok(self.committer.finish_snapshot()?)
    }

    /// Hands over what is more than this many bytes, once there is room.
    fn hand_over(&self, records: &mut Records, bytes_min: usize) -> Result<(), CompactError> {
        if records.bytes() <= bytes_min {
            return Ok(());
        }
        while self.committer.waiting_bytes() > SNAPSHOT_WAITING_BYTES_MAX {
            match self.orders.try_recv() {
                Ok(Order::Stop) => return Err(CompactError::Stopped),
                Ok(Order::Ended(None)) => return Err(CompactError::Disk),
                _ => thread::sleep(WAIT_STEP),
            }
        }
        self.committer.try_append(records)?;
        Ok(())
    }

    fn each(
        &self,
        segments: &[SealedSegment],
        take: &mut impl FnMut(Kind, &[u8]) -> Result<(), CompactError>,
    ) -> Result<(), CompactError> {
        let mut sealed = Sealed::new(&self.disk, segments);
        while let Some(record) = sealed.next_record()? {
            let kind = Kind::new(record.kind).ok_or(Malformed)?;
            take(kind, record.payload)?;
        }
        Ok(())
    }
}

fn push(records: &mut Records, kind: Kind, parts: &[&[u8]]) -> Result<(), CompactError> {
    Ok(records.push(kind as u16, parts)?)
}

/// What counts at the end of the segments.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    graphs: BTreeSet<GraphId>,
    workers: BTreeSet<WorkerId>,
    /// Commands that stand, by number; bounded like those of the loop.
    commands: BTreeMap<u64, String>,
    last_graph: u32,
    last_worker: u32,
}

impl Survey {
    /// Looks at a record.
    pub(crate) fn look(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Malformed> {
        match kind {
            Kind::Numbers => {
                let (graph, rest) = record::number(payload)?;
                let (worker, _) = record::number(rest)?;
                self.last_graph = self.last_graph.max(graph);
                self.last_worker = self.last_worker.max(worker);
            }
            Kind::GraphOpened | Kind::OpenEndedGraphOpened => {
                let (graph, _) = record::number(payload)?;
                self.last_graph = self.last_graph.max(graph);
                self.graphs.insert(GraphId(graph));
            }
            Kind::Closed => {
                self.graphs.remove(&GraphId(record::number(payload)?.0));
            }
            Kind::WorkerJoined => {
                let (worker, _) = record::number(payload)?;
                self.last_worker = self.last_worker.max(worker);
                self.workers.insert(WorkerId(worker));
            }
            Kind::Command => {
                let (name, command) = record::command(payload)?;
                self.commands
                    .retain(|_, other| name.is_empty() || *other != name);
                self.commands.insert(command.command, name);
            }
            Kind::CommandEnded => {
                self.commands.remove(&record::command_ended(payload)?);
            }
            Kind::WorkerGone => {
                self.workers.remove(&WorkerId(record::number(payload)?.0));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Copies what counts.
pub(crate) struct Rewriter<'a> {
    survey: &'a Survey,
    seen: BTreeMap<GraphId, Seen>,
    columns: Columns,
    open: Kind,
}

/// What of a graph's results was copied already.
#[derive(Debug, Default)]
struct Seen {
    /// For each task the first worker that has it, or [`NOBODY`], plus one; 0 for no entry.
    first: Vec<u32>,
    /// The size that was copied last, folded: the last one counts.
    sizes: Vec<u32>,
    others: HashSet<(u32, WorkerId)>,
}

impl Seen {
    /// Whether it must be said that the worker has the task's result.
    fn is_news(&mut self, task: u32, worker: WorkerId, size: Option<u64>) -> bool {
        let at = task as usize;
        if self.first.len() <= at {
            self.first.resize(at + 1, 0);
            self.sizes.resize(at + 1, 0);
        }
        let size = size.map(fold);
        let is_resized = size.is_some_and(|size| self.sizes[at] != size);
        self.sizes[at] = size.unwrap_or(self.sizes[at]);
        let (first, own) = (self.first[at], worker.0.saturating_add(1));
        if first == 0 || (first == 1 && worker != NOBODY) {
            self.first[at] = own;
            return true;
        }
        // That a task has finished is known from any other entry.
        let is_further = first != own && worker != NOBODY && self.others.insert((task, worker));
        is_further || is_resized
    }
}

/// Sizes that differ are nearly always told apart.
fn fold(size: u64) -> u32 {
    let (low, high) = (size & u64::from(u32::MAX), size >> 32);
    u32::try_from(low ^ high).unwrap_or_default()
}

impl<'a> Rewriter<'a> {
    pub(crate) fn new(survey: &'a Survey) -> Self {
        Self {
            survey,
            seen: BTreeMap::new(),
            columns: Columns::default(),
            open: Kind::Finished,
        }
    }

    /// What comes first.
    pub(crate) fn begin<E>(
        &mut self,
        sink: &mut impl FnMut(Kind, &[&[u8]]) -> Result<(), E>,
    ) -> Result<(), E> {
        let graph = self.survey.last_graph.to_le_bytes();
        let worker = self.survey.last_worker.to_le_bytes();
        sink(Kind::Numbers, &[&graph, &worker])
    }

    /// Copies a record, or what of it counts.
    pub(crate) fn take<E: From<Malformed>>(
        &mut self,
        kind: Kind,
        payload: &[u8],
        sink: &mut impl FnMut(Kind, &[&[u8]]) -> Result<(), E>,
    ) -> Result<(), E> {
        match kind {
            Kind::Numbers | Kind::Closed | Kind::WorkerGone | Kind::CommandEnded => Ok(()),
            Kind::Command => {
                let number = record::command(payload)?.1.command;
                if !self.survey.commands.contains_key(&number) {
                    return Ok(());
                }
                self.seal(sink)?;
                sink(kind, &[payload])
            }
            Kind::Finished | Kind::Copies | Kind::Released => {
                self.take_columns(kind, payload, sink)
            }
            Kind::WorkerJoined => {
                let worker = WorkerId(record::number(payload)?.0);
                if !self.survey.workers.contains(&worker) {
                    return Ok(());
                }
                self.seal(sink)?;
                sink(kind, &[payload])
            }
            Kind::GraphOpened
            | Kind::OpenEndedGraphOpened
            | Kind::Chunk
            | Kind::Failed
            | Kind::Cancelled
            | Kind::Refused => {
                let graph = GraphId(record::number(payload)?.0);
                if !self.survey.graphs.contains(&graph) {
                    return Ok(());
                }
                self.seal(sink)?;
                sink(kind, &[payload])
            }
        }
    }

    /// What comes last.
    pub(crate) fn finish<E>(
        &mut self,
        sink: &mut impl FnMut(Kind, &[&[u8]]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.seal(sink)
    }

    fn take_columns<E: From<Malformed>>(
        &mut self,
        kind: Kind,
        payload: &[u8],
        sink: &mut impl FnMut(Kind, &[&[u8]]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = ColumnsReader::new(payload);
        while let Some((worker, task)) = reader.task()? {
            let numbers = match kind {
                Kind::Finished => [reader.number()?, reader.number()?],
                _ => [0, 0],
            };
            let size = (kind == Kind::Finished).then_some(numbers[0]);
            let Some(worker) = self.news(kind, worker, (task, size)) else {
                continue;
            };
            if self.open != kind || self.columns.bytes().len() > COLUMNS_BYTES_MAX {
                self.seal(sink)?;
                self.open = kind;
            }
            self.columns.task(worker, task);
            if kind == Kind::Finished {
                for number in numbers {
                    self.columns.number(number);
                }
            }
        }
        Ok(())
    }

    /// The worker to be named with the task, if the entry counts.
    fn news(
        &mut self,
        kind: Kind,
        worker: WorkerId,
        (task, size): (TaskRef, Option<u64>),
    ) -> Option<WorkerId> {
        if !self.survey.graphs.contains(&task.graph) {
            return None;
        }
        let is_there = self.survey.workers.contains(&worker);
        let worker = if is_there { worker } else { NOBODY };
        match kind {
            Kind::Released => Some(NOBODY),
            Kind::Copies if !is_there => None,
            _ => {
                let seen = self.seen.entry(task.graph).or_default();
                seen.is_news(task.task.0, worker, size).then_some(worker)
            }
        }
    }

    fn seal<E>(&mut self, sink: &mut impl FnMut(Kind, &[&[u8]]) -> Result<(), E>) -> Result<(), E> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let result = sink(self.open, &[self.columns.bytes()]);
        self.columns.clear();
        result
    }
}

//! Group commit: a thread that writes what others hand over.
//!
//! Owns the queue between them, in bytes, and the pace of commits. Never blocks who hands over,
//! unless it asks to wait. Invariants: sequence numbers are given in the order of the queue; the
//! queue is bounded; after an error of the disk the same records are tried again until they are
//! durable or the journal is closed.

use std::fmt;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::error::JournalError;
use crate::format::{FRAME_HEAD_BYTES, u32_at};
use crate::sealed::SealedSegment;
use crate::snapshot::SnapshotSummary;
use crate::writer::{Writer, record_length};

/// The pace and the bound of a [`Committer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitterSettings {
    /// Between the beginnings of two commits is at least this much. A record that comes later than
    /// that after the last commit does not wait at all.
    pub max_delay: Duration,
    /// After an error of the disk, it is tried again after this.
    pub retry_delay: Duration,
    /// Bytes that may be handed over and not be taken yet.
    pub queue_bytes_max: usize,
}

impl Default for CommitterSettings {
    fn default() -> Self {
        Self {
            max_delay: Duration::from_millis(10),
            retry_delay: Duration::from_millis(250),
            queue_bytes_max: 32 * 1024 * 1024,
        }
    }
}

/// Where records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The end of the journal.
    Tail,
    /// The snapshot that was begun before.
    Snapshot,
}

/// Records that are handed over together. Reused, it allocates nothing.
#[derive(Debug)]
pub struct Records {
    target: Target,
    bytes: Vec<u8>,
    count: u64,
}

impl Records {
    /// No records.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            bytes: Vec::new(),
            count: 0,
        }
    }

    /// Adds a record whose payload is these parts together.
    pub fn push(&mut self, kind: u16, parts: &[&[u8]]) -> Result<(), JournalError> {
        let length = record_length(parts)?;
        let order = match self.target {
            Target::Tail => Order::Record,
            Target::Snapshot => Order::SnapshotRecord,
        };
        push_order(&mut self.bytes, order, kind, length);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.count += 1;
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// What they take in the queue.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }
}

/// What the thread reports, in the order in which it happens.
#[derive(Debug)]
pub enum Progress<'a> {
    /// All records up to this sequence number are durable.
    Durable {
        /// The sequence number.
        sequence: u64,
        /// Bytes of the tail: what a recovery reads after the snapshot.
        tail_bytes: u64,
        /// How long the commit took.
        took: Duration,
    },
    /// The records cannot be made durable now; it is tried again. Said at every attempt.
    Failed {
        /// Why.
        error: &'a JournalError,
    },
    /// A snapshot was begun: it replaces what is in these segments, which stay as they are until it
    /// is complete or given up. [`crate::Sealed`] reads them.
    SnapshotBegun {
        /// The snapshot before it, if there is one, then the tail, in order.
        segments: Vec<SealedSegment>,
    },
    /// A snapshot is complete and durable.
    Snapshot {
        /// What it consists of.
        summary: SnapshotSummary,
        /// Bytes of the tail after it.
        tail_bytes: u64,
    },
    /// A snapshot was given up; the journal is as if it had not been begun.
    SnapshotFailed {
        /// Why.
        error: &'a JournalError,
    },
}

/// What a frame of the queue asks for. The frames look like those of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Record = 1,
    SnapshotRecord,
    BeginSnapshot,
    FinishSnapshot,
    AbortSnapshot,
}

/// The handle of the thread that writes. Dropped, it waits for the thread to end.
pub struct Committer {
    shared: Arc<Shared>,
    queue_bytes_max: usize,
    thread: Option<JoinHandle<Result<(), JournalError>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was handed over, or a request changed.
    work: Condvar,
    /// The queue was taken, or records became durable.
    done: Condvar,
}

#[derive(Debug)]
struct State {
    queue: Vec<u8>,
    appended: u64,
    durable: u64,
    is_urgent: bool,
    is_closing: bool,
    has_ended: bool,
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer")
            .field("state", &*self.shared.lock())
            .finish_non_exhaustive()
    }
}

impl Committer {
    /// Starts the thread. It calls `report` between its writes, so that should be quick.
    pub fn start<D: Disk>(
        writer: Writer<D>,
        settings: CommitterSettings,
        report: impl FnMut(Progress<'_>) + Send + 'static,
    ) -> Result<Self, JournalError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: Vec::new(),
                appended: writer.appended(),
                durable: writer.durable(),
                is_urgent: false,
                is_closing: false,
                has_ended: false,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let path = writer.disk.path("");
        let work = Work {
            shared: Arc::clone(&shared),
            writer,
            settings,
            report: Box::new(report),
        };
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || work.run())
            .map_err(|source| JournalError::io("start the thread of", path, source))?;
        Ok(Self {
            shared,
            queue_bytes_max: settings.queue_bytes_max,
            thread: Some(thread),
        })
    }

    /// Hands over records and empties them; the sequence number of the last record of the tail.
    ///
    /// Never waits: [`JournalError::Behind`] if there is no room, and the records stay.
    pub fn try_append(&self, records: &mut Records) -> Result<u64, JournalError> {
        let mut state = self.shared.lock();
        if state.has_ended || state.is_closing {
            return Err(JournalError::Closed);
        }
        let waiting = state.queue.len();
        if waiting > 0 && waiting + records.bytes.len() > self.queue_bytes_max {
            return Err(JournalError::Behind {
                waiting,
                limit: self.queue_bytes_max,
            });
        }
        if waiting == 0 {
            mem::swap(&mut state.queue, &mut records.bytes);
        } else {
            state.queue.extend_from_slice(&records.bytes);
        }
        if records.target == Target::Tail {
            state.appended += records.count;
        }
        // The thread sleeps only while the queue is empty, or until a commit is due.
        if (waiting == 0 && !state.queue.is_empty()) || state.queue.len() * 2 > self.queue_bytes_max
        {
            self.shared.work.notify_one();
        }
        records.clear();
        Ok(state.appended)
    }

    /// Like [`Self::try_append`], but waits for room as long as this.
    pub fn append(&self, records: &mut Records, patience: Duration) -> Result<u64, JournalError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.try_append(records) {
                Err(JournalError::Behind { .. }) if Instant::now() < deadline => {}
                result => return result,
            }
            let state = self.shared.lock();
            let left = deadline.saturating_duration_since(Instant::now());
            if !state.queue.is_empty() {
                drop(self.shared.done.wait_timeout(state, left));
            }
        }
    }

    /// Begins a snapshot of the state after all records handed over so far. The outcome is reported.
    pub fn begin_snapshot(&self) -> Result<(), JournalError> {
        self.order(Order::BeginSnapshot)
    }

    /// Completes the snapshot.
    pub fn finish_snapshot(&self) -> Result<(), JournalError> {
        self.order(Order::FinishSnapshot)
    }

    /// Gives up the snapshot, without a report.
    pub fn abort_snapshot(&self) -> Result<(), JournalError> {
        self.order(Order::AbortSnapshot)
    }

    fn order(&self, order: Order) -> Result<(), JournalError> {
        let mut state = self.shared.lock();
        if state.has_ended || state.is_closing {
            return Err(JournalError::Closed);
        }
        push_order(&mut state.queue, order, 0, 0);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Asks for a commit without delay.
    pub fn hurry(&self) {
        self.shared.lock().is_urgent = true;
        self.shared.work.notify_one();
    }

    /// All records up to this sequence number are durable.
    pub fn durable(&self) -> u64 {
        self.shared.lock().durable
    }

    /// Bytes that were handed over and not taken yet.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.lock().queue.len()
    }

    /// Waits until a sequence number is durable; false if it takes longer or the thread has ended.
    pub fn wait_durable(&self, sequence: u64, patience: Duration) -> bool {
        let state = self.shared.lock();
        let waited = self
            .shared
            .done
            .wait_timeout_while(state, patience, |state| {
                state.durable < sequence && !state.has_ended
            });
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.durable >= sequence
    }

    /// Commits what was handed over and ends the thread. An error says what did not become durable.
    pub fn close(mut self) -> Result<(), JournalError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), JournalError> {
        self.shared.lock().is_closing = true;
        self.shared.work.notify_one();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            None => Ok(()),
            Some(Err(_)) => Err(JournalError::Closed),
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Who wants to know whether it went well calls `close`.
        let _ = self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread.
struct Work<D: Disk> {
    shared: Arc<Shared>,
    writer: Writer<D>,
    settings: CommitterSettings,
    report: Box<dyn FnMut(Progress<'_>) + Send>,
}

/// Says that the thread has ended, however it did.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().has_ended = true;
        self.0.done.notify_all();
    }
}

impl<D: Disk> Work<D> {
    fn run(mut self) -> Result<(), JournalError> {
        let _ending = Ending(Arc::clone(&self.shared));
        let mut taken = Vec::new();
        let mut due = Instant::now();
        while self.take(&mut taken, due) {
            due = Instant::now() + self.settings.max_delay;
            self.carry_out(&taken)?;
            self.commit()?;
            taken.clear();
            taken.shrink_to(self.settings.queue_bytes_max);
        }
        self.writer.close()
    }

    /// Waits for something to do that is due, and takes it all; false when nothing more comes.
    fn take(&self, taken: &mut Vec<u8>, due: Instant) -> bool {
        let mut state = self.shared.lock();
        loop {
            let is_half_full = state.queue.len() * 2 > self.settings.queue_bytes_max;
            let is_eager = state.is_urgent || state.is_closing || is_half_full;
            let left = due.saturating_duration_since(Instant::now());
            let has_work = !state.queue.is_empty();
            if has_work && (is_eager || left.is_zero()) {
                break;
            }
            if !has_work && state.is_closing {
                return false;
            }
            let work = &self.shared.work;
            state = if has_work {
                let waited = work.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                state.is_urgent = false;
                work.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
        state.is_urgent = false;
        mem::swap(&mut state.queue, taken);
        drop(state);
        self.shared.done.notify_all();
        true
    }

    fn carry_out(&mut self, taken: &[u8]) -> Result<(), JournalError> {
        let mut rest = taken;
        while let Some((head, after)) = rest.split_at_checked(FRAME_HEAD_BYTES) {
            let length = usize::try_from(u32_at(head, 0)).unwrap_or(usize::MAX);
            let (payload, after) = after.split_at_checked(length).unwrap_or((after, &[]));
            rest = after;
            let kind = u16::from_le_bytes([head[6], head[7]]);
            match head[4] {
                code if code == Order::Record as u8 => self.append(kind, payload)?,
                code if code == Order::SnapshotRecord as u8 => {
                    // Nothing is said twice: what ended the snapshot was reported.
                    let result = match self.writer.append_snapshot(kind, &[payload]) {
                        Err(JournalError::NoSnapshot) => Ok(()),
                        result => result,
                    };
                    self.report_snapshot(result);
                }
                code if code == Order::BeginSnapshot as u8 => {
                    let result = self.writer.begin_snapshot();
                    if result.is_ok() {
                        let segments = self.writer.sealed();
                        (self.report)(Progress::SnapshotBegun { segments });
                    }
                    self.report_snapshot(result);
                }
                code if code == Order::FinishSnapshot as u8 => self.finish_snapshot()?,
                _ => self.writer.abort_snapshot(),
            }
        }
        Ok(())
    }

    fn append(&mut self, kind: u16, payload: &[u8]) -> Result<(), JournalError> {
        if let Err(JournalError::Behind { .. }) = self.writer.append(kind, &[payload]) {
            self.commit()?;
            self.writer.append(kind, &[payload])?;
        }
        Ok(())
    }

    fn finish_snapshot(&mut self) -> Result<(), JournalError> {
        if !self.writer.is_in_snapshot() {
            return Ok(());
        }
        self.commit()?;
        match self.writer.finish_snapshot() {
            Ok(summary) => {
                let tail_bytes = self.writer.tail_bytes();
                (self.report)(Progress::Snapshot {
                    summary,
                    tail_bytes,
                });
            }
            Err(error) => self.report_snapshot(Err(error)),
        }
        Ok(())
    }

    fn report_snapshot(&mut self, result: Result<(), JournalError>) {
        if let Err(error) = result {
            (self.report)(Progress::SnapshotFailed { error: &error });
        }
    }

    /// Commits, again and again until it succeeds or the journal is to be closed.
    fn commit(&mut self) -> Result<(), JournalError> {
        loop {
            let began = Instant::now();
            match self.writer.commit() {
                Ok(sequence) => {
                    self.acknowledge(sequence, began.elapsed());
                    return Ok(());
                }
                Err(error) => {
                    (self.report)(Progress::Failed { error: &error });
                    if self.wait_for_retry() {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn acknowledge(&mut self, sequence: u64, took: Duration) {
        let mut state = self.shared.lock();
        if state.durable >= sequence {
            return;
        }
        state.durable = sequence;
        drop(state);
        self.shared.done.notify_all();
        let tail_bytes = self.writer.tail_bytes();
        (self.report)(Progress::Durable {
            sequence,
            tail_bytes,
            took,
        });
    }

    /// Waits for the next attempt; true if the journal is to be closed.
    fn wait_for_retry(&self) -> bool {
        let state = self.shared.lock();
        let delay = self.settings.retry_delay;
        let waited = self
            .shared
            .work
            .wait_timeout_while(state, delay, |state| !state.is_closing);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_closing
    }
}

fn push_order(queue: &mut Vec<u8>, order: Order, kind: u16, length: usize) {
    let mut head = [0; FRAME_HEAD_BYTES];
    // The length was checked to be that of a record.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    head[0..4].copy_from_slice(&length.to_le_bytes());
    head[4] = order as u8;
    head[6..8].copy_from_slice(&kind.to_le_bytes());
    queue.extend_from_slice(&head);
}

//! The threads that read spilled results back.
//!
//! Owns two queues: pieces for peers and running tasks, which are small and quick, and whole
//! results for runs that begin, which wait for room in memory first. So a run that waits holds up
//! no peer. Invariant: what cannot be read is taken out of the ledger and reported as gone.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::error::StoreError;
use crate::key::ResultKey;
use crate::layout::{Body, WHOLE};
use crate::parts::Part;
use crate::payload::Payload;
use crate::shared::{Gone, GoneReason, Shared};
use crate::spill_file::{ReadFailure, SpillFile};
use crate::spilling::Spilling;

/// Threads that read pieces.
pub(crate) const PIECE_READERS: usize = 2;

/// Reads that may wait for a thread.
const READS_WAITING_MAX: usize = 65_536;

/// How long a run that begins waits for room for its inputs; then they are read all the same.
const ROOM_WAIT_MILLIS_MAX: u64 = 5_000;

/// Keeps results in memory as long as it lives.
#[derive(Debug)]
pub struct Pins {
    shared: Arc<Shared>,
    keys: Vec<(ResultKey, u64)>,
}

impl Pins {
    /// The pin of one result, if there is one.
    pub(crate) fn of(shared: &Arc<Shared>, key: ResultKey, generation: Option<u64>) -> Self {
        Self {
            shared: Arc::clone(shared),
            keys: generation
                .map(|generation| (key, generation))
                .into_iter()
                .collect(),
        }
    }

    /// Pins those that are here.
    pub(crate) fn new(shared: &Arc<Shared>, keys: &[ResultKey]) -> Self {
        let pinned = shared.change(|ledger| {
            let pin = |key: &ResultKey| Some((*key, ledger.pin(*key)?));
            keys.iter().filter_map(pin).collect()
        });
        Self {
            shared: Arc::clone(shared),
            keys: pinned,
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        if keys.is_empty() {
            return;
        }
        self.shared.change(|ledger| {
            for (key, generation) in keys {
                ledger.unpin(key, generation);
            }
        });
    }
}

/// Results in memory.
#[derive(Debug)]
pub struct Loaded {
    /// In the order in which they were asked for.
    pub payloads: Vec<Payload>,
    /// Keeps them in memory: to be held while they are used.
    pub pins: Pins,
}

/// A part of a file that somebody waits for.
#[derive(Debug)]
pub(crate) struct PieceRead {
    pub(crate) key: ResultKey,
    pub(crate) generation: u64,
    pub(crate) file: Arc<SpillFile>,
    pub(crate) range: Range<u64>,
    pub(crate) reply: oneshot::Sender<Result<Bytes, StoreError>>,
}

/// Results that somebody waits for.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) keys: Vec<ResultKey>,
    pub(crate) pins: Pins,
    pub(crate) reply: oneshot::Sender<Result<Loaded, StoreError>>,
}

/// What waits to be read.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub(crate) pieces: Queue<PieceRead>,
    pub(crate) loads: Queue<Load>,
}

impl Reads {
    pub(crate) fn close(&self) {
        self.pieces.close();
        self.loads.close();
    }
}

/// A queue between threads.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<QueueState<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct QueueState<T> {
    waiting: VecDeque<T>,
    is_closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = QueueState {
            waiting: VecDeque::new(),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }
}

impl<T> Queue<T> {
    pub(crate) fn push(&self, read: T) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(StoreError::Ended);
        }
        if state.waiting.len() >= READS_WAITING_MAX {
            return Err(StoreError::ReadsQueued {
                reads_max: READS_WAITING_MAX,
            });
        }
        state.waiting.push_back(read);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next one; `None` when the queue is closed.
    fn pop(&self) -> Option<T> {
        let is_idle = |state: &mut QueueState<T>| state.waiting.is_empty() && !state.is_closed;
        let state = self.changed.wait_while(self.lock(), is_idle);
        state
            .unwrap_or_else(PoisonError::into_inner)
            .waiting
            .pop_front()
    }

    fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        // Who waits for these is told that the store has ended.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads pieces until the store ends.
pub(crate) fn run_pieces(shared: &Shared, spilling: &Spilling) {
    while let Some(read) = spilling.reads.pieces.pop() {
        if read.reply.is_canceled() {
            continue;
        }
        let outcome = read.file.read(read.range).map_err(|failure| {
            let path = &read.file.path;
            lost(shared, read.key, read.generation, path, failure)
        });
        note_read(shared, outcome.as_ref().map_or(0, Bytes::len));
        // Whoever asked may have gone.
        let _ = read.reply.send(outcome);
    }
}

/// Reads whole results until the store ends.
pub(crate) fn run_loads(shared: &Shared, spilling: &Spilling) {
    while let Some(load) = spilling.reads.loads.pop() {
        if load.reply.is_canceled() {
            continue;
        }
        let loaded = load.keys.iter().map(|key| load_one(shared, *key));
        let payloads: Result<Vec<Payload>, StoreError> = loaded.collect();
        let pins = load.pins;
        let _ = load
            .reply
            .send(payloads.map(|payloads| Loaded { payloads, pins }));
    }
}

fn load_one(shared: &Shared, key: ResultKey) -> Result<Payload, StoreError> {
    let missing = || StoreError::Missing { key };
    let (layout, generation, file) = {
        let ledger = shared.lock();
        let entry = ledger.get(key).ok_or_else(missing)?;
        if let Some(payload) = entry.value.payload() {
            return Ok(payload);
        }
        let file = entry.value.file.clone().ok_or_else(missing)?;
        (Arc::clone(&entry.value.layout), entry.generation, file)
    };
    wait_for_room(shared, layout.bytes);
    let whole = layout.slice(WHOLE).unwrap_or_default();
    let read = file.read(whole);
    let bytes = read.map_err(|failure| lost(shared, key, generation, &file.path, failure))?;
    note_read(shared, bytes.len());
    let payload = Payload::new(layout.kind, bytes);
    let payload = payload.with_index_apart();
    let parts = Part::of_payload(&payload);
    let body = Body::of(payload.parts.clone());
    let now = shared.tick();
    shared.change(|ledger| {
        if let Some(slot) = ledger.loaded(key, generation, parts, now) {
            slot.body = Some(body);
        }
    });
    Ok(payload)
}

fn wait_for_room(shared: &Shared, bytes: u64) {
    shared.change(|ledger| ledger.want(bytes));
    let wait = Duration::from_millis(ROOM_WAIT_MILLIS_MAX);
    let ledger = shared.lock();
    // Late or not, the run goes on.
    drop(shared.room.wait_timeout_while(ledger, wait, |ledger| {
        !shared.is_ending() && !ledger.has_room_or_nothing_to_spill(bytes)
    }));
}

fn note_read(shared: &Shared, bytes: usize) {
    let counter = &shared.counters.read_back_bytes;
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Takes a result out that cannot be read, unless the key stands for something else by now.
fn lost(
    shared: &Shared,
    key: ResultKey,
    generation: u64,
    path: &std::path::Path,
    failure: ReadFailure,
) -> StoreError {
    let path = path.to_owned();
    let error = match failure {
        ReadFailure::Freed => return StoreError::Missing { key },
        ReadFailure::Damage(damage) => StoreError::Damaged { key, path, damage },
        ReadFailure::Io(source) => StoreError::Read {
            key,
            path,
            source: Arc::new(source),
        },
    };
    let removed = shared.change(|ledger| {
        let is_same = ledger
            .get(key)
            .is_some_and(|entry| entry.generation == generation);
        if is_same { ledger.remove(key) } else { None }
    });
    if removed.is_some() {
        shared.counters.damaged.fetch_add(1, Ordering::Relaxed);
        let reason = GoneReason::Damaged;
        shared.note_gone(Gone { key, reason });
    }
    error
}

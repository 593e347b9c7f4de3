//! The store for many threads: the ledger with payloads as its values, and what lies on the disk.
//!
//! A payload that is read stays valid after its entry is gone: its bytes are shared. What needs the
//! disk is a future; everything else answers at once.

mod urge;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt, ready};

use crate::account::Account;
use crate::disk::{Disk, LocalDisk};
use crate::error::{Absent, StoreError};
use crate::key::ResultKey;
use crate::layout::{Body, Layout, SliceSet};
use crate::ledger::{Arrival, Held, Ledger, Origin, Place, Pressure, Refused};
use crate::parts::Part;
use crate::payload::{Payload, PayloadKind};
use crate::pressure_watch::PressureWatch;
use crate::reading::{self, Load, Loaded, PieceRead, Pins};
use crate::settings::{LedgerSettings, StoreConfig};
use crate::shared::{Gone, Shared, Slot, SpillFigures};
use crate::spill_folder::{Chore, SpillFolder};
use crate::spilling::{self, Spilling};

/// A piece of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPiece {
    /// How the result is to be read.
    pub kind: PayloadKind,
    /// Differs between two results that were held here under the same key: pieces of different
    /// generations do not belong together.
    pub generation: u64,
    /// The length of the whole slice.
    pub slice_bytes: u64,
    /// The bytes from the offset on that was asked for.
    pub parts: Vec<Bytes>,
}

/// A result, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// How it is to be read.
    pub kind: PayloadKind,
    /// Its length.
    pub bytes: u64,
    /// Whether none of its slices was freed.
    pub is_whole: bool,
}

/// The results and copies that a worker holds.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Slot {
    fn of(payload: Payload) -> Self {
        Self {
            layout: Arc::new(Layout::of(&payload)),
            body: Some(Body::of(payload.parts)),
            file: None,
            freed: SliceSet::default(),
        }
    }

    /// All of it, if it is in memory and whole.
    pub(crate) fn payload(&self) -> Option<Payload> {
        let body = self.body.as_ref().filter(|_| self.freed.is_empty())?;
        Some(Payload {
            kind: self.layout.kind,
            parts: body.parts(),
        })
    }
}

impl Store {
    /// An empty store that holds at most this much, in memory only.
    pub fn new(limit_bytes: u64) -> Self {
        let settings = LedgerSettings::new(limit_bytes, 0);
        Self {
            shared: Arc::new(Shared::new(settings, None)),
            threads: Vec::new(),
        }
    }

    /// An empty store that moves results to the disk when memory is short.
    pub fn with_spill(config: &StoreConfig) -> Result<Self, StoreError> {
        Self::with_disk(config, Arc::new(LocalDisk))
    }

    /// The same over another file system. The folder is made on the machine's own.
    pub fn with_disk(config: &StoreConfig, disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let folder = SpillFolder::make(&config.spill_dir)?;
        let settings = LedgerSettings::new(config.limit_bytes, config.disk_limit_bytes);
        let spilling = Spilling::new(folder, disk);
        let mut store = Self {
            shared: Arc::new(Shared::new(settings, Some(spilling))),
            threads: Vec::new(),
        };
        let started = store.start_threads();
        started.map_err(|source| StoreError::OpenFolder {
            folder: config.spill_dir.clone(),
            source: Arc::new(source),
        })?;
        Ok(store)
    }

    fn start_threads(&mut self) -> std::io::Result<()> {
        type Work = fn(&Shared, &Spilling);
        let pieces = std::iter::repeat_n(
            ("store-read", reading::run_pieces as Work),
            reading::PIECE_READERS,
        );
        let others = [
            ("store-spill", spilling::run as Work),
            ("store-load", reading::run_loads as Work),
        ];
        for (name, work) in pieces.chain(others) {
            let shared = Arc::clone(&self.shared);
            let body = move || {
                if let Some(spilling) = &shared.spilling {
                    work(&shared, spilling);
                }
            };
            let thread = std::thread::Builder::new().name(name.to_owned());
            self.threads.push(thread.spawn(body)?);
        }
        Ok(())
    }

    /// Keeps what a task has made, in place of what was held under this key. Returns its size.
    ///
    /// With a disk that takes it, this is never refused: others are moved to the disk.
    pub fn insert_result(&self, key: ResultKey, payload: Payload) -> Result<u64, StoreError> {
        self.insert(key, payload, Origin::Result)
    }

    /// Keeps what was fetched, unless something is held under this key already: that is the same.
    pub fn insert_copy(&self, key: ResultKey, payload: Payload) -> Result<u64, StoreError> {
        let held = self.shared.lock().get(key).map(|entry| entry.bytes);
        match held {
            Some(bytes) => Ok(bytes),
            None => self.insert(key, payload, Origin::Copy),
        }
    }

    /// The same, and pinned before anything else can happen to it.
    pub fn insert_pinned_copy(&self, key: ResultKey, payload: Payload) -> Result<Pins, StoreError> {
        let pinned = self.insert_with(key, payload, Origin::Copy, |ledger| ledger.pin(key));
        let (_, generation) = pinned?;
        Ok(Pins::of(&self.shared, key, generation))
    }

    fn insert(&self, key: ResultKey, payload: Payload, origin: Origin) -> Result<u64, StoreError> {
        let (bytes, ()) = self.insert_with(key, payload, origin, |_| ())?;
        Ok(bytes)
    }

    /// Inserts and does something more before others can.
    fn insert_with<R>(
        &self,
        key: ResultKey,
        payload: Payload,
        origin: Origin,
        then: impl FnOnce(&mut Ledger<Slot>) -> R,
    ) -> Result<(u64, R), StoreError> {
        let bytes = payload.len();
        let parts = Part::of_payload(&payload);
        let value = Slot::of(payload);
        let arrival = Arrival {
            bytes,
            parts,
            origin,
            value,
        };
        let now = self.shared.tick();
        let outcome = self.shared.change(|ledger| {
            let is_copy_of_held = origin == Origin::Copy && ledger.get(key).is_some();
            let replaced = if is_copy_of_held {
                None
            } else {
                ledger.insert(key, arrival, now)?
            };
            Ok((replaced, then(ledger)))
        });
        // Bound to a name: what was replaced is dropped after the lock is gone.
        let (replaced, outcome) = outcome.map_err(|refused| self.refusal(key, refused))?;
        drop(replaced);
        Ok((bytes, outcome))
    }

    fn refusal(&self, key: ResultKey, refused: Refused) -> StoreError {
        let Refused {
            needed,
            held,
            limit,
        } = refused;
        let Some(spilling) = &self.shared.spilling else {
            return StoreError::MemoryExceeded {
                key,
                needed,
                held,
                limit,
            };
        };
        let share_used_up = || Arc::new(std::io::Error::from(std::io::ErrorKind::QuotaExceeded));
        StoreError::DiskFull {
            key,
            needed,
            held,
            limit,
            folder: spilling.folder.path.clone(),
            source: spilling.trouble().unwrap_or_else(share_used_up),
        }
    }

    /// What is held under a key, if it is in memory and whole. Shares the bytes.
    pub fn get(&self, key: ResultKey) -> Option<Payload> {
        let now = self.shared.tick();
        let mut ledger = self.shared.lock();
        ledger.touch(key, now);
        ledger.get(key)?.value.payload()
    }

    /// The kind and the size of what is held whole under a key, wherever it is.
    pub fn find(&self, key: ResultKey) -> Option<(PayloadKind, u64)> {
        let ledger = self.shared.lock();
        let slot = &ledger.get(key)?.value;
        let layout = slot.freed.is_empty().then_some(&slot.layout)?;
        Some((layout.kind, layout.bytes))
    }

    /// Whether something is held under a key, wherever it is.
    pub fn contains(&self, key: ResultKey) -> bool {
        self.shared.lock().get(key).is_some()
    }

    /// What is held under a key, wherever it is.
    pub fn describe(&self, key: ResultKey) -> Option<Description> {
        let ledger = self.shared.lock();
        let slot = &ledger.get(key)?.value;
        Some(Description {
            kind: slot.layout.kind,
            bytes: slot.layout.bytes,
            is_whole: slot.freed.is_empty(),
        })
    }

    /// How many slices the result under a key has, freed ones included.
    pub fn slice_count(&self, key: ResultKey) -> Option<u32> {
        let ledger = self.shared.lock();
        Some(ledger.get(key)?.value.layout.slice_count())
    }

    /// What is held under several keys, in their order, or the first key that is not in memory.
    pub fn get_all(&self, keys: &[ResultKey]) -> Result<Vec<Payload>, Absent> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.shared.tick();
        let mut ledger = self.shared.lock();
        let values = keys.iter().map(|key| {
            ledger.touch(*key, now);
            payload_of(&ledger, *key)
        });
        values.collect()
    }

    /// Keeps those of the results that are here in memory, or loads them only once, as long as the
    /// pins live.
    pub fn pin(&self, keys: &[ResultKey]) -> Pins {
        Pins::new(&self.shared, keys)
    }

    /// What is held under several keys, read back if need be, and kept in memory as long as the
    /// pins live. An error for which [`StoreError::is_lost`] holds names the result that is to be
    /// had from elsewhere.
    pub fn load_all(&self, keys: Vec<ResultKey>) -> BoxFuture<'static, Result<Loaded, StoreError>> {
        let pins = self.pin(&keys);
        let in_memory = self.get_all(&keys);
        let spilling = self.shared.spilling.as_ref();
        match (in_memory, spilling) {
            (Ok(payloads), _) => ready(Ok(Loaded { payloads, pins })).boxed(),
            (Err(Absent::OnDisk(_)), Some(spilling)) => {
                let (reply, answer) = oneshot::channel();
                let load = Load { keys, pins, reply };
                match spilling.reads.loads.push(load) {
                    Ok(()) => answer
                        .map(|answer| answer.unwrap_or(Err(StoreError::Ended)))
                        .boxed(),
                    Err(error) => ready(Err(error)).boxed(),
                }
            }
            (Err(Absent::Missing(key) | Absent::OnDisk(key)), _) => {
                ready(Err(StoreError::Missing { key })).boxed()
            }
        }
    }

    /// Reads a part of a slice (or of the [`crate::WHOLE`]) from memory or disk, without loading
    /// the rest. `None` if the result is not here, or this slice of it was freed.
    pub fn read_piece(
        &self,
        key: ResultKey,
        slice: u32,
        offset: u64,
        bytes_max: u64,
    ) -> BoxFuture<'static, Result<Option<StoredPiece>, StoreError>> {
        let now = self.shared.tick();
        let mut ledger = self.shared.lock();
        ledger.touch(key, now);
        let found = ledger.get(key).and_then(|entry| {
            let slot = &entry.value;
            let is_freed = slot.freed.is_touched(slice);
            let bounds = slot.layout.slice(slice).filter(|_| !is_freed)?;
            let slice_bytes = bounds.end - bounds.start;
            let start = bounds.start + offset.min(slice_bytes);
            let end = start + bytes_max.min(bounds.end - start);
            Some((slot.clone(), entry.generation, slice_bytes, start..end))
        });
        drop(ledger);
        let Some((slot, generation, slice_bytes, range)) = found else {
            return ready(Ok(None)).boxed();
        };
        let kind = slot.layout.kind;
        let piece = move |parts| StoredPiece {
            kind,
            generation,
            slice_bytes,
            parts,
        };
        if range.is_empty() {
            return ready(Ok(Some(piece(Vec::new())))).boxed();
        }
        if let Some(body) = &slot.body {
            return ready(Ok(body.range(range).map(piece))).boxed();
        }
        let (Some(file), Some(spilling)) = (slot.file, &self.shared.spilling) else {
            return ready(Ok(None)).boxed();
        };
        let (reply, answer) = oneshot::channel();
        let read = PieceRead {
            key,
            generation,
            file,
            range,
            reply,
        };
        if let Err(error) = spilling.reads.pieces.push(read) {
            return ready(Err(error)).boxed();
        }
        let outcome = answer.map(move |answer| match answer {
            Ok(Ok(bytes)) => Ok(Some(piece(vec![bytes]))),
            Ok(Err(StoreError::Missing { .. })) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(oneshot::Canceled) => Err(StoreError::Ended),
        });
        outcome.boxed()
    }

    /// Forgets one slice of a result; reading it again finds nothing. Its memory is free at once.
    pub fn free_slice(&self, key: ResultKey, slice: u32) {
        let freed = self.shared.change(|ledger| free_slice(ledger, key, slice));
        let Some((released, punched)) = freed else {
            return;
        };
        drop(released);
        if let (Some(chore), Some(spilling)) = (punched, &self.shared.spilling) {
            spilling.chores.add(chore);
        }
    }

    /// Forgets what is held under a key. Whether there was something.
    pub fn remove(&self, key: ResultKey) -> bool {
        let removed = self.shared.change(|ledger| ledger.remove(key));
        removed.is_some()
    }

    /// Forgets everything of a graph.
    pub fn remove_graph(&self, graph: u32) {
        let removed = self.shared.change(|ledger| ledger.remove_graph(graph));
        drop(removed);
    }

    /// Forgets everything. What running tasks have taken stays theirs until they end.
    pub fn clear(&self) {
        let removed = self.shared.change(Ledger::clear);
        drop(removed);
        drop(self.shared.take_gone());
    }

    /// How much is held.
    pub fn held(&self) -> Held {
        self.shared.lock().held()
    }

    /// Bytes that may be held.
    pub fn limit_bytes(&self) -> u64 {
        self.shared.limit_bytes()
    }

    /// How tight the memory is.
    pub fn pressure(&self) -> Pressure {
        self.shared.lock().pressure()
    }

    /// Tells when runs are to be held back or may start again, when the disk takes nothing more,
    /// and when results have gone: ask [`Store::pressure`] and [`Store::take_gone`] then.
    pub fn watch_pressure(&self) -> PressureWatch {
        PressureWatch::new(Arc::clone(&self.shared.changes))
    }

    /// Results that went although nobody removed them, since the last time.
    pub fn take_gone(&self) -> Vec<Gone> {
        self.shared.take_gone()
    }

    /// The account from which running tasks take memory.
    pub fn account(&self) -> Arc<Account> {
        Arc::new(Account::new(Arc::clone(&self.shared)))
    }

    /// Why the disk takes nothing more, if it said so.
    pub fn disk_trouble(&self) -> Option<Arc<std::io::Error>> {
        self.shared.spilling.as_ref()?.trouble()
    }

    /// Figures of the spilling.
    pub fn spill_figures(&self) -> SpillFigures {
        self.shared.figures()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Release);
        // Under the lock, so that nobody falls asleep between looking and waiting.
        drop(self.shared.lock());
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        if let Some(spilling) = &self.shared.spilling {
            spilling.reads.close();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to do.
            let _ = thread.join();
        }
        // Pins and accounts may outlive the store; the files need not.
        if let Some(spilling) = &self.shared.spilling {
            spilling.folder.remove();
        }
    }
}

fn payload_of(ledger: &Ledger<Slot>, key: ResultKey) -> Result<Payload, Absent> {
    let entry = ledger.get(key).ok_or(Absent::Missing(key))?;
    let is_whole = entry.value.freed.is_empty();
    match entry.value.payload() {
        Some(payload) => Ok(payload),
        None if is_whole && entry.place == Place::Disk => Err(Absent::OnDisk(key)),
        None => Err(Absent::Missing(key)),
    }
}

/// Marks a slice as freed. Returns its buffers, and the space to be given back.
fn free_slice(
    ledger: &mut Ledger<Slot>,
    key: ResultKey,
    slice: u32,
) -> Option<(Vec<Bytes>, Option<Chore>)> {
    let slot = ledger.value_mut(key)?;
    let range = slot.layout.slice(slice)?;
    let at = usize::try_from(slice)
        .ok()
        .filter(|_| slice != crate::WHOLE)?;
    if !slot.freed.insert(at) {
        return None;
    }
    let body = slot.body.as_mut();
    let released = body.map_or_else(Vec::new, |body| body.release(&range));
    let file = slot.file.clone().filter(|_| !range.is_empty());
    let disk_bytes = if file.is_some() {
        range.end - range.start
    } else {
        0
    };
    ledger.shrink_entry(key, &Part::of_all(&released), disk_bytes);
    Some((released, file.map(|file| Chore::Punch(file, range))))
}

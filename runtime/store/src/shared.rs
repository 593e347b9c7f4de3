//! What all threads of a store share: the ledger behind its lock, and who is told of changes.
//!
//! One lock, held for a few map operations and never while payloads are made, dropped, written or
//! read. Everything that changes the ledger goes through [`Shared::change`], which wakes whoever
//! spills, waits for room, or watches the pressure.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::key::ResultKey;
use crate::layout::{Body, Layout, SliceSet};
use crate::ledger::{Ledger, Pressure};
use crate::pressure_watch::Changes;
use crate::settings::LedgerSettings;
use crate::spill_file::SpillFile;
use crate::spilling::Spilling;

/// Results that went without being removed are remembered up to this number; whoever reads one
/// that was forgotten here finds it missing.
const GONE_MAX: usize = 65_536;

/// What the store keeps of a result.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) layout: Arc<Layout>,
    pub(crate) body: Option<Body>,
    pub(crate) file: Option<Arc<SpillFile>>,
    pub(crate) freed: SliceSet,
}

/// A result that went although nobody removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Which.
    pub key: ResultKey,
    /// Why.
    pub reason: GoneReason,
}

/// Why a result went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneReason {
    /// It was a copy, and memory was short.
    CopyDropped,
    /// Its file could not be read or held something else.
    Damaged,
}

/// Figures of the spilling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpillFigures {
    /// Files that were written.
    pub spilled_files: u64,
    /// Bytes that were written.
    pub spilled_bytes: u64,
    /// Bytes that were read back.
    pub read_back_bytes: u64,
    /// Copies that were dropped because memory was short.
    pub copies_dropped: u64,
    /// Results whose files were damaged or unreadable.
    pub damaged: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Whether the disk takes nothing more.
    pub is_disk_full: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) spilled_files: AtomicU64,
    pub(crate) spilled_bytes: AtomicU64,
    pub(crate) read_back_bytes: AtomicU64,
    pub(crate) copies_dropped: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) failed_writes: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    ledger: Mutex<Ledger<Slot>>,
    /// Something is to be spilled, or the store ends. Goes with the ledger's lock.
    pub(crate) work: Condvar,
    /// Memory may have become free. Goes with the ledger's lock.
    pub(crate) room: Condvar,
    clock: AtomicU64,
    limit_bytes: u64,
    pub(crate) changes: Arc<Changes>,
    gone: Mutex<Vec<Gone>>,
    pub(crate) counters: Counters,
    pub(crate) is_ending: AtomicBool,
    /// Where to spill, if at all.
    pub(crate) spilling: Option<Spilling>,
}

impl Shared {
    pub(crate) fn new(settings: LedgerSettings, spilling: Option<Spilling>) -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(settings)),
            work: Condvar::new(),
            room: Condvar::new(),
            clock: AtomicU64::new(0),
            limit_bytes: settings.limit_bytes,
            changes: Arc::default(),
            gone: Mutex::default(),
            counters: Counters::default(),
            is_ending: AtomicBool::new(false),
            spilling,
        }
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The time of a use: uses are counted.
    pub(crate) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// A panic elsewhere while the lock was held cannot leave a half-done change: the ledger
    /// changes its sums and its entries without calling foreign code in between.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledger<Slot>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the ledger. What the change takes out is to be returned, so that it is dropped when
    /// the lock is gone.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Ledger<Slot>) -> R) -> R {
        let mut ledger = self.lock();
        let before = ledger.pressure();
        let outcome = change(&mut ledger);
        let after = ledger.pressure();
        let is_spill_due = ledger.is_spill_due();
        drop(ledger);
        if is_spill_due {
            self.work.notify_one();
        }
        if after.memory_bytes < before.memory_bytes {
            self.room.notify_all();
        }
        if shown(before) != shown(after) {
            self.changes.happened();
        }
        outcome
    }

    pub(crate) fn note_gone(&self, gone: Gone) {
        let mut list = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < GONE_MAX {
            list.push(gone);
        }
        drop(list);
        self.changes.happened();
    }

    pub(crate) fn take_gone(&self) -> Vec<Gone> {
        let mut list = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *list)
    }

    pub(crate) fn figures(&self) -> SpillFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        SpillFigures {
            spilled_files: read(&counters.spilled_files),
            spilled_bytes: read(&counters.spilled_bytes),
            read_back_bytes: read(&counters.read_back_bytes),
            copies_dropped: read(&counters.copies_dropped),
            damaged: read(&counters.damaged),
            failed_writes: read(&counters.failed_writes),
            is_disk_full: self.lock().pressure().is_disk_full,
        }
    }
}

/// Watchers are woken for these; the sums change all the time.
fn shown(pressure: Pressure) -> (bool, bool) {
    (pressure.is_paused, pressure.is_disk_full)
}

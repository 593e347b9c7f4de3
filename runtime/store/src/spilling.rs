//! The thread that makes room: drops what can be had again, writes what cannot.
//!
//! Invariants: memory is given back only after the file is whole; a disk that takes nothing more is
//! left alone for a while, and everything in memory stays as it is.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::key::ResultKey;
use crate::layout::Body;
use crate::ledger::{Entry, Ledger, Place, SpillStep};
use crate::reading::Reads;
use crate::shared::{Gone, GoneReason, Shared, Slot};
use crate::spill_file::{SpillContent, SpillFile};
use crate::spill_folder::{Chore, Chores, SpillFolder};

/// How long a disk that took nothing more is left alone.
const DISK_REST_MILLIS: u64 = 2_000;

/// How long the thread sleeps at most when there is nothing to do: then files of dropped results
/// are removed.
const SLEEP_MILLIS_MAX: u64 = 200;

/// Where spilled results go.
#[derive(Debug)]
pub(crate) struct Spilling {
    pub(crate) folder: SpillFolder,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) chores: Arc<Chores>,
    pub(crate) reads: Reads,
    /// Why the disk takes nothing more, and since when.
    trouble: Mutex<Option<Trouble>>,
    next_file: AtomicU64,
}

#[derive(Debug, Clone)]
struct Trouble {
    error: Arc<io::Error>,
    since: Instant,
}

/// Something that is dropped when the lock is gone.
enum Garbage {
    Entry(#[expect(dead_code, reason = "held to be dropped")] Option<Entry<Slot>>),
    Body(#[expect(dead_code, reason = "held to be dropped")] Option<Body>),
}

impl Spilling {
    pub(crate) fn new(folder: SpillFolder, disk: Arc<dyn Disk>) -> Self {
        Self {
            folder,
            disk,
            chores: Arc::default(),
            reads: Reads::default(),
            trouble: Mutex::new(None),
            next_file: AtomicU64::new(0),
        }
    }

    /// Why the disk takes nothing more.
    pub(crate) fn trouble(&self) -> Option<Arc<io::Error>> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().map(|trouble| Arc::clone(&trouble.error))
    }

    fn set_trouble(&self, error: Option<io::Error>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = error.map(|error| Trouble {
            error: Arc::new(error),
            since: Instant::now(),
        });
    }

    /// Whether a disk in trouble has rested long enough.
    fn is_rested(&self) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = Duration::from_millis(DISK_REST_MILLIS);
        trouble
            .as_ref()
            .is_some_and(|trouble| trouble.since.elapsed() >= rest)
    }

    fn next_path(&self, key: ResultKey) -> PathBuf {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}.spill", key.graph(), key.task());
        self.folder.path.join(name)
    }

    /// Removes files and gives space back. A file that cannot be removed goes with the folder.
    /// Whether something was removed.
    fn do_chores(&self) -> bool {
        let chores = self.chores.take();
        let mut has_removed = false;
        for chore in chores {
            match chore {
                Chore::Remove(path) => has_removed |= self.disk.remove(&path).is_ok(),
                // Not every file system can; then the space comes back with the file.
                Chore::Punch(file, range) => has_removed |= file.punch(&range).is_ok(),
            }
        }
        has_removed
    }
}

/// Makes room until the store ends.
pub(crate) fn run(shared: &Shared, spilling: &Spilling) {
    loop {
        let has_removed = spilling.do_chores();
        if shared.is_ending() {
            return;
        }
        if spilling.is_rested() || (has_removed && spilling.trouble().is_some()) {
            spilling.set_trouble(None);
            shared.change(|ledger| ledger.set_disk_usable(true));
        }
        wait_for_work(shared);
        let now = shared.tick();
        let (garbage, writes) = shared.change(|ledger| take_steps(ledger, now));
        let dropped = garbage.iter().filter_map(|(key, garbage)| match garbage {
            Garbage::Entry(_) => Some(*key),
            Garbage::Body(_) => None,
        });
        let dropped: Vec<_> = dropped.collect();
        drop(garbage);
        for key in dropped {
            shared
                .counters
                .copies_dropped
                .fetch_add(1, Ordering::Relaxed);
            let reason = GoneReason::CopyDropped;
            shared.note_gone(Gone { key, reason });
        }
        for (key, generation) in writes {
            write(shared, spilling, key, generation);
        }
        shared.room.notify_all();
    }
}

fn wait_for_work(shared: &Shared) {
    let ledger = shared.lock();
    let is_idle = |ledger: &mut Ledger<Slot>| !ledger.is_spill_due() && !shared.is_ending();
    let sleep = Duration::from_millis(SLEEP_MILLIS_MAX);
    // Whatever woke it, the loop looks at everything.
    drop(shared.work.wait_timeout_while(ledger, sleep, is_idle));
}

type Write = (ResultKey, u64);

/// Does the steps that need no disk. Returns what they leave to be dropped, and what to write.
fn take_steps(ledger: &mut Ledger<Slot>, now: u64) -> (Vec<(ResultKey, Garbage)>, Vec<Write>) {
    let (mut garbage, mut writes) = (Vec::new(), Vec::new());
    for step in ledger.next_spill_steps(now) {
        match step {
            SpillStep::DropMemory(key) => {
                let body = ledger.drop_memory(key).and_then(|slot| slot.body.take());
                garbage.push((key, Garbage::Body(body)));
            }
            SpillStep::DropCopy(key) => garbage.push((key, Garbage::Entry(ledger.remove(key)))),
            SpillStep::Write { key, generation } => writes.push((key, generation)),
        }
    }
    (garbage, writes)
}

fn write(shared: &Shared, spilling: &Spilling, key: ResultKey, generation: u64) {
    let content = shared.change(|ledger| content_of(ledger, spilling, key, generation));
    let Some(content) = content else {
        return;
    };
    let path = spilling.next_path(key);
    match SpillFile::write(&content, path, &spilling.disk, &spilling.chores) {
        Ok((file, bytes)) => {
            let counters = &shared.counters;
            counters.spilled_files.fetch_add(1, Ordering::Relaxed);
            counters.spilled_bytes.fetch_add(bytes, Ordering::Relaxed);
            drop(content);
            let file = Arc::new(file);
            let body = shared.change(|ledger| keep_file(ledger, key, generation, file));
            drop(body);
        }
        Err(error) => {
            let is_freed = shared.change(|ledger| {
                ledger.end_write(key, generation, false);
                ledger
                    .get(key)
                    .is_none_or(|entry| entry.value.freed != content.freed)
            });
            // Nothing is wrong with the disk if the result changed while it was written.
            if !is_freed {
                shared
                    .counters
                    .failed_writes
                    .fetch_add(1, Ordering::Relaxed);
                spilling.set_trouble(Some(error));
                shared.change(|ledger| ledger.set_disk_usable(false));
            }
        }
    }
}

/// What is to be written; nothing if it is gone, needed, or the disk got into trouble meanwhile.
fn content_of(
    ledger: &mut Ledger<Slot>,
    spilling: &Spilling,
    key: ResultKey,
    generation: u64,
) -> Option<SpillContent> {
    let is_wanted = ledger.is_write_wanted(key, generation) && spilling.trouble().is_none();
    let slot = ledger.get(key).map(|entry| &entry.value);
    let content = slot.filter(|_| is_wanted).and_then(|slot| {
        Some(SpillContent {
            key,
            layout: Arc::clone(&slot.layout),
            freed: slot.freed.clone(),
            body: slot.body.clone()?,
        })
    });
    if content.is_none() {
        ledger.end_write(key, generation, false);
    }
    content
}

/// Notes that a result has a file. Returns what was in memory, if no run needs it.
fn keep_file(
    ledger: &mut Ledger<Slot>,
    key: ResultKey,
    generation: u64,
    file: Arc<SpillFile>,
) -> Option<Body> {
    if ledger.end_write(key, generation, true) != Some(Place::Both) {
        return None;
    }
    ledger.value_mut(key)?.file = Some(file);
    ledger.drop_memory(key)?.body.take()
}

//! What is held, to the byte, and what to do when it becomes too much.
//!
//! Owns one entry per result with its place (memory, disk), its origin and how useful it is; the
//! room that running tasks have taken; the sums and the limit. Decides what is accepted, what is
//! spilled next, whether runs may start and whether a task gets more. Pure: knows no thread, no
//! disk and no clock; the value of an entry is the caller's, and so is the time of its use.
//!
//! Invariants: the sums equal the entries; an entry that is there is in memory or on the disk; what
//! is pinned is never spilled; equal calls lead to equal decisions.

use std::collections::BTreeMap;

use crate::key::{KeyMap, ResultKey};
use crate::parts::{Part, Parts};
use crate::settings::LedgerSettings;

mod pressure;
mod spill;

pub use pressure::{MemoryRefused, Pressure};
pub use spill::SpillStep;

/// How something came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A task made it here.
    Result,
    /// It was fetched from a peer as the input of a task; the peer holds it too.
    Copy,
}

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In memory.
    Memory,
    /// In memory, and being written to the disk.
    Writing,
    /// On the disk.
    Disk,
    /// In memory, and on the disk as well: the memory can be given back at once.
    Both,
}

impl Place {
    /// Whether it can be read without the disk.
    pub fn is_in_memory(self) -> bool {
        !matches!(self, Self::Disk)
    }

    /// Whether it has a whole file.
    pub fn is_on_disk(self) -> bool {
        matches!(self, Self::Disk | Self::Both)
    }
}

/// One thing that is held.
#[derive(Debug, Clone)]
pub struct Entry<V> {
    /// Its size: the bytes that whoever reads it gets.
    pub bytes: u64,
    /// How it came here.
    pub origin: Origin,
    /// Where it is.
    pub place: Place,
    /// Tells it from others that had the same key before.
    pub generation: u64,
    /// How many runs need it in memory.
    pub pins: u32,
    /// The caller's.
    pub value: V,
    last_use: u64,
    /// Bytes on the disk, also while it is being written.
    disk_bytes: u64,
    /// Its buffers, while it is in memory.
    parts: Vec<Part>,
}

impl<V> Entry<V> {
    fn memory_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// Something that is to be kept.
#[derive(Debug, Clone)]
pub struct Arrival<V> {
    /// Its size.
    pub bytes: u64,
    /// Its buffers.
    pub parts: Vec<Part>,
    /// How it came here.
    pub origin: Origin,
    /// The caller's.
    pub value: V,
}

/// The sums of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Bytes in memory of results that were made here.
    pub result_bytes: u64,
    /// Bytes in memory of copies.
    pub copy_bytes: u64,
    /// Number of results that were made here, wherever they are.
    pub results: u64,
    /// Number of copies.
    pub copies: u64,
    /// Bytes that are being written: they leave the memory soon.
    pub writing_bytes: u64,
    /// Bytes on the disk, or reserved there for what is being written.
    pub disk_bytes: u64,
    /// Bytes that running tasks have taken.
    pub reserved_bytes: u64,
    /// Bytes of entries that runs need in memory.
    pub pinned_bytes: u64,
}

impl Held {
    /// Bytes of all results and copies in memory.
    pub fn bytes(&self) -> u64 {
        self.result_bytes + self.copy_bytes
    }

    /// Everything in memory: results, copies and what running tasks have taken.
    pub fn memory_bytes(&self) -> u64 {
        self.bytes() + self.reserved_bytes
    }
}

/// An arrival does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Its size.
    pub needed: u64,
    /// Bytes that are held by others.
    pub held: u64,
    /// Bytes that may be held.
    pub limit: u64,
}

/// Whether the disk can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskState {
    /// There is none.
    Absent,
    Usable,
    /// What may be used of it is used; it helps again when something is removed there.
    ShareUsedUp,
    /// It takes nothing more, says whoever writes there.
    Refuses,
}

/// The accounts of one worker.
#[derive(Debug, Clone)]
pub struct Ledger<V> {
    entries: KeyMap<Entry<V>>,
    parts: Parts,
    /// Everything but the bytes in memory, which the parts know.
    sums: Held,
    /// What running tasks have taken, by their numbers.
    reservations: BTreeMap<u64, u64>,
    settings: LedgerSettings,
    next_generation: u64,
    next_reservation: u64,
    disk: DiskState,
    is_spilling: bool,
    /// Memory that was asked for in vain since the last time nothing was left to spill.
    wanted_bytes: u64,
    /// The last look for something to spill found nothing, and nothing has come since.
    is_exhausted: bool,
    is_hot: bool,
}

impl<V> Ledger<V> {
    /// An empty ledger.
    pub fn new(settings: LedgerSettings) -> Self {
        Self {
            entries: KeyMap::default(),
            parts: Parts::default(),
            sums: Held::default(),
            reservations: BTreeMap::new(),
            settings,
            next_generation: 0,
            next_reservation: 0,
            disk: match settings.disk_limit_bytes {
                0 => DiskState::Absent,
                _ => DiskState::Usable,
            },
            is_spilling: false,
            wanted_bytes: 0,
            is_exhausted: false,
            is_hot: false,
        }
    }

    /// Bytes that may be held.
    pub fn limit_bytes(&self) -> u64 {
        self.settings.limit_bytes
    }

    /// The sums.
    pub fn held(&self) -> Held {
        Held {
            result_bytes: self.parts.result_bytes,
            copy_bytes: self.parts.copy_bytes,
            ..self.sums
        }
    }

    /// One entry.
    pub fn get(&self, key: ResultKey) -> Option<&Entry<V>> {
        self.entries.get(key)
    }

    /// The value of an entry, to be changed.
    pub fn value_mut(&mut self, key: ResultKey) -> Option<&mut V> {
        Some(&mut self.entries.get_mut(key)?.value)
    }

    /// Everything, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (ResultKey, &Entry<V>)> {
        self.entries.iter()
    }

    /// Adds or replaces an entry and returns the one before.
    ///
    /// Refused only if the results and copies in memory would pass the limit and nothing of them
    /// can go to the disk; nothing has changed then, an entry of this key stays.
    pub fn insert(
        &mut self,
        key: ResultKey,
        arrival: Arrival<V>,
        now: u64,
    ) -> Result<Option<Entry<V>>, Refused> {
        if !self.can_spill() {
            self.check_fits(key, &arrival)?;
        }
        for part in &arrival.parts {
            self.parts.add(*part, arrival.origin);
        }
        *self.sums.count(arrival.origin) += 1;
        self.next_generation += 1;
        let entry = Entry {
            bytes: arrival.bytes,
            origin: arrival.origin,
            place: Place::Memory,
            generation: self.next_generation,
            pins: 0,
            value: arrival.value,
            last_use: now,
            disk_bytes: 0,
            parts: arrival.parts,
        };
        let before = self.entries.insert(key, entry);
        if let Some(before) = &before {
            self.forget(before);
        }
        self.is_exhausted = false;
        self.update_heat();
        Ok(before)
    }

    /// What it needs depends on who holds the same buffers, so it is tried and taken back.
    fn check_fits(&mut self, key: ResultKey, arrival: &Arrival<V>) -> Result<(), Refused> {
        let before = self.entries.get(key);
        let replaced = before.map_or_else(Vec::new, |before| before.parts.clone());
        let replaced_origin = before.map_or(arrival.origin, |before| before.origin);
        for part in &replaced {
            self.parts.subtract(*part, replaced_origin);
        }
        let held = self.parts.bytes();
        for part in &arrival.parts {
            self.parts.add(*part, arrival.origin);
        }
        let total = self.parts.bytes();
        for part in &arrival.parts {
            self.parts.subtract(*part, arrival.origin);
        }
        for part in &replaced {
            self.parts.add(*part, replaced_origin);
        }
        let limit = self.settings.limit_bytes;
        let refused = Refused {
            needed: total - held,
            held,
            limit,
        };
        let fits = total <= limit || total.saturating_sub(self.droppable_bytes()) <= limit;
        if fits { Ok(()) } else { Err(refused) }
    }

    /// What can be given back at once although the disk takes nothing: the memory of what is on it
    /// already, and copies. Costs a look at everything, when it is tight.
    fn droppable_bytes(&self) -> u64 {
        if self.settings.disk_limit_bytes == 0 {
            return 0;
        }
        let is_droppable = |entry: &&Entry<V>| {
            let is_copy = entry.place == Place::Memory && entry.origin == Origin::Copy;
            entry.pins == 0 && (is_copy || entry.place == Place::Both)
        };
        let droppable = self.entries.iter().map(|(_, entry)| entry);
        let shares = droppable
            .filter(is_droppable)
            .map(|entry| self.parts.share_bytes(&entry.parts));
        shares.sum()
    }

    /// Notes that an entry was used.
    pub fn touch(&mut self, key: ResultKey, now: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.last_use = now;
        }
    }

    /// Keeps an entry in memory until it is unpinned as often. Returns its generation.
    pub fn pin(&mut self, key: ResultKey) -> Option<u64> {
        let entry = self.entries.get_mut(key)?;
        entry.pins += 1;
        if entry.pins == 1 {
            self.sums.pinned_bytes += entry.memory_bytes();
        }
        let generation = entry.generation;
        self.update_heat();
        Some(generation)
    }

    /// Takes a pin back, unless the key stands for something else by now.
    pub fn unpin(&mut self, key: ResultKey, generation: u64) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.generation != generation || entry.pins == 0 {
            return;
        }
        entry.pins -= 1;
        if entry.pins == 0 {
            self.sums.pinned_bytes -= entry.memory_bytes();
            self.is_exhausted = false;
        }
        self.update_heat();
    }

    /// Some buffers of an entry are dropped for good, in memory or on the disk.
    pub fn shrink_entry(&mut self, key: ResultKey, parts: &[Part], disk_bytes: u64) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        for part in parts {
            let Some(at) = entry.parts.iter().position(|held| held == part) else {
                continue;
            };
            entry.parts.swap_remove(at);
            self.parts.subtract(*part, entry.origin);
            if entry.pins > 0 {
                self.sums.pinned_bytes -= part.bytes;
            }
            if entry.place == Place::Writing {
                self.sums.writing_bytes -= part.bytes;
            }
        }
        let freed = disk_bytes.min(entry.disk_bytes);
        entry.disk_bytes -= freed;
        self.free_disk(freed);
        self.update_heat();
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: ResultKey) -> Option<Entry<V>> {
        let entry = self.entries.remove(key)?;
        self.forget(&entry);
        self.update_heat();
        Some(entry)
    }

    /// Takes all entries of a graph out.
    pub fn remove_graph(&mut self, graph: u32) -> Vec<Entry<V>> {
        let entries: Vec<_> = self
            .entries
            .remove_graph(graph)
            .map(|(_, entry)| entry)
            .collect();
        for entry in &entries {
            self.forget(entry);
        }
        self.update_heat();
        entries
    }

    /// Takes all entries out. What running tasks have taken stays theirs.
    pub fn clear(&mut self) -> Vec<Entry<V>> {
        let entries = std::mem::take(&mut self.entries);
        let entries: Vec<_> = entries.into_values().collect();
        for entry in &entries {
            self.forget(entry);
        }
        self.update_heat();
        entries
    }

    /// Takes an entry that is gone from the sums.
    fn forget(&mut self, entry: &Entry<V>) {
        for part in &entry.parts {
            self.parts.subtract(*part, entry.origin);
        }
        *self.sums.count(entry.origin) -= 1;
        let memory_bytes = entry.memory_bytes();
        if entry.pins > 0 {
            self.sums.pinned_bytes -= memory_bytes;
        }
        if entry.place == Place::Writing {
            self.sums.writing_bytes -= memory_bytes;
        }
        self.free_disk(entry.disk_bytes);
    }

    fn free_disk(&mut self, bytes: u64) {
        self.sums.disk_bytes -= bytes;
        if bytes > 0 && self.disk == DiskState::ShareUsedUp {
            self.disk = DiskState::Usable;
            self.is_exhausted = false;
        }
    }
}

impl Held {
    fn count(&mut self, origin: Origin) -> &mut u64 {
        match origin {
            Origin::Result => &mut self.results,
            Origin::Copy => &mut self.copies,
        }
    }
}

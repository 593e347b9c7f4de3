//! What goes to the disk next, and how entries move between memory and disk.
//!
//! Least useful first: what was not used for long and is large. Memory that can be given back
//! without writing goes before anything is written.

use std::cmp::Reverse;

use super::{DiskState, Entry, Ledger, Origin, Place};
use crate::key::ResultKey;
use crate::parts::Part;

/// Steps that are decided at once: enough that many small results do not cost a look at all of
/// them each.
const STEPS_AT_ONCE_MAX: usize = 512;

/// What is smaller is written last: a file of its own costs more than it frees.
const WRITE_BYTES_MIN: u64 = 4096;

/// Something that makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpillStep {
    /// It is on the disk already: its memory is given back.
    DropMemory(ResultKey),
    /// A peer holds it too: it is dropped.
    DropCopy(ResultKey),
    /// It is to be written; the entry is marked as being written.
    Write {
        /// Which.
        key: ResultKey,
        /// Its generation, for when it has been written.
        generation: u64,
    },
}

/// In which order candidates go; smaller goes first.
type Rank = (u8, bool, Reverse<u128>, ResultKey);

impl<V> Ledger<V> {
    /// Whether there is something to do for whoever spills.
    pub fn is_spill_due(&self) -> bool {
        if self.settings.disk_limit_bytes == 0 || self.is_exhausted {
            return false;
        }
        let memory_bytes = self.held().memory_bytes();
        self.is_spilling
            || self.wanted_bytes > 0
            || memory_bytes > self.settings.share(self.settings.spill_permille)
    }

    /// What makes room until the target is reached, in the order in which it is to be done. The
    /// entries to be written are marked so; the other steps are the caller's, with
    /// [`Ledger::drop_memory`] and [`Ledger::remove`]. Nothing means: enough room, or nothing left.
    pub fn next_spill_steps(&mut self, now: u64) -> Vec<SpillStep> {
        if !self.is_spill_due() {
            return Vec::new();
        }
        let held = self.held();
        let target = self.spill_target();
        let mut left = held.memory_bytes().saturating_sub(held.writing_bytes);
        self.is_spilling = left > target;
        if !self.is_spilling {
            self.wanted_bytes = 0;
            return Vec::new();
        }
        let candidates = self.candidates(now);
        let mut disk_left = self
            .settings
            .disk_limit_bytes
            .saturating_sub(held.disk_bytes);
        let (mut steps, mut is_disk_short) = (Vec::new(), false);
        for (class, _, _, key) in candidates {
            if left <= target {
                break;
            }
            let Some(entry) = self.entries.get(key) else {
                continue;
            };
            let (share, memory_bytes) =
                (self.parts.share_bytes(&entry.parts), entry.memory_bytes());
            let step = match class {
                CLASS_MEMORY => SpillStep::DropMemory(key),
                CLASS_COPY => SpillStep::DropCopy(key),
                _ if memory_bytes > disk_left => {
                    is_disk_short = true;
                    continue;
                }
                _ => {
                    let generation = entry.generation;
                    disk_left -= memory_bytes;
                    self.begin_write(key);
                    SpillStep::Write { key, generation }
                }
            };
            left = left.saturating_sub(share);
            steps.push(step);
        }
        if steps.is_empty() && self.sums.writing_bytes == 0 {
            self.is_exhausted = true;
            if is_disk_short {
                self.disk = DiskState::ShareUsedUp;
            }
            self.is_spilling = false;
            self.wanted_bytes = 0;
        }
        steps
    }

    fn spill_target(&self) -> u64 {
        let target = self.settings.share(self.settings.spill_target_permille);
        let granted = self.settings.share(self.settings.grant_permille);
        match self.wanted_bytes {
            0 => target,
            wanted => target.min(granted.saturating_sub(wanted)),
        }
    }

    /// Those that go first, in order.
    fn candidates(&self, now: u64) -> Vec<Rank> {
        let limit = self.settings.limit_bytes;
        let rank = |(key, entry): (ResultKey, &Entry<V>)| {
            let memory_bytes = entry.memory_bytes();
            let is_free = entry.pins == 0 && !entry.parts.is_empty();
            let class = match (entry.place, entry.origin) {
                _ if !is_free => return None,
                (Place::Both, _) => CLASS_MEMORY,
                (Place::Memory, Origin::Copy) => CLASS_COPY,
                (Place::Memory, Origin::Result) if self.can_spill() => match memory_bytes {
                    0..WRITE_BYTES_MIN => CLASS_WRITE_SMALL,
                    _ => CLASS_WRITE,
                },
                _ => return None,
            };
            let age = u128::from(now.saturating_sub(entry.last_use)) + 1;
            let worth_moving = Reverse(age * u128::from(memory_bytes));
            Some((class, memory_bytes <= limit, worth_moving, key))
        };
        let mut ranks: Vec<Rank> = self.entries.iter().filter_map(rank).collect();
        if ranks.len() > STEPS_AT_ONCE_MAX {
            ranks.select_nth_unstable(STEPS_AT_ONCE_MAX);
            ranks.truncate(STEPS_AT_ONCE_MAX);
        }
        ranks.sort_unstable();
        ranks
    }

    fn begin_write(&mut self, key: ResultKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = Place::Writing;
            entry.disk_bytes = entry.memory_bytes();
            self.sums.writing_bytes += entry.disk_bytes;
            self.sums.disk_bytes += entry.disk_bytes;
        }
    }

    /// Whether an entry is still to be written: not if it is gone or a run needs it by now.
    pub fn is_write_wanted(&self, key: ResultKey, generation: u64) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            entry.generation == generation && entry.place == Place::Writing && entry.pins == 0
        })
    }

    /// An entry was written, or not. `None` if it is gone by now, else where it is. Its memory is
    /// still held: see [`Ledger::drop_memory`].
    pub fn end_write(
        &mut self,
        key: ResultKey,
        generation: u64,
        is_written: bool,
    ) -> Option<Place> {
        let entry = self.entries.get_mut(key)?;
        if entry.generation != generation || entry.place != Place::Writing {
            return None;
        }
        self.sums.writing_bytes -= entry.memory_bytes();
        let place = if is_written {
            Place::Both
        } else {
            Place::Memory
        };
        entry.place = place;
        if !is_written {
            let freed = std::mem::take(&mut entry.disk_bytes);
            self.free_disk(freed);
        }
        self.update_heat();
        Some(place)
    }

    /// Gives the memory of an entry back that is on the disk as well and that no run needs. Returns
    /// its value, so that the caller drops the buffers.
    pub fn drop_memory(&mut self, key: ResultKey) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        if entry.place != Place::Both || entry.pins > 0 {
            return None;
        }
        entry.place = Place::Disk;
        for part in entry.parts.drain(..) {
            self.parts.subtract(part, entry.origin);
        }
        self.update_heat();
        Some(&mut self.entries.get_mut(key)?.value)
    }

    /// An entry that was on the disk is in memory as well. `None` if it is something else by now.
    pub fn loaded(
        &mut self,
        key: ResultKey,
        generation: u64,
        parts: Vec<Part>,
        now: u64,
    ) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        if entry.generation != generation || entry.place != Place::Disk {
            return None;
        }
        entry.place = Place::Both;
        entry.last_use = now;
        for part in &parts {
            self.parts.add(*part, entry.origin);
        }
        entry.parts = parts;
        if entry.pins > 0 {
            self.sums.pinned_bytes += entry.memory_bytes();
        }
        self.is_exhausted = false;
        self.update_heat();
        Some(&mut self.entries.get_mut(key)?.value)
    }

    /// The disk takes more, or nothing more: whoever writes there says so.
    pub fn set_disk_usable(&mut self, is_usable: bool) {
        if self.disk != DiskState::Absent {
            self.disk = if is_usable {
                DiskState::Usable
            } else {
                DiskState::Refuses
            };
        }
        self.is_exhausted = false;
    }

    /// Whether the disk takes more.
    pub fn can_spill(&self) -> bool {
        self.disk == DiskState::Usable
    }

    /// Somebody waits for this much memory: more is spilled than the shares ask for.
    pub fn want(&mut self, bytes: u64) {
        let granted = self.settings.share(self.settings.grant_permille);
        self.wanted_bytes = self.wanted_bytes.max(bytes.min(granted));
    }

    /// Whether this much more is in memory without passing the limit, or waiting is of no use.
    pub fn has_room_or_nothing_to_spill(&self, bytes: u64) -> bool {
        let wanted = self.held().memory_bytes().saturating_add(bytes);
        wanted <= self.settings.share(self.settings.grant_permille)
            || !self.can_spill()
            || self.is_exhausted
    }
}

const CLASS_MEMORY: u8 = 0;
const CLASS_COPY: u8 = 1;
const CLASS_WRITE: u8 = 2;
const CLASS_WRITE_SMALL: u8 = 3;

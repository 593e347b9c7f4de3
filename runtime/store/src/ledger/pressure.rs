//! Whether runs may start, and whether those that run get more.

use thiserror::Error;

use super::Ledger;

/// How tight the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// No runs are to start until this changes. Never so while nothing runs and nothing can be
    /// spilled: then waiting would change nothing.
    pub is_paused: bool,
    /// Bytes of results, copies and running tasks in memory.
    pub memory_bytes: u64,
    /// Of these, what running tasks have taken.
    pub reserved_bytes: u64,
    /// Bytes that may be used.
    pub limit_bytes: u64,
    /// How many runs have a share of the memory.
    pub runs: u64,
    /// Whether results are being moved to the disk.
    pub is_spilling: bool,
    /// Whether the disk takes nothing more.
    pub is_disk_full: bool,
}

/// A running task does not get what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("`{needed}` more bytes do not fit: `{taken}` of `{limit}` bytes are taken")]
pub struct MemoryRefused {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes taken by whatever cannot make room.
    pub taken: u64,
    /// Bytes that running tasks may use.
    pub limit: u64,
}

impl<V> Ledger<V> {
    /// How tight the memory is.
    pub fn pressure(&self) -> Pressure {
        let held = self.held();
        Pressure {
            is_paused: self.is_paused(),
            memory_bytes: held.memory_bytes(),
            reserved_bytes: held.reserved_bytes,
            limit_bytes: self.settings.limit_bytes,
            runs: self.reservations.len() as u64,
            is_spilling: self.is_spilling,
            is_disk_full: self.settings.disk_limit_bytes > 0 && !self.can_spill(),
        }
    }

    fn is_paused(&self) -> bool {
        let held = self.held();
        let can_spill = self.can_spill() && !self.is_exhausted;
        self.is_hot && (!self.reservations.is_empty() || held.writing_bytes > 0 || can_spill)
    }

    /// Between the two shares, it stays as it is: runs are not started and held back in turn.
    pub(super) fn update_heat(&mut self) {
        let memory_bytes = self.held().memory_bytes();
        if memory_bytes >= self.settings.share(self.settings.pause_permille) {
            self.is_hot = true;
        } else if memory_bytes < self.settings.share(self.settings.spill_permille) {
            self.is_hot = false;
        }
    }

    /// A run begins. Returns the number of its share.
    pub fn open_reservation(&mut self) -> u64 {
        self.next_reservation += 1;
        self.reservations.insert(self.next_reservation, 0);
        self.next_reservation
    }

    /// A run has ended: what it had taken is free.
    pub fn close_reservation(&mut self, reservation: u64) {
        if let Some(taken) = self.reservations.remove(&reservation) {
            self.sums.reserved_bytes -= taken;
            self.update_heat();
        }
    }

    /// What a run has taken.
    pub fn reserved_bytes(&self, reservation: u64) -> u64 {
        self.reservations.get(&reservation).copied().unwrap_or(0)
    }

    /// A run takes more, whatever is left.
    pub fn grow(&mut self, reservation: u64, bytes: u64) {
        if let Some(taken) = self.reservations.get_mut(&reservation) {
            // Nonsense must not make the sums wrong.
            let grown = bytes.min(u64::MAX - self.sums.reserved_bytes);
            *taken += grown;
            self.sums.reserved_bytes += grown;
            self.update_heat();
        }
    }

    /// A run gives back.
    pub fn shrink(&mut self, reservation: u64, bytes: u64) {
        if let Some(taken) = self.reservations.get_mut(&reservation) {
            let shrunk = bytes.min(*taken);
            *taken -= shrunk;
            self.sums.reserved_bytes -= shrunk;
            self.update_heat();
        }
    }

    /// A run takes more if it can be spared: what others were promised stays theirs, and what will
    /// have been spilled soon counts as free up to a bound.
    pub fn try_grow(&mut self, reservation: u64, bytes: u64) -> Result<(), MemoryRefused> {
        let held = self.held();
        let limit = self.settings.share(self.settings.grant_permille);
        let promised = self.promised_to_others(reservation, limit);
        let wanted = held
            .memory_bytes()
            .saturating_sub(self.soon_free_bytes())
            .saturating_add(bytes)
            .saturating_add(promised);
        if wanted <= limit {
            self.grow(reservation, bytes);
            return Ok(());
        }
        self.wanted_bytes = self.wanted_bytes.max(bytes.min(limit));
        Err(MemoryRefused {
            needed: bytes,
            taken: held.reserved_bytes + held.pinned_bytes,
            limit,
        })
    }

    /// Half of an equal share is promised to every run, so that one that came first cannot leave
    /// the others with nothing.
    fn promised_to_others(&self, reservation: u64, limit: u64) -> u64 {
        let promise = limit / (2 * self.reservations.len().max(1) as u64);
        let others = self
            .reservations
            .iter()
            .filter(|(other, _)| **other != reservation);
        others
            .map(|(_, taken)| promise.saturating_sub(*taken))
            .sum()
    }

    fn soon_free_bytes(&self) -> u64 {
        let held = self.held();
        let spillable = if self.can_spill() && !self.is_exhausted {
            held.bytes().saturating_sub(held.pinned_bytes)
        } else {
            held.writing_bytes
        };
        spillable.min(self.settings.share(self.settings.soon_free_permille))
    }
}

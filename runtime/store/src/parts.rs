//! Which buffers are held, each counted once.
//!
//! Two payloads often share bytes: a copy of a result, a table that a task passed on. Buffers are
//! told apart by address and length. An address stays taken as long as an entry holds the buffer,
//! so equal parts are the same bytes.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use bytes::Bytes;

use crate::key::IdHasher;
use crate::ledger::Origin;
use crate::payload::Payload;

/// One buffer of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// Where it begins in memory.
    pub address: usize,
    /// Its length.
    pub bytes: u64,
}

impl Part {
    /// The part that a buffer is.
    pub fn of(buffer: &Bytes) -> Self {
        Self {
            address: buffer.as_ptr().addr(),
            bytes: buffer.len() as u64,
        }
    }

    /// The buffers of a payload, without empty ones.
    pub fn of_payload(payload: &Payload) -> Vec<Self> {
        Self::of_all(&payload.parts)
    }

    /// Buffers, without empty ones.
    pub fn of_all(buffers: &[Bytes]) -> Vec<Self> {
        let held = buffers.iter().filter(|buffer| !buffer.is_empty());
        held.map(Self::of).collect()
    }
}

/// How many entries hold a buffer, by how they came here.
#[derive(Debug, Clone, Copy, Default)]
struct Holders {
    results: u32,
    copies: u32,
}

impl Holders {
    fn of(&mut self, origin: Origin) -> &mut u32 {
        match origin {
            Origin::Result => &mut self.results,
            Origin::Copy => &mut self.copies,
        }
    }

    /// A buffer that a result holds is the result's, whoever else holds it.
    fn counts_as(self) -> Option<Origin> {
        match (self.results, self.copies) {
            (0, 0) => None,
            (0, _) => Some(Origin::Copy),
            _ => Some(Origin::Result),
        }
    }
}

/// All buffers that are held, and their sums.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    holders: HashMap<Part, Holders, BuildHasherDefault<IdHasher>>,
    /// Bytes of buffers that results hold.
    pub(crate) result_bytes: u64,
    /// Bytes of buffers that only copies hold.
    pub(crate) copy_bytes: u64,
}

impl Parts {
    /// All bytes that are held.
    pub(crate) fn bytes(&self) -> u64 {
        self.result_bytes + self.copy_bytes
    }

    pub(crate) fn add(&mut self, part: Part, origin: Origin) {
        let holders = self.holders.entry(part).or_default();
        let before = holders.counts_as();
        *holders.of(origin) += 1;
        let after = holders.counts_as();
        self.recount(part.bytes, before, after);
    }

    pub(crate) fn subtract(&mut self, part: Part, origin: Origin) {
        let Some(holders) = self.holders.get_mut(&part) else {
            return;
        };
        let before = holders.counts_as();
        let count = holders.of(origin);
        *count = count.saturating_sub(1);
        let after = holders.counts_as();
        if after.is_none() {
            self.holders.remove(&part);
        }
        self.recount(part.bytes, before, after);
    }

    /// What of these parts is one holder's share: shared ones are divided.
    pub(crate) fn share_bytes(&self, parts: &[Part]) -> u64 {
        let shares = parts.iter().map(|part| {
            let holders = self.holders.get(part).copied().unwrap_or_default();
            part.bytes / u64::from((holders.results + holders.copies).max(1))
        });
        shares.sum()
    }

    fn recount(&mut self, bytes: u64, before: Option<Origin>, after: Option<Origin>) {
        if before == after {
            return;
        }
        match before {
            Some(Origin::Result) => self.result_bytes -= bytes,
            Some(Origin::Copy) => self.copy_bytes -= bytes,
            None => {}
        }
        match after {
            Some(Origin::Result) => self.result_bytes += bytes,
            Some(Origin::Copy) => self.copy_bytes += bytes,
            None => {}
        }
    }
}

//! Texts that are stored once and known by a number.
//!
//! One buffer for all texts and an open hash table of numbers: some twenty bytes a text, and no
//! allocation for each.

use std::hash::{DefaultHasher, Hasher};

const EMPTY: u32 = u32::MAX;
const SLOTS_MIN: usize = 16;

/// Numbers texts from 0 in the order in which they are first seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Interner {
    texts: Vec<u8>,
    ends: Vec<usize>,
    hashes: Vec<u32>,
    slots: Vec<u32>,
}

impl Interner {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text's number, and whether it is new. Holds fewer than `u32::MAX` texts: callers have
    /// limits of their own far below.
    pub(super) fn intern(&mut self, text: &[u8]) -> (u32, bool) {
        if (self.ends.len() + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let hash = hash(text);
        let slot = self.slot(text, hash);
        if self.slots[slot] != EMPTY {
            return (self.slots[slot], false);
        }
        let number = u32::try_from(self.ends.len()).unwrap_or(EMPTY);
        self.slots[slot] = number;
        self.texts.extend_from_slice(text);
        self.ends.push(self.texts.len());
        self.hashes.push(hash);
        (number, true)
    }

    pub(super) fn get(&self, number: u32) -> &[u8] {
        &self.texts[self.range(number)]
    }

    /// Where the text stands in what [`Interner::into_texts`] gives.
    pub(super) fn range(&self, number: u32) -> std::ops::Range<usize> {
        let position = number as usize;
        let start = if position == 0 {
            0
        } else {
            self.ends[position - 1]
        };
        start..self.ends[position]
    }

    /// All texts, one behind the other.
    pub(super) fn into_texts(self) -> Vec<u8> {
        self.texts
    }

    /// Gives back what is only needed to find texts.
    pub(super) fn seal(&mut self) {
        self.hashes = Vec::new();
        self.slots = Vec::new();
        self.texts.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    fn slot(&self, text: &[u8], hash: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let number = self.slots[slot];
            let is_found = number == EMPTY
                || (self.hashes[number as usize] == hash && self.get(number) == text);
            if is_found {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let slots_count = (self.slots.len() * 2).max(SLOTS_MIN);
        self.slots.clear();
        self.slots.resize(slots_count, EMPTY);
        let mask = slots_count - 1;
        for (number, hash) in (0..).zip(&self.hashes) {
            let mut slot = *hash as usize & mask;
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = number;
        }
    }
}

fn hash(text: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text);
    let hash = hasher.finish();
    // Both halves: a table has far fewer slots than 2^32.
    u32::try_from((hash ^ (hash >> 32)) & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_texts_in_the_order_of_their_first_sight() {
        let mut interner = Interner::default();
        for number in 0..10_000_u32 {
            let text = format!("key-{number}");
            assert_eq!(interner.intern(text.as_bytes()), (number, true));
        }
        for number in (0..10_000_u32).rev() {
            let text = format!("key-{number}");
            assert_eq!(interner.intern(text.as_bytes()), (number, false));
            assert_eq!(interner.get(number), text.as_bytes());
        }
        assert_eq!(interner.intern(b""), (10_000, true));
        assert_eq!(interner.intern(b""), (10_000, false));
        interner.seal();
        assert_eq!(interner.get(7), b"key-7");
        assert_eq!(interner.get(10_000), b"");
    }
}

//! What is held, to the byte.
//!
//! Owns one entry per result with its size and origin, the sums, and the limit. Pure: knows no
//! thread, no disk and no clock; the value of an entry is the caller's. Room for running tasks and
//! for what lies on disk will be entries of their own.
//!
//! Invariants: the sums equal the entries; the total never passes the limit.

use crate::error::StoreError;
use crate::key::{KeyMap, ResultKey};

/// How something came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A task made it here.
    Result,
    /// It was fetched from a peer as the input of a task.
    Copy,
}

/// One thing that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<V> {
    /// Its size.
    pub bytes: u64,
    /// How it came here.
    pub origin: Origin,
    /// The caller's.
    pub value: V,
}

/// The sums of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Bytes of results that were made here.
    pub result_bytes: u64,
    /// Bytes of copies.
    pub copy_bytes: u64,
    /// Number of results that were made here.
    pub results: u64,
    /// Number of copies.
    pub copies: u64,
}

impl Held {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.result_bytes + self.copy_bytes
    }

    fn add<V>(&mut self, entry: &Entry<V>) {
        let (bytes, count) = self.sums(entry.origin);
        *bytes += entry.bytes;
        *count += 1;
    }

    fn subtract<V>(&mut self, entry: &Entry<V>) {
        let (bytes, count) = self.sums(entry.origin);
        *bytes -= entry.bytes;
        *count -= 1;
    }

    fn sums(&mut self, origin: Origin) -> (&mut u64, &mut u64) {
        match origin {
            Origin::Result => (&mut self.result_bytes, &mut self.results),
            Origin::Copy => (&mut self.copy_bytes, &mut self.copies),
        }
    }
}

/// The accounts of one worker.
#[derive(Debug, Clone)]
pub struct Ledger<V> {
    entries: KeyMap<Entry<V>>,
    held: Held,
    limit_bytes: u64,
}

impl<V> Ledger<V> {
    /// An empty ledger that holds at most this much.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            entries: KeyMap::default(),
            held: Held::default(),
            limit_bytes,
        }
    }

    /// Bytes that may be held.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What is held.
    pub fn held(&self) -> Held {
        self.held
    }

    /// One entry.
    pub fn get(&self, key: ResultKey) -> Option<&Entry<V>> {
        self.entries.get(key)
    }

    /// Everything, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (ResultKey, &Entry<V>)> {
        self.entries.iter()
    }

    /// Adds or replaces an entry and returns the one before. Refused if the total would pass the
    /// limit; nothing has changed then, an entry of this key stays.
    pub fn insert(
        &mut self,
        key: ResultKey,
        entry: Entry<V>,
    ) -> Result<Option<Entry<V>>, StoreError> {
        let replaced = self.entries.get(key).map_or(0, |before| before.bytes);
        let held = self.held.bytes() - replaced;
        let fits = held
            .checked_add(entry.bytes)
            .is_some_and(|total| total <= self.limit_bytes);
        if !fits {
            let (needed, limit) = (entry.bytes, self.limit_bytes);
            return Err(StoreError::MemoryExceeded {
                key,
                needed,
                held,
                limit,
            });
        }
        self.held.add(&entry);
        let before = self.entries.insert(key, entry);
        if let Some(before) = &before {
            self.held.subtract(before);
        }
        Ok(before)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: ResultKey) -> Option<Entry<V>> {
        let entry = self.entries.remove(key)?;
        self.held.subtract(&entry);
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
            self.held.subtract(entry);
        }
        entries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(bytes: u64, origin: Origin) -> Entry<()> {
        Entry {
            bytes,
            origin,
            value: (),
        }
    }

    #[test]
    fn refuses_what_passes_the_limit_and_says_by_how_much() {
        let mut ledger = Ledger::new(100);
        let (a, b) = (ResultKey::new(1, 0), ResultKey::new(1, 1));
        ledger.insert(a, entry(70, Origin::Result)).unwrap();
        let refused = ledger.insert(b, entry(31, Origin::Copy)).unwrap_err();
        assert_eq!(
            refused,
            StoreError::MemoryExceeded {
                key: b,
                needed: 31,
                held: 70,
                limit: 100
            }
        );
        assert!(refused.may_fit_later());
        assert_eq!(ledger.held().bytes(), 70);
        ledger.insert(b, entry(30, Origin::Copy)).unwrap();
        assert_eq!(ledger.held().bytes(), 100);
        let hopeless = ledger.insert(b, entry(101, Origin::Copy)).unwrap_err();
        assert!(!hopeless.may_fit_later());
        let absurd = ledger
            .insert(a, entry(u64::MAX, Origin::Result))
            .unwrap_err();
        assert!(matches!(
            absurd,
            StoreError::MemoryExceeded { key, .. } if key == a
        ));
        assert!(
            absurd
                .to_string()
                .starts_with("it needs `18446744073709551615` bytes")
        );
        assert_eq!(ledger.get(a), Some(&entry(70, Origin::Result)));
    }

    #[test]
    fn an_entry_that_is_replaced_makes_room_for_its_successor() {
        let mut ledger = Ledger::new(100);
        let key = ResultKey::new(1, 0);
        ledger.insert(key, entry(90, Origin::Copy)).unwrap();
        let before = ledger.insert(key, entry(100, Origin::Result)).unwrap();
        assert_eq!(before, Some(entry(90, Origin::Copy)));
        let held = ledger.held();
        assert_eq!(
            (
                held.results,
                held.result_bytes,
                held.copies,
                held.copy_bytes
            ),
            (1, 100, 0, 0)
        );
    }

    #[test]
    fn nothing_fits_into_nothing_but_nothing() {
        let mut ledger = Ledger::new(0);
        ledger
            .insert(ResultKey::new(0, 0), entry(0, Origin::Result))
            .unwrap();
        assert!(
            ledger
                .insert(ResultKey::new(0, 1), entry(1, Origin::Result))
                .is_err()
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(ResultKey, u64, Origin),
        Remove(ResultKey),
        RemoveGraph(u32),
    }

    fn any_key() -> impl Strategy<Value = ResultKey> {
        (0..3_u32, 0..6_u32).prop_map(|(graph, task)| ResultKey::new(graph, task))
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let origin = prop_oneof![Just(Origin::Result), Just(Origin::Copy)];
        prop_oneof![
            6 => (any_key(), 0..400_u64, origin).prop_map(|(k, b, o)| Step::Insert(k, b, o)),
            3 => any_key().prop_map(Step::Remove),
            1 => (0..3_u32).prop_map(Step::RemoveGraph),
        ]
    }

    proptest! {
        #[test]
        fn the_sums_equal_the_entries(steps in prop::collection::vec(any_step(), 0..200)) {
            let mut ledger = Ledger::new(1_000);
            for step in steps {
                match step {
                    Step::Insert(key, bytes, origin) => {
                        let fits_at_least = ledger.held().bytes() + bytes <= 1_000;
                        let outcome = ledger.insert(key, entry(bytes, origin));
                        prop_assert!(outcome.is_ok() || !fits_at_least);
                    }
                    Step::Remove(key) => {
                        let was_there = ledger.get(key).is_some();
                        prop_assert_eq!(ledger.remove(key).is_some(), was_there);
                    }
                    Step::RemoveGraph(graph) => {
                        ledger.remove_graph(graph);
                        prop_assert!(ledger.iter().all(|(key, _)| key.graph() != graph));
                    }
                }
                let mut sums = Held::default();
                for (_, entry) in ledger.iter() {
                    sums.add(entry);
                }
                prop_assert_eq!(sums, ledger.held());
                prop_assert!(ledger.held().bytes() <= ledger.limit_bytes());
            }
        }
    }
}

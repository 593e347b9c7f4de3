//! The ledger for many threads, with payloads as its values.
//!
//! One lock, held for a few map operations and never while payloads are made or dropped. A payload
//! that is read stays valid after its entry is gone: its bytes are shared.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::StoreError;
use crate::key::ResultKey;
use crate::ledger::{Entry, Held, Ledger, Origin};
use crate::payload::Payload;

/// The results and copies that a worker holds.
#[derive(Debug)]
pub struct Store {
    ledger: Mutex<Ledger<Payload>>,
}

impl Store {
    /// An empty store that holds at most this much.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(limit_bytes)),
        }
    }

    /// Keeps what a task has made, in place of what was held under this key. Returns its size.
    pub fn insert_result(&self, key: ResultKey, payload: Payload) -> Result<u64, StoreError> {
        let bytes = payload.len();
        let entry = Entry {
            bytes,
            origin: Origin::Result,
            value: payload,
        };
        // Bound to a name: what was replaced is dropped after the lock is gone.
        let replaced = self.lock().insert(key, entry)?;
        drop(replaced);
        Ok(bytes)
    }

    /// Keeps what was fetched, unless something is held under this key already: that is the same.
    pub fn insert_copy(&self, key: ResultKey, payload: Payload) -> Result<u64, StoreError> {
        let bytes = payload.len();
        let mut ledger = self.lock();
        if let Some(entry) = ledger.get(key) {
            return Ok(entry.bytes);
        }
        ledger.insert(
            key,
            Entry {
                bytes,
                origin: Origin::Copy,
                value: payload,
            },
        )?;
        Ok(bytes)
    }

    /// What is held under a key. Shares the bytes.
    pub fn get(&self, key: ResultKey) -> Option<Payload> {
        self.lock().get(key).map(|entry| entry.value.clone())
    }

    /// What is held under several keys, in their order, or the first key that is not held.
    pub fn get_all(&self, keys: &[ResultKey]) -> Result<Vec<Payload>, ResultKey> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let ledger = self.lock();
        let values = keys.iter().map(|key| {
            ledger
                .get(*key)
                .map(|entry| entry.value.clone())
                .ok_or(*key)
        });
        values.collect()
    }

    /// Forgets what is held under a key. Whether there was something.
    pub fn remove(&self, key: ResultKey) -> bool {
        let removed = self.lock().remove(key);
        removed.is_some()
    }

    /// Forgets everything of a graph.
    pub fn remove_graph(&self, graph: u32) {
        let removed = self.lock().remove_graph(graph);
        drop(removed);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut ledger = self.lock();
        let empty = Ledger::new(ledger.limit_bytes());
        let forgotten = std::mem::replace(&mut *ledger, empty);
        // The bytes go after the lock.
        drop(ledger);
        drop(forgotten);
    }

    /// How much is held.
    pub fn held(&self) -> Held {
        self.lock().held()
    }

    /// Bytes that may be held.
    pub fn limit_bytes(&self) -> u64 {
        self.lock().limit_bytes()
    }

    /// A panic elsewhere while the lock was held cannot leave a half-done change: the ledger
    /// changes its sums and its entries without calling foreign code in between.
    fn lock(&self) -> MutexGuard<'_, Ledger<Payload>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::payload::PayloadKind;

    fn payload(len: usize) -> Payload {
        Payload::new(PayloadKind::Bytes, Bytes::from(vec![7_u8; len]))
    }

    #[test]
    fn a_payload_outlives_its_entry() {
        let store = Store::new(100);
        let key = ResultKey::new(1, 1);
        assert_eq!(store.insert_result(key, payload(40)).unwrap(), 40);
        let read = store.get(key).unwrap();
        assert!(store.remove(key));
        assert!(!store.remove(key));
        assert_eq!(read.len(), 40);
        assert_eq!(store.get(key), None);
        assert_eq!(store.held(), Held::default());
    }

    #[test]
    fn a_copy_never_replaces_a_result() {
        let store = Store::new(100);
        let key = ResultKey::new(1, 1);
        store.insert_result(key, payload(60)).unwrap();
        assert_eq!(store.insert_copy(key, payload(60)).unwrap(), 60);
        assert_eq!((store.held().results, store.held().copies), (1, 0));
        assert!(
            store
                .insert_copy(ResultKey::new(1, 2), payload(41))
                .is_err()
        );
    }

    #[test]
    fn inputs_are_all_there_or_one_is_named() {
        let store = Store::new(100);
        let keys = [ResultKey::new(1, 0), ResultKey::new(1, 1)];
        store.insert_result(keys[0], payload(1)).unwrap();
        assert_eq!(store.get_all(&keys), Err(keys[1]));
        store.insert_copy(keys[1], payload(2)).unwrap();
        let both = store.get_all(&[keys[1], keys[0], keys[1]]).unwrap();
        assert_eq!(both.iter().map(Payload::len).collect::<Vec<_>>(), [2, 1, 2]);
        store.remove_graph(1);
        assert_eq!(store.get_all(&keys), Err(keys[0]));
        assert_eq!(store.get_all(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_store_that_is_cleared_has_all_its_room_again() {
        let store = Store::new(100);
        for task in 0..4 {
            store
                .insert_result(ResultKey::new(1, task), payload(25))
                .unwrap();
        }
        store.clear();
        assert_eq!(store.held(), Held::default());
        assert_eq!(store.get(ResultKey::new(1, 0)), None);
        assert_eq!(store.limit_bytes(), 100);
        assert!(
            store
                .insert_result(ResultKey::new(1, 0), payload(100))
                .is_ok()
        );
    }

    #[test]
    fn threads_share_the_limit() {
        let store = Arc::new(Store::new(1_000));
        let threads: Vec<_> = (0..4)
            .map(|graph| {
                let store = Arc::clone(&store);
                std::thread::spawn(move || {
                    (0..100)
                        .filter(|task| {
                            store
                                .insert_result(ResultKey::new(graph, *task), payload(10))
                                .is_ok()
                        })
                        .count()
                })
            })
            .collect();
        let kept: usize = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        assert_eq!(kept, 100);
        assert_eq!(store.held().bytes(), 1_000);
    }
}

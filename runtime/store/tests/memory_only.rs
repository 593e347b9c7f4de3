//! A store without a disk.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use oxidask_store::{Absent, Held, Payload, PayloadKind, ResultKey, Store, StoreError, WHOLE};

fn payload(len: usize) -> Payload {
    Payload::new(PayloadKind::Bytes, Bytes::from(vec![7_u8; len]))
}

fn key(task: u32) -> ResultKey {
    ResultKey::new(1, task)
}

#[test]
fn a_payload_outlives_its_entry() {
    let store = Store::new(100);
    assert_eq!(store.insert_result(key(1), payload(40)).unwrap(), 40);
    let read = store.get(key(1)).unwrap();
    assert!(store.remove(key(1)));
    assert!(!store.remove(key(1)));
    assert_eq!(read.len(), 40);
    assert_eq!(store.get(key(1)), None);
    assert_eq!(store.held(), Held::default());
}

#[test]
fn a_copy_never_replaces_a_result() {
    let store = Store::new(100);
    store.insert_result(key(1), payload(60)).unwrap();
    assert_eq!(store.insert_copy(key(1), payload(60)).unwrap(), 60);
    assert_eq!((store.held().results, store.held().copies), (1, 0));
    assert!(store.insert_copy(key(2), payload(41)).is_err());
}

#[test]
fn what_passes_the_limit_is_refused_and_nothing_changes() {
    let store = Store::new(100);
    store.insert_result(key(0), payload(70)).unwrap();
    let refused = store.insert_result(key(1), payload(31)).unwrap_err();
    assert!(refused.may_fit_later());
    assert_eq!(
        refused.to_string(),
        "it needs `31` bytes, and `70` of `100` bytes are taken"
    );
    assert_eq!(store.held().bytes(), 70);
    store.insert_result(key(1), payload(30)).unwrap();
    let hopeless = store.insert_result(key(1), payload(101)).unwrap_err();
    assert!(matches!(hopeless, StoreError::MemoryExceeded { key, .. } if key.task() == 1));
    assert!(!hopeless.may_fit_later());
    // What it would replace makes room for it.
    store.insert_result(key(0), payload(10)).unwrap();
    store.insert_result(key(0), payload(70)).unwrap();
    assert_eq!(store.held().bytes(), 100);
}

#[test]
fn inputs_are_all_there_or_one_is_named() {
    let store = Store::new(100);
    let keys = [key(0), key(1)];
    store.insert_result(keys[0], payload(1)).unwrap();
    assert_eq!(store.get_all(&keys), Err(Absent::Missing(keys[1])));
    store.insert_copy(keys[1], payload(2)).unwrap();
    let both = store.get_all(&[keys[1], keys[0], keys[1]]).unwrap();
    assert_eq!(both.iter().map(Payload::len).collect::<Vec<_>>(), [2, 1, 2]);
    let loaded = block_on(store.load_all(keys.to_vec())).unwrap();
    assert_eq!((loaded.payloads.len(), store.held().pinned_bytes), (2, 3));
    drop(loaded);
    assert_eq!(store.held().pinned_bytes, 0);
    store.remove_graph(1);
    assert_eq!(store.get_all(&keys), Err(Absent::Missing(keys[0])));
    assert_eq!(store.get_all(&[]), Ok(Vec::new()));
    let lost = block_on(store.load_all(keys.to_vec())).unwrap_err();
    assert!(lost.is_lost() && lost.key() == Some(keys[0]));
}

#[test]
fn a_store_that_is_cleared_has_all_its_room_again() {
    let store = Store::new(100);
    for task in 0..4 {
        store.insert_result(key(task), payload(25)).unwrap();
    }
    store.clear();
    assert_eq!(store.held(), Held::default());
    assert_eq!(store.get(key(0)), None);
    assert_eq!(store.limit_bytes(), 100);
    assert!(store.insert_result(key(0), payload(100)).is_ok());
}

#[test]
fn shared_buffers_are_counted_once() {
    let store = Store::new(1_000);
    let shared = payload(600);
    store.insert_result(key(0), shared.clone()).unwrap();
    store.insert_result(key(1), shared.clone()).unwrap();
    // Twice in one payload, and beside something else.
    let mut both = shared.clone();
    both.parts.extend(shared.parts);
    both.parts.extend(payload(100).parts);
    assert_eq!(store.insert_copy(key(2), both).unwrap(), 1_300);
    assert_eq!(
        (store.held().result_bytes, store.held().copy_bytes),
        (600, 100)
    );
    store.remove(key(0));
    store.remove(key(1));
    assert_eq!(
        (store.held().result_bytes, store.held().copy_bytes),
        (0, 700)
    );
    store.remove(key(2));
    assert_eq!(store.held(), Held::default());
}

#[test]
fn a_slice_is_read_and_freed_alone() {
    let store = Store::new(1_000);
    let slices = vec![
        vec![Bytes::from(vec![1; 100])],
        vec![],
        vec![Bytes::from(vec![3; 50]), Bytes::from(vec![4; 50])],
    ];
    store
        .insert_result(key(0), Payload::from_slices(slices))
        .unwrap();
    let read = |slice, offset, bytes_max| {
        block_on(store.read_piece(key(0), slice, offset, bytes_max))
            .unwrap()
            .map(|piece| (piece.slice_bytes, piece.parts.concat()))
    };
    assert_eq!(read(2, 40, 20).unwrap(), (100, [[3; 10], [4; 10]].concat()));
    assert_eq!(read(1, 0, 10).unwrap(), (0, Vec::new()));
    assert_eq!(read(0, 200, 10).unwrap(), (100, Vec::new()));
    assert_eq!(read(WHOLE, 0, u64::MAX).unwrap().0, 232);
    assert_eq!(read(3, 0, 1), None);
    store.free_slice(key(0), 2);
    store.free_slice(key(0), 2);
    store.free_slice(key(0), 9);
    store.free_slice(key(5), 0);
    assert_eq!(store.held().bytes(), 132);
    assert_eq!((read(2, 0, 1), read(WHOLE, 0, 1)), (None, None));
    assert_eq!(read(0, 99, 9).unwrap(), (100, vec![1]));
    assert_eq!(store.get_all(&[key(0)]), Err(Absent::Missing(key(0))));
    assert!(!store.describe(key(0)).unwrap().is_whole);
}

#[test]
fn threads_share_the_limit() {
    let store = Arc::new(Store::new(1_000));
    let fill = |graph| {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            let insert = |task| store.insert_result(ResultKey::new(graph, task), payload(10));
            (0..100).filter(|task| insert(*task).is_ok()).count()
        })
    };
    let threads: Vec<_> = (0..4).map(fill).collect();
    let kept: usize = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert_eq!(kept, 100);
    assert_eq!(store.held().bytes(), 1_000);
}

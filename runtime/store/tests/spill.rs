//! Results that move to the disk and back, over real files and over a disk that fails.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod disk;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use disk::{Fault, FaultyDisk};
use futures::executor::block_on;
use oxidask_diagnostic::{Code, Coded};
use oxidask_store::{
    Absent, GoneReason, Payload, PayloadKind, ResultKey, Store, StoreConfig, StoreError,
    UNIT_BYTES_MAX, WHOLE,
};
use tempfile::TempDir;

const KIB: usize = 1024;
const LIMIT_BYTES: u64 = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

fn key(task: u32) -> ResultKey {
    ResultKey::new(1, task)
}

/// Bytes that tell where they belong.
fn pattern(seed: u32, len: usize) -> Bytes {
    let word = |at: usize| {
        (at as u64)
            .wrapping_mul(0x9E37_79B9)
            .wrapping_add(u64::from(seed))
    };
    (0..len).map(|at| word(at).to_le_bytes()[1]).collect()
}

fn payload(seed: u32, len: usize) -> Payload {
    Payload::new(PayloadKind::Bytes, pattern(seed, len))
}

fn config(folder: &TempDir) -> StoreConfig {
    StoreConfig {
        limit_bytes: LIMIT_BYTES,
        spill_dir: folder.path().join("spill"),
        disk_limit_bytes: 1 << 30,
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn wait_for_rest(store: &Store) {
    wait_until("the spiller rests", || {
        let held = store.held();
        held.writing_bytes == 0 && held.memory_bytes() * 10 <= LIMIT_BYTES * 7
    });
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn spill_files(folder: &TempDir) -> Vec<PathBuf> {
    let all = files(folder.path());
    let is_result = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "spill");
    all.into_iter().filter(is_result).collect()
}

/// The file of a result.
fn file_of(folder: &TempDir, task: u32) -> PathBuf {
    let prefix = format!("1-{task}-");
    let is_its = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with(&prefix)
    };
    spill_files(folder).into_iter().find(is_its).unwrap()
}

/// Result 0, spilled because result 1 needs its room.
fn spilled(payload: Payload) -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store::with_spill(&config(&folder)).unwrap();
    store.insert_result(key(0), payload).unwrap();
    store
        .insert_result(key(1), self::payload(1, 700 * KIB))
        .unwrap();
    let pins = store.pin(&[key(1)]);
    wait_until("the result is on the disk", || {
        store.get_all(&[key(0)]) == Err(Absent::OnDisk(key(0)))
    });
    drop(pins);
    wait_for_rest(&store);
    (folder, store)
}

#[test]
fn far_more_than_the_memory_is_kept_and_read_back() {
    let folder = TempDir::new().unwrap();
    let store = Store::with_spill(&config(&folder)).unwrap();
    for task in 0..100 {
        store
            .insert_result(key(task), payload(task, 100 * KIB))
            .unwrap();
        wait_until("there is room", || !store.pressure().is_paused);
    }
    wait_for_rest(&store);
    assert_eq!(store.held().results, 100);
    assert!(!spill_files(&folder).is_empty());
    for task in (0..100).rev() {
        let loaded = block_on(store.load_all(vec![key(task)])).unwrap();
        assert_eq!(loaded.payloads[0].parts.concat(), pattern(task, 100 * KIB));
        assert!(store.held().bytes() <= LIMIT_BYTES);
    }
    let figures = store.spill_figures();
    assert!(figures.spilled_files >= 90 && figures.read_back_bytes >= 90 * 100 * KIB as u64);
    assert_eq!((figures.failed_writes, figures.damaged), (0, 0));
    store.remove_graph(1);
    wait_until("the files are gone", || spill_files(&folder).is_empty());
    assert_eq!(store.held().disk_bytes, 0);
}

#[test]
fn one_result_larger_than_the_memory_goes_to_the_disk() {
    let (folder, store) = spilled(payload(5, 3 * 1024 * KIB));
    assert_eq!(spill_files(&folder).len(), 1);
    let piece = block_on(store.read_piece(key(0), WHOLE, 2_000_000, 1000))
        .unwrap()
        .unwrap();
    assert_eq!(piece.slice_bytes, 3 * 1024 * 1024);
    assert_eq!(
        piece.parts.concat(),
        pattern(5, 3 * 1024 * KIB)[2_000_000..2_001_000]
    );
}

#[test]
fn slices_are_read_from_the_disk_without_their_neighbours() {
    let slices: Vec<Vec<Bytes>> = vec![
        vec![pattern(1, 100 * KIB), pattern(2, 7)],
        vec![],
        vec![pattern(3, 400 * KIB)],
        (0..300).map(|seed| pattern(seed, 100)).collect(),
    ];
    let whole = Payload::from_slices(slices.clone());
    let (folder, store) = spilled(whole.clone());
    for (slice, parts) in (0_u32..).zip(&slices) {
        let content = parts.concat();
        for (offset, bytes_max) in [(0, 1 << 30), (1, 5), (content.len() / 2, 300_000)] {
            let read = store.read_piece(key(0), slice, offset as u64, bytes_max);
            let piece = block_on(read).unwrap().unwrap();
            assert_eq!(piece.kind, PayloadKind::Slices);
            assert_eq!(piece.slice_bytes, content.len() as u64);
            let start = offset.min(content.len());
            let end = content
                .len()
                .min(start + usize::try_from(bytes_max).unwrap());
            assert_eq!(piece.parts.concat(), content[start..end]);
        }
    }
    assert_eq!(block_on(store.read_piece(key(0), 4, 0, 1)).unwrap(), None);
    // Nothing of it came into memory for that.
    assert_eq!(store.get_all(&[key(0)]), Err(Absent::OnDisk(key(0))));
    let loaded = block_on(store.load_all(vec![key(0), key(0)])).unwrap();
    assert_eq!(loaded.payloads[1].parts.concat(), whole.parts.concat());
    assert_eq!(loaded.payloads[0].slice_lengths(), whole.slice_lengths());
    drop((loaded, store));
    assert!(files(folder.path()).is_empty());
}

#[test]
fn freed_slices_give_their_space_back_and_are_missing() {
    use std::os::unix::fs::MetadataExt;
    let slices = (0..4).map(|seed| vec![pattern(seed, 256 * KIB)]).collect();
    let (folder, store) = spilled(Payload::from_slices(slices));
    let path = file_of(&folder, 0);
    let before = (
        std::fs::metadata(&path).unwrap().blocks(),
        store.held().disk_bytes,
    );
    store.free_slice(key(0), 1);
    store.free_slice(key(0), 2);
    assert_eq!(store.held().disk_bytes, before.1 - 512 * 1024);
    wait_until("the space is back", || {
        std::fs::metadata(&path).unwrap().blocks() * 512 + 500_000 < before.0 * 512
    });
    assert_eq!(block_on(store.read_piece(key(0), 1, 0, 10)).unwrap(), None);
    let piece = block_on(store.read_piece(key(0), 3, 5, 10))
        .unwrap()
        .unwrap();
    assert_eq!(piece.parts.concat(), pattern(3, 256 * KIB)[5..15]);
    let lost = block_on(store.load_all(vec![key(0)])).unwrap_err();
    assert!(matches!(lost, StoreError::Missing { .. }));
}

#[test]
fn what_was_freed_in_memory_is_not_written() {
    let folder = TempDir::new().unwrap();
    let store = Store::with_spill(&config(&folder)).unwrap();
    let slices = (0..6).map(|seed| vec![pattern(seed, 100 * KIB)]).collect();
    store
        .insert_result(key(0), Payload::from_slices(slices))
        .unwrap();
    for slice in [0, 2, 3] {
        store.free_slice(key(0), slice);
    }
    store.insert_result(key(1), payload(9, 500 * KIB)).unwrap();
    let _pins = store.pin(&[key(1)]);
    wait_until("it is written", || spill_files(&folder).len() == 1);
    wait_for_rest(&store);
    for slice in 0..6 {
        let piece = block_on(store.read_piece(key(0), slice, 0, 1 << 20)).unwrap();
        match slice {
            0 | 2 | 3 => assert_eq!(piece, None),
            kept => assert_eq!(piece.unwrap().parts.concat(), pattern(kept, 100 * KIB)),
        }
    }
}

fn damage(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_the_result_is_gone() {
    let len = 600 * KIB;
    // In the header, in the first, the second and the last unit.
    for at in [3, 20, 4096, 4096 + UNIT_BYTES_MAX, 4096 + len as u64 - 1] {
        let (folder, store) = spilled(payload(3, len));
        let path = file_of(&folder, 0);
        damage(&path, at);
        let mut watch = store.watch_pressure();
        let error = block_on(store.load_all(vec![key(0)])).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { key, .. } if key == self::key(0)));
        assert_eq!((error.code(), error.is_lost()), (Code::SpillDamaged, true));
        assert!(!store.contains(key(0)));
        block_on(watch.changed());
        let gone = store.take_gone();
        assert_eq!((gone[0].key, gone[0].reason), (key(0), GoneReason::Damaged));
        assert_eq!(store.spill_figures().damaged, 1);
        wait_until("the file is gone", || !path.exists());
        // It can be made again.
        store.insert_result(key(0), payload(3, 10)).unwrap();
        assert!(store.get(key(0)).is_some());
    }
}

#[test]
fn a_damaged_unit_does_not_hurt_reads_elsewhere() {
    let (folder, store) = spilled(payload(3, 600 * KIB));
    damage(&file_of(&folder, 0), 4096 + UNIT_BYTES_MAX + 7);
    let first = block_on(store.read_piece(key(0), WHOLE, 0, 1000))
        .unwrap()
        .unwrap();
    assert_eq!(first.parts.concat(), pattern(3, 600 * KIB)[..1000]);
    let error = block_on(store.read_piece(key(0), WHOLE, UNIT_BYTES_MAX, 1)).unwrap_err();
    assert_eq!(
        error.to_string().split(" in `").next().unwrap(),
        "the spilled result `1/0` is damaged: the checksum is wrong at byte `262144` of the result"
    );
}

#[test]
fn a_file_that_is_cut_or_gone_is_found() {
    let (folder, store) = spilled(payload(3, 600 * KIB));
    let path = file_of(&folder, 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(300_000).unwrap();
    let error = block_on(store.load_all(vec![key(0)])).unwrap_err();
    assert!(error.to_string().contains("ends too early"), "{error}");

    let (folder, store) = spilled(payload(3, 600 * KIB));
    std::fs::remove_file(file_of(&folder, 0)).unwrap();
    let error = block_on(store.read_piece(key(0), WHOLE, 0, 1)).unwrap_err();
    assert!(matches!(error, StoreError::Read { .. }));
    assert!(!store.contains(key(0)));
}

#[test]
fn a_full_disk_leaves_everything_usable_and_is_tried_again() {
    let folder = TempDir::new().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    disk.set(Fault::NoSpaceAfter(150_000));
    let store = Store::with_disk(&config(&folder), disk.clone()).unwrap();
    let mut watch = store.watch_pressure();
    for task in 0..8 {
        store
            .insert_result(key(task), payload(task, 100 * KIB))
            .unwrap();
    }
    wait_until("the disk is full", || store.pressure().is_disk_full);
    block_on(watch.changed());
    store.insert_result(key(8), payload(8, 100 * KIB)).unwrap();
    store.insert_result(key(9), payload(9, 100 * KIB)).unwrap();
    let refused = (10..20).find_map(|task| {
        store
            .insert_result(key(task), payload(task, 100 * KIB))
            .err()
    });
    let refused = refused.unwrap();
    assert!(
        matches!(refused, StoreError::DiskFull { .. }),
        "{refused:?}"
    );
    assert_eq!(refused.code(), Code::WorkerDisk);
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("No space left"), "{source}");
    for task in 0..8 {
        let loaded = block_on(store.load_all(vec![key(task)])).unwrap();
        assert_eq!(loaded.payloads[0].parts.concat(), pattern(task, 100 * KIB));
    }
    // Nothing half written is left.
    assert!(
        files(folder.path())
            .iter()
            .all(|path| path.extension().unwrap() != "part")
    );
    disk.set(Fault::None);
    wait_until("the disk is used again", || !store.pressure().is_disk_full);
    store
        .insert_result(key(50), payload(50, 100 * KIB))
        .unwrap();
    wait_for_rest(&store);
    assert!(store.spill_figures().failed_writes > 0);
}

#[test]
fn a_disk_that_fails_at_any_step_costs_nothing_but_room() {
    let faults = [Fault::Create, Fault::Rename, Fault::TornWrite, Fault::Write];
    for fault in faults {
        let folder = TempDir::new().unwrap();
        let disk = Arc::new(FaultyDisk::default());
        disk.set(fault);
        let store = Store::with_disk(&config(&folder), disk.clone()).unwrap();
        for task in 0..8 {
            store
                .insert_result(key(task), payload(task, 100 * KIB))
                .unwrap();
        }
        wait_until("the disk failed", || store.pressure().is_disk_full);
        assert_eq!(store.held().disk_bytes, 0);
        let all: Vec<_> = (0..8).map(key).collect();
        let loaded = block_on(store.load_all(all)).unwrap();
        for (seed, payload) in (0..8).zip(&loaded.payloads) {
            assert_eq!(payload.parts.concat(), pattern(seed, 100 * KIB));
        }
        assert_eq!(spill_files(&folder).len(), 0);
    }
}

#[test]
fn reads_that_fail_name_the_result() {
    let folder = TempDir::new().unwrap();
    let disk = Arc::new(FaultyDisk::default());
    let store = Store::with_disk(&config(&folder), disk.clone()).unwrap();
    store.insert_result(key(0), payload(0, 900 * KIB)).unwrap();
    wait_until("it is on the disk", || store.get(key(0)).is_none());
    disk.set(Fault::Read);
    let error = block_on(store.load_all(vec![key(0)])).unwrap_err();
    assert!(matches!(&error, StoreError::Read { key, .. } if *key == self::key(0)));
    assert_eq!(error.kind(), "read");
}

#[test]
fn the_share_of_the_disk_is_kept() {
    let folder = TempDir::new().unwrap();
    let config = StoreConfig {
        disk_limit_bytes: 250 * 1024,
        ..config(&folder)
    };
    let store = Store::with_spill(&config).unwrap();
    let refused = (0..20).find_map(|task| {
        let inserted = store.insert_result(key(task), payload(task, 100 * KIB));
        std::thread::sleep(Duration::from_millis(30));
        inserted.err()
    });
    assert!(matches!(refused, Some(StoreError::DiskFull { .. })));
    assert!(store.held().disk_bytes <= 250 * 1024);
    assert_eq!(spill_files(&folder).len(), 2);
    store.remove_graph(1);
    wait_until("there is room", || !store.pressure().is_disk_full);
}

#[test]
fn copies_are_dropped_before_results_are_written() {
    let folder = TempDir::new().unwrap();
    let store = Store::with_spill(&config(&folder)).unwrap();
    store.insert_copy(key(0), payload(0, 400 * KIB)).unwrap();
    store.insert_copy(key(1), payload(1, 100 * KIB)).unwrap();
    let pins = store.pin(&[key(1)]);
    store.insert_result(key(2), payload(2, 400 * KIB)).unwrap();
    wait_until("the copy is gone", || !store.contains(key(0)));
    wait_for_rest(&store);
    let gone = store.take_gone();
    assert_eq!(
        (gone[0].key, gone[0].reason),
        (key(0), GoneReason::CopyDropped)
    );
    assert!(store.get(key(1)).is_some() && store.get(key(2)).is_some());
    assert!(spill_files(&folder).is_empty());
    assert_eq!(store.spill_figures().copies_dropped, 1);
    drop(pins);
}

#[test]
fn running_tasks_and_results_share_one_account() {
    let folder = TempDir::new().unwrap();
    let store = Store::with_spill(&config(&folder)).unwrap();
    let account = store.account();
    for task in 0..6 {
        store
            .insert_result(key(task), payload(task, 100 * KIB))
            .unwrap();
    }
    let run = account.reservation();
    run.grow(300 * 1024);
    wait_for_rest(&store);
    assert!(store.held().bytes() < 400 * 1024);
    let other = account.reservation();
    wait_until("the rest is granted", || {
        other.try_grow(500 * 1024).is_ok() || {
            assert!(store.pressure().is_spilling || store.held().bytes() < 450 * 1024);
            false
        }
    });
    assert!(other.try_grow(LIMIT_BYTES).is_err());
    assert_eq!(
        (run.taken_bytes(), other.taken_bytes()),
        (300 * 1024, 500 * 1024)
    );
    assert!(store.pressure().is_paused && store.pressure().runs == 2);
    drop((run, other));
    assert_eq!(store.pressure().reserved_bytes, 0);
    assert!(!store.pressure().is_paused);
}

#[test]
fn a_folder_that_a_killed_process_left_is_removed_and_one_in_use_is_not() {
    let folder = TempDir::new().unwrap();
    let first = Store::with_spill(&config(&folder)).unwrap();
    first.insert_result(key(0), payload(0, 900 * KIB)).unwrap();
    wait_until("it is on the disk", || spill_files(&folder).len() == 1);
    let leftover = folder.path().join("spill/oxidask-spill-1-0");
    std::fs::create_dir_all(&leftover).unwrap();
    std::fs::write(leftover.join("1-1-0.spill"), b"old").unwrap();
    std::fs::write(leftover.with_extension("lock"), b"").unwrap();
    std::fs::write(folder.path().join("spill/notes.lock"), b"not ours").unwrap();
    let second = Store::with_spill(&config(&folder)).unwrap();
    assert!(!leftover.exists() && !leftover.with_extension("lock").exists());
    assert!(folder.path().join("spill/notes.lock").exists());
    assert_eq!(spill_files(&folder).len(), 1);
    let loaded = block_on(first.load_all(vec![key(0)])).unwrap();
    assert_eq!(loaded.payloads[0].parts.concat(), pattern(0, 900 * KIB));
    drop((first, second));
    assert_eq!(files(folder.path()).len(), 1);
    let unusable = StoreConfig {
        spill_dir: folder.path().join("spill/notes.lock/below"),
        ..config(&folder)
    };
    let error = Store::with_spill(&unusable).unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        ("open_folder", Code::WorkerDisk)
    );
}

#[test]
fn many_threads_insert_read_and_remove_at_once() {
    let folder = TempDir::new().unwrap();
    let store = Arc::new(Store::with_spill(&config(&folder)).unwrap());
    let work = |graph: u32| {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            for round in 0..150_u32 {
                let key = ResultKey::new(graph, round % 12);
                let len = 10 * KIB + (round as usize * 7_919) % (150 * KIB);
                let seed = graph * 1_000 + round;
                store.insert_result(key, payload(seed, len)).unwrap();
                let earlier = round.saturating_sub(round % 11);
                let read = ResultKey::new(graph, earlier % 12);
                if let Ok(loaded) = block_on(store.load_all(vec![read, key])) {
                    assert_eq!(loaded.payloads[1].parts.concat(), pattern(seed, len));
                }
                let piece = block_on(store.read_piece(key, WHOLE, 777, 5_000))
                    .unwrap()
                    .unwrap();
                assert_eq!(piece.parts.concat(), pattern(seed, len)[777..5_777]);
                if round % 5 == 0 {
                    store.remove(read);
                }
            }
            store.remove_graph(graph);
        })
    };
    let threads: Vec<_> = (0..4).map(work).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let held = store.held();
    assert_eq!(
        (
            held.results,
            held.bytes(),
            held.disk_bytes,
            held.pinned_bytes
        ),
        (0, 0, 0, 0)
    );
    assert_eq!(store.spill_figures().damaged, 0);
    assert!(store.spill_figures().spilled_files > 0);
    wait_until("the files are gone", || spill_files(&folder).is_empty());
}

#[test]
fn who_waits_when_the_store_ends_is_told() {
    let (_folder, store) = spilled(payload(3, 600 * KIB));
    let read = store.read_piece(key(0), WHOLE, 0, 10);
    let load = store.load_all(vec![key(0)]);
    drop(store);
    // Either it was read before the end, or it was not; it never hangs.
    for outcome in [block_on(read).map(drop), block_on(load).map(drop)] {
        assert!(matches!(outcome, Ok(()) | Err(StoreError::Ended)));
    }
}

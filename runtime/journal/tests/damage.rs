//! Flipped, cut, overwritten and removed bytes: never a panic, never a wrong record, and nothing is
//! changed by looking.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;

use oxidask_journal::{
    Damage, Disk, Incarnation, JournalError, MemoryDisk, Origin, Recovered, Schema, Settings,
};
use proptest::prelude::*;

const INCARNATION: Incarnation = Incarnation(0xabc);
/// Records of the last commit: what is behind the last mark cannot be told from a torn write.
const LAST_COMMIT: usize = 3;

fn settings() -> Settings {
    Settings {
        segment_bytes: 700,
        buffer_bytes_max: 10_000,
        schema: Schema {
            current: 5,
            oldest: 4,
        },
    }
}

fn open(disk: &MemoryDisk) -> Result<Recovered<MemoryDisk>, JournalError> {
    Recovered::open(disk.clone(), settings(), INCARNATION, None)
}

/// Origin, kind and payload of everything.
fn read(disk: &MemoryDisk) -> Result<Vec<(Origin, u16, Vec<u8>)>, JournalError> {
    let mut recovered = open(disk)?;
    let mut records = Vec::new();
    while let Some(record) = recovered.next_record()? {
        records.push((record.origin, record.kind, record.payload.to_vec()));
    }
    Ok(records)
}

/// Some segments, with a snapshot first if wanted.
fn journal(has_snapshot: bool) -> MemoryDisk {
    let disk = MemoryDisk::new(7);
    let mut writer = open(&disk).unwrap().start().unwrap();
    let append = |writer: &mut oxidask_journal::Writer<MemoryDisk>, count: usize| {
        for length in 0..count {
            let payload = vec![length.to_le_bytes()[0]; length * 37 % 160];
            writer.append(3, &[&payload]).unwrap();
            if length % LAST_COMMIT == LAST_COMMIT - 1 {
                writer.commit().unwrap();
            }
        }
    };
    append(&mut writer, 30);
    if has_snapshot {
        writer.begin_snapshot().unwrap();
        for number in 0..20_u64 {
            let bytes = number.to_le_bytes();
            writer.append_snapshot(8, &[&bytes, &bytes]).unwrap();
        }
        writer.finish_snapshot().unwrap();
    }
    append(&mut writer, 24);
    disk
}

fn names(disk: &MemoryDisk) -> Vec<String> {
    disk.list().unwrap()
}

fn contents(disk: &MemoryDisk) -> BTreeMap<String, Option<Vec<u8>>> {
    let names = names(disk).into_iter();
    names
        .map(|name| (name.clone(), disk.bytes(&name)))
        .collect()
}

#[derive(Debug, Clone)]
enum Harm {
    Flip {
        at: usize,
        bit: u8,
    },
    Overwrite {
        at: usize,
        bytes: Vec<u8>,
    },
    Cut {
        to: usize,
    },
    Extend {
        bytes: Vec<u8>,
    },
    Swap {
        at: usize,
        with: usize,
        length: usize,
    },
    Remove,
}

fn harm() -> impl Strategy<Value = Harm> {
    let bytes = || {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..80),
            (1_usize..80).prop_map(|length| vec![0; length]),
        ]
    };
    prop_oneof![
        6 => (any::<usize>(), 0_u8..8).prop_map(|(at, bit)| Harm::Flip { at, bit }),
        2 => (any::<usize>(), bytes()).prop_map(|(at, bytes)| Harm::Overwrite { at, bytes }),
        2 => any::<usize>().prop_map(|to| Harm::Cut { to }),
        1 => bytes().prop_map(|bytes| Harm::Extend { bytes }),
        1 => (any::<usize>(), any::<usize>(), 1_usize..80)
            .prop_map(|(at, with, length)| Harm::Swap { at, with, length }),
        1 => Just(Harm::Remove),
    ]
}

/// Whether acknowledged records at the end may be gone without a trace.
fn do_harm(disk: &MemoryDisk, name: &str, harm: &Harm, is_last: bool) -> bool {
    let mut bytes = disk.bytes(name).unwrap();
    let length = bytes.len();
    match harm {
        Harm::Flip { at, bit } => bytes[at % length] ^= 1 << bit,
        Harm::Overwrite { at, bytes: new } => {
            let at = at % length;
            let end = length.min(at + new.len());
            bytes[at..end].copy_from_slice(&new[..end - at]);
        }
        Harm::Cut { to } => bytes.truncate(to % length),
        Harm::Extend { bytes: new } => bytes.extend_from_slice(new),
        Harm::Swap {
            at,
            with,
            length: count,
        } => {
            let count = (*count).min(length / 2);
            let (at, with) = (at % (length - count), with % (length - count));
            let piece = bytes[with..with + count].to_vec();
            bytes[at..at + count].copy_from_slice(&piece);
        }
        Harm::Remove => {
            disk.clone().remove(name).unwrap();
            return is_last;
        }
    }
    disk.set_bytes(name, bytes);
    is_last && matches!(harm, Harm::Cut { .. })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    #[test]
    fn harm_is_an_error_or_cuts_the_last_commit(
        has_snapshot in any::<bool>(),
        file in any::<proptest::sample::Index>(),
        harm in harm(),
    ) {
        let disk = journal(has_snapshot);
        let whole = read(&disk).unwrap();
        let all = names(&disk);
        let name = file.get(&all);
        let may_lose = do_harm(&disk, name, &harm, Some(name) == all.last());
        let before = contents(&disk);
        if let Ok(records) = read(&disk) {
            prop_assert!(records.len() <= whole.len());
            prop_assert!(records == whole[..records.len()], "a wrong record");
            // A longer stretch may hold the last mark and a record of the commit before it.
            let commits = if matches!(harm, Harm::Flip { .. }) { 1 } else { 2 };
            prop_assert!(may_lose || records.len() + commits * LAST_COMMIT >= whole.len());
        }
        prop_assert_eq!(&contents(&disk), &before);
        // Whoever starts on a damaged journal changes nothing either.
        if let Err(error) = open(&disk).and_then(Recovered::start) {
            prop_assert!(!error.may_pass(), "{error}");
            prop_assert_eq!(contents(&disk), before);
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        keeps_header in any::<bool>(),
    ) {
        let disk = journal(false);
        let name = names(&disk).pop().unwrap();
        let mut content = disk.bytes(&name).unwrap();
        content.truncate(if keeps_header { 80 } else { 0 });
        content.extend_from_slice(&bytes);
        disk.set_bytes(&name, content);
        let _ = read(&disk);
    }
}

#[test]
fn every_flipped_bit_of_the_snapshot_is_found() {
    let disk = journal(true);
    let all = names(&disk);
    let mut flips = 0;
    for name in all {
        let bytes = disk.bytes(&name).unwrap();
        if bytes[12] != 2 {
            continue;
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let copy = disk.copy();
            copy.set_bytes(&name, flipped);
            assert!(read(&copy).is_err(), "bit {bit}");
            flips += 1;
        }
    }
    assert!(flips > 1_000);
}

#[test]
fn a_good_record_in_the_place_of_another_is_found() {
    let disk = MemoryDisk::new(1);
    let mut writer = open(&disk).unwrap().start().unwrap();
    writer.begin_snapshot().unwrap();
    writer.append_snapshot(1, &[b"first-s!"]).unwrap();
    writer.append_snapshot(1, &[b"second-s"]).unwrap();
    writer.finish_snapshot().unwrap();
    writer.append(1, &[b"first-t!"]).unwrap();
    writer.append(1, &[b"second-t"]).unwrap();
    writer.close().unwrap();
    assert_eq!(read(&disk).unwrap().len(), 4);
    for name in names(&disk) {
        let mut bytes = disk.bytes(&name).unwrap();
        let at = bytes.windows(5).position(|five| five == b"first").unwrap();
        // The frames have 20 bytes each.
        let (from, to) = (at - 12..at + 8, at + 8);
        bytes.copy_within(from, to);
        let copy = disk.copy();
        copy.set_bytes(&name, bytes);
        assert_eq!(read(&copy).unwrap_err().kind(), "damaged");
    }
}

#[test]
fn nothing_is_removed_before_what_replaces_it_was_read() {
    let disk = journal(false);
    let older = contents(&disk);
    let mut writer = open(&disk).unwrap().start().unwrap();
    writer.begin_snapshot().unwrap();
    writer.append_snapshot(1, &[b"everything"]).unwrap();
    writer.finish_snapshot().unwrap();
    drop(writer);
    // The removal of the older segments was not durable.
    for (name, bytes) in older {
        disk.set_bytes(&name, bytes.unwrap());
    }
    let whole = disk.copy();
    assert_eq!(read(&whole).unwrap().len(), 1);
    drop(open(&whole).unwrap().start().unwrap());
    assert!(names(&whole).len() < names(&disk).len());
    assert_eq!(read(&whole).unwrap().len(), 1);

    let name = names(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&name).unwrap();
    bytes[100] ^= 1;
    disk.set_bytes(&name, bytes);
    let before = contents(&disk);
    let error = open(&disk).and_then(Recovered::start).unwrap_err();
    assert_eq!(error.kind(), "damaged");
    assert_eq!(contents(&disk), before);
}

#[test]
fn an_epoch_whose_header_is_gone_is_not_used_again() {
    let disk = journal(false);
    let epoch = open(&disk).unwrap().start().unwrap().epoch();
    let name = names(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&name).unwrap();
    assert_eq!(bytes.len(), 80, "a new epoch is a header only");
    bytes[20] ^= 1;
    disk.set_bytes(&name, bytes);
    let records = read(&disk).unwrap().len();
    assert_eq!(records, 54);
    assert!(open(&disk).unwrap().start().unwrap().epoch() > epoch);
    assert_eq!(read(&disk).unwrap().len(), records);
}

#[test]
fn the_torn_end_is_cut_and_named_and_the_journal_goes_on() {
    let disk = journal(false);
    let whole = read(&disk).unwrap();
    let name = names(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&name).unwrap();
    bytes.truncate(bytes.len() - 5);
    let length = bytes.len() as u64;
    disk.set_bytes(&name, bytes);
    let recovered = open(&disk).unwrap();
    let cut = recovered.cut().unwrap().clone();
    assert_eq!(cut.path, disk.path(&name));
    assert_eq!(cut.offset + cut.bytes, length);
    assert_eq!(cut.damage, Damage::Short);
    let mut writer = recovered.start().unwrap();
    let sequence = writer.append(3, &[b"after"]).unwrap();
    assert_eq!(sequence, whole.len() as u64);
    writer.commit().unwrap();
    let records = read(&disk).unwrap();
    assert_eq!(records[..whole.len() - 1], whole[..whole.len() - 1]);
    assert_eq!(records[whole.len() - 1].2, b"after");
    assert!(open(&disk).unwrap().cut().is_none());
}

#[test]
fn a_closed_journal_tells_damage_of_its_last_record() {
    let disk = MemoryDisk::new(1);
    let mut writer = open(&disk).unwrap().start().unwrap();
    writer.append(1, &[b"last"]).unwrap();
    writer.close().unwrap();
    assert_eq!(read(&disk).unwrap().len(), 1);
    let name = names(&disk).pop().unwrap();
    let mut bytes = disk.bytes(&name).unwrap();
    let at = bytes.windows(4).position(|four| four == b"last").unwrap();
    bytes[at] ^= 1;
    disk.set_bytes(&name, bytes);
    let error = read(&disk).unwrap_err();
    assert_eq!(error.kind(), "damaged");
    assert!(error.to_string().contains("the checksum of a record"));
}

#[test]
fn a_missing_segment_and_a_missing_snapshot_are_errors() {
    let disk = journal(false);
    let all = names(&disk);
    for name in &all[..all.len() - 1] {
        let copy = disk.copy();
        copy.clone().remove(name).unwrap();
        let error = read(&copy).unwrap_err();
        assert_eq!(error.kind(), "missing");
        assert!(error.to_string().contains(name.as_str()), "{error}");
    }
    let disk = journal(true);
    for name in names(&disk) {
        if disk.bytes(&name).unwrap()[12] == 2 {
            disk.clone().remove(&name).unwrap();
        }
    }
    assert_eq!(read(&disk).unwrap_err().kind(), "missing");
}

#[test]
fn formats_schemas_and_incarnations_are_checked() {
    let disk = journal(false);
    let name = names(&disk).remove(0);
    let original = disk.bytes(&name).unwrap();
    let mut bytes = original.clone();
    bytes[8] = 2;
    disk.set_bytes(&name, bytes);
    let error = read(&disk).unwrap_err();
    assert!(matches!(error, JournalError::Format { found: 2, .. }));
    disk.set_bytes(&name, original);

    let with_schema = |current, oldest| {
        let mut settings = settings();
        settings.schema = Schema { current, oldest };
        Recovered::open(disk.clone(), settings, INCARNATION, None)
    };
    for (current, oldest) in [(4, 3), (7, 6)] {
        let error = with_schema(current, oldest).unwrap_err();
        assert!(matches!(error, JournalError::Schema { found: 5, .. }));
    }
    // The version before is read, says so, and the next writer writes the new one.
    let mut recovered = with_schema(6, 5).unwrap();
    assert_eq!(recovered.next_record().unwrap().unwrap().schema, 5);
    let mut writer = recovered.start().unwrap();
    writer.append(1, &[]).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let mut recovered = with_schema(6, 5).unwrap();
    let mut last = 0;
    while let Some(record) = recovered.next_record().unwrap() {
        last = record.schema;
    }
    assert_eq!(last, 6);

    let other = Incarnation(0xdef);
    let recovered = Recovered::open(disk.clone(), settings(), other, Some(other));
    assert!(matches!(recovered, Err(JournalError::Foreign { .. })));
    let mixed = journal(false);
    let foreign = MemoryDisk::new(1);
    drop(
        Recovered::open(foreign.clone(), settings(), other, None)
            .unwrap()
            .start(),
    );
    let name = names(&foreign).remove(0);
    mixed.set_bytes(&name, foreign.bytes(&name).unwrap());
    let error = read(&mixed).unwrap_err();
    assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
}

#[test]
fn a_snapshot_bounds_what_is_read_and_older_files_go() {
    let disk = journal(true);
    let records = read(&disk).unwrap();
    let snapshot = records
        .iter()
        .filter(|(origin, ..)| *origin == Origin::Snapshot);
    assert_eq!(snapshot.count(), 20);
    assert_eq!(records.len(), 20 + 24);
    let first = disk.bytes(&names(&disk)[0]).unwrap();
    assert_ne!(first[40], 1, "the first segment is still there");
    // An unfinished one leaves no trace.
    let mut writer = open(&disk).unwrap().start().unwrap();
    writer.begin_snapshot().unwrap();
    writer.append_snapshot(1, &[b"never"]).unwrap();
    drop(writer);
    assert_eq!(read(&disk).unwrap(), records);
    let files = names(&disk).len();
    drop(open(&disk).unwrap().start().unwrap());
    assert_eq!(
        names(&disk).len(),
        files,
        "one file came, the unfinished one went"
    );
    assert_eq!(read(&disk).unwrap(), records);
}

#[test]
fn bounds_are_kept() {
    let disk = MemoryDisk::new(1);
    let mut writer = open(&disk).unwrap().start().unwrap();
    let long = vec![0; oxidask_journal::RECORD_BYTES_MAX + 1];
    let error = writer.append(1, &[&long]).unwrap_err();
    assert_eq!(error.kind(), "record_too_large");
    // One long record may always wait, and is read back.
    writer.append(1, &[&long[1..]]).unwrap();
    assert_eq!(writer.append(1, &[b"x"]).unwrap_err().kind(), "behind");
    writer.commit().unwrap();
    writer.append(1, &[b"x"]).unwrap();
    writer.commit().unwrap();
    let records = read(&disk).unwrap();
    assert_eq!(records[0].2.len(), oxidask_journal::RECORD_BYTES_MAX);
    assert_eq!(records[1].2, b"x");
}

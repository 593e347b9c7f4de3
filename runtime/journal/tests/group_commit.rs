//! The thread that commits: order, pace, bounds, and what it does when the disk fails.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use oxidask_journal::{
    Committer, CommitterSettings, Incarnation, JournalError, MemoryDisk, Progress, Records,
    Recovered, Schema, Sealed, Settings, Target,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn open(disk: &MemoryDisk) -> Recovered<MemoryDisk> {
    let settings = Settings {
        segment_bytes: 4_000,
        buffer_bytes_max: 2_000,
        schema: Schema {
            current: 1,
            oldest: 1,
        },
    };
    Recovered::open(disk.clone(), settings, Incarnation(1), None).unwrap()
}

fn pace() -> CommitterSettings {
    CommitterSettings {
        max_delay: Duration::from_millis(2),
        retry_delay: Duration::from_millis(5),
        queue_bytes_max: 5_000,
    }
}

/// Progress in words, to be received.
fn start(disk: &MemoryDisk, settings: CommitterSettings) -> (Committer, Receiver<String>) {
    let (sender, receiver) = channel();
    let report = move |progress: Progress<'_>| {
        let text = match progress {
            Progress::Durable { sequence, .. } => format!("durable {sequence}"),
            Progress::Failed { error } => format!("failed {}", error.kind()),
            Progress::SnapshotBegun { segments } => format!("snapshot of {}", segments.len()),
            Progress::Snapshot { summary, .. } => format!("snapshot {}", summary.records),
            Progress::SnapshotFailed { error } => format!("snapshot failed {}", error.kind()),
        };
        let _ = sender.send(text);
    };
    let writer = open(disk).start().unwrap();
    (
        Committer::start(writer, settings, report).unwrap(),
        receiver,
    )
}

fn records(target: Target, numbers: std::ops::Range<u32>) -> Records {
    let mut records = Records::new(target);
    for number in numbers {
        records.push(1, &[&number.to_le_bytes(), &[7; 30]]).unwrap();
    }
    records
}

fn read(disk: &MemoryDisk) -> Vec<u32> {
    let mut recovered = open(disk);
    let mut numbers = Vec::new();
    while let Some(record) = recovered.next_record().unwrap() {
        assert_eq!(record.payload[4..], [7; 30]);
        numbers.push(u32::from_le_bytes(record.payload[..4].try_into().unwrap()));
    }
    numbers
}

fn wait_for(receiver: &Receiver<String>, text: &str) {
    loop {
        if receiver.recv_timeout(PATIENCE).unwrap() == text {
            return;
        }
    }
}

#[test]
fn records_become_durable_in_order_and_are_acknowledged_once() {
    let disk = MemoryDisk::new(1);
    let (committer, receiver) = start(&disk, pace());
    let mut last = 0;
    for round in 0..200 {
        let mut some = records(Target::Tail, round * 10..round * 10 + 10);
        last = committer.append(&mut some, PATIENCE).unwrap();
        assert!(some.is_empty());
    }
    assert_eq!(last, 2_000);
    assert!(committer.wait_durable(last, PATIENCE));
    assert_eq!(committer.durable(), last);
    committer.close().unwrap();
    let mut before = 0;
    for text in receiver {
        let sequence: u64 = text.strip_prefix("durable ").unwrap().parse().unwrap();
        assert!(sequence > before);
        before = sequence;
    }
    assert_eq!(before, last);
    disk.lose_power();
    assert_eq!(read(&disk), (0..2_000).collect::<Vec<_>>());
}

#[test]
fn a_lone_record_does_not_wait_and_the_next_waits_for_the_pace_or_for_hurry() {
    let disk = MemoryDisk::new(1);
    let settings = CommitterSettings {
        max_delay: Duration::from_hours(1),
        ..pace()
    };
    let (committer, receiver) = start(&disk, settings);
    let begin = Instant::now();
    committer
        .try_append(&mut records(Target::Tail, 0..1))
        .unwrap();
    wait_for(&receiver, "durable 1");
    let sequence = committer
        .try_append(&mut records(Target::Tail, 1..2))
        .unwrap();
    assert!(!committer.wait_durable(sequence, Duration::from_millis(50)));
    committer.hurry();
    wait_for(&receiver, "durable 2");
    // Half a queue does not wait either.
    committer
        .try_append(&mut records(Target::Tail, 2..92))
        .unwrap();
    wait_for(&receiver, "durable 92");
    committer
        .try_append(&mut records(Target::Tail, 92..93))
        .unwrap();
    committer.close().unwrap();
    wait_for(&receiver, "durable 93");
    assert!(begin.elapsed() < Duration::from_mins(1));
}

#[test]
fn a_full_disk_fills_the_queue_and_everything_goes_on_with_room() {
    let disk = MemoryDisk::new(1);
    let (committer, receiver) = start(&disk, pace());
    committer
        .append(&mut records(Target::Tail, 0..5), PATIENCE)
        .unwrap();
    wait_for(&receiver, "durable 5");
    disk.set_capacity(Some(disk.used_bytes() + 10));
    let mut next = 10;
    committer
        .append(&mut records(Target::Tail, 5..next), PATIENCE)
        .unwrap();
    wait_for(&receiver, "failed disk_full");
    let refused = loop {
        let mut some = records(Target::Tail, next..next + 5);
        match committer.try_append(&mut some) {
            Ok(_) => next += 5,
            Err(error) => {
                assert_eq!(some.len(), 5, "what is refused stays");
                break error;
            }
        }
    };
    assert!(matches!(refused, JournalError::Behind { .. }), "{refused}");
    let mut some = records(Target::Tail, next..next + 5);
    let error = committer
        .append(&mut some, Duration::from_millis(20))
        .unwrap_err();
    assert_eq!(error.kind(), "behind");
    assert_eq!(committer.durable(), 5);
    disk.set_capacity(None);
    assert!(committer.wait_durable(u64::from(next), PATIENCE));
    committer.append(&mut some, PATIENCE).unwrap();
    committer.close().unwrap();
    disk.lose_power();
    assert_eq!(read(&disk), (0..next + 5).collect::<Vec<_>>());
}

#[test]
fn closing_with_a_full_disk_says_so_and_does_not_hang() {
    let disk = MemoryDisk::new(1);
    let (committer, _receiver) = start(&disk, pace());
    committer
        .append(&mut records(Target::Tail, 0..5), PATIENCE)
        .unwrap();
    assert!(committer.wait_durable(5, PATIENCE));
    disk.set_capacity(Some(0));
    committer
        .try_append(&mut records(Target::Tail, 5..9))
        .unwrap();
    assert_eq!(committer.close().unwrap_err().kind(), "disk_full");
    disk.set_capacity(None);
    assert_eq!(read(&disk), (0..5).collect::<Vec<_>>());
}

#[test]
fn a_failed_sync_is_repaired_in_a_new_segment() {
    let disk = MemoryDisk::new(1);
    let (committer, receiver) = start(&disk, pace());
    committer
        .append(&mut records(Target::Tail, 0..5), PATIENCE)
        .unwrap();
    wait_for(&receiver, "durable 5");
    // The batch, the header of the next segment, and once more.
    disk.fail_syncs(3);
    committer
        .append(&mut records(Target::Tail, 5..9), PATIENCE)
        .unwrap();
    wait_for(&receiver, "failed io");
    wait_for(&receiver, "durable 9");
    committer.close().unwrap();
    disk.lose_power();
    assert_eq!(read(&disk), (0..9).collect::<Vec<_>>());
}

#[test]
fn a_snapshot_goes_through_the_queue_between_records() {
    let disk = MemoryDisk::new(1);
    let (committer, receiver) = start(&disk, pace());
    committer
        .append(&mut records(Target::Tail, 0..50), PATIENCE)
        .unwrap();
    committer.begin_snapshot().unwrap();
    for part in 0..5 {
        let numbers = 50 + part * 4..54 + part * 4;
        committer
            .append(&mut records(Target::Tail, numbers), PATIENCE)
            .unwrap();
        let numbers = part * 10..part * 10 + 10;
        committer
            .append(&mut records(Target::Snapshot, numbers), PATIENCE)
            .unwrap();
    }
    committer.finish_snapshot().unwrap();
    wait_for(&receiver, "snapshot 50");
    let last = committer
        .append(&mut records(Target::Tail, 70..80), PATIENCE)
        .unwrap();
    assert_eq!(last, 80, "records of a snapshot have no sequence number");
    committer.close().unwrap();
    disk.lose_power();
    assert_eq!(read(&disk), (0..80).collect::<Vec<_>>());
    let mut recovered = open(&disk);
    recovered.next_record().unwrap();
    assert!(recovered.bytes() < disk.used_bytes() + 1);
}

#[test]
fn a_snapshot_that_does_not_fit_is_given_up_and_said_once() {
    let disk = MemoryDisk::new(1);
    let (committer, receiver) = start(&disk, pace());
    committer
        .append(&mut records(Target::Tail, 0..10), PATIENCE)
        .unwrap();
    committer.begin_snapshot().unwrap();
    committer
        .append(&mut records(Target::Snapshot, 0..100), PATIENCE)
        .unwrap();
    assert!(committer.wait_durable(10, PATIENCE));
    while committer.waiting_bytes() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    disk.set_capacity(Some(disk.used_bytes() + 200));
    committer.finish_snapshot().unwrap();
    wait_for(&receiver, "snapshot failed disk_full");
    committer
        .append(&mut records(Target::Snapshot, 0..10), PATIENCE)
        .unwrap();
    committer.finish_snapshot().unwrap();
    committer
        .append(&mut records(Target::Tail, 10..11), PATIENCE)
        .unwrap();
    wait_for(&receiver, "durable 11");
    committer.close().unwrap();
    assert!(receiver.iter().all(|text| !text.starts_with("snapshot")));
    disk.lose_power();
    assert_eq!(read(&disk), (0..11).collect::<Vec<_>>());
}

#[test]
fn what_comes_after_the_end_is_refused() {
    let disk = MemoryDisk::new(1);
    let writer = open(&disk).start().unwrap();
    let report = |_: Progress<'_>| unreachable!("the thread ends here");
    let committer = Committer::start(writer, pace(), report).unwrap();
    committer
        .try_append(&mut records(Target::Tail, 0..1))
        .unwrap();
    assert!(!committer.wait_durable(2, PATIENCE), "it has ended");
    let error = committer
        .try_append(&mut records(Target::Tail, 1..2))
        .unwrap_err();
    assert_eq!(error.kind(), "closed");
    assert_eq!(committer.close().unwrap_err().kind(), "closed");
}

#[test]
fn what_a_snapshot_replaces_is_read_while_the_writer_goes_on() {
    let disk = MemoryDisk::new(1);
    let (sender, segments) = channel();
    let (ender, ended) = channel();
    let report = move |progress: Progress<'_>| match progress {
        Progress::SnapshotBegun { segments } => sender.send(segments).unwrap(),
        Progress::Snapshot { .. } => ender.send(()).unwrap(),
        _ => {}
    };
    let writer = open(&disk).start().unwrap();
    let committer = Committer::start(writer, pace(), report).unwrap();
    let append = |target, numbers| {
        let mut some = records(target, numbers);
        committer.append(&mut some, PATIENCE).unwrap();
    };
    for (round, expected) in [(0, 0..60), (1, 0..120)] {
        // More than one segment.
        for part in 0..6 {
            append(
                Target::Tail,
                round * 60 + part * 10..round * 60 + part * 10 + 10,
            );
        }
        committer.begin_snapshot().unwrap();
        append(Target::Tail, 1_000..1_010);
        let sealed = segments.recv_timeout(PATIENCE).unwrap();
        assert!(sealed.iter().all(|segment| segment.bytes() > 0));
        let mut reader = Sealed::new(&disk, &sealed);
        let mut found = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let number = u32::from_le_bytes(record.payload[..4].try_into().unwrap());
            found.extend((number < 1_000).then_some(number));
        }
        assert_eq!(found, expected.clone().collect::<Vec<_>>());
        append(Target::Snapshot, expected);
        committer.finish_snapshot().unwrap();
        ended.recv_timeout(PATIENCE).unwrap();
    }
    committer.close().unwrap();
}

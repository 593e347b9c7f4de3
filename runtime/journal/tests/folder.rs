//! A journal in a real folder: locks, files, and a process that is killed while it writes.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use oxidask_journal::{
    Committer, CommitterSettings, Folder, Incarnation, JournalError, Progress, Records, Recovered,
    Schema, Settings, Target,
};

/// Set in the process that is killed: the folder that it writes to.
const CHILD_FOLDER: &str = "OXIDASK_JOURNAL_TEST_FOLDER";
/// A snapshot is one record: how many records there were.
const COUNT: u16 = 9;
const RECORD: u16 = 1;

fn settings() -> Settings {
    Settings {
        segment_bytes: 64 * 1024,
        ..Settings::new(Schema {
            current: 1,
            oldest: 1,
        })
    }
}

fn open(folder: &Path) -> Result<Recovered<Folder>, JournalError> {
    Recovered::open(Folder::new(folder), settings(), Incarnation(1), None)
}

/// How many records there are, after checking that they are the right ones.
fn count(recovered: &mut Recovered<Folder>) -> u64 {
    let mut count = 0;
    while let Some(record) = recovered.next_record().unwrap() {
        let number = u64::from_le_bytes(record.payload[..8].try_into().unwrap());
        if record.kind == COUNT {
            count = number;
            continue;
        }
        assert_eq!(record.kind, RECORD);
        assert_eq!(number, count + 1);
        assert_eq!(record.payload, payload(number));
        count = number;
    }
    count
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    let filler = number.wrapping_mul(0x9e37_79b9).to_le_bytes();
    payload.extend(
        filler
            .iter()
            .cycle()
            .take(usize::try_from(number % 300).unwrap()),
    );
    payload
}

#[test]
fn a_second_process_is_kept_out_and_the_lock_ends_with_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a/b");
    let first = open(&inside).unwrap();
    let error = open(&inside).unwrap_err();
    assert_eq!(error.kind(), "locked");
    assert!(error.to_string().contains("a/b"), "{error}");
    let writer = first.start().unwrap();
    assert_eq!(open(&inside).unwrap_err().kind(), "locked");
    drop(writer);
    assert_eq!(open(&inside).unwrap().epoch(), 2);
}

#[test]
fn looking_changes_nothing_and_other_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("journal-notes.log"), "mine").unwrap();
    std::fs::create_dir(folder.path().join("lost+found")).unwrap();
    let recovered = open(folder.path()).unwrap();
    assert!(recovered.is_new());
    assert_eq!(recovered.incarnation(), Incarnation(1));
    drop(recovered);
    let mut writer = open(folder.path()).unwrap().start().unwrap();
    writer.append(RECORD, &[&payload(1)]).unwrap();
    writer.commit().unwrap();
    writer.begin_snapshot().unwrap();
    writer
        .append_snapshot(COUNT, &[&1_u64.to_le_bytes()])
        .unwrap();
    let summary = writer.finish_snapshot().unwrap();
    assert_eq!((summary.records, summary.replaced_segments), (1, 1));
    writer.append(RECORD, &[&payload(2)]).unwrap();
    writer.close().unwrap();
    let mut recovered = open(folder.path()).unwrap();
    assert!(!recovered.is_new());
    assert_eq!(count(&mut recovered), 2);
    assert!(recovered.cut().is_none());
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 5, "a tail, a snapshot, the lock, and two of others");
}

#[test]
fn a_folder_that_cannot_be_used_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = open(&file.join("journal")).unwrap_err();
    assert_eq!(error.kind(), "io");
    assert!(error.to_string().contains("file/journal"), "{error}");
}

/// Writes until it is killed, and says what is durable. Does nothing when run as a test.
#[test]
fn child_that_is_killed() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else {
        return;
    };
    let mut recovered = open(Path::new(&folder)).unwrap();
    let mut number = count(&mut recovered);
    let settings = CommitterSettings {
        max_delay: Duration::from_millis(1),
        queue_bytes_max: 64 * 1024,
        ..CommitterSettings::default()
    };
    let report = |progress: Progress<'_>| {
        let mut out = std::io::stdout().lock();
        let sequence = match progress {
            Progress::Durable { sequence, .. } => sequence,
            Progress::Snapshot { .. } | Progress::SnapshotBegun { .. } => 0,
            other => unreachable!("{other:?}"),
        };
        writeln!(out, "\ndurable {sequence}").unwrap();
        out.flush().unwrap();
    };
    let committer = Committer::start(recovered.start().unwrap(), settings, report).unwrap();
    let mut records = Records::new(Target::Tail);
    let mut snapshot = Records::new(Target::Snapshot);
    let patience = Duration::from_secs(20);
    for round in 1_u64.. {
        for _ in 0..20 {
            number += 1;
            records.push(RECORD, &[&payload(number)]).unwrap();
        }
        assert_eq!(committer.append(&mut records, patience).unwrap(), number);
        if round % 100 == 0 {
            committer.begin_snapshot().unwrap();
            snapshot.push(COUNT, &[&number.to_le_bytes()]).unwrap();
            committer.append(&mut snapshot, patience).unwrap();
        }
        if round % 100 == 50 {
            committer.finish_snapshot().unwrap();
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_was_told_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let mut known = 0;
    let mut snapshots = 0;
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(sequence) = line.strip_prefix("durable ") {
                    // The line may be cut by the kill, but only the last, and digits cut off make
                    // it smaller.
                    let _ = sender.send(sequence.parse::<u64>().unwrap_or(0));
                }
            }
        });
        let patience = Duration::from_secs(30);
        receiver.recv_timeout(patience).unwrap();
        let deadline = Instant::now() + Duration::from_millis(30 + 53 * round);
        while let Ok(sequence) =
            receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            snapshots += u64::from(sequence == 0);
            known = known.max(sequence);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        for sequence in receiver.try_iter() {
            known = known.max(sequence);
        }
        let mut recovered = open(folder.path()).unwrap();
        let count = count(&mut recovered);
        assert!(count >= known, "{known} were durable, {count} are there");
        known = count;
    }
    assert!(known > 1_000, "only {known} records in all rounds");
    assert!(snapshots > 0, "no snapshot was finished");
}

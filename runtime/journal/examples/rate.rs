//! How many records a second become durable with group commit: `rate [FOLDER] [SECONDS] [BYTES]`.
//!
//! Owns nothing but the measurement. One thread hands over batches of 100 records as fast as it may.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxidask_journal::{
    Committer, CommitterSettings, Folder, Incarnation, JournalError, Progress, Records, Recovered,
    Schema, Settings, Target,
};

const BATCH: u64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .unwrap_or_else(|| "target/journal".to_owned());
    let seconds: u64 = arguments.next().as_deref().unwrap_or("5").parse()?;
    let length: usize = arguments.next().as_deref().unwrap_or("100").parse()?;
    let folder = PathBuf::from(folder).join(format!("rate-{}", std::process::id()));
    let settings = Settings::new(Schema {
        current: 1,
        oldest: 1,
    });
    let open = || Recovered::open(Folder::new(&folder), settings, Incarnation(1), None);
    let commits = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&commits);
    let report = move |progress: Progress<'_>| {
        if matches!(progress, Progress::Durable { .. }) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    let committer = Committer::start(open()?.start()?, CommitterSettings::default(), report)?;
    let begin = Instant::now();
    let busy = write(&committer, length, Duration::from_secs(seconds))?;
    let (appended, handing_over) = busy;
    committer.close()?;
    let elapsed = begin.elapsed().as_secs_f64();
    let commits = commits.load(Ordering::Relaxed);

    let begin = Instant::now();
    let mut recovered = open()?;
    let mut read: u64 = 0;
    while recovered.next_record()?.is_some() {
        read += 1;
    }
    let reading = begin.elapsed().as_secs_f64();
    let bytes = recovered.bytes();
    drop(recovered);
    std::fs::remove_dir_all(&folder)?;
    let mut out = std::io::stdout().lock();
    #[allow(clippy::cast_precision_loss, reason = "these are figures for people")]
    let (count, bytes) = (appended as f64, bytes as f64);
    writeln!(
        out,
        "records    {appended} of {length} bytes, {commits} commits"
    )?;
    writeln!(
        out,
        "durable    {:.0} records/s, {:.1} MB/s",
        count / elapsed,
        bytes / elapsed / 1e6
    )?;
    let handing_over = handing_over.as_secs_f64() * 1e9 / count;
    writeln!(
        out,
        "hand over  {handing_over:.0} ns a record on the caller's thread"
    )?;
    writeln!(out, "recovered  {read} in {reading:.3} s")?;
    Ok(())
}

/// How many records were handed over, and how long that took without waiting for room.
fn write(
    committer: &Committer,
    length: usize,
    time: Duration,
) -> Result<(u64, Duration), JournalError> {
    let mut records = Records::new(Target::Tail);
    let payload = vec![7; length];
    let begin = Instant::now();
    let mut handing_over = Duration::ZERO;
    let mut appended = 0;
    while begin.elapsed() < time {
        let start = Instant::now();
        for _ in 0..BATCH {
            records.push(1, &[&payload])?;
        }
        let result = committer.try_append(&mut records);
        handing_over += start.elapsed();
        appended = match result {
            Err(JournalError::Behind { .. }) => {
                committer.append(&mut records, Duration::from_mins(1))?
            }
            result => result?,
        };
    }
    Ok((appended, handing_over))
}

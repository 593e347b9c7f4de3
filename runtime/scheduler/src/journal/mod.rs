//! The journal of the scheduler: what is kept, and how a scheduler goes on from it.
//!
//! Owns the records, the promises that wait for them, snapshots and recovery. The log itself
//! (segments, checksums, group commit) is the crate `oxidask-journal`. Never waits for the disk on
//! the main loop's thread.
//!
//! Invariants: what a client was told is accepted is there after any crash; numbers of graphs and
//! workers are never given twice; whatever else a crash takes was not promised: results that workers
//! hold are known again when they come back, everything else is computed again.

mod columns;
mod compact;
mod health;
mod hooks;
mod keep;
mod record;
mod recover;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oxidask_core::CoreConfig;
use oxidask_journal::{Folder, MemoryDisk, RECORD_BYTES_MAX};

use crate::error::SchedulerError;
use crate::input::Inputs;
use crate::metrics::Metrics;

pub(crate) use compact::SNAPSHOT_TAIL_BYTES_MIN;
pub(crate) use keep::Keeper;
pub(crate) use recover::Beginning;
use recover::Start;

/// Bytes of a chunk: with its graph's number it is one record.
pub(crate) const CHUNK_BYTES_MAX: usize = RECORD_BYTES_MAX - 4;

/// Numbers of graphs that are skipped at each start. A client hears the number of its graph only when
/// that is durable, so few can be lost.
pub(crate) const GRAPH_NUMBERS_GAP: u32 = 1024;

/// Numbers of workers and clients that are skipped at each start: more than join between two commits.
pub(crate) const WORKER_NUMBERS_GAP: u32 = 16 * 1024;

/// Time between the beginnings of two commits, unless set otherwise.
pub(crate) const COMMIT_DELAY: Duration = Duration::from_millis(10);

/// Where the journal is.
#[derive(Debug, Clone)]
pub enum JournalPlace {
    /// In this folder, which is made if need be.
    Folder(PathBuf),
    /// In memory, for tests.
    Memory(MemoryDisk),
}

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// Where.
    pub place: JournalPlace,
    /// Time between the beginnings of two commits. A single change does not wait for it.
    pub delay: Duration,
    /// A snapshot is made when the journal behind the one before has more bytes than this, and than
    /// twice that snapshot.
    pub snapshot_tail_bytes_min: u64,
    /// Time after a start until the first snapshot; the usual one if absent.
    pub first_snapshot_after: Option<Duration>,
    /// Bytes of one file; the usual ones if absent.
    pub segment_bytes: Option<u64>,
}

impl JournalConfig {
    /// With the usual pace and bounds.
    pub fn new(place: JournalPlace) -> Self {
        Self {
            place,
            delay: COMMIT_DELAY,
            snapshot_tail_bytes_min: SNAPSHOT_TAIL_BYTES_MIN,
            first_snapshot_after: None,
            segment_bytes: None,
        }
    }

    /// In this folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self::new(JournalPlace::Folder(folder.into()))
    }
}

impl Beginning {
    /// Recovers from the journal and goes on with it; blocks for as long as that takes.
    pub(crate) fn recover(
        config: &JournalConfig,
        core: CoreConfig,
        fresh_incarnation: u64,
        inputs: &Inputs,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, SchedulerError> {
        let start = Start {
            config,
            core,
            fresh_incarnation,
            inputs,
            metrics,
        };
        match &config.place {
            JournalPlace::Folder(path) => start.recover(|| Folder::new(path)),
            JournalPlace::Memory(disk) => start.recover(|| disk.clone()),
        }
    }
}

//! Tasks with the same key prefix, and what is known of how long they run and what they make.
//!
//! Owns the averages from which everything else expects something of tasks that have not run.
//! Never looks at a single task.

use std::sync::Arc;

use crate::transitions::TaskState;

/// Longest run time that the statistics know: 71 minutes.
const DURATION_MICROS_MAX: u64 = u32::MAX as u64;
/// Largest result that the statistics know: 1 PiB.
const BYTES_SAMPLE_MAX: u64 = 1 << 50;

/// Tasks with the same key prefix: counted, timed and shown together.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: Arc<str>,
    /// Tasks by state.
    pub(crate) counts: [u32; TaskState::COUNT],
    /// Bytes of results that are held, each counted once.
    pub(crate) bytes: u64,
    /// Rows of all results so far, also those that were released. A result that was computed again
    /// counts again.
    pub(crate) rows: u64,
    /// Bytes of all results so far, likewise.
    pub(crate) made_bytes: u64,
    /// Moving average of run times, times 16.
    duration_x16: Option<u64>,
    /// Moving average of the sizes of results, times 16.
    bytes_x16: Option<u64>,
}

impl Group {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            counts: [0; TaskState::COUNT],
            bytes: 0,
            rows: 0,
            made_bytes: 0,
            duration_x16: None,
            bytes_x16: None,
        }
    }

    /// Counts what a task has made.
    pub(crate) fn made(&mut self, bytes: u64, rows: u64) {
        self.rows = self.rows.saturating_add(rows);
        self.made_bytes = self.made_bytes.saturating_add(bytes);
    }

    /// Takes the run time of a task and the size of its result into the averages with a weight of
    /// one eighth.
    pub(crate) fn observe(&mut self, duration_micros: u64, bytes: u64) {
        fn next(average_x16: Option<u64>, sample: u64) -> u64 {
            match average_x16 {
                None => sample * 16,
                Some(average) => average - average / 8 + sample * 2,
            }
        }
        let duration = duration_micros.min(DURATION_MICROS_MAX);
        self.duration_x16 = Some(next(self.duration_x16, duration));
        self.bytes_x16 = Some(next(self.bytes_x16, bytes.min(BYTES_SAMPLE_MAX)));
    }

    /// Expected size of a result; 0 if none is known.
    pub(crate) fn expected_bytes(&self) -> u64 {
        self.bytes_x16.unwrap_or(0) / 16
    }

    /// Expected run time of a task, if one has finished; at least 1.
    pub(crate) fn expected_micros(&self) -> Option<u32> {
        let micros = self.duration_x16? / 16;
        Some(u32::try_from(micros).unwrap_or(u32::MAX).max(1))
    }
}

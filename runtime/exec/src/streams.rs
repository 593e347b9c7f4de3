//! What a running task may ask of its worker: inputs that it reads piece by piece, and memory.
//!
//! Owns the two traits and their idle forms. The worker implements them over its store and its
//! peers; programs see nothing else of the worker.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};

use crate::TaskError;

/// The slice that stands for all bytes of a result that has no slices.
pub const WHOLE: u32 = u32::MAX;

/// A piece of an input to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceRequest {
    /// Which of the task's streamed inputs, from 0.
    pub input: u32,
    /// Which slice of it, or [`WHOLE`].
    pub slice: u32,
    /// Where the piece begins in the slice.
    pub offset: u64,
    /// How long it may be at most.
    pub bytes_max: u64,
}

/// A piece of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The length of the whole slice.
    pub slice_bytes: u64,
    /// The piece: from the requested offset on, at most what was asked for. May be shorter than
    /// asked, and empty although bytes are left, when one answer held enough already: ask again.
    pub parts: Vec<Bytes>,
}

/// Inputs that a task reads by itself while it runs.
pub trait StreamedInputs: Send + Sync + Debug {
    /// How many there are: the first inputs of the task.
    fn count(&self) -> u32;

    /// How many bytes the whole result behind an input has, all slices together.
    fn input_bytes(&self, input: u32) -> u64;

    /// Reads pieces, in the order of the requests; many small ones of one peer travel together.
    /// At least one request that has bytes left is answered with bytes.
    ///
    /// An error ends the run: the program returns it as it is. Inputs that nobody delivers are
    /// noted by the worker, which then reports them as lost, whatever the error says.
    fn read(&self, requests: Vec<PieceRequest>) -> BoxFuture<'_, Result<Vec<Piece>, TaskError>>;

    /// Nobody else will read this slice once the task has finished: its holder may drop it then.
    fn consumed(&self, input: u32, slice: u32);
}

/// A share of the worker's memory, counted in the same account as its results.
pub trait Memory: Send + Sync + Debug {
    /// Takes more, whatever is left: the worker makes room elsewhere.
    fn grow(&self, bytes: u64);

    /// Takes more if the worker can spare it. Waits for nothing; others may be asked to make room.
    fn try_grow(&self, bytes: u64) -> Result<(), MemoryRefused>;

    /// Gives back.
    fn shrink(&self, bytes: u64);

    /// Bytes that this run has taken.
    fn taken_bytes(&self) -> u64;

    /// Bytes that the worker may use in all.
    fn limit_bytes(&self) -> u64;
}

/// The worker cannot spare what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{needed}` more bytes do not fit: `{taken}` of `{limit}` bytes are taken")]
pub struct MemoryRefused {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes taken on the worker by whatever cannot make room.
    pub taken: u64,
    /// Bytes that the worker may use.
    pub limit: u64,
}

/// What a run has made so far, for whoever watches.
#[derive(Debug, Default)]
pub struct RunProgress {
    rows: AtomicU64,
    work_micros: AtomicU64,
}

impl RunProgress {
    /// Counts rows of the result.
    pub fn add_rows(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows of the result so far.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// How long the run was at work, if that is less than from its start to its end.
    pub fn set_work_micros(&self, micros: u64) {
        self.work_micros.store(micros.max(1), Ordering::Relaxed);
    }

    /// How long the run was at work, if anybody has said so.
    pub fn work_micros(&self) -> Option<u64> {
        let micros = self.work_micros.load(Ordering::Relaxed);
        (micros > 0).then_some(micros)
    }
}

/// No streamed inputs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStreams;

impl StreamedInputs for NoStreams {
    fn count(&self) -> u32 {
        0
    }

    fn input_bytes(&self, _: u32) -> u64 {
        0
    }

    fn read(&self, _: Vec<PieceRequest>) -> BoxFuture<'_, Result<Vec<Piece>, TaskError>> {
        let message = "the task has no streamed inputs";
        let error = TaskError::permanent(Diagnostic::new(Code::ResultUnavailable, message));
        Box::pin(std::future::ready(Err(error)))
    }

    fn consumed(&self, _: u32, _: u32) {}
}

/// Memory with a limit of its own, for runs outside of a worker.
#[derive(Debug)]
pub struct OwnMemory {
    taken: AtomicU64,
    limit: u64,
}

impl OwnMemory {
    /// At most this much is granted to those who ask.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            taken: AtomicU64::new(0),
            limit: limit_bytes,
        }
    }
}

impl Memory for OwnMemory {
    fn grow(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    fn try_grow(&self, bytes: u64) -> Result<(), MemoryRefused> {
        let limit = self.limit;
        let grown = |taken: u64| taken.checked_add(bytes).filter(|total| *total <= limit);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown)
            .map(drop)
            .map_err(|taken| MemoryRefused {
                needed: bytes,
                taken,
                limit,
            })
    }

    fn shrink(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn limit_bytes(&self) -> u64 {
        self.limit
    }
}

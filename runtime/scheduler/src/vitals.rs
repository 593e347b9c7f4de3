//! What a worker last said of itself.
//!
//! Written by the worker's stream with each beat, read by status, telemetry and progress; the main
//! loop never waits for either. Decides nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use oxidask_proto::wire;

/// What a worker last said of itself; written by its stream, read by status and progress.
#[derive(Debug)]
pub(crate) struct Vitals {
    /// Bytes of results that it holds.
    pub(crate) held_bytes: AtomicU64,
    /// Bytes of memory that its process uses.
    pub(crate) resident_bytes: AtomicU64,
    /// Tasks that run.
    pub(crate) running: AtomicU32,
    /// Tasks that wait there.
    pub(crate) queued: AtomicU32,
    /// Bytes of results on its disk.
    pub(crate) spilled_bytes: AtomicU64,
    /// Bytes of memory that running tasks have taken.
    pub(crate) reserved_bytes: AtomicU64,
    /// Bytes of memory for the whole worker; 0: unknown.
    pub(crate) limit_bytes: AtomicU64,
    /// The certificates that it uses.
    loaded: Mutex<Option<wire::Loaded>>,
    /// Milliseconds after `began` at which it was last heard.
    heard_ms: AtomicU64,
    began: Instant,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            held_bytes: AtomicU64::default(),
            resident_bytes: AtomicU64::default(),
            running: AtomicU32::default(),
            queued: AtomicU32::default(),
            spilled_bytes: AtomicU64::default(),
            reserved_bytes: AtomicU64::default(),
            limit_bytes: AtomicU64::default(),
            loaded: Mutex::default(),
            heard_ms: AtomicU64::default(),
            began: Instant::now(),
        }
    }
}

impl Vitals {
    /// Keeps the latest heartbeat.
    pub(crate) fn note(&self, heartbeat: &wire::Heartbeat) {
        for (kept, said) in [
            (&self.held_bytes, heartbeat.held_bytes),
            (&self.resident_bytes, heartbeat.resident_bytes),
            (&self.spilled_bytes, heartbeat.spilled_bytes),
            (&self.reserved_bytes, heartbeat.reserved_bytes),
            (&self.limit_bytes, heartbeat.limit_bytes),
        ] {
            kept.store(said, Ordering::Relaxed);
        }
        self.running.store(heartbeat.running, Ordering::Relaxed);
        self.queued.store(heartbeat.queued, Ordering::Relaxed);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if *loaded != heartbeat.loaded {
            loaded.clone_from(&heartbeat.loaded);
        }
    }

    /// The certificates that the worker uses, if it has said so.
    pub(crate) fn loaded(&self) -> Option<wire::Loaded> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.clone()
    }

    /// A message has come.
    pub(crate) fn heard(&self) {
        self.heard_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// Since when no message has come, in milliseconds.
    pub(crate) fn silent_ms(&self) -> u64 {
        let heard = self.heard_ms.load(Ordering::Relaxed);
        self.elapsed_ms().saturating_sub(heard)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

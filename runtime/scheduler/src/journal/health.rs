//! How the journal is, as its thread knows it.
//!
//! Owns what passes between the thread that writes and the main loop: how far everything is durable,
//! and whether the disk fails. Says in the log when that changes, once each time. Never waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use oxidask_diagnostic::Diagnostic;
use oxidask_journal::{JournalError, Progress};

use super::compact::Order;
use crate::metrics::Metrics;

/// Shared by the thread that writes and the main loop.
pub(crate) struct Health {
    durable: AtomicU64,
    /// Whether the loop is to be woken when more is durable.
    is_awaited: AtomicBool,
    trouble: Mutex<Option<Arc<Diagnostic>>>,
    /// Grows when trouble begins or ends.
    changes: AtomicU64,
    pub(crate) metrics: Arc<Metrics>,
}

impl Health {
    pub(crate) fn new(durable: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            durable: AtomicU64::new(durable),
            is_awaited: AtomicBool::new(false),
            trouble: Mutex::new(None),
            changes: AtomicU64::new(0),
            metrics,
        }
    }

    /// Everything up to this sequence number is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// Asks to be woken when more is durable than now.
    pub(crate) fn wait(&self) {
        self.is_awaited.store(true, Ordering::SeqCst);
    }

    /// Grows when trouble begins or ends.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Why the journal cannot be written now.
    pub(crate) fn trouble(&self) -> Option<Arc<Diagnostic>> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes trouble, or its end; true if that is a change.
    fn set_trouble(&self, trouble: Option<Arc<Diagnostic>>) -> bool {
        let mut present = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if present.is_some() == trouble.is_some() {
            return false;
        }
        let journal = &self.metrics.journal;
        journal.refusing.set(i64::from(trouble.is_some()));
        *present = trouble;
        self.changes.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// The journal cannot be written; it is tried again.
    pub(crate) fn fail(&self, error: &JournalError) -> bool {
        let diagnostic = Diagnostic::from_error(error);
        let is_new = self.set_trouble(Some(Arc::new(diagnostic)));
        if is_new {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the journal cannot be written: new graphs are refused until it can; running work \
                 goes on"
            );
        }
        is_new
    }

    fn is_durable(&self, sequence: u64) -> bool {
        self.durable.store(sequence, Ordering::SeqCst);
        let has_recovered = self.set_trouble(None);
        if has_recovered {
            tracing::info!("the journal is written again: new graphs are accepted");
        }
        self.is_awaited.swap(false, Ordering::SeqCst) || has_recovered
    }
}

/// Takes the reports of the thread that writes.
pub(crate) fn reporter(
    health: Arc<Health>,
    wake: impl Fn() + Send,
    compactor: Sender<Order>,
    (tail_step, mut snapshot_bytes): (u64, u64),
) -> impl FnMut(Progress<'_>) + Send {
    let mut told = 0;
    move |progress| match progress {
        Progress::Durable {
            sequence,
            tail_bytes,
            took,
        } => {
            let journal = &health.metrics.journal;
            journal.commit_seconds.observe(took.as_secs_f64());
            journal.size_bytes.set(gauge(snapshot_bytes + tail_bytes));
            if health.is_durable(sequence) {
                wake();
            }
            if tail_bytes.abs_diff(told) >= tail_step {
                told = tail_bytes;
                // Nobody listens any more when the scheduler ends.
                let _ = compactor.send(Order::Tail(tail_bytes));
            }
        }
        Progress::Failed { error } => {
            if health.fail(error) {
                wake();
            }
        }
        Progress::SnapshotBegun { segments } => {
            let _ = compactor.send(Order::Begun(segments));
        }
        Progress::Snapshot {
            summary,
            tail_bytes,
        } => {
            snapshot_bytes = summary.bytes;
            let journal = &health.metrics.journal;
            journal.snapshots.inc();
            journal.size_bytes.set(gauge(snapshot_bytes + tail_bytes));
            let _ = compactor.send(Order::Ended(Some(summary.bytes)));
        }
        Progress::SnapshotFailed { error } => {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "a snapshot of the journal was given up; it is tried again later"
            );
            let _ = compactor.send(Order::Ended(None));
        }
    }
}

pub(crate) fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

//! One line a case, and a closing line.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::{Failure, say};

/// Counts what passed and what failed, and says so as it happens.
#[derive(Debug)]
pub(crate) struct Report {
    passed: AtomicUsize,
    failed: AtomicUsize,
    // Lines of one case stay together.
    printing: Mutex<()>,
}

impl Report {
    /// Nothing has run.
    pub(crate) fn new() -> Self {
        Self {
            passed: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            printing: Mutex::new(()),
        }
    }

    /// A case passed.
    pub(crate) fn passed(&self, name: &str, took: Duration) {
        self.passed.fetch_add(1, Ordering::Relaxed);
        say!("{name:<28} passed {:>6.1} s", took.as_secs_f64());
    }

    /// A case failed; what it left is kept.
    pub(crate) fn failed(&self, name: &str, took: Duration, error: &Failure, kept: Option<&Path>) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let _printing = self.printing.lock();
        say!("{name:<28} FAILED {:>6.1} s", took.as_secs_f64());
        for line in error.to_string().lines() {
            say!("    {line}");
        }
        if let Some(folder) = kept {
            say!("    kept: {}", folder.display());
        }
    }

    /// The closing line. Whether all passed.
    pub(crate) fn close(&self) -> bool {
        let (passed, failed) = (
            self.passed.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        );
        say!("{passed} passed, {failed} failed");
        failed == 0
    }
}

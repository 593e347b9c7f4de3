//! Whether this process may write.
//!
//! Owns the answer, which every write asks for: leading ends when the lease could not be renewed in
//! time, measured by a clock that nobody sets, even if the task that renews it does not run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Without other replicas there is nobody to lose against.
const ALWAYS: u64 = u64::MAX;

#[derive(Debug)]
struct State {
    began: Instant,
    /// Milliseconds after `began` until which this process leads; 0 if it does not.
    until_ms: AtomicU64,
    /// Fires when the term ends.
    term: Mutex<CancellationToken>,
}

/// Shared by all that write.
#[derive(Debug, Clone)]
pub(crate) struct Leadership(Arc<State>);

impl Leadership {
    /// Of a process among others: it does not lead yet.
    pub(crate) fn waiting() -> Self {
        Self::new(0)
    }

    /// Of the only process.
    pub(crate) fn alone() -> Self {
        Self::new(ALWAYS)
    }

    fn new(until_ms: u64) -> Self {
        Self(Arc::new(State {
            began: Instant::now(),
            until_ms: AtomicU64::new(until_ms),
            term: Mutex::new(CancellationToken::new()),
        }))
    }

    /// Leads until then, unless that is prolonged.
    pub(crate) fn lead_until(&self, until: Instant) {
        let since = until.saturating_duration_since(self.0.began);
        let until_ms = u64::try_from(since.as_millis()).unwrap_or(ALWAYS);
        self.0.until_ms.store(until_ms, Ordering::Release);
    }

    /// A new term begins; its token fires when it ends.
    pub(crate) fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.0.term.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        token
    }

    /// Leads no longer: what is under way stops at once.
    pub(crate) fn end(&self) {
        self.0.until_ms.store(0, Ordering::Release);
        self.token().cancel();
    }

    /// Whether a write may begin now.
    pub(crate) fn holds(&self) -> bool {
        let until_ms = self.0.until_ms.load(Ordering::Acquire);
        until_ms == ALWAYS || self.0.began + Duration::from_millis(until_ms) > Instant::now()
    }

    /// Waits until the present term has ended.
    pub(crate) fn lost(&self) -> WaitForCancellationFutureOwned {
        self.token().cancelled_owned()
    }

    fn token(&self) -> CancellationToken {
        let term = self.0.term.lock().unwrap_or_else(PoisonError::into_inner);
        term.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn leading_ends_by_itself_when_nobody_prolongs_it() {
        let leadership = Leadership::waiting();
        assert!(!leadership.holds());
        leadership.begin();
        leadership.lead_until(Instant::now() + Duration::from_mins(1));
        assert!(leadership.holds());
        leadership.lead_until(Instant::now());
        assert!(!leadership.holds(), "although nobody said so");
        leadership.lead_until(Instant::now() + Duration::from_mins(1));
        let lost = leadership.lost();
        leadership.end();
        lost.await;
        assert!(!leadership.holds());
        assert!(Leadership::alone().holds());
    }
}

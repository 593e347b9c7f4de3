//! The runs that have taken memory from the account, for when it becomes too much.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Memory, MemoryEnd, TaskError};
use oxidask_store::{Payload, ResultKey};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::RunMemory;
use crate::inputs::Trouble;

/// The runs beside the loop: as many as there are slots, and those that gave theirs to others.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, Record>,
}

#[derive(Debug)]
struct Record {
    name: RunName,
    memory: Arc<RunMemory>,
    cancelled: CancellationToken,
    end: Arc<OnceLock<MemoryEnd>>,
}

/// To which task a run belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunName {
    pub(crate) task: ResultKey,
    pub(crate) key: Arc<str>,
    pub(crate) attempt: u32,
}

impl RunName {
    /// What the run's log lines stand in.
    pub(crate) fn span(&self) -> Span {
        let (graph, key, attempt) = (self.task.graph(), &*self.key, self.attempt);
        tracing::info_span!("run", graph, key, attempt)
    }
}

impl Runs {
    /// A run begins.
    pub(crate) fn enter(
        self: &Arc<Self>,
        name: RunName,
        memory: Arc<RunMemory>,
        cancelled: CancellationToken,
    ) -> WatchedRun {
        let end = Arc::default();
        let mut state = self.lock();
        state.next += 1;
        let number = state.next;
        let record = Record {
            name: name.clone(),
            memory,
            cancelled,
            end: Arc::clone(&end),
        };
        state.running.insert(number, record);
        drop(state);
        WatchedRun {
            runs: Arc::clone(self),
            number,
            name,
            end,
        }
    }

    /// What those have taken that are not ending already.
    pub(crate) fn taken_bytes(&self) -> u64 {
        let state = self.lock();
        let going_on = state
            .running
            .values()
            .filter(|run| run.end.get().is_none() && !run.cancelled.is_cancelled());
        going_on.map(|run| run.memory.taken_bytes()).sum()
    }

    /// Cancels the run that has taken the most. Who it was, and what it had taken.
    pub(crate) fn end_largest(&self, used_bytes: u64, limit_bytes: u64) -> Option<(RunName, u64)> {
        let state = self.lock();
        let going_on = state
            .running
            .values()
            .filter(|run| run.end.get().is_none() && !run.cancelled.is_cancelled());
        let largest = going_on
            .map(|run| (run.memory.taken_bytes(), run))
            .max_by_key(|(bytes, _)| *bytes);
        let (program_bytes, run) = largest.filter(|(bytes, _)| *bytes > 0)?;
        let end = MemoryEnd {
            program_bytes,
            used_bytes,
            limit_bytes,
        };
        // Nobody else sets it: the list is locked.
        let _ = run.end.set(end);
        run.cancelled.cancel();
        Some((run.name.clone(), program_bytes))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one run in the list; it goes with this.
#[derive(Debug)]
pub(crate) struct WatchedRun {
    runs: Arc<Runs>,
    number: u64,
    name: RunName,
    end: Arc<OnceLock<MemoryEnd>>,
}

impl WatchedRun {
    /// What becomes of the run: one that was cancelled because of its memory fails and says so.
    pub(crate) fn judge(&self, outcome: Result<Payload, Trouble>) -> Result<Payload, Trouble> {
        match (outcome, self.end.get()) {
            (Err(_), Some(end)) => Err(Trouble::Failed(self.ended(*end))),
            (outcome, _) => outcome,
        }
    }

    fn ended(&self, end: MemoryEnd) -> TaskError {
        let MemoryEnd {
            program_bytes,
            used_bytes,
            limit_bytes,
        } = end;
        let message = format!(
            "task `{}` was cancelled because memory ran out: it had taken `{program_bytes}` of the \
             worker's `{limit_bytes}` bytes",
            self.name.key
        );
        let cause = format!("`{used_bytes}` of `{limit_bytes}` bytes were used in all");
        TaskError::retryable(Diagnostic::new(Code::MemoryRanOut, message).with_cause(cause))
    }
}

impl Drop for WatchedRun {
    fn drop(&mut self) {
        self.runs.lock().running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use oxidask_store::{PayloadKind, Store};

    use super::*;

    fn payload() -> Payload {
        Payload::new(PayloadKind::Value, &b"1"[..])
    }

    #[test]
    fn the_run_that_took_the_most_is_cancelled_and_fails_by_name() {
        let store = Store::new(1_000_000);
        let runs = Arc::new(Runs::default());
        let enter = |key: &str, bytes| {
            let memory = Arc::new(RunMemory::new(store.account()));
            memory.grow(bytes);
            let name = RunName {
                task: ResultKey::new(1, 2),
                key: key.into(),
                attempt: 1,
            };
            let cancelled = CancellationToken::new();
            (runs.enter(name, memory, cancelled.clone()), cancelled)
        };
        assert_eq!(runs.end_largest(1, 1), None);
        let (small, small_cancelled) = enter("small", 100);
        let (large, large_cancelled) = enter("large", 900);
        let (none, _) = enter("none", 0);
        assert_eq!(runs.taken_bytes(), 1_000);
        let (name, bytes) = runs.end_largest(990, 1_000).unwrap();
        assert_eq!((&*name.key, bytes), ("large", 900));
        assert!(large_cancelled.is_cancelled() && !small_cancelled.is_cancelled());
        // It is ending already, so the next one is another.
        assert_eq!(runs.taken_bytes(), 100);
        assert_eq!(&*runs.end_largest(990, 1_000).unwrap().0.key, "small");
        assert_eq!(runs.end_largest(990, 1_000), None);
        let failure = || {
            Err(Trouble::Failed(TaskError::permanent(Diagnostic::new(
                Code::GraphCancelled,
                "cancelled",
            ))))
        };
        let Err(Trouble::Failed(error)) = large.judge(failure()) else {
            unreachable!("it failed")
        };
        assert_eq!(error.diagnostic.code, Code::MemoryRanOut);
        assert!(error.is_retryable);
        assert_eq!(
            error.diagnostic.message,
            "task `large` was cancelled because memory ran out: it had taken `900` of the \
             worker's `1000` bytes"
        );
        // It was faster than the cancellation.
        assert!(small.judge(Ok(payload())).is_ok());
        let Err(Trouble::Failed(error)) = none.judge(failure()) else {
            unreachable!("it failed")
        };
        assert_eq!(error.diagnostic.code, Code::GraphCancelled);
        drop((small, large, none));
        assert_eq!(runs.taken_bytes(), 0);
    }
}

//! What the scheduler is still to be told.
//!
//! Collects while the message before is on its way; [`Outbox::take`] makes the next one. A start
//! is only told when the task has not ended in the meantime.
//!
//! Invariants: order is kept among reports other than starts; a message stays below its bounds.

use std::collections::VecDeque;

use oxidask_core::{Attempt, GraphId, TaskIndex, TaskRef, TaskReport, WorkerId};
use oxidask_proto::{report, wire};
use oxidask_store::ResultKey;

/// Reports in one message.
const REPORTS_PER_MESSAGE_MAX: usize = 65_536;
/// Bytes of reports, roughly, at which a message is full.
const MESSAGE_BYTES_TARGET: usize = 4 * 1024 * 1024;
/// Copies in one message.
const COPIES_PER_MESSAGE_MAX: usize = 262_144;
/// Entries at which no further orders are taken in until some are sent.
const ENTRIES_MAX: usize = 262_144;

/// Waiting messages to the scheduler, merged.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    reports: VecDeque<(ResultKey, Attempt, TaskReport)>,
    /// Attempts that have started and not ended; at most as many as there are slots.
    started: Vec<(ResultKey, Attempt)>,
    copies_added: VecDeque<ResultKey>,
    copies_missing: VecDeque<(ResultKey, WorkerId)>,
    heartbeat: Option<wire::Heartbeat>,
    is_drained: bool,
}

impl Outbox {
    pub(crate) fn report(&mut self, task: ResultKey, attempt: Attempt, report: TaskReport) {
        if report == TaskReport::Started {
            self.started.push((task, attempt));
            return;
        }
        if let Some(position) = self
            .started
            .iter()
            .position(|start| *start == (task, attempt))
        {
            self.started.swap_remove(position);
        }
        self.reports.push_back((task, attempt, report));
    }

    /// A run was cancelled: nobody wants to hear that it had started.
    pub(crate) fn forget_start(&mut self, task: ResultKey, attempt: Attempt) {
        self.started.retain(|start| *start != (task, attempt));
    }

    pub(crate) fn copy_added(&mut self, key: ResultKey) {
        self.copies_added.push_back(key);
    }

    pub(crate) fn copy_missing(&mut self, key: ResultKey, peer: WorkerId) {
        self.copies_missing.push_back((key, peer));
    }

    /// Only the latest heartbeat is sent.
    pub(crate) fn beat(&mut self, heartbeat: wire::Heartbeat) {
        self.heartbeat = Some(heartbeat);
    }

    pub(crate) fn drained(&mut self) {
        self.is_drained = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries() == 0
            && self.started.is_empty()
            && self.heartbeat.is_none()
            && !self.is_drained
    }

    /// Whether so much waits that no more work should be taken in.
    pub(crate) fn is_full(&self) -> bool {
        self.entries() >= ENTRIES_MAX
    }

    fn entries(&self) -> usize {
        self.reports.len() + self.copies_added.len() + self.copies_missing.len()
    }

    /// The next message.
    pub(crate) fn take(&mut self) -> wire::WorkerBatch {
        let mut reports = Vec::with_capacity(self.reports.len().min(REPORTS_PER_MESSAGE_MAX));
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES_TARGET
            && reports.len() < REPORTS_PER_MESSAGE_MAX
            && let Some((task, attempt, report)) = self.reports.pop_front()
        {
            bytes += size_of_report(&report);
            reports.push(report::to_wire((task_ref(task), attempt, report)));
        }
        for (task, attempt) in self.started.drain(..) {
            reports.push(report::to_wire((
                task_ref(task),
                attempt,
                TaskReport::Started,
            )));
        }
        let added = self.copies_added.len().min(COPIES_PER_MESSAGE_MAX);
        let missing = self.copies_missing.len().min(COPIES_PER_MESSAGE_MAX);
        wire::WorkerBatch {
            hello: None,
            reports,
            copies_added: self
                .copies_added
                .drain(..added)
                .map(|key| task_ref(key).into())
                .collect(),
            copies_missing: self
                .copies_missing
                .drain(..missing)
                .map(|(key, peer)| wire::CopyMissing {
                    task: Some(task_ref(key).into()),
                    worker: peer.0,
                })
                .collect(),
            heartbeat: self.heartbeat.take(),
            is_drained: std::mem::take(&mut self.is_drained),
        }
    }
}

fn task_ref(key: ResultKey) -> TaskRef {
    TaskRef {
        graph: GraphId(key.graph()),
        task: TaskIndex(key.task()),
    }
}

/// Roughly the bytes of a report on the wire.
fn size_of_report(report: &TaskReport) -> usize {
    const IDS: usize = 24;
    const LOST: usize = 24;
    match report {
        TaskReport::Failed { error, .. } => {
            let causes: usize = error.causes.iter().map(String::len).sum();
            IDS + error.message.len() + error.hint.len() + causes
        }
        TaskReport::InputsLost { lost } => IDS + LOST * lost.len(),
        TaskReport::Started | TaskReport::Finished { .. } | TaskReport::Retracted => IDS,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use oxidask_diagnostic::{Code, Diagnostic};
    use wire::report::Outcome;

    use super::*;

    const ATTEMPT: Attempt = Attempt {
        epoch: 1,
        number: 1,
    };
    const FINISHED: TaskReport = TaskReport::Finished {
        bytes: 4,
        duration_micros: 1,
        rows: 0,
    };

    fn key(task: u32) -> ResultKey {
        ResultKey::new(1, task)
    }

    #[test]
    fn a_start_is_told_only_while_the_task_runs() {
        let mut outbox = Outbox::default();
        outbox.report(key(1), ATTEMPT, TaskReport::Started);
        outbox.report(key(2), ATTEMPT, TaskReport::Started);
        outbox.report(key(3), ATTEMPT, TaskReport::Started);
        outbox.report(key(1), ATTEMPT, FINISHED);
        outbox.forget_start(key(3), ATTEMPT);
        let message = outbox.take();
        assert_eq!(message.reports.len(), 2);
        assert!(matches!(
            message.reports[0].outcome,
            Some(Outcome::Finished(_))
        ));
        assert!(matches!(
            message.reports[1].outcome,
            Some(Outcome::Started(_))
        ));
        assert_eq!(message.reports[1].task.unwrap().task, 2);
        assert!(outbox.is_empty());
        outbox.report(key(2), ATTEMPT, FINISHED);
        assert_eq!(outbox.take().reports.len(), 1);
    }

    #[test]
    fn messages_are_bounded_and_lose_nothing() {
        let mut outbox = Outbox::default();
        let error = Arc::new(Diagnostic::new(Code::TaskFailed, "x".repeat(16 * 1024)));
        for task in 0..1_000 {
            let error = Arc::clone(&error);
            outbox.report(
                key(task),
                ATTEMPT,
                TaskReport::Failed {
                    error,
                    is_retryable: true,
                },
            );
        }
        for task in 0..100_000 {
            outbox.report(key(task), ATTEMPT, FINISHED);
        }
        let (mut total, mut messages) = (0, 0);
        while !outbox.is_empty() {
            let message = outbox.take();
            assert!(message.reports.len() <= REPORTS_PER_MESSAGE_MAX);
            total += message.reports.len();
            messages += 1;
        }
        assert_eq!(total, 101_000);
        assert!((4..=8).contains(&messages), "{messages}");
    }

    #[test]
    fn too_much_stops_orders() {
        let mut outbox = Outbox::default();
        let many = u32::try_from(ENTRIES_MAX).unwrap();
        (0..many).for_each(|task| outbox.copy_added(key(task)));
        assert!(outbox.is_full());
        assert_eq!(outbox.take().copies_added.len(), COPIES_PER_MESSAGE_MAX);
        assert!(!outbox.is_full());
    }
}

//! What the scheduler is still to be told.
//!
//! Collects while the message before is on its way; [`Outbox::take`] makes the next one. A start
//! is only told when the task has not ended in the meantime. An inventory stands between what
//! happened before it was made and what happened since.
//!
//! Invariants: order is kept among reports other than starts; a message stays below its bounds;
//! without a scheduler only so much is kept, since the inventory that it gets first covers the rest.

use std::collections::VecDeque;

use oxidask_core::{Attempt, GraphId, Inventory, TaskIndex, TaskRef, TaskReport, WorkerId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::{inventory, report, wire};
use oxidask_store::ResultKey;

use crate::commands;
use crate::values::WaitingValues;

/// Reports in one message.
const REPORTS_PER_MESSAGE_MAX: usize = 65_536;
/// Bytes of reports, roughly, at which a message is full.
const MESSAGE_BYTES_TARGET: usize = 4 * 1024 * 1024;
/// Copies in one message.
const COPIES_PER_MESSAGE_MAX: usize = 262_144;
/// Entries at which no further orders are taken in until some are sent, and beyond which nothing is
/// kept without a scheduler.
const ENTRIES_MAX: usize = 262_144;

/// Bytes of answers to commands that wait; further ones lose their content.
const ANSWERS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Waiting messages to the scheduler, merged.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// What goes first.
    earlier: Option<Box<Earlier>>,
    is_offline: bool,
    reports: VecDeque<(ResultKey, Attempt, TaskReport)>,
    /// Small results of ends that are in `reports`.
    values: WaitingValues,
    /// Attempts that have started and not ended; at most as many as run.
    started: Vec<(ResultKey, Attempt)>,
    copies_added: VecDeque<ResultKey>,
    copies_missing: VecDeque<(ResultKey, WorkerId)>,
    copies_failed: VecDeque<ResultKey>,
    command_results: VecDeque<wire::CommandResult>,
    heartbeat: Option<wire::Heartbeat>,
    leaving_ms: Option<u64>,
    is_paused: bool,
    pause_told: PauseTold,
}

/// What the scheduler believes of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum PauseTold {
    #[default]
    No,
    Yes,
    /// It has seen another stream of this worker.
    Unsure,
}

impl PauseTold {
    fn of(is_paused: bool) -> Self {
        if is_paused { Self::Yes } else { Self::No }
    }
}

/// What was to be told when the inventory was made, and the inventory.
#[derive(Debug)]
struct Earlier {
    outbox: Outbox,
    inventory: VecDeque<wire::Inventory>,
}

impl Outbox {
    /// For a worker without a scheduler.
    pub(crate) fn offline() -> Self {
        Self {
            is_offline: true,
            ..Self::default()
        }
    }

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
        if self.has_room() {
            self.reports.push_back((task, attempt, report));
        }
    }

    /// The result of an attempt whose end was the last report. Only a scheduler that is there gets it.
    pub(crate) fn value(&mut self, attempt: (ResultKey, Attempt), value: wire::SmallValue) {
        if !self.is_offline {
            self.values.add(attempt, value);
        }
    }

    /// A run was cancelled: nobody wants to hear that it had started.
    pub(crate) fn forget_start(&mut self, task: ResultKey, attempt: Attempt) {
        self.started.retain(|start| *start != (task, attempt));
        if let Some(earlier) = &mut self.earlier {
            earlier.outbox.forget_start(task, attempt);
        }
    }

    pub(crate) fn copy_added(&mut self, key: ResultKey) {
        if !self.is_offline {
            self.copies_added.push_back(key);
        }
    }

    /// The scheduler orders a copy anew when it has lost sight of the worker.
    pub(crate) fn copy_failed(&mut self, key: ResultKey) {
        if !self.is_offline {
            self.copies_failed.push_back(key);
        }
    }

    pub(crate) fn copy_missing(&mut self, key: ResultKey, peer: WorkerId) {
        if self.has_room() {
            self.copies_missing.push_back((key, peer));
        }
    }

    /// What became of a command. It is told after a return, too: an inventory does not speak of it.
    pub(crate) fn command_result(&mut self, mut answer: wire::CommandResult) {
        let waiting: usize = self.command_results.iter().map(commands::size).sum();
        if waiting + commands::size(&answer) > ANSWERS_BYTES_MAX {
            let text = "the answer found no room: too many wait for the scheduler";
            answer.content = bytes::Bytes::new();
            answer.fault = Some(Diagnostic::new(Code::WorkerCommandFailed, text).into());
        }
        if self.has_room() {
            self.command_results.push_back(answer);
        }
    }

    /// Only the latest heartbeat is sent.
    pub(crate) fn beat(&mut self, heartbeat: wire::Heartbeat) {
        self.heartbeat = (!self.is_offline).then_some(heartbeat);
    }

    /// The worker wants to be drained within so many milliseconds.
    pub(crate) fn leaving(&mut self, milliseconds: u64) {
        self.leaving_ms = Some(milliseconds);
    }

    /// Whether the worker has no room for new work.
    pub(crate) fn paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    fn has_pause_to_tell(&self) -> bool {
        !self.is_offline && self.pause_told != PauseTold::of(self.is_paused)
    }

    /// There is a scheduler again, which wants to know what the worker has.
    pub(crate) fn opened(&mut self) {
        self.is_offline = false;
        self.pause_told = PauseTold::Unsure;
    }

    /// The scheduler is gone. What was not sent waits, apart from what the next inventory says.
    pub(crate) fn closed(&mut self) {
        if let Some(earlier) = self.earlier.take() {
            let later = std::mem::replace(self, earlier.outbox);
            self.append(later);
        }
        self.is_offline = true;
        self.values = WaitingValues::default();
        self.copies_added.clear();
        self.copies_failed.clear();
        self.heartbeat = None;
        self.leaving_ms = None;
        self.reports.truncate(ENTRIES_MAX);
        let room = ENTRIES_MAX - self.reports.len();
        self.copies_missing.truncate(room);
    }

    fn append(&mut self, mut later: Self) {
        for (task, attempt, report) in later.reports.drain(..) {
            self.report(task, attempt, report);
        }
        self.started.append(&mut later.started);
        self.copies_missing.append(&mut later.copies_missing);
        self.command_results.append(&mut later.command_results);
    }

    /// Everything that has happened so far is told before this inventory, everything else after it.
    /// False while another one is on its way: then the caller tries again later.
    pub(crate) fn begin_inventory(&mut self, inventory: Inventory) -> bool {
        if self.earlier.is_some() {
            return false;
        }
        let mut before = std::mem::take(self);
        before.heartbeat = None;
        self.leaving_ms = before.leaving_ms.take();
        self.is_paused = before.is_paused;
        // It is told after the inventory.
        self.pause_told = before.pause_told;
        before.pause_told = PauseTold::of(before.is_paused);
        let inventory = inventory::parts(inventory).into();
        self.earlier = Some(Box::new(Earlier {
            outbox: before,
            inventory,
        }));
        true
    }

    /// Whether an inventory has not been sent completely.
    pub(crate) fn has_inventory(&self) -> bool {
        self.earlier.is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.earlier.is_none()
            && self.entries() == 0
            && self.started.is_empty()
            && self.heartbeat.is_none()
            && self.leaving_ms.is_none()
            && !self.has_pause_to_tell()
    }

    /// Whether so much waits that no more work should be taken in.
    pub(crate) fn is_full(&self) -> bool {
        self.entries() >= ENTRIES_MAX
    }

    fn has_room(&self) -> bool {
        !self.is_offline || !self.is_full()
    }

    fn entries(&self) -> usize {
        let copies = self.copies_added.len() + self.copies_missing.len();
        self.reports.len() + copies + self.copies_failed.len() + self.command_results.len()
    }

    /// The next message. A heartbeat comes with the last of them: when it has been read, nothing
    /// that happened before is on its way.
    pub(crate) fn take(&mut self) -> wire::WorkerBatch {
        if let Some(earlier) = &mut self.earlier {
            if !earlier.outbox.is_empty() {
                return earlier.outbox.take();
            }
            let part = earlier.inventory.pop_front();
            if earlier.inventory.is_empty() {
                self.earlier = None;
            }
            return wire::WorkerBatch {
                inventory: part,
                ..wire::WorkerBatch::default()
            };
        }
        let (reports, values) = self.take_reports();
        let mut batch = wire::WorkerBatch {
            reports,
            values,
            copies_added: take_tasks(&mut self.copies_added),
            copies_failed: take_tasks(&mut self.copies_failed),
            command_results: self.take_command_results(),
            leaving_ms: self.leaving_ms.take(),
            ..wire::WorkerBatch::default()
        };
        if self.has_pause_to_tell() {
            batch.is_paused = Some(self.is_paused);
            self.pause_told = PauseTold::of(self.is_paused);
        }
        let missing = self.copies_missing.len().min(COPIES_PER_MESSAGE_MAX);
        let missing = self.copies_missing.drain(..missing);
        batch.copies_missing = missing
            .map(|(key, peer)| wire::CopyMissing {
                task: Some(task_ref(key).into()),
                worker: peer.0,
            })
            .collect();
        if self.entries() == 0 {
            batch.heartbeat = self.heartbeat.take();
        }
        batch
    }

    fn take_command_results(&mut self) -> Vec<wire::CommandResult> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES_TARGET
            && let Some(answer) = self.command_results.pop_front()
        {
            bytes += commands::size(&answer);
            taken.push(answer);
        }
        taken
    }

    fn take_reports(&mut self) -> (Vec<wire::Report>, Vec<wire::ReportedValue>) {
        let mut values = Vec::new();
        let mut reports = Vec::with_capacity(self.reports.len().min(REPORTS_PER_MESSAGE_MAX));
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES_TARGET
            && reports.len() < REPORTS_PER_MESSAGE_MAX
            && let Some((task, attempt, report)) = self.reports.pop_front()
        {
            bytes += size_of_report(&report);
            if let Some(value) = self.values.take((task, attempt), reports.len()) {
                bytes += value.value.as_ref().map_or(0, |value| value.data.len());
                values.push(value);
            }
            reports.push(report::to_wire((task_ref(task), attempt, report)));
        }
        for (task, attempt) in self.started.drain(..) {
            reports.push(report::to_wire((
                task_ref(task),
                attempt,
                TaskReport::Started,
            )));
        }
        (reports, values)
    }
}

fn take_tasks(keys: &mut VecDeque<ResultKey>) -> Vec<wire::TaskId> {
    let count = keys.len().min(COPIES_PER_MESSAGE_MAX);
    let taken = keys.drain(..count);
    taken.map(|key| task_ref(key).into()).collect()
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
            let attachment = error.attachment.as_ref().map_or(0, |bytes| bytes.len());
            IDS + error.message.len() + error.hint.len() + causes + attachment
        }
        TaskReport::InputsLost { lost } => IDS + LOST * lost.len(),
        TaskReport::Started
        | TaskReport::Finished { .. }
        | TaskReport::Retracted
        | TaskReport::Seceded
        | TaskReport::Rejoined => IDS,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
    fn an_inventory_stands_between_what_was_before_and_what_came_later() {
        let mut outbox = Outbox::offline();
        outbox.report(key(1), ATTEMPT, TaskReport::Started);
        outbox.report(key(2), ATTEMPT, FINISHED);
        outbox.beat(wire::Heartbeat::default());
        outbox.copy_added(key(9));
        outbox.opened();
        outbox.leaving(5);
        assert!(outbox.begin_inventory(Inventory::default()));
        assert!(!outbox.begin_inventory(Inventory::default()));
        outbox.report(key(1), ATTEMPT, FINISHED);
        outbox.beat(wire::Heartbeat::default());
        let before = outbox.take();
        let told: Vec<_> = before
            .reports
            .iter()
            .map(|r| r.task.unwrap().task)
            .collect();
        assert_eq!(told, [2, 1]);
        let is_start = matches!(before.reports[1].outcome, Some(Outcome::Started(_)));
        assert!(is_start && before.heartbeat.is_none() && before.copies_added.is_empty());
        let inventory = outbox.take();
        assert!(inventory.inventory.unwrap().is_last && inventory.reports.is_empty());
        assert!(!outbox.has_inventory());
        let after = outbox.take();
        assert_eq!((after.reports.len(), after.leaving_ms), (1, Some(5)));
        assert!(after.heartbeat.is_some() && outbox.is_empty());
    }

    #[test]
    fn a_stream_that_breaks_in_an_inventory_loses_no_report() {
        let mut outbox = Outbox::default();
        outbox.report(key(1), ATTEMPT, FINISHED);
        outbox.report(key(3), ATTEMPT, TaskReport::Started);
        outbox.begin_inventory(Inventory::default());
        outbox.report(key(2), ATTEMPT, FINISHED);
        outbox.report(key(3), ATTEMPT, FINISHED);
        outbox.closed();
        outbox.opened();
        let told = outbox.take();
        let tasks: Vec<_> = told.reports.iter().map(|r| r.task.unwrap().task).collect();
        assert_eq!(tasks, [1, 2, 3]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn without_a_scheduler_a_bounded_number_waits() {
        let mut outbox = Outbox::offline();
        let many = u32::try_from(ENTRIES_MAX).unwrap();
        for task in 0..many + 10 {
            outbox.report(key(task), ATTEMPT, FINISHED);
        }
        outbox.copy_missing(key(1), WorkerId(1));
        assert_eq!(outbox.entries(), ENTRIES_MAX);
        outbox.opened();
        outbox.report(key(many), ATTEMPT, FINISHED);
        assert_eq!(outbox.entries(), ENTRIES_MAX + 1);
        outbox.closed();
        assert_eq!(outbox.entries(), ENTRIES_MAX);
    }

    #[test]
    fn a_heartbeat_does_not_overtake_reports() {
        let mut outbox = Outbox::default();
        let many = u32::try_from(REPORTS_PER_MESSAGE_MAX).unwrap() + 1;
        (0..many).for_each(|task| outbox.report(key(task), ATTEMPT, FINISHED));
        outbox.beat(wire::Heartbeat::default());
        assert!(outbox.take().heartbeat.is_none());
        assert!(outbox.take().heartbeat.is_some());
    }

    #[test]
    fn a_pause_is_told_once_and_again_to_whoever_may_not_know() {
        let mut outbox = Outbox::default();
        outbox.paused(false);
        assert!(outbox.is_empty());
        outbox.paused(true);
        assert!(!outbox.is_empty());
        assert_eq!(outbox.take().is_paused, Some(true));
        outbox.paused(true);
        assert!(outbox.is_empty());
        // It is over before anybody could be told.
        outbox.paused(false);
        outbox.paused(true);
        assert!(outbox.is_empty());
        outbox.closed();
        outbox.paused(false);
        assert!(outbox.is_empty());
        outbox.opened();
        outbox.begin_inventory(Inventory::default());
        let inventory = outbox.take();
        assert!(inventory.inventory.is_some() && inventory.is_paused.is_none());
        assert_eq!(outbox.take().is_paused, Some(false));
        assert!(outbox.is_empty());
    }

    #[test]
    fn answers_to_commands_outlast_a_broken_stream_and_are_bounded() {
        let answer = |command, bytes: usize| wire::CommandResult {
            command,
            fault: None,
            content: vec![0; bytes].into(),
        };
        let mut outbox = Outbox::default();
        outbox.command_result(answer(1, 10));
        outbox.closed();
        outbox.command_result(answer(2, 10));
        outbox.opened();
        outbox.begin_inventory(Inventory::default());
        outbox.command_result(answer(3, 10));
        let told = |batch: wire::WorkerBatch| -> Vec<u64> {
            batch
                .command_results
                .iter()
                .map(|answer| answer.command)
                .collect()
        };
        assert_eq!(told(outbox.take()), [1, 2]);
        assert!(outbox.take().inventory.is_some());
        outbox.closed();
        outbox.opened();
        assert_eq!(told(outbox.take()), [3]);
        for command in 0..40 {
            outbox.command_result(answer(command, 2 << 20));
        }
        let (mut refused, mut messages) = (0, 0);
        while !outbox.is_empty() {
            let batch = outbox.take();
            messages += 1;
            refused += batch
                .command_results
                .iter()
                .filter(|a| a.fault.is_some())
                .count();
        }
        assert_eq!((refused, messages), (9, 16));
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

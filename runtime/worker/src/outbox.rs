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
    /// There is a report among them that somebody may wait for.
    is_urgent: bool,
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
            self.is_urgent |= !matches!(report, TaskReport::Finished { .. });
            self.reports.push_back((task, attempt, report));
        }
    }

    /// The result of an attempt whose end was the last report. Only a scheduler that is there gets it.
    pub(crate) fn value(&mut self, attempt: (ResultKey, Attempt), value: wire::SmallValue) {
        if !self.is_offline {
            self.is_urgent = true;
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

    /// Whether there is nothing but ends and starts of runs, for which nobody waits as far as is known
    /// here.
    pub(crate) fn is_patient(&self) -> bool {
        !self.is_empty()
            && self.earlier.is_none()
            && !self.is_urgent
            && self.entries() == self.reports.len()
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
        self.is_urgent &= !self.reports.is_empty();
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
mod tests;

//! Runs that are handed over before there is a slot for them.
//!
//! The way from the end of one run to the start of the next, through the loop and to a process, takes
//! longer than a tiny task. So whoever can keep runs in line, such as a process with a socket, is
//! given a few ahead. Owns how many: as many as take about [`LINE_MICROS_MAX`] by what runs of late
//! have taken, so that none waits for long behind others while another worker has nothing to do.
//!
//! Invariants: a run in line has no slot, counts as one that has not started, and keeps all that it
//! takes to start it anew; once it has begun it is like any other and cannot be given back.

use oxidask_core::TaskReport;

use crate::event::{Effect, RunId};
use crate::{Machine, Object, Pressure, Record, State};

/// Time for which the runs in line keep a slot busy.
pub const LINE_MICROS_MAX: u64 = 1_000;
/// Runs in line for each slot.
pub const LINE_RUNS_MAX: u32 = 32;
/// Inputs and arguments of a run in line: what is larger takes a way of its own.
pub const LINE_BYTES_MAX: u64 = 16 * 1024;

/// What has been handed over ahead, and how much more may be.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Runs in line that have not begun.
    pub(crate) count: u32,
    /// How long runs that may wait in line have taken of late.
    pace_micros: Option<u64>,
}

impl Line {
    /// A run has taken so long. A slow one counts at once, quick ones little by little.
    pub(crate) fn note(&mut self, duration_micros: u64) {
        self.pace_micros = Some(match self.pace_micros {
            Some(before) if duration_micros <= LINE_MICROS_MAX => {
                (before * 7 + duration_micros) / 8
            }
            _ => duration_micros,
        });
    }

    fn runs_max(&self, slots: u32) -> u32 {
        let Some(pace_micros) = self.pace_micros else {
            return 0;
        };
        let runs = LINE_MICROS_MAX / pace_micros.max(1);
        u32::try_from(runs).map_or(LINE_RUNS_MAX, |runs| runs.min(LINE_RUNS_MAX)) * slots
    }
}

impl Machine {
    /// Whether this attempt, for which there is no slot, may be handed over nevertheless.
    pub(crate) fn may_go_ahead(&self, record: &Record) -> bool {
        if !record.may_wait_in_line
            || record.slots != 1
            || self.pressure != Pressure::Free
            || self.line.count >= self.line.runs_max(self.slots)
        {
            return false;
        }
        let bytes = |key| match self.objects.get(key) {
            Some(Object::Held { bytes, .. }) => *bytes,
            // It is lost, which shows when it starts.
            _ => 0,
        };
        let inputs = record.inputs.iter().map(|key| bytes(*key));
        let all = inputs.fold(record.arguments.len() as u64, u64::saturating_add);
        all <= LINE_BYTES_MAX && record.streamed.is_empty()
    }

    /// A run in line has begun: it takes a slot, even if that is more than there are for a moment.
    pub(crate) fn begin_in_turn(&mut self, run: RunId, effects: &mut Vec<Effect>) {
        let Some(record) = self.attempts.get_mut(&run) else {
            return;
        };
        if record.state != State::Ahead {
            return;
        }
        record.state = State::Running;
        effects.push(Effect::Report {
            task: record.task,
            attempt: record.attempt,
            report: TaskReport::Started,
        });
        let slots = record.slots;
        self.leave_line(slots);
    }

    /// A run in line now counts as one that has started.
    pub(crate) fn leave_line(&mut self, slots: u32) {
        self.line.count -= 1;
        self.taken_slots += slots;
        self.running += 1;
    }

    /// A run in line comes back: others kept it waiting, or its process has gone. It starts anew when
    /// there is a slot, and none goes ahead before runs are seen to be quick again.
    pub(crate) fn take_back(&mut self, run: RunId, effects: &mut Vec<Effect>) {
        let Some(record) = self.attempts.get_mut(&run) else {
            return;
        };
        self.line.count -= 1;
        self.line.pace_micros = None;
        if record.is_wanted_back {
            let (task, attempt) = (record.task, record.attempt);
            self.attempts.remove(&run);
            self.give_back(task, attempt, effects);
            return;
        }
        record.state = State::Ready;
        let place = (record.urgency, std::cmp::Reverse(run));
        self.ready.push(place);
    }
}

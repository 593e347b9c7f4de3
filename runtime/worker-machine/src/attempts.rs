//! Attempts: taken on, given back, cancelled, started, ended.

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{Attempt, TaskReport, WorkerId};
use oxidask_store::ResultKey;

use crate::event::{Assignment, BodyRef, Effect, Input, Run, RunFailure, RunId, RunOutcome};
use crate::objects::Want;
use crate::urgency::Urgency;
use crate::{Machine, Object, Record, SECEDED_MAX, State, task_ref};

/// Entries of attempts that are gone, beyond which the ready queue is swept.
const STALE_READY_MAX: usize = 1_024;

/// An input that an attempt will not get, and who did not deliver it.
pub(crate) type Loss = (RunId, ResultKey, WorkerId);

impl Machine {
    pub(crate) fn assign(&mut self, assignment: Assignment, effects: &mut Vec<Effect>) {
        let Assignment {
            task,
            attempt,
            priority,
            turn,
            slots,
            may_wait_in_line,
            key,
            body,
            part,
            arguments,
            streamed,
            inputs,
        } = assignment;
        if let Some(run) = self.current.get(task).copied() {
            if self
                .attempts
                .get(&run)
                .is_some_and(|record| record.attempt >= attempt)
            {
                return;
            }
            self.current.remove(task);
            self.withdraw(run, effects);
        }
        if self.has_made(task, attempt) {
            return;
        }
        self.drop_result_of(task, |made_by| made_by < attempt, effects);
        let run = RunId(self.next_run);
        self.next_run += 1;
        let urgency = Urgency::new(priority, task.graph(), turn);
        let (keys, missing, lost) = self.want_inputs(run, urgency, inputs);
        if !lost.is_empty() {
            return self.refuse(task, attempt, lost, effects);
        }
        let state = if missing == 0 {
            State::Ready
        } else {
            State::Waiting { missing }
        };
        if missing == 0 {
            self.ready.push((urgency, Reverse(run)));
        }
        let slots = slots.clamp(1, self.slots);
        let record = Record {
            task,
            attempt,
            urgency,
            slots,
            state,
            has_seceded: false,
            may_wait_in_line,
            is_wanted_back: false,
            key,
            body,
            part,
            arguments,
            streamed,
            inputs: keys,
        };
        self.attempts.insert(run, record);
        self.current.insert(task, run);
    }

    /// Ends an attempt whose inputs nobody can deliver.
    fn refuse(
        &mut self,
        task: ResultKey,
        attempt: Attempt,
        lost: Vec<(ResultKey, WorkerId)>,
        effects: &mut Vec<Effect>,
    ) {
        let lost = lost.into_iter();
        let lost = lost.map(|(key, peer)| (task_ref(key), peer)).collect();
        effects.push(Effect::Report {
            task,
            attempt,
            report: TaskReport::InputsLost { lost },
        });
        self.disown_copy(task, effects);
    }

    /// Registers an attempt with all its inputs: the keys, how many are not here, and those that
    /// nobody can deliver.
    fn want_inputs(
        &mut self,
        run: RunId,
        urgency: Urgency,
        inputs: Vec<Input>,
    ) -> (Vec<ResultKey>, usize, Vec<(ResultKey, WorkerId)>) {
        let mut keys = Vec::with_capacity(inputs.len());
        let mut missing = 0;
        let mut lost = Vec::new();
        for input in inputs {
            let key = input.key;
            keys.push(key);
            match self.want(run, urgency, input) {
                Want::Held | Want::AlreadyWaits => {}
                Want::Waits => missing += 1,
                Want::Lost(peers) => lost.extend(peers.into_iter().map(|peer| (key, peer))),
            }
        }
        (keys, missing, lost)
    }

    pub(crate) fn retract(&mut self, task: ResultKey, attempt: Attempt, effects: &mut Vec<Effect>) {
        let Some(run) = self.current_run(task, attempt) else {
            return;
        };
        let Some(record) = self.attempts.get_mut(&run) else {
            return;
        };
        match record.state {
            State::Running | State::Ending => {}
            // It begins soon, or comes back soon.
            State::Ahead => record.is_wanted_back = true,
            State::Waiting { .. } | State::Ready => {
                self.withdraw(run, effects);
                self.give_back(task, attempt, effects);
            }
        }
    }

    /// An attempt that has not started is the scheduler's again.
    pub(crate) fn give_back(
        &mut self,
        task: ResultKey,
        attempt: Attempt,
        effects: &mut Vec<Effect>,
    ) {
        self.current.remove(task);
        effects.push(Effect::Report {
            task,
            attempt,
            report: TaskReport::Retracted,
        });
        self.disown_copy(task, effects);
    }

    pub(crate) fn cancel(&mut self, task: ResultKey, attempt: Attempt, effects: &mut Vec<Effect>) {
        if let Some(run) = self.current_run(task, attempt) {
            self.current.remove(task);
            self.withdraw(run, effects);
            self.disown_copy(task, effects);
        } else {
            // It ended before the order came: the scheduler will ignore the report, so nobody
            // would ever release the result.
            self.drop_result_of(task, |made_by| made_by == attempt, effects);
        }
    }

    pub(crate) fn forget_graph(&mut self, graph: u32, effects: &mut Vec<Effect>) {
        let runs: Vec<RunId> = self
            .current
            .remove_graph(graph)
            .map(|(_, run)| run)
            .collect();
        for run in runs {
            self.withdraw(run, effects);
        }
        for (key, object) in self.objects.remove_graph(graph) {
            if let Object::Held { .. } = object {
                self.held_digest.remove_held(task_ref(key));
            }
        }
        effects.push(Effect::DropGraph { graph });
    }

    /// Starts ready attempts in order while there are slots and memory. The first in line is never
    /// passed by: one that takes many slots waits until they are free, and the others behind it. Tiny
    /// ones are handed over ahead of their slot.
    pub fn start_ready(&mut self, effects: &mut Vec<Effect>) {
        if self.ready.len() > 2 * self.attempts.len() + STALE_READY_MAX {
            let attempts = &self.attempts;
            self.ready
                .retain(|(_, Reverse(run))| attempts.contains_key(run));
        }
        while let Some((_, Reverse(run))) = self.ready.peek().copied() {
            match self.attempts.get(&run) {
                Some(record) if record.state == State::Ready => {
                    let is_ahead = self.taken_slots + record.slots > self.slots;
                    if self.is_held_back() || is_ahead && !self.may_go_ahead(record) {
                        return;
                    }
                    self.ready.pop();
                    self.start(run, is_ahead, effects);
                }
                _ => {
                    self.ready.pop();
                }
            }
        }
    }

    fn start(&mut self, run: RunId, is_ahead: bool, effects: &mut Vec<Effect>) {
        let Some(record) = self.attempts.get_mut(&run) else {
            return;
        };
        let objects = &self.objects;
        // Something was released although this attempt needs it: the scheduler must know.
        let is_lost = |key: &&ResultKey| !matches!(objects.get(**key), Some(Object::Held { .. }));
        if record.inputs.iter().any(|key| is_lost(&key)) {
            let own = self.own;
            let lost: Vec<Loss> = record
                .inputs
                .iter()
                .filter(is_lost)
                .map(|key| (run, *key, own))
                .collect();
            self.report_lost(lost, effects);
            return;
        }
        let mut given = Run {
            run,
            task: record.task,
            attempt: record.attempt,
            slots: record.slots,
            is_ahead,
            key: Arc::clone(&record.key),
            body: BodyRef::Shared(0),
            part: record.part,
            arguments: Bytes::new(),
            streamed: Vec::new(),
            inputs: Vec::new(),
        };
        if is_ahead {
            record.state = State::Ahead;
            given.body = record.body.clone();
            given.arguments = record.arguments.clone();
            given.inputs.clone_from(&record.inputs);
            self.line.count += 1;
        } else {
            record.state = State::Running;
            given.body = std::mem::replace(&mut record.body, BodyRef::Shared(0));
            given.arguments = std::mem::take(&mut record.arguments);
            given.streamed = std::mem::take(&mut record.streamed);
            given.inputs = std::mem::take(&mut record.inputs);
            self.taken_slots += record.slots;
            self.running += 1;
            effects.push(Effect::Report {
                task: given.task,
                attempt: given.attempt,
                report: TaskReport::Started,
            });
        }
        effects.push(Effect::Run(given));
    }

    /// A run goes on without its slots, or has them again. Told to the scheduler as long as the run
    /// counts; what is no news changes nothing.
    pub(crate) fn give_slots(&mut self, run: RunId, is_given: bool, effects: &mut Vec<Effect>) {
        let Some(record) = self.attempts.get_mut(&run) else {
            return;
        };
        let has_started = matches!(record.state, State::Running | State::Ending);
        let is_over = is_given && self.seceded >= SECEDED_MAX;
        if !has_started || record.has_seceded == is_given || is_over {
            return;
        }
        record.has_seceded = is_given;
        if is_given {
            self.seceded += 1;
            self.taken_slots -= record.slots;
        } else {
            self.seceded -= 1;
            self.taken_slots += record.slots;
        }
        if record.state == State::Running {
            effects.push(Effect::Report {
                task: record.task,
                attempt: record.attempt,
                report: if is_given {
                    TaskReport::Seceded
                } else {
                    TaskReport::Rejoined
                },
            });
        }
    }

    pub(crate) fn run_ended(&mut self, run: RunId, outcome: RunOutcome, effects: &mut Vec<Effect>) {
        let Some(record) = self.attempts.get(&run) else {
            return;
        };
        match (record.state, &outcome) {
            (State::Waiting { .. } | State::Ready, _) => return,
            (State::Ahead, RunOutcome::GivenBack(_)) => return self.take_back(run, effects),
            // It has begun and ended before anybody could say so.
            (State::Ahead, _) => self.line.count -= 1,
            (State::Running | State::Ending, _) => {
                self.running -= 1;
                if record.has_seceded {
                    self.seceded -= 1;
                } else {
                    self.taken_slots -= record.slots;
                }
            }
        }
        let Some(record) = self.attempts.remove(&run) else {
            return;
        };
        if record.state != State::Ending {
            self.report_end(&record, outcome, effects);
        }
    }

    fn report_end(&mut self, record: &Record, outcome: RunOutcome, effects: &mut Vec<Effect>) {
        let Record { task, attempt, .. } = *record;
        self.current.remove(task);
        if !matches!(outcome, RunOutcome::Finished(_)) {
            self.disown_copy(task, effects);
        }
        let report = match outcome {
            RunOutcome::Finished(finished) => {
                if record.may_wait_in_line {
                    self.line.note(finished.duration_micros);
                }
                self.hold(task, Some(attempt), finished.bytes);
                TaskReport::Finished {
                    bytes: finished.bytes,
                    duration_micros: finished.duration_micros,
                    rows: finished.rows,
                }
            }
            RunOutcome::Failed(failure) | RunOutcome::GivenBack(failure) => TaskReport::Failed {
                error: failure.error,
                is_retryable: failure.is_retryable,
            },
            RunOutcome::InputsLost(lost) => {
                let lost = lost.into_iter().map(|(key, peer)| (task_ref(key), peer));
                TaskReport::InputsLost {
                    lost: lost.collect(),
                }
            }
        };
        effects.push(Effect::Report {
            task,
            attempt,
            report,
        });
    }

    /// Ends attempts that lack inputs and tells the scheduler which, attempt by attempt.
    pub(crate) fn report_lost(&mut self, mut losses: Vec<Loss>, effects: &mut Vec<Effect>) {
        losses.sort_unstable();
        losses.dedup();
        for losses in losses.chunk_by(|a, b| a.0 == b.0) {
            let Some(record) = self.attempts.remove(&losses[0].0) else {
                continue;
            };
            self.current.remove(record.task);
            let lost = losses
                .iter()
                .map(|(_, key, peer)| (task_ref(*key), *peer))
                .collect();
            effects.push(Effect::Report {
                task: record.task,
                attempt: record.attempt,
                report: TaskReport::InputsLost { lost },
            });
            self.disown_copy(record.task, effects);
        }
    }

    /// Fails an attempt that has not started.
    pub(crate) fn fail_waiting(
        &mut self,
        run: RunId,
        failure: &RunFailure,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.attempts.remove(&run) else {
            return;
        };
        self.current.remove(record.task);
        let mut error = failure.error.as_ref().clone();
        error.message = format!(
            "an input of task `{}` does not fit: {}",
            record.key, error.message
        );
        effects.push(Effect::Report {
            task: record.task,
            attempt: record.attempt,
            report: TaskReport::Failed {
                error: Arc::new(error),
                is_retryable: failure.is_retryable,
            },
        });
        self.disown_copy(record.task, effects);
    }

    /// An attempt that no longer counts: gone at once, or when its run has really ended.
    fn withdraw(&mut self, run: RunId, effects: &mut Vec<Effect>) {
        let Some(record) = self.attempts.get_mut(&run) else {
            return;
        };
        match record.state {
            State::Waiting { .. } | State::Ready => {
                self.attempts.remove(&run);
            }
            State::Running => {
                record.state = State::Ending;
                effects.push(Effect::CancelRun { run });
            }
            State::Ahead => {
                record.state = State::Ending;
                let slots = record.slots;
                self.leave_line(slots);
                effects.push(Effect::CancelRun { run });
            }
            State::Ending => {}
        }
    }

    /// An attempt that counted ends without a result. The scheduler does not count a copy of an
    /// earlier one, because it waits for the attempt: nobody would ever release it.
    fn disown_copy(&mut self, task: ResultKey, effects: &mut Vec<Effect>) {
        if self.is_copy(task) {
            self.note_gone(task);
            effects.push(Effect::Drop { key: task });
            effects.push(Effect::CopyMissing {
                key: task,
                peer: self.own,
            });
        }
    }

    fn current_run(&self, task: ResultKey, attempt: Attempt) -> Option<RunId> {
        let run = *self.current.get(task)?;
        self.attempts
            .get(&run)
            .is_some_and(|record| record.attempt == attempt)
            .then_some(run)
    }

    /// The attempt that made what is held here of a task.
    fn maker_of(&self, task: ResultKey) -> Option<Attempt> {
        match self.objects.get(task)? {
            Object::Held { made_by, .. } => *made_by,
            Object::Wanted(_) => None,
        }
    }

    /// Whether an assignment is one that was carried out already: it was sent again.
    fn has_made(&self, task: ResultKey, attempt: Attempt) -> bool {
        let maker = self.maker_of(task);
        maker.is_some_and(|made_by| made_by >= attempt)
    }

    fn drop_result_of(
        &mut self,
        task: ResultKey,
        is_stale: impl Fn(Attempt) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        if self.maker_of(task).is_some_and(is_stale) {
            self.note_gone(task);
            effects.push(Effect::Drop { key: task });
        }
    }
}

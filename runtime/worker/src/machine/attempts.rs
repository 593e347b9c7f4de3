//! Attempts: taken on, given back, cancelled, started, ended.

use std::cmp::Reverse;
use std::sync::Arc;

use oxidask_core::{Attempt, TaskReport, WorkerId};
use oxidask_store::ResultKey;

use super::event::{Assignment, BodyRef, Effect, Input, Run, RunFailure, RunId, RunOutcome};
use super::objects::Want;
use super::{Machine, Object, Record, State, task_ref};

/// Entries of attempts that are gone, beyond which the ready queue is swept.
const STALE_READY_MAX: usize = 1_024;

/// An input that an attempt will not get, and who did not deliver it.
pub(super) type Loss = (RunId, ResultKey, WorkerId);

impl Machine {
    pub(super) fn assign(&mut self, assignment: Assignment, effects: &mut Vec<Effect>) {
        let Assignment {
            task,
            attempt,
            priority,
            slots,
            key,
            body,
            part,
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
        self.drop_result_of(task, |made_by| made_by < attempt, effects);
        let run = RunId(self.next_run);
        self.next_run += 1;
        let (keys, missing, lost) = self.want_inputs(run, priority, inputs);
        if !lost.is_empty() {
            let lost = lost
                .into_iter()
                .map(|(key, peer)| (task_ref(key), peer))
                .collect();
            let report = TaskReport::InputsLost { lost };
            effects.push(Effect::Report {
                task,
                attempt,
                report,
            });
            return;
        }
        let state = if missing == 0 {
            State::Ready
        } else {
            State::Waiting { missing }
        };
        if missing == 0 {
            self.ready.push((priority, Reverse(run)));
        }
        let slots = slots.clamp(1, self.slots);
        let record = Record {
            task,
            attempt,
            priority,
            slots,
            state,
            key,
            body,
            part,
            streamed,
            inputs: keys,
        };
        self.attempts.insert(run, record);
        self.current.insert(task, run);
    }

    /// Registers an attempt with all its inputs: the keys, how many are not here, and those that
    /// nobody can deliver.
    fn want_inputs(
        &mut self,
        run: RunId,
        priority: i32,
        inputs: Vec<Input>,
    ) -> (Vec<ResultKey>, usize, Vec<(ResultKey, WorkerId)>) {
        let mut keys = Vec::with_capacity(inputs.len());
        let mut missing = 0;
        let mut lost = Vec::new();
        for input in inputs {
            let key = input.key;
            keys.push(key);
            match self.want(run, priority, input) {
                Want::Held | Want::AlreadyWaits => {}
                Want::Waits => missing += 1,
                Want::Lost(peers) => lost.extend(peers.into_iter().map(|peer| (key, peer))),
            }
        }
        (keys, missing, lost)
    }

    pub(super) fn retract(&mut self, task: ResultKey, attempt: Attempt, effects: &mut Vec<Effect>) {
        let Some(run) = self.current_run(task, attempt) else {
            return;
        };
        let has_started = self
            .attempts
            .get(&run)
            .is_none_or(|record| record.state == State::Running);
        if !has_started {
            self.current.remove(task);
            self.withdraw(run, effects);
            effects.push(Effect::Report {
                task,
                attempt,
                report: TaskReport::Retracted,
            });
        }
    }

    pub(super) fn cancel(&mut self, task: ResultKey, attempt: Attempt, effects: &mut Vec<Effect>) {
        if let Some(run) = self.current_run(task, attempt) {
            self.current.remove(task);
            self.withdraw(run, effects);
        } else {
            // It ended before the order came: the scheduler will ignore the report, so nobody
            // would ever release the result.
            self.drop_result_of(task, |made_by| made_by == attempt, effects);
        }
    }

    pub(super) fn forget_graph(&mut self, graph: u32, effects: &mut Vec<Effect>) {
        let runs: Vec<RunId> = self
            .current
            .remove_graph(graph)
            .map(|(_, run)| run)
            .collect();
        for run in runs {
            self.withdraw(run, effects);
        }
        drop(self.objects.remove_graph(graph));
        effects.push(Effect::DropGraph { graph });
    }

    /// Starts ready attempts in order while there are slots and memory. The first in line is never
    /// passed by: one that takes many slots waits until they are free, and the others behind it.
    pub fn start_ready(&mut self, effects: &mut Vec<Effect>) {
        if self.ready.len() > 2 * self.attempts.len() + STALE_READY_MAX {
            let attempts = &self.attempts;
            self.ready
                .retain(|(_, Reverse(run))| attempts.contains_key(run));
        }
        while let Some((_, Reverse(run))) = self.ready.peek().copied() {
            match self.attempts.get(&run) {
                Some(record) if record.state == State::Ready => {
                    if record.slots > self.free_slots || self.is_held_back() {
                        return;
                    }
                    self.ready.pop();
                    self.start(run, effects);
                }
                _ => {
                    self.ready.pop();
                }
            }
        }
    }

    fn start(&mut self, run: RunId, effects: &mut Vec<Effect>) {
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
        record.state = State::Running;
        self.free_slots -= record.slots;
        self.running += 1;
        let (task, attempt) = (record.task, record.attempt);
        effects.push(Effect::Report {
            task,
            attempt,
            report: TaskReport::Started,
        });
        effects.push(Effect::Run(Run {
            run,
            task,
            attempt,
            slots: record.slots,
            key: Arc::clone(&record.key),
            body: std::mem::replace(&mut record.body, BodyRef::Shared(0)),
            part: record.part,
            streamed: std::mem::take(&mut record.streamed),
            inputs: std::mem::take(&mut record.inputs),
        }));
    }

    pub(super) fn run_ended(&mut self, run: RunId, outcome: RunOutcome, effects: &mut Vec<Effect>) {
        let has_started = self
            .attempts
            .get(&run)
            .is_some_and(|record| matches!(record.state, State::Running | State::Ending));
        if !has_started {
            return;
        }
        let Some(record) = self.attempts.remove(&run) else {
            return;
        };
        self.free_slots += record.slots;
        self.running -= 1;
        if record.state == State::Ending {
            return;
        }
        let Record { task, attempt, .. } = record;
        self.current.remove(task);
        let report = match outcome {
            RunOutcome::Finished(finished) => {
                self.hold(task, Some(attempt));
                TaskReport::Finished {
                    bytes: finished.bytes,
                    duration_micros: finished.duration_micros,
                    rows: finished.rows,
                }
            }
            RunOutcome::Failed(failure) => TaskReport::Failed {
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
    pub(super) fn report_lost(&mut self, mut losses: Vec<Loss>, effects: &mut Vec<Effect>) {
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
        }
    }

    /// Fails an attempt that has not started.
    pub(super) fn fail_waiting(
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
            State::Ending => {}
        }
    }

    fn current_run(&self, task: ResultKey, attempt: Attempt) -> Option<RunId> {
        let run = *self.current.get(task)?;
        self.attempts
            .get(&run)
            .is_some_and(|record| record.attempt == attempt)
            .then_some(run)
    }

    fn drop_result_of(
        &mut self,
        task: ResultKey,
        is_stale: impl Fn(Attempt) -> bool,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(Object::Held {
            made_by: Some(made_by),
        }) = self.objects.get(task)
            && is_stale(*made_by)
        {
            self.objects.remove(task);
            effects.push(Effect::Drop { key: task });
        }
    }
}

//! The life of the tasks of one graph: waiting, ready, finished, released, lost, failed.
//!
//! A [`Scope`] is the graph with everything that a change of one of its tasks may touch. Cascades
//! (a lost result whose inputs were released, a failure with a million dependents) use a list of
//! work, never recursion.
//!
//! Invariants between events: a waiting task counts its unfinished inputs and none of them is
//! released or failed; a ready task has all inputs in memory; a finished task has a holder, and is
//! needed (see `needs`). A finished result that only suspects hold (see `strand`) counts as
//! unfinished for those who wait.

use std::cmp::Reverse;
use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;

use crate::config::CoreConfig;
use crate::effect::Effect;
use crate::fleet::{Entry, Fleet, Hold};
use crate::graph::{Failure, Graph, NONE};
use crate::ids::{Attempt, WorkerId};
use crate::notes::Notes;
use crate::place::Classes;
use crate::restore::Restored;
use crate::transitions::TaskState;

/// One graph, and what its tasks touch.
pub(crate) struct Scope<'a> {
    pub(crate) graph: &'a mut Graph,
    pub(crate) fleet: &'a mut Fleet,
    pub(crate) classes: &'a mut Classes,
    pub(crate) config: &'a CoreConfig,
    pub(crate) notes: &'a mut Notes,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl Scope<'_> {
    pub(crate) fn state(&self, task: u32) -> TaskState {
        self.graph.state[task as usize]
    }

    /// Changes a task's state and every counter that depends on it.
    pub(crate) fn transition(&mut self, task: u32, to: TaskState) {
        let from = self.graph.change(task, to);
        if from == TaskState::Ready || to == TaskState::Ready {
            self.count_ready(task, to == TaskState::Ready);
        }
        self.fleet.retracting -= usize::from(from == TaskState::Retracting);
        self.fleet.retracting += usize::from(to == TaskState::Retracting);
        if self.graph.is_wanted[task as usize] && from.is_pending() != to.is_pending() {
            if to.is_pending() {
                self.graph.wanted_pending += 1;
                self.graph.is_done_told = false;
            } else {
                self.graph.wanted_pending -= 1;
            }
        }
    }

    fn count_ready(&mut self, task: u32, is_ready: bool) {
        let Some(class) = self.classes.get_mut(self.graph.class_of(task)) else {
            return;
        };
        if is_ready {
            class.ready += 1;
            let priority = Reverse(self.graph.priority[task as usize]);
            let turn = self.graph.turn(task, self.fleet.slots);
            class.queue.push((priority, self.graph.id, (turn, task)));
        } else {
            class.ready -= 1;
        }
    }

    // ---- on and off workers ----

    /// Hands a ready task to a worker.
    pub(crate) fn assign(&mut self, task: u32, place: u32) {
        let Some((worker, turn)) = self.attach(task, place) else {
            return;
        };
        let at = task as usize;
        self.graph.attempt[at] = self.graph.attempt[at].wrapping_add(1);
        self.transition(task, TaskState::Assigned);
        self.effects.push(Effect::Assign {
            worker,
            task: self.graph.task_ref(task),
            attempt: self.current_attempt(task),
            turn,
        });
    }

    /// Enters a task into a worker's table; a state change must follow. Which worker that is, and the
    /// task's turn there.
    pub(crate) fn attach(&mut self, task: u32, place: u32) -> Option<(WorkerId, u32)> {
        let at = task as usize;
        let class = self.classes.get(self.graph.class_of(task))?;
        let turn = self.graph.turn(task, self.fleet.slots);
        let now = self.fleet.now;
        let worker = self.fleet.at_mut(place)?;
        let slots = worker.slots_taken(class.requirement.slots);
        let entry = Entry {
            task: self.graph.task_ref(task),
            priority: self.graph.priority[at],
            turn,
            expected_micros: expected_micros(self.graph, self.config, task),
            slots,
            is_started: false,
            begun_at: worker.has_room(slots).then_some(now),
            hold: if worker.has_free(&class.requirement.resources) {
                Hold::Taken
            } else {
                Hold::TakenBack
            },
            finishes_before: self.graph.finishes,
        };
        worker.use_resources(&class.requirement.resources, true);
        self.graph.entry[at] = worker.add(entry);
        self.graph.worker_or_failure[at] = worker.id.0;
        Some((worker.id, turn))
    }

    /// The attempt that the task is at.
    pub(crate) fn current_attempt(&self, task: u32) -> Attempt {
        self.graph.current_attempt(task, self.config.epoch)
    }

    /// Whether a report of this worker is about the attempt that the task is at.
    pub(crate) fn is_current(&self, task: u32, attempt: Attempt, worker: WorkerId) -> bool {
        self.state(task).is_placed()
            && self.current_attempt(task) == attempt
            && self.graph.worker_or_failure[task as usize] == worker.0
    }

    /// The worker of a placed task runs it now.
    pub(crate) fn start(&mut self, task: u32) {
        if self.state(task) == TaskState::Running {
            return;
        }
        let at = task as usize;
        let now = self.fleet.now;
        if let Some(worker) = self
            .fleet
            .get_mut(WorkerId(self.graph.worker_or_failure[at]))
        {
            worker.start(self.graph.entry[at], now);
        }
        self.transition(task, TaskState::Running);
    }

    /// Takes a placed task off its worker's table; a state change must follow.
    pub(crate) fn detach(&mut self, task: u32) {
        let at = task as usize;
        let worker = WorkerId(self.graph.worker_or_failure[at]);
        let class = self.classes.get(self.graph.class_of(task));
        if let (Some(class), Some(worker)) = (class, self.fleet.get_mut(worker))
            && worker.remove(self.graph.entry[at])
        {
            worker.use_resources(&class.requirement.resources, false);
        }
        self.graph.worker_or_failure[at] = NONE;
        self.graph.entry[at] = NONE;
        self.graph.clear_attempt(task);
    }

    /// Takes a placed task off its worker and lets it run again.
    pub(crate) fn requeue(&mut self, task: u32) {
        self.detach(task);
        self.transition(task, TaskState::Waiting);
        let mut released = Vec::new();
        self.await_inputs(task, &mut released);
        self.recompute(released);
    }

    // ---- waiting ----

    /// Counts the unfinished inputs of a waiting task: it becomes ready without any, and fails
    /// with a failed one. Released inputs are appended to `released`, to be computed again.
    pub(crate) fn await_inputs(&mut self, task: u32, released: &mut Vec<u32>) {
        let mut unfinished = 0;
        let mut failed = None;
        for input in self.graph.inputs(task) {
            match self.graph.state[input.0 as usize] {
                TaskState::Finished if !self.graph.is_stranded(input.0) => continue,
                TaskState::Released => released.push(input.0),
                TaskState::Failed => failed = failed.or(Some(input.0)),
                _ => {}
            }
            unfinished += 1;
        }
        self.graph.unfinished.set(task as usize, unfinished);
        let failed = failed.map(|failed| self.graph.worker_or_failure[failed as usize]);
        if let Some(number) = self.graph.ended.or(failed) {
            self.fail_with(task, number);
        } else if unfinished == 0 {
            self.transition(task, TaskState::Ready);
        }
    }

    /// Lets the released tasks run again, and their released inputs, and so on.
    pub(crate) fn recompute(&mut self, mut released: Vec<u32>) {
        while let Some(task) = released.pop() {
            // Who asked for a released result may have failed since, by another of its inputs.
            let at = task as usize;
            let is_needed = self.graph.consumers_left[at] > 0 || self.graph.is_wanted[at];
            let state = self.state(task);
            if state == TaskState::Finished || (state == TaskState::Released && is_needed) {
                self.transition(task, TaskState::Waiting);
                self.fleet.recomputed += u64::from(self.graph.attempt[at] > 0);
                for edge in self.graph.input_edges(task) {
                    let input = self.graph.input(edge);
                    self.graph.consumers_left[input as usize] += 1;
                }
                self.await_inputs(task, &mut released);
            }
        }
    }

    // ---- results ----

    /// A placed task is done: its worker holds the result.
    pub(crate) fn finish(&mut self, task: u32, place: u32, made: Made) {
        let Made {
            bytes,
            rows,
            duration_micros,
        } = made;
        self.detach(task);
        self.graph.note_finish(task);
        self.graph
            .group_of_mut(task)
            .observe(duration_micros, bytes);
        self.keep_result(task, place, bytes, rows);
    }

    /// A pending task that is on no worker has a result there.
    pub(crate) fn keep_result(&mut self, task: u32, place: u32, bytes: u64, rows: u64) {
        let at = task as usize;
        if let Some(worker) = self.fleet.at(place) {
            let task = self.graph.task_ref(task);
            self.notes.finished(worker.id, task, bytes, rows);
        }
        let group = self.graph.group_of_mut(task);
        group.made(bytes, rows);
        group.bytes = group.bytes.saturating_add(bytes);
        self.graph.bytes[at] = bytes;
        self.graph.unfinished.set(at, 0);
        self.transition(task, TaskState::Finished);
        self.add_holder(task, place);
        self.settle_inputs(task);
        if self.is_with_suspects_only(task) {
            self.graph.stranded.insert(task);
        } else {
            self.wake_consumers(task);
        }
        if self.graph.is_wanted[at] {
            self.tell_state(task);
        }
        self.release_if_unneeded(task);
    }

    /// The worker keeps a copy of a finished result.
    pub(crate) fn add_copy(&mut self, task: u32, place: u32) {
        if let Some(worker) = self.fleet.at(place) {
            let task = self.graph.task_ref(task);
            self.notes.copied(worker.id, task);
        }
        self.add_holder(task, place);
    }

    /// The worker holds a finished result.
    pub(crate) fn add_holder(&mut self, task: u32, place: u32) {
        let reference = self.graph.task_ref(task);
        if let Some(worker) = self.fleet.at_mut(place)
            && self.graph.add_holder(task, worker.id)
        {
            let is_heard = !worker.is_suspect();
            worker.hold(reference, self.graph.bytes[task as usize]);
            if is_heard && self.graph.is_stranded(task) {
                self.reach(task);
            }
        }
    }

    /// A task has finished: waiting consumers wait for one input less. They become ready in order
    /// of submission, which keeps the ready queue cheap; the list of consumers is the reverse.
    pub(crate) fn wake_consumers(&mut self, task: u32) {
        let mut edge = self.graph.first_consumer(task);
        let mut woken = Vec::new();
        while edge != NONE {
            let (consumer, next) = self.graph.consumer(edge);
            edge = next;
            let at = consumer as usize;
            if self.graph.state[at] == TaskState::Waiting {
                self.graph.unfinished[at] -= 1;
                if self.graph.unfinished[at] == 0 {
                    woken.push(consumer);
                }
            }
        }
        while let Some(consumer) = woken.pop() {
            self.transition(consumer, TaskState::Ready);
        }
    }

    pub(crate) fn drop_bytes(&mut self, task: u32) {
        let bytes = self.graph.bytes[task as usize];
        let group = self.graph.group_of_mut(task);
        group.bytes = group.bytes.saturating_sub(bytes);
    }

    /// The worker no longer holds the result; false if it did not.
    fn drop_holder(&mut self, task: u32, holder: WorkerId) -> bool {
        let is_held = self.graph.remove_holder(task, holder);
        if is_held && let Some(worker) = self.fleet.get_mut(holder) {
            worker.unhold(self.graph.task_ref(task), self.graph.bytes[task as usize]);
        }
        is_held
    }

    /// A worker has lost a result; without another holder it is computed again if it is needed.
    /// False if the worker did not hold it.
    pub(crate) fn lose(&mut self, task: u32, holder: WorkerId) -> bool {
        if !self.drop_holder(task, holder) {
            return false;
        }
        if !self.graph.holders(task).is_empty() || self.state(task) != TaskState::Finished {
            self.doubt_holders(task);
            return true;
        }
        self.drop_bytes(task);
        let was_stranded = self.forget_whereabouts(task);
        if !self.is_result_needed(task) {
            self.transition(task, TaskState::Released);
            return true;
        }
        if !was_stranded {
            self.block_consumers(task);
        }
        self.recompute(vec![task]);
        true
    }

    /// Whether the client, or a task that has not started, needs the result. A task that runs has
    /// fetched it already; if it reads it while it runs, it says what it misses.
    fn is_result_needed(&self, task: u32) -> bool {
        if self.graph.is_wanted[task as usize] {
            return true;
        }
        let mut edge = match self.graph.consumers_left[task as usize] {
            0 => NONE,
            _ => self.graph.first_consumer(task),
        };
        while edge != NONE {
            let (consumer, next) = self.graph.consumer(edge);
            edge = next;
            if self.state(consumer) < TaskState::Running {
                return true;
            }
        }
        false
    }

    /// A finished task is about to run again, or its result is out of reach: consumers that are not
    /// on a worker wait for it.
    pub(crate) fn block_consumers(&mut self, task: u32) {
        let mut edge = self.graph.first_consumer(task);
        while edge != NONE {
            let (consumer, next) = self.graph.consumer(edge);
            edge = next;
            if self.state(consumer) == TaskState::Ready {
                self.transition(consumer, TaskState::Waiting);
            }
            if self.state(consumer) == TaskState::Waiting {
                self.graph.unfinished[consumer as usize] += 1;
            }
        }
    }

    // ---- failures ----

    /// A pending task fails for good, and with it everything that depends on it.
    pub(crate) fn fail(&mut self, task: u32, error: Arc<Diagnostic>) {
        let number = u32::try_from(self.graph.failures.len()).unwrap_or(NONE);
        let reference = self.graph.task_ref(task);
        self.notes.note(|| Restored::Failed {
            task: reference,
            error: Arc::clone(&error),
        });
        self.graph.failures.push(Failure {
            error,
            origin: task,
        });
        self.fail_with(task, number);
    }

    fn fail_with(&mut self, task: u32, number: u32) {
        let mut failing = vec![task];
        while let Some(task) = failing.pop() {
            if !self.state(task).is_pending() {
                continue;
            }
            self.end(task, number);
            let mut edge = self.graph.first_consumer(task);
            while edge != NONE {
                let (consumer, next) = self.graph.consumer(edge);
                edge = next;
                if matches!(self.state(consumer), TaskState::Waiting | TaskState::Ready) {
                    failing.push(consumer);
                }
            }
        }
    }

    /// A pending task has failed with a failure that is listed already.
    pub(crate) fn end(&mut self, task: u32, number: u32) {
        if self.state(task).is_placed() {
            self.detach(task);
        }
        let at = task as usize;
        self.graph.unfinished.set(at, 0);
        self.transition(task, TaskState::Failed);
        self.graph.worker_or_failure[at] = number;
        let is_origin = self
            .graph
            .failure(task)
            .is_some_and(|failure| failure.origin == task);
        if is_origin || self.graph.is_wanted[at] {
            self.tell_state(task);
        }
        self.settle_inputs(task);
    }

    /// An attempt has failed: another one if there are retries left.
    pub(crate) fn attempt_failed(&mut self, task: u32, error: Arc<Diagnostic>, is_retryable: bool) {
        let at = task as usize;
        if is_retryable && self.graph.retries[at] > 0 {
            self.graph.retries[at] -= 1;
            self.requeue(task);
        } else {
            self.fail(task, error);
        }
    }

    // ---- the client ----

    /// Tells the client that a task is ready or has failed.
    pub(crate) fn tell_state(&mut self, task: u32) {
        let Some(client) = self.graph.client else {
            return;
        };
        let reference = self.graph.task_ref(task);
        if self.state(task) == TaskState::Finished {
            let bytes = self.graph.bytes[task as usize];
            self.effects.push(Effect::ResultReady {
                client,
                task: reference,
                bytes,
            });
        } else if let Some(failure) = self.graph.failure(task) {
            self.effects.push(Effect::TaskFailed {
                client,
                task: reference,
                error: Arc::clone(&failure.error),
                is_origin: failure.origin == task,
            });
        }
    }

    /// Everything that is pending fails with the error, and nothing may follow.
    pub(crate) fn stop(&mut self, error: Arc<Diagnostic>) {
        let number = u32::try_from(self.graph.failures.len()).unwrap_or(NONE);
        self.graph.failures.push(Failure {
            error,
            origin: NONE,
        });
        self.graph.ended = Some(number);
        for task in 0..self.graph.len() {
            let state = self.state(task);
            if state.is_placed() {
                self.cancel(task);
            }
            if state.is_pending() {
                self.end(task, number);
            }
        }
        self.seal();
    }

    /// Stops the attempt of a placed task; a state change must follow.
    pub(crate) fn cancel(&mut self, task: u32) {
        self.effects.push(Effect::Cancel {
            worker: WorkerId(self.graph.worker_or_failure[task as usize]),
            task: self.graph.task_ref(task),
            attempt: self.current_attempt(task),
        });
    }

    /// Takes the graph out of everything around it: its tables are about to be dropped.
    pub(crate) fn abandon(&mut self) {
        for task in 0..self.graph.len() {
            match self.state(task) {
                TaskState::Ready => {
                    if let Some(class) = self.classes.get_mut(self.graph.class_of(task)) {
                        class.ready -= 1;
                    }
                }
                TaskState::Finished => {
                    for holder in self.graph.holders(task) {
                        if let Some(worker) = self.fleet.get_mut(*holder) {
                            let bytes = self.graph.bytes[task as usize];
                            worker.unhold(self.graph.task_ref(task), bytes);
                        }
                    }
                }
                state if state.is_placed() => {
                    self.fleet.retracting -= usize::from(state == TaskState::Retracting);
                    self.cancel(task);
                    self.detach(task);
                }
                _ => {}
            }
        }
    }
}

/// What a run has made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) duration_micros: u64,
}

/// Expected run time of a task, guessed if nothing is known.
pub(crate) fn expected_micros(graph: &Graph, config: &CoreConfig, task: u32) -> u32 {
    let guess = || {
        u32::try_from(config.unknown_duration_micros)
            .unwrap_or(u32::MAX)
            .max(1)
    };
    graph.group_of(task).expected_micros().unwrap_or_else(guess)
}

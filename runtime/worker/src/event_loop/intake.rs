//! What the loop takes in: orders, ends of runs, what peers delivered, what the store has lost.

use std::sync::Arc;

use oxidask_core::WorkerId;
use oxidask_diagnostic::Diagnostic;
use oxidask_exec::TaskError;
use oxidask_proto::wire;
use oxidask_store::{Gone, Payload, ResultKey, StoreError};
use oxidask_worker_machine::{Assignment, Event, Finished, Refusal, RunFailure, RunOutcome};

use super::EventLoop;
use crate::error::WorkerError;
use crate::fetch::Fetched;
use crate::inputs::Trouble;
use crate::orders;
use crate::run::Ended;
use crate::streams::StreamsEnd;

/// Ends of runs that are taken in at once.
const ENDS_AT_ONCE_MAX: usize = 256;

impl EventLoop {
    /// Orders about tasks, in their order.
    pub(super) fn take_orders(&mut self, batch: wire::WorkBatch) -> Result<(), WorkerError> {
        for peer in batch.peers {
            let (id, address) = (WorkerId(peer.worker), peer.data_address);
            if address.is_empty() {
                self.body.peers.remove(id);
                self.body.react(Event::PeerGone { peer: id });
            } else {
                self.body.peers.add(id, &address);
                self.body.react(Event::PeerAdded { peer: id });
            }
        }
        for command in batch.commands {
            if let Some(answer) = self.body.commands.take(command) {
                self.outbox.command_result(answer);
            }
        }
        let programs = &mut self.body.runner.programs;
        for body in batch.bodies {
            programs.add(body.graph, body.body, &body.content);
        }
        for order in batch.orders {
            self.body.values.ordered(&order);
            let mut event = orders::event(order)?;
            if let Event::Assigned(assignment) = &mut event {
                self.ask_program(assignment);
                for input in &assignment.inputs {
                    if self.body.machine.is_copy(input.key) {
                        self.body.awaited.keep(input.key);
                    }
                }
            }
            self.body.react(event);
        }
        for copy in batch.copies {
            self.order_copy(orders::copy(copy)?);
        }
        for graph in batch.graphs_forgotten {
            self.body.react(Event::GraphForgotten { graph });
        }
        self.is_inventory_wanted |= batch.inventory_wanted;
        Ok(())
    }

    /// A copy that is here already is kept like an own result from now on: the scheduler may rely
    /// on it alone.
    fn order_copy(&mut self, (key, bytes, from): (ResultKey, u64, WorkerId)) {
        if self.body.machine.is_copy(key) {
            match self.store.get(key) {
                Some(payload) => {
                    if self.store.insert_result(key, payload).is_err() {
                        self.outbox.copy_failed(key);
                        return;
                    }
                }
                // Only parts of it are left.
                None if self.store.contains(key) => {
                    self.outbox.copy_failed(key);
                    return;
                }
                // It has just been dropped, and that will be told.
                None => self.body.react(Event::ObjectGone { key }),
            }
        }
        self.body.react(Event::CopyOrdered { key, bytes, from });
    }

    /// What only the program knows. Inputs that only give order have done so when the task is
    /// assigned: nobody fetches them. A body that cannot be understood shows when the task runs.
    fn ask_program(&mut self, assignment: &mut Assignment) {
        let graph = assignment.task.graph();
        let Ok(program) = self.body.runner.programs.get(graph, &assignment.body) else {
            return;
        };
        assignment.may_wait_in_line = program.keeps_line();
        if !program.reads_inputs() {
            assignment.inputs.clear();
        }
    }

    pub(super) fn take_ends(&mut self, first: Ended) {
        // The end of one run is the beginning of another: that one has the slot from here on.
        self.take_slot_changes();
        let mut next = Some(first);
        for _ in 0..ENDS_AT_ONCE_MAX {
            let Some(ended) = next else { return };
            self.body.beside.remove(&ended.run);
            self.finish(ended);
            next = self.body.runner.try_next_ended();
        }
        // The one that is in hand must not get lost.
        if let Some(ended) = next {
            self.body.beside.remove(&ended.run);
            self.finish(ended);
        }
    }

    pub(super) fn take_slot_changes(&mut self) {
        for event in self.body.runner.slots.take() {
            self.body.react(event);
        }
    }

    pub(super) fn take_fetched(&mut self, fetched: Fetched) {
        let Fetched { request, delivery } = fetched;
        let Some(delivery) = delivery else {
            self.body.react(Event::FetchFailed { request });
            return;
        };
        let (mut kept, mut missing, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (key, payload) in delivery {
            let Some(payload) = payload else {
                missing.push(key);
                continue;
            };
            self.metrics.fetched_bytes.inc_by(payload.len());
            if !self.body.machine.wants_copy(key) {
                continue;
            }
            match self.keep_copy(key, payload) {
                Ok(()) => kept.push(key),
                Err(error) => {
                    let is_retryable = error.may_fit_later();
                    let error = Arc::new(Diagnostic::from_error(&error));
                    refused.push(Refusal {
                        key,
                        failure: RunFailure {
                            error,
                            is_retryable,
                        },
                    });
                }
            }
        }
        self.body.react(Event::FetchDone {
            request,
            kept,
            missing,
            refused,
        });
    }

    fn keep_copy(&mut self, key: ResultKey, payload: Payload) -> Result<(), StoreError> {
        if self.body.machine.is_ordered(key) {
            self.store.insert_result(key, payload)?;
        } else {
            let pins = self.store.insert_pinned_copy(key, payload)?;
            self.body.awaited.add(key, pins);
        }
        Ok(())
    }

    /// Keeps what a run has made, if anybody still wants it, and tells the machine.
    pub(super) fn finish(&mut self, ended: Ended) {
        let Ended {
            run,
            task,
            key,
            outcome,
            duration_micros,
            rows,
            streams,
        } = ended;
        let StreamsEnd {
            is_lost,
            lost,
            lacking,
            consumed,
        } = streams;
        for (key, peer) in lacking {
            self.outbox.copy_missing(key, peer);
        }
        let finished = |bytes| {
            RunOutcome::Finished(Finished {
                bytes,
                duration_micros,
                rows,
            })
        };
        let outcome = match outcome {
            // Whatever it made is dropped; the machine does not look at it.
            Ok(_) if !self.body.machine.is_current(run) => finished(0),
            Ok(payload) => match self.store.insert_result(task, payload) {
                Ok(bytes) => {
                    self.body.freer.free(consumed);
                    finished(bytes)
                }
                Err(error) => RunOutcome::Failed(does_not_fit(&key, &error)),
            },
            Err(Trouble::Lost(lost)) => RunOutcome::InputsLost(lost),
            Err(Trouble::Failed(_)) if is_lost => RunOutcome::InputsLost(lost),
            Err(Trouble::Failed(TaskError {
                diagnostic,
                is_retryable,
                is_given_back,
            })) => {
                let failure = RunFailure {
                    error: Arc::new(diagnostic),
                    is_retryable,
                };
                if is_given_back {
                    RunOutcome::GivenBack(failure)
                } else {
                    RunOutcome::Failed(failure)
                }
            }
        };
        self.body.react(Event::RunEnded { run, outcome });
    }

    /// Results that are not here any more although nobody released them.
    pub(super) fn take_gone(&mut self) {
        self.body.awaited.sweep(|| self.body.machine.awaited());
        for Gone { key, reason } in self.store.take_gone() {
            self.body.awaited.forget(key);
            // It may have come again in the meantime.
            if !self.store.contains(key) {
                tracing::debug!(%key, ?reason, "a result has gone");
                self.body.react(Event::ObjectGone { key });
            }
        }
        let is_disk_full = self.store.pressure().is_disk_full;
        if is_disk_full && !self.is_disk_full {
            let disk_bytes = self.store.held().disk_bytes;
            tracing::warn!(disk_bytes, "the disk takes no more spilled results");
        }
        self.is_disk_full = is_disk_full;
    }
}

fn does_not_fit(key: &str, error: &StoreError) -> RunFailure {
    let mut diagnostic = Diagnostic::from_error(error);
    let cause = std::mem::take(&mut diagnostic.message);
    diagnostic.message = format!("the result of task `{key}` does not fit: {cause}");
    RunFailure {
        error: Arc::new(diagnostic),
        is_retryable: error.may_fit_later(),
    }
}

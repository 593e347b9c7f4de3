//! Drives the machine by hand: batches in, effects collected, invariants after each batch.
#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::Arc;

use oxidask_core::{Attempt, GraphId, TaskIndex, TaskRef, TaskReport, WorkerId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::ResultKey;
use oxidask_worker_machine::{
    Assignment, BodyRef, Effect, Event, Finished, Input, Machine, RequestId, Run, RunFailure,
    RunId, RunOutcome,
};

pub(crate) const GRAPH: u32 = 1;
pub(crate) const OWN: u32 = 0;

pub(crate) fn key(task: u32) -> ResultKey {
    ResultKey::new(GRAPH, task)
}

pub(crate) fn task_ref(task: u32) -> TaskRef {
    TaskRef {
        graph: GraphId(GRAPH),
        task: TaskIndex(task),
    }
}

pub(crate) fn attempt(number: u32) -> Attempt {
    Attempt { epoch: 1, number }
}

pub(crate) fn failure(message: &str, is_retryable: bool) -> RunFailure {
    let error = Arc::new(Diagnostic::new(Code::TaskFailed, message));
    RunFailure {
        error,
        is_retryable,
    }
}

pub(crate) fn ended(run: RunId, bytes: u64) -> Event {
    Event::RunEnded {
        run,
        outcome: RunOutcome::Finished(Finished {
            bytes,
            duration_micros: 5,
            rows: 0,
        }),
    }
}

pub(crate) fn given_back(run: RunId) -> Event {
    Event::RunEnded {
        run,
        outcome: RunOutcome::GivenBack(failure("never begun", true)),
    }
}

pub(crate) fn ended_after(run: RunId, duration_micros: u64) -> Event {
    Event::RunEnded {
        run,
        outcome: RunOutcome::Finished(Finished {
            bytes: 1,
            duration_micros,
            rows: 0,
        }),
    }
}

pub(crate) fn assignment(task: u32, number: u32) -> Assignment {
    Assignment {
        task: key(task),
        attempt: attempt(number),
        priority: 0,
        turn: 0,
        slots: 1,
        may_wait_in_line: false,
        key: format!("t{task}").into(),
        body: BodyRef::Shared(0),
        part: 0,
        arguments: bytes::Bytes::new(),
        streamed: Vec::new(),
        inputs: Vec::new(),
    }
}

pub(crate) fn with_arguments(mut assignment: Assignment, arguments: Vec<u8>) -> Assignment {
    assignment.arguments = arguments.into();
    assignment
}

/// Words to describe an assignment with.
pub(crate) trait Describe: Sized {
    fn priority(self, priority: i32) -> Self;
    fn turn(self, turn: u32) -> Self;
    fn may_wait(self) -> Self;
    fn slots(self, slots: u32) -> Self;
    /// Task, size, holder.
    fn sized_inputs(self, inputs: impl IntoIterator<Item = (u32, u64, u32)>) -> Self;
    /// Task, holder; 100 bytes each.
    fn inputs(self, inputs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        self.sized_inputs(inputs.into_iter().map(|(task, holder)| (task, 100, holder)))
    }
    fn alternate(self, position: usize, holder: u32) -> Self;
}

impl Describe for Assignment {
    fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    fn turn(mut self, turn: u32) -> Self {
        self.turn = turn;
        self
    }

    fn may_wait(mut self) -> Self {
        self.may_wait_in_line = true;
        self
    }

    fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    fn sized_inputs(mut self, inputs: impl IntoIterator<Item = (u32, u64, u32)>) -> Self {
        let inputs = inputs.into_iter().map(|(task, bytes, holder)| Input {
            key: key(task),
            bytes,
            holder: WorkerId(holder),
            alternates: Vec::new(),
        });
        self.inputs = inputs.collect();
        self
    }

    fn alternate(mut self, position: usize, holder: u32) -> Self {
        self.inputs[position].alternates.push(WorkerId(holder));
        self
    }
}

pub(crate) struct Driver {
    pub(crate) machine: Machine,
    /// Everything so far, except runs and fetches that were taken.
    pub(crate) effects: Vec<Effect>,
}

impl Driver {
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            machine: Machine::new(WorkerId(OWN), slots),
            effects: Vec::new(),
        }
    }

    pub(crate) fn peers(mut self, peers: impl IntoIterator<Item = u32>) -> Self {
        self.batch(peers.into_iter().map(|peer| Event::PeerAdded {
            peer: WorkerId(peer),
        }));
        self
    }

    pub(crate) fn batch(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.machine.react(event, &mut self.effects);
            assert_eq!(self.machine.invariants(), Ok(()));
        }
        self.machine.advance(&mut self.effects);
        assert_eq!(self.machine.invariants(), Ok(()));
    }

    pub(crate) fn assign(&mut self, assignment: Assignment) {
        self.batch([Event::Assigned(assignment)]);
    }

    pub(crate) fn finish(&mut self, run: RunId, bytes: u64) {
        self.batch([ended(run, bytes)]);
    }

    pub(crate) fn deliver(&mut self, request: RequestId, tasks: &[u32]) {
        let kept = tasks.iter().map(|task| key(*task)).collect();
        self.batch([Event::FetchDone {
            request,
            kept,
            missing: vec![],
            refused: vec![],
        }]);
    }

    pub(crate) fn lack(&mut self, request: RequestId, tasks: &[u32]) {
        let missing = tasks.iter().map(|task| key(*task)).collect();
        self.batch([Event::FetchDone {
            request,
            kept: vec![],
            missing,
            refused: vec![],
        }]);
    }

    pub(crate) fn fail_fetch(&mut self, request: RequestId) {
        self.batch([Event::FetchFailed { request }]);
    }

    pub(crate) fn next_run(&mut self) -> Option<Run> {
        let position = self
            .effects
            .iter()
            .position(|effect| matches!(effect, Effect::Run(_)))?;
        let Effect::Run(run) = self.effects.remove(position) else {
            return None;
        };
        Some(run)
    }

    pub(crate) fn only_run(&mut self) -> RunId {
        let run = self.next_run().expect("something runs");
        assert!(self.next_run().is_none());
        run.run
    }

    pub(crate) fn only_run_task(&mut self) -> ResultKey {
        let run = self.next_run().expect("something runs");
        assert!(self.next_run().is_none());
        run.task
    }

    pub(crate) fn take_fetches(&mut self) -> Vec<(RequestId, WorkerId, Vec<ResultKey>)> {
        let mut fetches = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::Fetch {
                request,
                peer,
                keys,
            } => {
                fetches.push((*request, *peer, keys.clone()));
                false
            }
            _ => true,
        });
        fetches
    }

    pub(crate) fn only_fetch(&mut self) -> RequestId {
        let fetches = self.take_fetches();
        assert_eq!(fetches.len(), 1, "{fetches:?}");
        fetches[0].0
    }

    pub(crate) fn reports(&self, task: u32) -> Vec<TaskReport> {
        let reports = self.effects.iter().filter_map(|effect| match effect {
            Effect::Report {
                task: of, report, ..
            } if *of == key(task) => Some(report.clone()),
            _ => None,
        });
        reports.collect()
    }

    pub(crate) fn copies_added(&self) -> Vec<ResultKey> {
        let added = self.effects.iter().filter_map(|effect| match effect {
            Effect::CopyAdded { key } => Some(*key),
            _ => None,
        });
        added.collect()
    }

    pub(crate) fn copies_missing(&self) -> Vec<(ResultKey, WorkerId)> {
        let missing = self.effects.iter().filter_map(|effect| match effect {
            Effect::CopyMissing { key, peer } => Some((*key, *peer)),
            _ => None,
        });
        missing.collect()
    }

    pub(crate) fn dropped(&self) -> Vec<ResultKey> {
        let dropped = self.effects.iter().filter_map(|effect| match effect {
            Effect::Drop { key } => Some(*key),
            _ => None,
        });
        dropped.collect()
    }

    pub(crate) fn cancelled_runs(&self) -> Vec<RunId> {
        let runs = self.effects.iter().filter_map(|effect| match effect {
            Effect::CancelRun { run } => Some(*run),
            _ => None,
        });
        runs.collect()
    }
}

//! Worker processes: the real machine and the real store, and around them what the worker's shell
//! does with what the machine wants: runs, requests to peers, reports.

use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{Attempt, GraphId, TaskIndex, TaskRef, TaskReport};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::{Payload, PayloadKind, ResultKey, Store};
use oxidask_worker_machine::{
    BodyRef, Effect, Event, Finished, Refusal, RequestId, Run, RunFailure, RunId, RunOutcome,
};

use crate::graphs::{Failing, value};
use crate::network::{Asker, Delivery, Happening, Link, Place};
use crate::session::Life;
use crate::world::World;

/// Bytes that one worker reads from another in a microsecond.
pub(crate) const BYTES_PER_MICRO: u64 = 1_000;
/// Bytes of a value before its padding.
const VALUE_BYTES: usize = 8;

/// What follows the value in large results.
static PADDING: [u8; PADDING_BYTES] = [0; PADDING_BYTES];
const PADDING_BYTES: usize = 4 * 1024 * 1024 + VALUE_BYTES;

/// One worker process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) slots: u32,
    pub(crate) resources: Vec<(String, u64)>,
    pub(crate) memory_bytes: u64,
    /// How many times longer everything takes.
    pub(crate) slowness: u64,
    pub(crate) is_up: bool,
    /// Counts its starts.
    pub(crate) incarnation: u32,
    pub(crate) store: Store,
    /// Counts how often it began anew.
    pub(crate) lives: u32,
    pub(crate) life: Option<Life>,
    pub(crate) link: Option<Link>,
    /// The scheduler has answered on this connection.
    pub(crate) is_welcome: bool,
    /// The next message with reports is lost on its way.
    pub(crate) loses_reports: bool,
}

/// A run that has not ended.
#[derive(Debug)]
pub(crate) struct Underway {
    task: TaskRef,
    attempt: Attempt,
    inputs: Vec<u64>,
    micros: u64,
}

impl Process {
    /// Its life, if it is still that one.
    fn life(&mut self, number: u32) -> Option<(&mut Life, &Store)> {
        let life = self.life.as_mut().filter(|life| life.number == number)?;
        Some((life, &self.store))
    }

    /// Everything that is held goes.
    pub(crate) fn end_life(&mut self) {
        self.life = None;
        self.store.clear();
    }
}

/// The task behind a key.
pub(crate) fn task_ref(key: ResultKey) -> TaskRef {
    TaskRef {
        graph: GraphId(key.graph()),
        task: TaskIndex(key.task()),
    }
}

/// The value in a payload.
pub(crate) fn read(payload: &Payload) -> u64 {
    let first = payload.parts.first().map_or(&[][..], |part| &part[..]);
    first.try_into().map_or(0, u64::from_be_bytes)
}

fn write(value: u64, bytes: u64) -> Payload {
    let padding = usize::try_from(bytes)
        .unwrap_or(0)
        .clamp(VALUE_BYTES, PADDING.len());
    Payload {
        kind: PayloadKind::Bytes,
        parts: vec![
            Bytes::copy_from_slice(&value.to_be_bytes()),
            Bytes::from_static(&PADDING[VALUE_BYTES..padding]),
        ],
    }
}

impl World {
    // ---- what the machine wants ----

    /// Lets the machine decide and carries it out, until nothing is left.
    pub(crate) fn settle(&mut self, place: Place, number: u32, mut effects: Vec<Effect>) {
        loop {
            let Some((life, _)) = self.processes[place].life(number) else {
                return;
            };
            life.machine.advance(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in std::mem::take(&mut effects) {
                self.carry_out(place, number, effect, &mut effects);
            }
        }
        self.check_worker(place, number);
        self.worker_has_news(place, number);
    }

    /// What the machine says it holds is in the store, and nothing else.
    fn check_worker(&mut self, place: Place, number: u32) {
        let Some((life, store)) = self.processes[place].life(number) else {
            return;
        };
        let machine = &life.machine;
        let held = store.held();
        let kept = machine
            .held()
            .filter(|key| store.get(*key).is_some())
            .count() as u64;
        let said = machine.held().count() as u64;
        let violation = match machine.invariants() {
            Err(violation) => Some(violation.to_string()),
            Ok(()) if kept != said || said != held.results + held.copies => Some(format!(
                "holds {said} results, {kept} are in the store, which has {held:?}"
            )),
            Ok(()) => None,
        };
        if let Some(violation) = violation {
            self.violate(format!("process {place}: {violation}"));
        }
    }

    fn carry_out(&mut self, place: Place, number: u32, effect: Effect, next: &mut Vec<Effect>) {
        let Some((life, store)) = self.processes[place].life(number) else {
            return;
        };
        match effect {
            Effect::Run(run) => self.begin(place, number, run, next),
            Effect::CancelRun { run } => {
                if let Some(underway) = life.runs.get(&run) {
                    life.started.remove(&(underway.task, underway.attempt));
                }
                let soon = self.random.below(3_000);
                self.at(self.now + soon, Happening::RunEnds(place, number, run));
            }
            Effect::Fetch {
                request,
                peer,
                keys,
            } => {
                let address = life.peers.get(&peer).copied();
                let asker = Asker::Worker(place, number, request);
                let delay = self.delay();
                let happening = match address {
                    Some(address) => Happening::Ask(asker, address, keys),
                    None => Happening::Answer(asker, place, u32::MAX, None),
                };
                self.at(self.now + delay, happening);
            }
            Effect::Drop { key } => {
                store.remove(key);
            }
            Effect::DropGraph { graph } => store.remove_graph(graph),
            Effect::Report {
                task,
                attempt,
                report,
            } => {
                let task = task_ref(task);
                if report == TaskReport::Started {
                    life.started.insert((task, attempt));
                } else {
                    life.started.remove(&(task, attempt));
                    life.reports.push((task, attempt, report));
                }
            }
            Effect::CopyAdded { key } => life.added.push(task_ref(key)),
            Effect::CopyFailed { key } => life.failed.push(task_ref(key)),
            Effect::CopyMissing { key, peer } => life.missing.push((task_ref(key), peer)),
        }
    }

    // ---- runs ----

    fn begin(&mut self, place: Place, number: u32, run: Run, next: &mut Vec<Effect>) {
        let Run {
            run,
            task,
            attempt,
            inputs,
            ..
        } = run;
        let task = task_ref(task);
        let Some((planned, _)) = self.watch.plan_of(task.graph) else {
            return;
        };
        let planned = &self.plans[planned].tasks[task.task.0 as usize];
        let (micros, secedes) = (planned.micros, planned.secedes);
        let store = &self.processes[place].store;
        let read_inputs = match store.get_all(&inputs) {
            Ok(payloads) => payloads.iter().map(read).collect(),
            Err(key) => {
                self.violate(format!(
                    "task {task} starts on process {place} without {key}"
                ));
                Vec::new()
            }
        };
        let micros = micros * self.processes[place].slowness;
        let underway = Underway {
            task,
            attempt,
            inputs: read_inputs,
            micros,
        };
        let Some((life, _)) = self.processes[place].life(number) else {
            return;
        };
        let own = life.own;
        life.runs.insert(run, underway);
        self.watch.started(own, task, attempt);
        if micros < 2 {
            self.finish(place, number, run, next);
        } else {
            if secedes {
                let leaves = self.now + micros / 4;
                self.at(leaves, Happening::RunGivesSlots(place, number, run, true));
                // The others end without them.
                let is_back = attempt.number % 2 == 1;
                let back = Happening::RunGivesSlots(place, number, run, !is_back);
                self.at(self.now + micros / 2, back);
            }
            self.at(self.now + micros, Happening::RunEnds(place, number, run));
        }
    }

    /// A run gives its slots to others, or has them again.
    pub(crate) fn run_gives_slots(
        &mut self,
        place: Place,
        number: u32,
        run: RunId,
        is_given: bool,
    ) {
        let Some((life, _)) = self.processes[place].life(number) else {
            return;
        };
        let event = if is_given {
            Event::Seceded { run }
        } else {
            Event::Rejoined { run }
        };
        let mut effects = Vec::new();
        life.machine.react(event, &mut effects);
        self.settle(place, number, effects);
    }

    pub(crate) fn run_ends(&mut self, place: Place, number: u32, run: RunId) {
        let mut effects = Vec::new();
        self.finish(place, number, run, &mut effects);
        self.settle(place, number, effects);
    }

    /// Keeps what a run has made, if anybody still wants it, and tells the machine.
    fn finish(&mut self, place: Place, number: u32, run: RunId, effects: &mut Vec<Effect>) {
        let Some((life, store)) = self.processes[place].life(number) else {
            return;
        };
        let machine = &mut life.machine;
        let Some(underway) = life.runs.remove(&run) else {
            return;
        };
        let Underway {
            task,
            inputs,
            micros,
            ..
        } = underway;
        let Some((planned, failures)) = self.watch.plan_of(task.graph) else {
            return;
        };
        let plan = &self.plans[planned];
        let planned_task = &plan.tasks[task.task.0 as usize];
        let failed = failures.entry(task.task.0).or_default();
        let refused = match planned_task.failing {
            Failing::Always { is_retryable } => Some(is_retryable),
            Failing::Times(times) if *failed < times => Some(true),
            _ => None,
        };
        let is_current = machine.is_current(run);
        let outcome = if let Some(is_retryable) = refused {
            *failed += 1;
            let error = Arc::new(Diagnostic::new(Code::TaskFailed, "it was to fail"));
            RunOutcome::Failed(RunFailure {
                error,
                is_retryable,
            })
        } else if is_current {
            let made = value(&plan.name, task.task.0, inputs.into_iter());
            let key = ResultKey::new(task.graph.0, task.task.0);
            match store.insert_result(key, write(made, planned_task.bytes)) {
                Ok(bytes) => finished(bytes, micros),
                Err(error) => RunOutcome::Failed(RunFailure {
                    is_retryable: error.may_fit_later(),
                    error: Arc::new(Diagnostic::from_error(&error)),
                }),
            }
        } else {
            finished(0, micros)
        };
        if is_current && matches!(outcome, RunOutcome::Finished(_)) {
            self.watch.made(task);
        }
        machine.react(Event::RunEnded { run, outcome }, effects);
    }

    // ---- peers ----

    pub(crate) fn peer_is_asked(&mut self, asker: Asker, place: Place, keys: &[ResultKey]) {
        let from = match asker {
            Asker::Worker(place, ..) => Some(place),
            Asker::Relay(..) => None,
        };
        let process = &self.processes[place];
        let incarnation = process.incarnation;
        let is_lost = self.is_parted(from, place);
        let delivery = (process.is_up && !is_lost).then(|| {
            keys.iter()
                .map(|key| (*key, process.store.get(*key)))
                .collect::<Delivery>()
        });
        let bytes: u64 = delivery
            .iter()
            .flatten()
            .filter_map(|(_, payload)| Some(payload.as_ref()?.len()))
            .sum();
        let slowness = process.slowness;
        let patience = if is_lost {
            self.random.below(300_000)
        } else {
            0
        };
        let time = (self.delay() + bytes / BYTES_PER_MICRO) * slowness + patience;
        self.at(
            self.now + time,
            Happening::Answer(asker, place, incarnation, delivery),
        );
    }

    pub(crate) fn peer_answers(
        &mut self,
        asker: Asker,
        place: Place,
        incarnation: u32,
        delivery: Option<Delivery>,
    ) {
        // The transfer breaks off when its sender dies.
        let delivery = delivery.filter(|_| self.processes[place].incarnation == incarnation);
        match asker {
            Asker::Relay(link, task, holder) => self.relay_answered(link, task, holder, delivery),
            Asker::Worker(own, number, request) => {
                let delivery = delivery.filter(|_| !self.is_parted(Some(own), place));
                self.fetched(own, number, request, delivery);
            }
        }
    }

    fn fetched(&mut self, own: Place, number: u32, request: RequestId, delivery: Option<Delivery>) {
        let Some((life, store)) = self.processes[own].life(number) else {
            return;
        };
        let machine = &mut life.machine;
        let (mut kept, mut missing, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let has_failed = delivery.is_none();
        for (key, payload) in delivery.into_iter().flatten() {
            let Some(payload) = payload else {
                missing.push(key);
                continue;
            };
            if !machine.wants_copy(key) {
                continue;
            }
            let inserted = if machine.is_ordered(key) {
                store.insert_result(key, payload)
            } else {
                store.insert_copy(key, payload)
            };
            match inserted {
                Ok(_) => kept.push(key),
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
        let event = if has_failed {
            Event::FetchFailed { request }
        } else {
            Event::FetchDone {
                request,
                kept,
                missing,
                refused,
            }
        };
        let mut effects = Vec::new();
        machine.react(event, &mut effects);
        self.settle(own, number, effects);
    }

    /// The only body that there is: what a task does is in its plan.
    pub(crate) fn body() -> BodyRef {
        BodyRef::Shared(0)
    }
}

fn finished(bytes: u64, duration_micros: u64) -> RunOutcome {
    RunOutcome::Finished(Finished {
        bytes,
        duration_micros,
        rows: 0,
    })
}

//! Moves queued tasks from workers where they would wait long to workers that have nothing to do.
//!
//! A task is asked back, not ordered elsewhere: if it has started in the meantime, that wins. The
//! same costs decide here and in `choose`, so a task that comes back does not return to where it
//! was.

use std::cmp::Reverse;

use crate::effect::Effect;
use crate::fleet::{Entry, Worker};
use crate::ids::Timestamp;
use crate::place::choose::move_to_micros;
use crate::place::{Class, Round};
use crate::scope::Scope;
use crate::transitions::TaskState;

/// Time between two looks at the workers.
const INTERVAL_MICROS: u64 = 2_000;
/// The same, while tasks that were asked back are on their way.
const INTERVAL_RETRACTING_MICROS: u64 = 50_000;
/// A move must save more than this: asking and answering take their time.
const GAIN_MICROS_MIN: u64 = 10_000;
/// Workers that give tasks back in one look.
const GIVERS_MAX: usize = 16;
/// Queued tasks of one worker that are looked at.
const CANDIDATES_MAX: usize = 1_024;
/// A task with more inputs stays where it is.
const INPUTS_MAX: usize = 4_096;

/// A worker with free slots, and what it is about to get.
struct Taker {
    place: u32,
    load: u64,
    occupancy: u64,
}

impl Taker {
    /// Whether it could use the task, beyond what it is about to get.
    fn wants(&self, worker: &Worker, slots: u32, expected: u32, prefill_micros: u64) -> bool {
        let capacity = u64::from(worker.slots);
        let slots = u64::from(slots);
        let occupancy = self.occupancy + slots * u64::from(expected);
        self.load + slots <= capacity.max(slots)
            || occupancy <= capacity.saturating_mul(prefill_micros)
    }

    fn wait_micros(&self, worker: &Worker, slots: u32) -> u64 {
        let capacity = u64::from(worker.slots);
        let is_free = self.load + u64::from(slots) <= capacity;
        if is_free {
            0
        } else {
            self.occupancy / capacity
        }
    }

    fn is_full(&self, worker: &Worker, prefill_micros: u64) -> bool {
        let capacity = u64::from(worker.slots);
        self.load >= capacity && self.occupancy >= capacity.saturating_mul(prefill_micros)
    }
}

impl Round<'_> {
    pub(super) fn rebalance(&mut self, now: Timestamp) {
        let interval = match self.fleet.retracting {
            0 => INTERVAL_MICROS,
            _ => INTERVAL_RETRACTING_MICROS,
        };
        let last = self.memory.last_rebalance;
        if self.fleet.len() < 2 || last.is_some_and(|last| now.micros_since(last) < interval) {
            return;
        }
        self.memory.last_rebalance = Some(now);
        let mut takers = Vec::new();
        let mut givers = Vec::new();
        for (place, worker) in self.fleet.iter().filter(|(_, worker)| worker.is_open) {
            let (load, occupancy) = (worker.load, worker.occupancy);
            if load < u64::from(worker.slots) {
                takers.push(Taker {
                    place,
                    load,
                    occupancy,
                });
            } else if load > u64::from(worker.slots) {
                givers.push((Reverse(occupancy / u64::from(worker.slots)), place));
            }
        }
        if takers.is_empty() {
            return;
        }
        takers.sort_unstable_by_key(|taker| Reverse(taker.occupancy));
        givers.sort_unstable();
        for (_, giver) in givers.into_iter().take(GIVERS_MAX) {
            self.take_from(giver, &mut takers);
        }
    }

    /// Asks tasks of one worker back for the last of the takers; takers that are full are dropped.
    fn take_from(&mut self, giver: u32, takers: &mut Vec<Taker>) {
        let Some(worker) = self.fleet.at(giver) else {
            return;
        };
        let (id, slots) = (worker.id, u64::from(worker.slots));
        let mut occupancy = worker.occupancy;
        for entry in candidates(worker) {
            let Some(taker) = takers.last_mut() else {
                return;
            };
            let own = u64::from(entry.expected_micros);
            let wait = (occupancy / slots).saturating_sub(own);
            if wait <= GAIN_MICROS_MIN {
                return;
            }
            let Some(taken) = self.taken_slots(&entry, taker, wait) else {
                continue;
            };
            taker.load += u64::from(taken);
            taker.occupancy += own * u64::from(taken);
            occupancy -= own * u64::from(entry.slots);
            let place = taker.place;
            let full = |worker: &Worker| taker.is_full(worker, self.config.prefill_micros);
            if self.fleet.at(place).is_none_or(full) {
                takers.pop();
            }
            let Some(graph) = self.graphs.get_mut(&entry.task.graph) else {
                continue;
            };
            let mut scope = Scope {
                graph,
                fleet: self.fleet,
                classes: self.classes,
                config: self.config,
                notes: self.notes,
                effects: self.effects,
            };
            let task = entry.task.task.0;
            scope.transition(task, TaskState::Retracting);
            let attempt = scope.current_attempt(task);
            scope.effects.push(Effect::Retract {
                worker: id,
                task: entry.task,
                attempt,
            });
        }
    }

    /// The slots that the task would take at the taker, if it is better off there.
    fn taken_slots(&self, entry: &Entry, taker: &Taker, wait_micros: u64) -> Option<u32> {
        let graph = self.graphs.get(&entry.task.graph)?;
        let task = entry.task.task.0;
        if graph.state[task as usize] != TaskState::Assigned
            || graph.inputs(task).len() > INPUTS_MAX
        {
            return None;
        }
        let class: &Class = self.classes.get(graph.class_of(task))?;
        let worker = self.fleet.at(taker.place)?;
        let slots = worker.slots_taken(class.requirement.slots);
        let is_possible = class.admits(worker)
            && worker.has_free(&class.requirement.resources)
            && taker.wants(
                worker,
                slots,
                entry.expected_micros,
                self.config.prefill_micros,
            );
        if !is_possible {
            return None;
        }
        let cost =
            taker.wait_micros(worker, slots) + move_to_micros(graph, task, worker.id, self.config);
        (wait_micros > cost + GAIN_MICROS_MIN).then_some(slots)
    }
}

/// Tasks that were handed to the worker and do not run, those first that come last.
fn candidates(worker: &Worker) -> Vec<Entry> {
    let queued = worker
        .entries
        .iter()
        .flatten()
        .filter(|entry| !entry.is_started);
    let mut queued: Vec<Entry> = queued.copied().collect();
    queued.sort_unstable_by_key(|entry| Reverse(entry.task));
    queued.truncate(CANDIDATES_MAX);
    queued
}

//! Placement: which ready task goes to which worker, decided once for each batch of events.
//!
//! Tasks are taken by rank over all classes. A worker is handed what it can start at once and a
//! short queue besides: a few milliseconds of work where run times are known, one task for each
//! slot where they are not. So tiny tasks never wait for a round trip, and long ones stay here,
//! where any worker can have them. A worker starts what it has in the same order: what is handed to it
//! ahead keeps nothing more urgent waiting, so that is handed out also while queues are full.
//!
//! Never scans all workers for a task: they are kept in order of load. Classes that not every worker
//! can run build a heap of theirs for one placement.

mod choose;
mod least;
mod queue;
mod rebalance;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

pub(crate) use queue::{Class, Classes, Rank};

use crate::config::CoreConfig;
use crate::drain;
use crate::effect::Effect;
use crate::fleet::{Fleet, QUEUE_DEPTH_MAX, Worker};
use crate::graph::Graph;
use crate::ids::{GraphId, IdMap, Timestamp};
use crate::machine::Core;
use crate::notes::Notes;
use crate::place::choose::{LOOK_AROUND_MICROS_MIN, Locality};
use crate::place::least::LeastLoaded;
use crate::scope::Scope;
use crate::transitions::TaskState;

/// Tasks of one slot that each slot of a worker gets, the running one included, whatever they take.
const DEPTH_MIN: u64 = 2;

/// Tasks handed out by one placement: a few milliseconds of work, so that reports do not wait longer.
const ASSIGNMENTS_MAX: usize = 1_000;

/// What placement keeps between rounds: buffers, and when it last moved queued tasks.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// By place: a task of an earlier rank waits for this worker, which takes only what starts.
    is_contended: Vec<bool>,
    locality: Locality,
    least: LeastLoaded,
    last_rebalance: Option<Timestamp>,
}

/// One placement.
struct Round<'a> {
    graphs: &'a mut IdMap<GraphId, Box<Graph>>,
    fleet: &'a mut Fleet,
    classes: &'a mut Classes,
    config: &'a CoreConfig,
    notes: &'a mut Notes,
    memory: &'a mut Placement,
    effects: &'a mut Vec<Effect>,
    /// Tasks that may still be handed out.
    budget: usize,
    /// There was a task and a worker for it, but no budget.
    is_cut_short: bool,
}

/// How it went with the tasks of one class.
enum Outcome {
    /// There are no more.
    Empty,
    /// The next one comes after a task of another class.
    Yield(Rank),
    /// No worker takes the next one now.
    Full,
}

/// Hands out ready tasks, then moves queued ones to workers that have nothing to do. True if there is
/// more to hand out.
pub(crate) fn place(core: &mut Core, now: Timestamp, effects: &mut Vec<Effect>) -> bool {
    if core.fleet.len() == 0 {
        return false;
    }
    if core.fleet.retiring > 0 {
        drain::pump(core, now, effects);
    }
    let mut round = Round {
        graphs: &mut core.graphs,
        fleet: &mut core.fleet,
        classes: &mut core.classes,
        config: &core.config,
        notes: &mut core.notes,
        memory: &mut core.placement,
        effects,
        budget: ASSIGNMENTS_MAX,
        is_cut_short: false,
    };
    round.memory.least.follow(round.fleet);
    round.hand_out();
    let is_cut_short = round.is_cut_short;
    if !is_cut_short {
        round.rebalance(now);
    }
    is_cut_short
}

impl Round<'_> {
    fn hand_out(&mut self) {
        let mut heads = BinaryHeap::new();
        for index in 0..self.classes.len() {
            if let Some(rank) = self.first_of_class(index) {
                heads.push(Reverse((rank, index)));
            }
        }
        while let Some(Reverse((_, class))) = heads.pop() {
            let next = heads.peek().map(|Reverse((rank, _))| *rank);
            match self.hand_out_class(class, next) {
                Outcome::Empty => {}
                Outcome::Yield(rank) => heads.push(Reverse((rank, class))),
                Outcome::Full if heads.is_empty() => {}
                Outcome::Full => self.contend(class),
            }
        }
        self.memory.is_contended.clear();
    }

    /// The first ready task of a class that some worker could run.
    fn first_of_class(&mut self, index: u32) -> Option<Rank> {
        let class = self.classes.get_mut(index)?;
        class.is_loads_built = false;
        if class.ready == 0 || class.eligible.is_empty() {
            return None;
        }
        first_ready(class, self.graphs)
    }

    fn hand_out_class(&mut self, index: u32, next: Option<Rank>) -> Outcome {
        loop {
            let Some(class) = self.classes.get_mut(index) else {
                return Outcome::Empty;
            };
            let Some(rank) = first_ready(class, self.graphs) else {
                return Outcome::Empty;
            };
            if next.is_some_and(|next| next < rank) {
                return Outcome::Yield(rank);
            }
            let (_, graph, (_, task)) = rank;
            let least = least_loaded(class, self.fleet, self.memory);
            let Some(graph) = self.graphs.get_mut(&graph) else {
                return Outcome::Full;
            };
            let Some(worker) = least.and_then(|place| self.fleet.at(place)) else {
                return Outcome::Full;
            };
            let expected = graph.group_of(task).expected_micros();
            let passes =
                || expected >= Some(LOOK_AROUND_MICROS_MIN) && worker.is_short_before(rank);
            if !has_queue_left(class, worker, expected, self.config) && !passes() {
                return Outcome::Full;
            }
            if self.budget == 0 {
                self.is_cut_short = true;
                return Outcome::Full;
            }
            self.budget -= 1;
            class.queue.pop();
            let chosen = self.choose(index, rank, least.unwrap_or_default());
            self.assign(rank, chosen);
        }
    }

    fn assign(&mut self, (_, graph, (_, task)): Rank, place: u32) {
        let Some(graph) = self.graphs.get_mut(&graph) else {
            return;
        };
        let mut scope = Scope {
            graph,
            fleet: self.fleet,
            classes: self.classes,
            config: self.config,
            notes: self.notes,
            effects: self.effects,
        };
        scope.assign(task, place);
        self.memory.least.follow(self.fleet);
    }

    /// Tasks of later ranks do not queue in front of the class's tasks.
    fn contend(&mut self, index: u32) {
        self.memory.is_contended.resize(self.fleet.places(), false);
        if let Some(class) = self.classes.get(index) {
            for place in &class.eligible {
                self.memory.is_contended[*place as usize] = true;
            }
        }
    }
}

/// The first entry of the queue that is not stale.
fn first_ready(class: &mut Class, graphs: &IdMap<GraphId, Box<Graph>>) -> Option<Rank> {
    loop {
        let rank = class.queue.peek()?;
        let (_, graph, (_, task)) = rank;
        let state = graphs
            .get(&graph)
            .and_then(|graph| graph.state.get(task as usize));
        if state == Some(&TaskState::Ready) {
            return Some(rank);
        }
        class.queue.pop();
    }
}

/// The worker with the least load that takes a task of the class. Mostly the first of all; the heap
/// is built when that one will not do. Loads only grow during a placement, so an outdated entry of
/// the heap is too low and is corrected when it comes up.
fn least_loaded(class: &mut Class, fleet: &Fleet, memory: &Placement) -> Option<u32> {
    let takes_it = |class: &Class, place: u32| {
        fleet
            .at(place)
            .is_some_and(|worker| takes(class, worker, place, &memory.is_contended))
    };
    if !class.is_loads_built {
        if class.is_free()
            && let Some(first) = memory.least.first()
            && takes_it(class, first)
        {
            return Some(first);
        }
        class.is_loads_built = true;
        let load = |place: &u32| Some(Reverse((fleet.at(*place)?.load_key(), *place)));
        class.loads.clear();
        class.loads.extend(class.eligible.iter().filter_map(load));
    }
    loop {
        let place = class.loads.peek()?.0.1;
        let load = fleet
            .at(place)
            .map(Worker::load_key)
            .filter(|_| takes_it(class, place));
        let mut top = class.loads.peek_mut()?;
        match load {
            Some(load) if top.0.0 == load => return Some(place),
            Some(load) => top.0.0 = load,
            None => {
                PeekMut::pop(top);
            }
        }
    }
}

/// Whether the worker takes a task of the class at all now.
fn takes(class: &Class, worker: &Worker, place: u32, is_contended: &[bool]) -> bool {
    let slots = worker.slots_taken(class.requirement.slots);
    if !worker.has_free(&class.requirement.resources) {
        return false;
    }
    let is_contended = is_contended.get(place as usize).copied().unwrap_or(false);
    let most = if is_contended { 1 } else { QUEUE_DEPTH_MAX };
    worker.load + u64::from(slots) <= u64::from(worker.slots) * most
}

/// Whether the worker's queue is short enough for a task of the class with this run time.
fn has_queue_left(
    class: &Class,
    worker: &Worker,
    expected_micros: Option<u32>,
    config: &CoreConfig,
) -> bool {
    let slots = u64::from(worker.slots_taken(class.requirement.slots));
    let capacity = u64::from(worker.slots);
    if worker.load + slots <= capacity * DEPTH_MIN {
        return true;
    }
    expected_micros.is_some_and(|expected| {
        worker.occupancy + u64::from(expected) * slots
            <= capacity.saturating_mul(config.prefill_micros)
    })
}

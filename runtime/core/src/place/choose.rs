//! The choice of a worker for one task: waiting there plus moving its inputs there, the least.

use crate::config::CoreConfig;
use crate::fleet::{Fleet, Worker};
use crate::graph::Graph;
use crate::ids::{TaskIndex, WorkerId};
use crate::place::{Rank, Round, takes};

/// What fetching one input costs besides its bytes.
const FETCH_MICROS: u64 = 50;
/// Holders of one input that are weighed; a result with more copies is near everywhere.
const HOLDERS_WEIGHED_MAX: usize = 8;

/// Tasks that take less are not worth a look at how long others have run already.
pub(super) const LOOK_AROUND_MICROS_MIN: u32 = 1_000;
/// Workers whose tasks are looked at one by one for one task.
const WORKERS_LOOKED_AT_MAX: usize = 16;

/// How much of a task's inputs is at each worker; buffers that are empty between tasks.
#[derive(Debug, Default)]
pub(crate) struct Locality {
    /// By place.
    weight: Vec<u64>,
    touched: Vec<u32>,
    total: u64,
}

impl Locality {
    fn add(&mut self, fleet: &Fleet, holder: WorkerId, weight: u64) {
        if let Some(place) = fleet.place_of(holder) {
            let at = place as usize;
            if self.weight[at] == 0 {
                self.touched.push(place);
            }
            self.weight[at] = self.weight[at].saturating_add(weight);
        }
    }

    /// Weighs the inputs of a task; `favourite` is weighed exactly.
    fn weigh(&mut self, graph: &Graph, task: u32, fleet: &Fleet, favourite: WorkerId, fetch: u64) {
        self.weight.resize(fleet.places(), 0);
        self.total = 0;
        for input in graph.inputs(task) {
            let weight = graph.bytes[input.0 as usize].saturating_add(fetch);
            self.total = self.total.saturating_add(weight);
            let holders = graph.holders(input.0);
            if holders.len() <= HOLDERS_WEIGHED_MAX {
                for holder in holders {
                    self.add(fleet, *holder, weight);
                }
                continue;
            }
            // Different tasks look at different holders.
            let start = task as usize % holders.len();
            let some = holders.iter().cycle().skip(start).take(HOLDERS_WEIGHED_MAX);
            for holder in some.filter(|holder| **holder != favourite) {
                self.add(fleet, *holder, weight);
            }
            if holders.contains(&favourite) {
                self.add(fleet, favourite, weight);
            }
        }
    }

    /// The weight of the inputs that are not at the place.
    fn missing(&self, place: u32) -> u64 {
        self.total.saturating_sub(self.weight[place as usize])
    }

    fn clear(&mut self) {
        for place in self.touched.drain(..) {
            self.weight[place as usize] = 0;
        }
    }
}

impl Round<'_> {
    /// The worker for a ready task: the one with the least load, a holder of inputs for which it is
    /// worth waiting, or, if it has to wait anyway, one of some others where a run ends soon.
    pub(super) fn choose(&mut self, class: u32, rank: Rank, least: u32) -> u32 {
        let (_, graph, (_, task)) = rank;
        let (Some(class), Some(graph)) = (self.classes.get(class), self.graphs.get(&graph)) else {
            return least;
        };
        let Some(worker) = self.fleet.at(least) else {
            return least;
        };
        let favourite = worker.id;
        let inputs = graph.inputs(task);
        // Who would wait anywhere looks for the place where it waits least.
        let looks_around = !worker.has_room(worker.slots_taken(class.requirement.slots))
            && !inputs.is_empty()
            && graph.group_of(task).expected_micros() >= Some(LOOK_AROUND_MICROS_MIN);
        let is_here = |input: &TaskIndex| graph.holders(input.0).contains(&favourite);
        if !looks_around && inputs.iter().all(is_here) {
            return least;
        }
        let locality = &mut self.memory.locality;
        locality.weigh(
            graph,
            task,
            self.fleet,
            favourite,
            fetch_weight(self.config),
        );
        let mut exact_left = if looks_around {
            WORKERS_LOOKED_AT_MAX
        } else {
            0
        };
        let mut cost = |place: u32, worker: &Worker| {
            let slots = worker.slots_taken(class.requirement.slots);
            let wait = match exact_left {
                0 => worker.wait_micros(slots),
                _ => worker.wait_of_micros(rank, slots, self.fleet.now),
            };
            exact_left = exact_left.saturating_sub(1);
            let missing = locality.missing(place);
            (wait + move_micros(missing, self.config), missing, place)
        };
        let mut best = cost(least, worker);
        let others = if looks_around {
            around(&class.eligible, task)
        } else {
            [[].as_slice(); 2]
        };
        let others = others.into_iter().flatten().take(WORKERS_LOOKED_AT_MAX);
        for place in locality.touched.iter().chain(others).copied() {
            let Some(worker) = self.fleet.at(place) else {
                continue;
            };
            let is_possible = worker.is_open
                && (class.is_free() || class.admits(worker))
                && takes(class, worker, place, &self.memory.is_contended);
            if is_possible {
                best = best.min(cost(place, worker));
            }
        }
        locality.clear();
        best.2
    }
}

/// All places, in two parts; different tasks begin with different ones.
fn around(places: &[u32], task: u32) -> [&[u32]; 2] {
    let (before, from) = places.split_at(task as usize % places.len().max(1));
    [from, before]
}

/// What fetching one input costs besides its bytes, in bytes.
fn fetch_weight(config: &CoreConfig) -> u64 {
    FETCH_MICROS * bytes_per_micro(config)
}

fn move_micros(weight: u64, config: &CoreConfig) -> u64 {
    weight / bytes_per_micro(config)
}

fn bytes_per_micro(config: &CoreConfig) -> u64 {
    (config.bandwidth_bytes_per_second / 1_000_000).max(1)
}

/// Time to bring the inputs of a task to a worker.
pub(super) fn move_to_micros(
    graph: &Graph,
    task: u32,
    worker: WorkerId,
    config: &CoreConfig,
) -> u64 {
    let missing = graph
        .inputs(task)
        .iter()
        .filter(|input| !graph.holders(input.0).contains(&worker));
    let weight = missing.fold(0_u64, |sum, input| {
        let bytes = graph.bytes[input.0 as usize];
        sum.saturating_add(bytes)
            .saturating_add(fetch_weight(config))
    });
    move_micros(weight, config)
}

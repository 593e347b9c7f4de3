//! How long graphs take in virtual time, compared with a list scheduler that knows every run time,
//! every size and the whole graph at once, fetches what it will need, and pays nothing for messages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::Config;
use crate::graphs::{Plan, Shape, layout};
use crate::network::Happening;
use crate::process::BYTES_PER_MICRO;
use crate::random::{Random, Stream};
use crate::world::{Failure, World};

const WORKERS: usize = 4;
const SLOTS: u32 = 2;
/// Each message takes this long.
const DELAY_MICROS: u64 = 100;
/// The graph arrives when all workers are there.
const START_AT: u64 = 10_000;

/// How the graphs of one shape went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Makespan {
    /// The shape.
    pub name: &'static str,
    /// Tasks of all graphs.
    pub tasks: usize,
    /// Virtual time with our placement.
    pub micros: u64,
    /// Time of the list scheduler.
    pub list_micros: u64,
}

/// Inputs, run time and size of each task.
type Tasks = Vec<(Vec<u32>, u64, u64)>;

/// The sums over so many graphs of each shape.
pub fn makespans(graphs: u64) -> Result<Vec<Makespan>, Failure> {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    let shapes: [(&'static str, Shape, u32, u64, u64); 12] = [
        ("independent, 10 ms", Shape::Independent, 400, 10_000, 8),
        ("independent, 0.1 ms", Shape::Independent, 2_000, 100, 8),
        ("independent, mixed", Shape::Independent, 400, 0, 8),
        ("8 chains", Shape::Chains(8), 400, 5_000, 64 * KIB),
        ("20 chains, large", Shape::Chains(20), 400, 5_000, 2 * MIB),
        ("binary tree", Shape::Tree(2), 511, 3_000, 64 * KIB),
        ("tree of 8, large", Shape::Tree(8), 400, 3_000, 2 * MIB),
        ("all to all", Shape::AllToAll(16), 160, 5_000, 256 * KIB),
        ("stencil", Shape::Stencil(16), 480, 5_000, 256 * KIB),
        ("random", Shape::Random, 400, 5_000, 64 * KIB),
        ("random, mixed", Shape::Random, 400, 0, MIB),
        ("diamonds", Shape::Diamonds, 200, 5_000, 64 * KIB),
    ];
    let sum = |(name, shape, count, micros, bytes)| {
        let mut sum = Makespan {
            name,
            tasks: 0,
            micros: 0,
            list_micros: 0,
        };
        for seed in 0..graphs {
            let tasks = tasks(seed, shape, count, micros, bytes);
            sum.tasks += tasks.len();
            sum.list_micros += list_schedule(&tasks);
            sum.micros += simulate(tasks)?;
        }
        Ok(sum)
    };
    shapes.into_iter().map(sum).collect()
}

/// A graph whose tasks take about so long, or anything if that is 0.
fn tasks(seed: u64, shape: Shape, count: u32, micros: u64, bytes: u64) -> Tasks {
    let mut random = Random::new(seed, Stream::Graphs);
    let inputs = layout(shape, count, &mut random);
    let time = |random: &mut Random| match micros {
        0 => random.between(500, 20_000),
        micros => random.between(micros - micros / 10, micros + micros / 10),
    };
    inputs
        .into_iter()
        .map(|inputs| (inputs, time(&mut random), bytes))
        .collect()
}

fn simulate(tasks: Tasks) -> Result<u64, Failure> {
    let config = Config {
        faults: 0,
        is_tight: false,
        is_fickle: false,
        ..Config::of_seed(1)
    };
    let mut world = World::empty(&config, vec![Plan::for_makespan(tasks)]);
    world.network_delay = Some(DELAY_MICROS);
    for _ in 0..WORKERS {
        world.add_plain_process(SLOTS);
    }
    world.at(START_AT, Happening::ClientConnects(0));
    world.is_healed = true;
    world.run_until(|world| world.runs[0].is_done)?;
    Ok(world.now - START_AT)
}

/// The first free slot that lets the most urgent task end first, task by task. Results travel as
/// in the simulation: what one worker sends for a task comes one after the other, and what has
/// come once is there for the next.
fn list_schedule(tasks: &Tasks) -> u64 {
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    let urgency = urgency(tasks);
    order.sort_by_key(|index| (Reverse(urgency[*index]), *index));
    let slots = WORKERS * SLOTS as usize;
    let mut free_at = vec![0_u64; slots];
    let mut ends = Ends::default();
    for index in order {
        let (inputs, micros, bytes) = &tasks[index];
        let inputs: BTreeSet<u32> = inputs.iter().copied().collect();
        let best = (0..slots)
            .map(|slot| {
                let ready_at = ends.arrivals(&inputs, slot / SLOTS as usize);
                let ready_at = ready_at.into_iter().map(|(_, at)| at).max().unwrap_or(0);
                (ready_at.max(free_at[slot]) + micros, slot)
            })
            .min();
        let (end, slot) = best.unwrap_or((0, 0));
        let worker = slot / SLOTS as usize;
        for (input, at) in ends.arrivals(&inputs, worker) {
            ends.there.insert((input, worker), at);
        }
        let task = u32::try_from(index).unwrap_or(u32::MAX);
        ends.of.insert(task, (end, worker, bytes / BYTES_PER_MICRO));
        ends.there.insert((task, worker), end);
        free_at[slot] = end;
    }
    free_at.into_iter().max().unwrap_or(0)
}

/// The run times on the longest way from each task to an end.
fn urgency(tasks: &Tasks) -> Vec<u64> {
    let mut urgency: Vec<u64> = tasks.iter().map(|(_, micros, _)| *micros).collect();
    for (index, (inputs, _, _)) in tasks.iter().enumerate().rev() {
        for input in inputs {
            let at = *input as usize;
            urgency[at] = urgency[at].max(tasks[at].1 + urgency[index]);
        }
    }
    urgency
}

/// When and where results were made, and since when they are at other workers.
#[derive(Debug, Default)]
struct Ends {
    /// When, at which worker, and how long each takes to another.
    of: BTreeMap<u32, (u64, usize, u64)>,
    there: BTreeMap<(u32, usize), u64>,
}

impl Ends {
    /// When each input of a task can be at a worker.
    fn arrivals(&self, inputs: &BTreeSet<u32>, worker: usize) -> Vec<(u32, u64)> {
        let is_there = |input: &u32| Some((*input, *self.there.get(&(*input, worker))?));
        let mut arrivals: Vec<(u32, u64)> = inputs.iter().filter_map(is_there).collect();
        let is_away = |input: &&u32| !self.there.contains_key(&(**input, worker));
        let away = inputs.iter().filter(is_away);
        let mut away: Vec<_> = away
            .filter_map(|input| Some((self.of.get(input)?, *input)))
            .collect();
        away.sort_unstable();
        let mut sent_by = [0_u64; WORKERS];
        for ((made_at, from, micros), input) in away {
            sent_by[*from] = sent_by[*from].max(*made_at) + micros;
            arrivals.push((input, sent_by[*from]));
        }
        arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_scheduler_is_right_about_small_graphs() {
        let independent: Tasks = vec![(Vec::new(), 10, 0); 16];
        assert_eq!(list_schedule(&independent), 20);
        let chain: Tasks = (0..5_u32)
            .map(|i| (i.checked_sub(1).into_iter().collect(), 10, 0))
            .collect();
        assert_eq!(list_schedule(&chain), 50);
    }
}

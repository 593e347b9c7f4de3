//! How long graphs take in virtual time, compared with a list scheduler that knows every run time,
//! every size and the whole graph at once, and that pays nothing for messages.

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

/// How one graph went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Makespan {
    /// The graph.
    pub name: &'static str,
    /// Tasks of the graph.
    pub tasks: usize,
    /// Virtual time with our placement.
    pub micros: u64,
    /// Time of the list scheduler.
    pub list_micros: u64,
}

/// Inputs, run time and size of each task.
type Tasks = Vec<(Vec<u32>, u64, u64)>;

/// All graphs.
pub fn makespans() -> Result<Vec<Makespan>, Failure> {
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
    shapes
        .into_iter()
        .map(|(name, shape, count, micros, bytes)| {
            let mut random = Random::new(7, Stream::Graphs);
            let inputs = layout(shape, count, &mut random);
            let time = |random: &mut Random| match micros {
                0 => random.between(500, 20_000),
                micros => random.between(micros - micros / 10, micros + micros / 10),
            };
            let tasks: Tasks = inputs
                .into_iter()
                .map(|inputs| (inputs, time(&mut random), bytes))
                .collect();
            Ok(Makespan {
                name,
                tasks: tasks.len(),
                list_micros: list_schedule(&tasks),
                micros: simulate(tasks)?,
            })
        })
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

/// The first free slot that lets the most urgent task end first, task by task.
fn list_schedule(tasks: &Tasks) -> u64 {
    let mut urgency: Vec<u64> = tasks.iter().map(|(_, micros, _)| *micros).collect();
    for (index, (inputs, _, _)) in tasks.iter().enumerate().rev() {
        for input in inputs {
            let at = *input as usize;
            urgency[at] = urgency[at].max(tasks[at].1 + urgency[index]);
        }
    }
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(urgency[*index]), *index));
    let slots = WORKERS * SLOTS as usize;
    let mut free_at = vec![0_u64; slots];
    let mut ended: Vec<(u64, usize)> = vec![(0, 0); tasks.len()];
    for index in order {
        let (inputs, micros, _) = &tasks[index];
        let ready_at = |slot: usize| {
            let arrivals = inputs.iter().map(|input| {
                let (at, from) = ended[*input as usize];
                let is_here = from / SLOTS as usize == slot / SLOTS as usize;
                at + if is_here {
                    0
                } else {
                    tasks[*input as usize].2 / BYTES_PER_MICRO
                }
            });
            arrivals.max().unwrap_or(0)
        };
        let best = (0..slots)
            .map(|slot| (ready_at(slot).max(free_at[slot]) + micros, slot))
            .min()
            .unwrap_or((0, 0));
        free_at[best.1] = best.0;
        ended[index] = best;
    }
    free_at.into_iter().max().unwrap_or(0)
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

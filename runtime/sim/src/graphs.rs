//! Graphs, and what running them one task after the other gives.
//!
//! Invariant: a task's value is a hash of its name and of its inputs' values, so a wrong input
//! shows in every result behind it.

use std::sync::Arc;

use oxidask_core::{GraphChunk, Requirement, TaskIndex};

use crate::config::Config;
use crate::open_ended::Wish;
use crate::random::{Random, Stream, mix};

/// Longest run of a task.
const TASK_MICROS_MAX: u64 = 400_000;
/// Largest result.
pub(crate) const RESULT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How the attempts of a task end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    Never,
    /// The first ones fail, fewer than there are tries.
    Times(u32),
    Always {
        is_retryable: bool,
    },
}

/// One task.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) inputs: Vec<u32>,
    pub(crate) bytes: u64,
    pub(crate) micros: u64,
    pub(crate) priority: i32,
    pub(crate) retries: u32,
    pub(crate) failing: Failing,
    pub(crate) requirement: u32,
    pub(crate) is_wanted: bool,
    /// Inputs only give order; nobody reads them.
    pub(crate) is_blind: bool,
    /// It gives its slots to others for a while.
    pub(crate) secedes: bool,
}

/// One graph, and what its client does with it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) name: Arc<str>,
    pub(crate) client: usize,
    pub(crate) tasks: Vec<Task>,
    pub(crate) chunk_tasks: usize,
    pub(crate) cancels_at: Option<u64>,
    pub(crate) closes_at: Option<u64>,
    /// Results are given back as soon as they are read.
    pub(crate) releases: bool,
    /// What the client wants and gives back with each chunk; empty unless the graph is open-ended.
    pub(crate) wishes: Vec<Wish>,
    /// Values by task; none for a task that cannot have one.
    pub(crate) values: Vec<Option<u64>>,
}

/// The layouts of graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Independent,
    Chains(u32),
    Tree(u32),
    AllToAll(u32),
    Stencil(u32),
    Random,
    Diamonds,
}

/// The requirements that tasks of every graph may name, from 1.
pub(crate) fn requirements() -> Vec<Requirement> {
    let gpu = |amount| vec![("gpu".to_owned(), amount)];
    let special = || vec!["special".to_owned()];
    let requirement = |slots, resources, workers| Requirement {
        slots,
        resources,
        workers,
    };
    vec![
        requirement(1, gpu(1), Vec::new()),
        requirement(1, Vec::new(), special()),
        requirement(2, Vec::new(), Vec::new()),
        requirement(2, gpu(2), special()),
    ]
}

/// The graphs of a run.
pub(crate) fn plans(config: &Config) -> Vec<Plan> {
    let mut random = Random::new(config.seed, Stream::Graphs);
    let seeds: Vec<u64> = (0..config.graphs).map(|_| random.next()).collect();
    (0..)
        .zip(seeds)
        .map(|(number, seed)| plan(config, number, seed))
        .collect()
}

fn plan(config: &Config, number: u32, seed: u64) -> Plan {
    let mut random = Random::new(seed, Stream::Graphs);
    let shape = match random.below(7) {
        0 => Shape::Independent,
        1 => Shape::Chains(random.small(6) + 1),
        2 => Shape::Tree(random.small(4) + 2),
        3 => Shape::AllToAll(random.small(6) + 2),
        4 => Shape::Stencil(random.small(8) + 2),
        5 => Shape::Diamonds,
        _ => Shape::Random,
    };
    let count = config.tasks / 2 + random.small(config.tasks / 2 + 1);
    let is_uniform = random.chance(300);
    let micros = random.skewed(TASK_MICROS_MAX);
    let mut tasks: Vec<Task> = layout(shape, count.max(1), &mut random)
        .into_iter()
        .map(|inputs| {
            let mut task = task(config, inputs, &mut random);
            if is_uniform {
                task.micros = micros;
            }
            task
        })
        .collect();
    want_ends(&mut tasks);
    let client = random.index(config.graphs as usize);
    let later = |random: &mut Random| Some(random.below(3_000_000));
    let name: Arc<str> = format!("graph-{number}").into();
    let mut plan = Plan {
        client,
        chunk_tasks: random.index(tasks.len()) + 1,
        cancels_at: later(&mut random).filter(|_| config.is_fickle && random.chance(200)),
        closes_at: later(&mut random).filter(|_| config.is_fickle && random.chance(200)),
        releases: config.is_fickle && random.chance(500),
        values: Vec::new(),
        wishes: Vec::new(),
        name,
        tasks,
    };
    if config.is_open_ended {
        plan.open(&mut random);
    }
    plan.values = values(&plan.name, &plan.tasks);
    plan
}

/// The inputs of each task of a graph with this layout.
pub(crate) fn layout(shape: Shape, count: u32, random: &mut Random) -> Vec<Vec<u32>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for index in 0..count {
        let inputs = match shape {
            Shape::Independent => Vec::new(),
            Shape::Chains(width) => index.checked_sub(width).into_iter().collect(),
            // The first half are leaves; each of the others takes the next ones that are free.
            Shape::Tree(arity) => {
                let leaves = count - count / arity;
                let first = index.checked_sub(leaves).map(|node| node * arity);
                first.map_or_else(Vec::new, |first| {
                    (first..(first + arity).min(index)).collect()
                })
            }
            Shape::AllToAll(width) => {
                let layer = index / width;
                layer
                    .checked_sub(1)
                    .map_or_else(Vec::new, |before| (before * width..layer * width).collect())
            }
            Shape::Stencil(width) => index.checked_sub(width).map_or_else(Vec::new, |above| {
                let column = index % width;
                let left = (column > 0).then(|| above - 1);
                let right = (column + 1 < width).then_some(above + 1);
                left.into_iter().chain([above]).chain(right).collect()
            }),
            Shape::Diamonds => match index % 4 {
                0 => index.checked_sub(1).into_iter().collect(),
                1 | 2 => vec![index - index % 4],
                _ => vec![index - 2, index - 1],
            },
            Shape::Random if index == 0 => Vec::new(),
            Shape::Random => {
                let number = random.below(5);
                (0..number)
                    .map(|_| {
                        let near = index.min(if random.chance(700) { 5 } else { index });
                        index - 1 - random.small(near)
                    })
                    .collect()
            }
        };
        all.push(inputs.into_iter().filter(|input| *input < index).collect());
    }
    all
}

fn task(config: &Config, inputs: Vec<u32>, random: &mut Random) -> Task {
    let retries = if random.chance(300) {
        random.small(4)
    } else {
        0
    };
    let failing = match random.below(40) {
        0 if config.has_failures => Failing::Always { is_retryable: true },
        1 if config.has_failures => Failing::Always {
            is_retryable: false,
        },
        2..8 if config.has_failures && retries > 0 => Failing::Times(random.small(retries) + 1),
        _ => Failing::Never,
    };
    Task {
        inputs,
        bytes: 8 + random.skewed(RESULT_BYTES_MAX),
        micros: random.skewed(TASK_MICROS_MAX),
        priority: if random.chance(200) {
            i32::from(random.chance(500)) * 2 - 1
        } else {
            0
        },
        retries,
        failing,
        requirement: if random.chance(150) {
            random.small(4) + 1
        } else {
            0
        },
        is_wanted: random.chance(150),
        is_blind: random.chance(60),
        secedes: random.chance(100),
    }
}

/// Results that nothing uses are wanted; without wishes nothing would be checked.
fn want_ends(tasks: &mut [Task]) {
    let mut is_used = vec![false; tasks.len()];
    for input in tasks.iter().flat_map(|task| &task.inputs) {
        is_used[*input as usize] = true;
    }
    for (task, is_used) in tasks.iter_mut().zip(is_used) {
        task.is_wanted |= !is_used;
    }
}

/// The value that a task makes of the values of its inputs.
pub(crate) fn value(name: &str, index: u32, inputs: impl Iterator<Item = u64>) -> u64 {
    let start = name
        .bytes()
        .fold(u64::from(index), |hash, byte| mix(hash ^ u64::from(byte)));
    inputs.fold(start, |hash, input| mix(hash.rotate_left(7) ^ input))
}

/// What running the tasks one after the other gives.
pub(crate) fn values(name: &str, tasks: &[Task]) -> Vec<Option<u64>> {
    let mut values: Vec<Option<u64>> = Vec::with_capacity(tasks.len());
    for (index, task) in (0..).zip(tasks) {
        let inputs: Option<Vec<u64>> = task
            .inputs
            .iter()
            .map(|input| values[*input as usize])
            .collect();
        let fails = matches!(task.failing, Failing::Always { .. });
        values.push(inputs.filter(|_| !fails).map(|inputs| {
            let read = if task.is_blind { Vec::new() } else { inputs };
            value(name, index, read.into_iter())
        }));
    }
    values
}

impl Plan {
    /// The graph as its client sends it.
    pub(crate) fn chunks(&self) -> Vec<GraphChunk> {
        let mut all: Vec<GraphChunk> = Vec::new();
        let mut start = 0;
        for part in self.parts() {
            let mut chunk = GraphChunk::default();
            if all.is_empty() {
                chunk.new_groups = vec!["even".to_owned(), "odd".to_owned()];
                chunk.new_requirements = requirements();
                chunk.new_bodies_count = 1;
            }
            for (index, task) in (start..).zip(part) {
                let key = format!("t-{index}");
                chunk
                    .key_lengths
                    .push(u32::try_from(key.len()).unwrap_or(0));
                chunk.keys.push_str(&key);
                chunk.body.push(0);
                chunk.group.push(index % 2);
                chunk.requirement.push(task.requirement);
                chunk.priority.push(task.priority);
                chunk.retries.push(task.retries);
                chunk
                    .input_counts
                    .push(u32::try_from(task.inputs.len()).unwrap_or(0));
                chunk
                    .inputs
                    .extend(task.inputs.iter().map(|input| TaskIndex(*input)));
                if task.is_wanted {
                    chunk.wanted.push(TaskIndex(index));
                }
            }
            start += u32::try_from(part.len()).unwrap_or(0);
            all.push(chunk);
        }
        if self.is_open_ended() {
            let wished = all.into_iter().zip(&self.wishes);
            return wished
                .map(|(chunk, wish)| Self::wished(chunk, wish))
                .collect();
        }
        if let Some(last) = all.last_mut() {
            last.is_last = true;
        }
        all
    }

    /// The tasks of each chunk.
    fn parts(&self) -> Vec<&[Task]> {
        if !self.is_open_ended() {
            return self.tasks.chunks(self.chunk_tasks.max(1)).collect();
        }
        let mut rest = self.tasks.as_slice();
        let mut parts = Vec::new();
        for wish in &self.wishes {
            let (part, others) = rest.split_at(wish.tasks.min(rest.len()));
            parts.push(part);
            rest = others;
        }
        parts
    }

    /// The same graph under another name, of another client.
    pub(crate) fn rename(&mut self, name: String, client: usize) {
        self.name = name.into();
        self.client = client;
        self.values = values(&self.name, &self.tasks);
    }

    /// The plan of a graph that only has to be fast: one layout, nothing fails, ends are wanted.
    pub(crate) fn for_makespan(tasks: Vec<(Vec<u32>, u64, u64)>) -> Self {
        let mut tasks: Vec<Task> = tasks
            .into_iter()
            .map(|(inputs, micros, bytes)| Task {
                inputs,
                bytes,
                micros,
                priority: 0,
                retries: 0,
                failing: Failing::Never,
                requirement: 0,
                is_wanted: false,
                is_blind: false,
                secedes: false,
            })
            .collect();
        want_ends(&mut tasks);
        let name: Arc<str> = "makespan".into();
        Self {
            values: values(&name, &tasks),
            client: 0,
            chunk_tasks: tasks.len(),
            cancels_at: None,
            closes_at: None,
            releases: false,
            wishes: Vec::new(),
            name,
            tasks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_before_their_task_in_every_shape() {
        let mut random = Random::new(1, Stream::Graphs);
        let shapes = [
            Shape::Independent,
            Shape::Chains(3),
            Shape::Tree(2),
            Shape::Tree(5),
            Shape::AllToAll(4),
            Shape::Stencil(5),
            Shape::Random,
            Shape::Diamonds,
        ];
        for (shape, count) in shapes
            .into_iter()
            .flat_map(|shape| (1..40).map(move |n| (shape, n)))
        {
            let all = layout(shape, count, &mut random);
            assert_eq!(all.len(), count as usize);
            for (index, inputs) in (0..).zip(&all) {
                assert!(inputs.iter().all(|input| *input < index), "{shape:?}");
            }
        }
        let tree = layout(Shape::Tree(2), 15, &mut random);
        assert_eq!(tree.iter().flatten().count(), 14, "{tree:?}");
    }

    #[test]
    fn a_failure_leaves_what_is_behind_it_without_a_value() {
        let config = Config {
            has_failures: true,
            ..Config::of_seed(1)
        };
        for plan in (0..200).flat_map(|seed| {
            plans(&Config {
                seed,
                ..config.clone()
            })
        }) {
            for (task, value) in plan.tasks.iter().zip(&plan.values) {
                let fails = matches!(task.failing, Failing::Always { .. });
                let lacks = task
                    .inputs
                    .iter()
                    .any(|i| plan.values[*i as usize].is_none());
                assert_eq!(value.is_none(), fails || lacks);
            }
        }
    }
}

//! Prints what the scheduler costs for each task: `cargo run --release -p oxidask-core --example rate`.
//!
//! Workers are played by a loop that answers every assignment at once, so the figures are those of
//! the core, with the building of its events.
#![allow(clippy::print_stdout, reason = "an example that prints")]
#![allow(clippy::disallowed_methods, reason = "an example that measures")]

use std::time::Instant;

use oxidask_core::{
    Attempt, ClientId, Core, CoreConfig, Effect, Event, GraphChunk, GraphId, TaskIndex, TaskRef,
    TaskReport, Timestamp, WorkerId, WorkerInfo,
};

const CLIENT: ClientId = ClientId(1);
const CHUNK_TASKS: usize = 20_000;

/// Inputs of each task, all of which come before it.
type Shape = Vec<Vec<u32>>;

fn independent(tasks: u32) -> Shape {
    (0..tasks).map(|_| Vec::new()).collect()
}

fn stencil(width: u32, steps: u32) -> Shape {
    let mut shape = independent(width);
    for step in 1..steps {
        for column in 0..width {
            let near = column.saturating_sub(1)..=(column + 1).min(width - 1);
            shape.push(near.map(|near| (step - 1) * width + near).collect());
        }
    }
    shape
}

fn all_to_all(width: u32) -> Shape {
    let mut shape = independent(width);
    shape.extend((0..width).map(|_| (0..width).collect()));
    shape
}

fn merge(inputs: u32) -> Shape {
    let mut shape = independent(inputs);
    shape.push((0..inputs).collect());
    shape
}

fn tree(leaves: u32) -> Shape {
    let mut shape = independent(leaves);
    let mut level: Vec<u32> = (0..leaves).collect();
    while level.len() > 1 {
        let mut next = Vec::new();
        for pair in level.chunks(2) {
            next.push(u32::try_from(shape.len()).unwrap_or(u32::MAX));
            shape.push(pair.to_vec());
        }
        level = next;
    }
    shape
}

fn chain(length: u32) -> Shape {
    (0..length)
        .map(|task| task.checked_sub(1).into_iter().collect())
        .collect()
}

fn chunks(shape: &Shape) -> Vec<GraphChunk> {
    let mut all = Vec::new();
    let mut start = 0_usize;
    for part in shape.chunks(CHUNK_TASKS) {
        let mut chunk = GraphChunk::default();
        if start == 0 {
            chunk.new_groups.push("task".to_owned());
            chunk.new_bodies_count = 1;
        }
        for (offset, inputs) in part.iter().enumerate() {
            let key = format!("task-{}", start + offset);
            chunk.keys.push_str(&key);
            chunk
                .key_lengths
                .push(u32::try_from(key.len()).unwrap_or(0));
            chunk.body.push(0);
            chunk.group.push(0);
            chunk
                .input_counts
                .push(u32::try_from(inputs.len()).unwrap_or(0));
            chunk
                .inputs
                .extend(inputs.iter().map(|input| TaskIndex(*input)));
        }
        start += part.len();
        all.push(chunk);
    }
    if let Some(last) = all.last_mut() {
        last.is_last = true;
        last.wanted
            .push(TaskIndex(u32::try_from(shape.len() - 1).unwrap_or(0)));
    }
    all
}

/// Reports by worker, and the workers that have any.
#[derive(Default)]
struct Answers {
    reports: Vec<Vec<(TaskRef, Attempt, TaskReport)>>,
    workers: Vec<WorkerId>,
}

impl Answers {
    fn answer(&mut self, core: &mut Core, now: Timestamp, effects: &mut Vec<Effect>) -> usize {
        let mut count = 0;
        for effect in effects.drain(..) {
            if let Effect::Assign {
                worker,
                task,
                attempt,
                ..
            } = effect
            {
                let report = TaskReport::Finished {
                    bytes: 8,
                    duration_micros: 3,
                    rows: 1,
                };
                let at = worker.0 as usize;
                if self.reports.len() <= at {
                    self.reports.resize_with(at + 1, Vec::new);
                }
                if self.reports[at].is_empty() {
                    self.workers.push(worker);
                }
                self.reports[at].push((task, attempt, report));
                count += 1;
            }
        }
        for worker in self.workers.drain(..) {
            let reports = std::mem::take(&mut self.reports[worker.0 as usize]);
            core.react(Event::TaskReported { worker, reports }, now, effects);
        }
        count
    }
}

/// A core with workers of one slot and an open graph.
fn core_with(workers: u32) -> Core {
    let mut core = Core::new(CoreConfig::default());
    let mut effects = Vec::new();
    let now = Timestamp(0);
    for worker in 1..=workers {
        let info = WorkerInfo {
            name: format!("worker-{worker}"),
            group: "default".to_owned(),
            slots: 1,
            resources: Vec::new(),
            memory_bytes: 1 << 30,
        };
        let worker = WorkerId(worker);
        core.react(Event::WorkerJoined { worker, info }, now, &mut effects);
    }
    let name = "rate".into();
    core.react(
        Event::GraphOpened {
            client: CLIENT,
            name,
            is_open_ended: false,
        },
        now,
        &mut effects,
    );
    core
}

fn measure(name: &str, shape: &Shape, workers: u32) {
    let mut core = core_with(workers);
    let mut effects = Vec::new();
    let mut now = Timestamp(0);
    let edges: usize = shape.iter().map(Vec::len).sum();
    let graph = GraphId(1);
    let parts = chunks(shape);
    let start = Instant::now();
    for (number, chunk) in (0..).zip(parts) {
        let chunk = Box::new(chunk);
        core.react(
            Event::ChunkArrived {
                client: CLIENT,
                graph,
                number,
                chunk,
            },
            now,
            &mut effects,
        );
    }
    let submitted = start.elapsed();
    let start = Instant::now();
    let mut ticks = 0_u64;
    let mut answers = Answers::default();
    loop {
        while core.place(now, &mut effects) {}
        ticks += 1;
        now = now.plus_micros(100);
        if answers.answer(&mut core, now, &mut effects) == 0 {
            break;
        }
    }
    let ran = start.elapsed();
    let is_done = core.graphs().iter().all(|graph| graph.is_done);
    let start = Instant::now();
    core.react(
        Event::GraphClosed {
            client: CLIENT,
            graph,
        },
        now,
        &mut effects,
    );
    let closed = start.elapsed();
    let count = shape.len() as u128;
    println!(
        "{name:<14} {workers:>5} workers {count:>9} tasks {edges:>9} edges {ticks:>8} ticks  \
         submit {:>5} ns  place+finish {:>6} ns  close {:>4} ns a task{}",
        submitted.as_nanos() / count,
        ran.as_nanos() / count,
        closed.as_nanos() / count,
        if is_done { "" } else { "  NOT DONE" },
    );
}

fn main() {
    for workers in [2, 100, 1_000] {
        measure("independent", &independent(1_000_000), workers);
        measure("merge", &merge(1_000_000), workers);
        measure("tree", &tree(500_000), workers);
        measure("stencil", &stencil(1_000, 1_000), workers);
        measure("all-to-all", &all_to_all(200), workers);
        measure("all-to-all", &all_to_all(1_000), workers);
    }
    measure("chain", &chain(100_000), 2);
    measure("chain", &chain(100_000), 1_000);
}

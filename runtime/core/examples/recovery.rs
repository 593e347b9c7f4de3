//! Prints how long a core takes to go on from what a journal has kept of a graph that is half done:
//! `cargo run --release -p oxidask-core --example recovery`.
#![allow(clippy::print_stdout, reason = "an example that prints")]
#![allow(clippy::disallowed_methods, reason = "an example that measures")]

use std::time::Instant;

use oxidask_core::{
    Core, CoreConfig, Event, GraphChunk, GraphId, Inventory, RestoreError, Restored, TaskIndex,
    TaskRef, TaskState, Timestamp, WorkerId, WorkerInfo,
};

const GRAPH: GraphId = GraphId(1);
const TASKS: u32 = 1_000_000;
const WORKERS: u32 = 100;
const CHUNK_TASKS: u32 = 20_000;
/// Results in one record of the journal.
const RECORD_RESULTS: usize = 1_000;

/// A graph in layers: each task reads `inputs` tasks that were submitted a layer before.
fn chunks(inputs: u32) -> Vec<GraphChunk> {
    let layer = 1_000;
    let mut all = Vec::new();
    for start in (0..TASKS).step_by(CHUNK_TASKS as usize) {
        let mut chunk = GraphChunk::default();
        if start == 0 {
            chunk.new_groups.push("task".to_owned());
            chunk.new_bodies_count = 1;
        }
        for task in start..start + CHUNK_TASKS {
            let key = format!("task-{task}");
            chunk.keys.push_str(&key);
            chunk
                .key_lengths
                .push(u32::try_from(key.len()).unwrap_or(0));
            chunk.body.push(0);
            chunk.group.push(0);
            let count = if task < layer { 0 } else { inputs };
            chunk.input_counts.push(count);
            let first = task.saturating_sub(layer);
            let own = (0..count).map(|near| TaskIndex(first.saturating_sub(near)));
            chunk.inputs.extend(own);
        }
        all.push(chunk);
    }
    if let Some(last) = all.last_mut() {
        last.is_last = true;
        last.wanted = (TASKS - layer..TASKS).map(TaskIndex).collect();
    }
    all
}

fn task(index: u32) -> TaskRef {
    TaskRef {
        graph: GRAPH,
        task: TaskIndex(index),
    }
}

/// What a journal has kept when the first half of the tasks was done.
fn journal(inputs: u32) -> Vec<Restored> {
    let mut items = Vec::new();
    for worker in 1..=WORKERS {
        items.push(Restored::WorkerJoined {
            worker: WorkerId(worker),
            info: WorkerInfo {
                name: format!("worker-{worker}"),
                group: "default".to_owned(),
                slots: 4,
                resources: Vec::new(),
                memory_bytes: 1 << 34,
            },
        });
    }
    items.push(Restored::GraphOpened {
        graph: GRAPH,
        name: "half".into(),
        is_open_ended: false,
    });
    for (number, chunk) in (0..).zip(chunks(inputs)) {
        let chunk = Box::new(chunk);
        items.push(Restored::Chunk {
            graph: GRAPH,
            number,
            chunk,
        });
    }
    let done: Vec<u32> = (0..TASKS / 2).collect();
    for (number, part) in (0..).zip(done.chunks(RECORD_RESULTS)) {
        let results = part.iter().map(|index| (task(*index), 100, 1));
        items.push(Restored::Finished {
            worker: WorkerId(number % WORKERS + 1),
            results: results.collect(),
        });
    }
    items
}

fn measure(inputs: u32) -> Result<(), RestoreError> {
    let items = journal(inputs);
    let mut core = Core::new(CoreConfig {
        epoch: 2,
        ..CoreConfig::default()
    });
    let start = Instant::now();
    for item in items {
        core.restore(item)?;
    }
    let restored = start.elapsed();
    let start = Instant::now();
    let mut effects = Vec::new();
    core.begin_restored(Timestamp(0), GraphId(1_000), &mut effects);
    let begun = start.elapsed();
    let mut held: Vec<Vec<(TaskRef, u64)>> = vec![Vec::new(); WORKERS as usize];
    for index in (0..TASKS).filter(|index| core.state(task(*index)) == Some(TaskState::Finished)) {
        for holder in core.holders(task(index)) {
            held[holder.0 as usize - 1].push((task(index), 100));
        }
    }
    let survivors: usize = held.iter().map(Vec::len).sum();
    let start = Instant::now();
    for (worker, held) in (1..).map(WorkerId).zip(held) {
        let inventory = Box::new(Inventory {
            held,
            ..Inventory::default()
        });
        let event = Event::WorkerReturned { worker, inventory };
        core.react(event, Timestamp(1_000), &mut effects);
    }
    while core.place(Timestamp(1_000), &mut effects) {}
    let returned = start.elapsed();
    println!(
        "{TASKS} tasks, {inputs} inputs each, half done: items {} ms, beginning {} ms, {WORKERS} \
         workers with {survivors} results back and the first {} tasks placed {} ms",
        restored.as_millis(),
        begun.as_millis(),
        effects.len(),
        returned.as_millis(),
    );
    Ok(())
}

fn main() -> Result<(), RestoreError> {
    measure(0)?;
    measure(1)?;
    measure(3)
}

//! What a task of a stage costs beyond its work.
//!
//! Runs all tasks of a stage that 10,000 tasks wide, one after the other: once with an aggregate
//! whose inputs are empty, which is nothing but overhead, and once with a scan of which each task
//! reads a few bytes of one file. Prints microseconds a task, of the clock and of the processor.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::format_collect,
    reason = "a measurement, run by hand"
)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_exec::{Body, Executor, Piece, PieceRequest, StreamedInputs, TaskContext, TaskError};
use oxidask_exec_frame::{FrameExecutor, script};
use oxidask_proto::wire::PlannedGraph;
use prost::Message;

const WIDTH: usize = 10_000;

/// Clock ticks of `/proc/self/stat` in a second.
const TICKS: u64 = 100;

/// Inputs of which every slice is empty.
#[derive(Debug)]
struct Empty(u32);

impl StreamedInputs for Empty {
    fn count(&self) -> u32 {
        self.0
    }

    fn input_bytes(&self, _: u32) -> u64 {
        0
    }

    fn read(&self, requests: Vec<PieceRequest>) -> BoxFuture<'_, Result<Vec<Piece>, TaskError>> {
        let piece = Piece {
            slice_bytes: 0,
            parts: Vec::new(),
        };
        std::future::ready(Ok(vec![piece; requests.len()])).boxed()
    }

    fn consumed(&self, _: u32, _: u32) {}
}

/// Microseconds of the processor that this process has used.
fn processor_micros() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after = text.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    ticks * 1_000_000 / TICKS
}

/// Runs the tasks of one stage of a query.
async fn measure(name: &str, folder: &std::path::Path, query: &str, stage: u32) {
    let context = || TaskContext::alone(1 << 30, folder.to_owned(), folder.join("scratch"));
    let text = format!(
        "CREATE EXTERNAL TABLE t (k INT, v INT) STORED AS CSV LOCATION 't.csv'; \
         SET oxidask.stages = 'always'; SET oxidask.width = {WIDTH}; {query}"
    );
    let executor = FrameExecutor::new();
    let statements = script::parse(&text, "q").unwrap();
    let tasks = script::to_graph(&statements, "q", script::ClusterSize::default()).unwrap();
    let started = Instant::now();
    let planned = executor.prepare(&tasks[0].body).unwrap();
    let planned = planned.run(Vec::new(), context()).await.unwrap();
    println!(
        "{name}: planned in {:?}, {} bytes",
        started.elapsed(),
        planned.len()
    );
    let graph = PlannedGraph::decode(Bytes::from(planned.parts.concat())).unwrap();
    let bodies: Vec<_> = graph
        .chunks
        .iter()
        .flat_map(|chunk| &chunk.new_bodies)
        .collect();
    let body = Body::decode(bodies[stage as usize]).unwrap();
    let tasks = graph
        .chunks
        .iter()
        .flat_map(|chunk| chunk.body.iter().zip(&chunk.streamed_inputs));
    let inputs: Vec<u32> = tasks
        .filter(|(body, _)| **body == stage)
        .map(|(_, inputs)| *inputs)
        .collect();
    let started = Instant::now();
    let program = executor.prepare(&body).unwrap();
    println!(
        "{name}: prepared in {:?}, {} tasks",
        started.elapsed(),
        inputs.len()
    );
    for _ in 0..3 {
        let (started, processor) = (Instant::now(), processor_micros());
        for (part, inputs) in inputs.iter().enumerate() {
            let mut context = context();
            context.part = u32::try_from(part).unwrap();
            context.streams = Arc::new(Empty(*inputs));
            Arc::clone(&program).run(Vec::new(), context).await.unwrap();
        }
        let tasks = inputs.len() as u64;
        let clock = started.elapsed().as_micros() / u128::from(tasks);
        let processor = (processor_micros() - processor) / tasks;
        println!("{name}: {clock} µs a task, {processor} µs of the processor");
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("scratch")).unwrap();
    let rows: String = (0..40_000)
        .map(|row| format!("{},{row}\n", row % 100))
        .collect();
    std::fs::write(dir.path().join("t.csv"), format!("k,v\n{rows}")).unwrap();
    // One task reads the file, and 10,000 have nothing to add up.
    let query = "SET datafusion.optimizer.repartition_file_scans = false; \
                 SELECT k, sum(v) AS s FROM t GROUP BY k";
    measure("nothing", dir.path(), query, 1).await;
    measure("scan", dir.path(), "SELECT sum(v) AS s FROM t", 0).await;
}

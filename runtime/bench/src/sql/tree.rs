//! A tree over buffers that are larger than the memory of all workers together.
//!
//! All buffers are made before any is read, because they come first by priority: so they must be
//! held somewhere. Pairs of digests follow, up to one that depends on every byte.

use std::time::Instant;

use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder, TaskOptions};
use oxidask_exec::Body;

use super::figures::{LimitedRun, Section};
use super::tpch::one_line;
use super::{Bench, THREADS, say};
use crate::Failure;
use crate::cluster::Shape;

const BUFFERS: u64 = 64;
const BUFFER_BYTES: u64 = 64 << 20;

/// Runs the tree without a limit and with it; both must give the same digest.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Section, Failure> {
    let memory_bytes = bench.arguments.memory_mib << 20;
    let plan = plan(BUFFERS, BUFFER_BYTES)?;
    let mut runs = Vec::new();
    let mut faults = Vec::new();
    let mut digests = Vec::new();
    for (name, limit_bytes) in [("no limit", None), ("limited", Some(memory_bytes))] {
        let shape = Shape {
            workers: THREADS,
            memory_bytes: limit_bytes,
            ..Shape::default()
        };
        let mut ours = bench.ours(shape, &[]).await?;
        bench.sampler.watch_processes(name, ours.processes());
        let start = Instant::now();
        let outcome = ours.graph(&plan).await;
        runs.push(LimitedRun {
            name,
            limit_bytes,
            seconds: outcome.is_ok().then(|| start.elapsed().as_secs_f64()),
            peak_bytes: bench.sampler.peak(name).process_bytes,
        });
        match outcome {
            Ok(results) => digests.push(results),
            Err(error) => faults.push(format!("{name}: {}", one_line(&error.to_string()))),
        }
        say(&format!("tree: {name} is done"));
    }
    if let [left, right] = digests.as_slice()
        && left != right
    {
        faults.push("the digests differ".to_owned());
    }
    Ok(Section {
        name: "tree",
        title: format!(
            "A tree over {BUFFERS} buffers of 64 MiB, all held at once; limit of each of 2 \
             workers: {} MiB",
            bench.arguments.memory_mib
        ),
        header: ["run", "s", "peak of a process", "of its limit"]
            .map(str::to_owned)
            .to_vec(),
        rows: runs.iter().map(LimitedRun::row).collect(),
        figures: runs.iter().map(LimitedRun::figures).collect(),
        faults,
    })
}

fn plan(buffers: u64, buffer_bytes: u64) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("tree");
    let first = || TaskOptions {
        priority: 1,
        ..TaskOptions::default()
    };
    let mut level = Vec::new();
    for seed in 0..buffers {
        let body = Body::new("bytes")
            .with("len", buffer_bytes)
            .with("seed", seed);
        level.push(builder.task_with(&format!("buffer-{seed}"), &body, &[], first())?);
    }
    let mut number = 0;
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len() / 2);
        for pair in level.chunks(2) {
            above.push(builder.task(&format!("digest-{number}"), &Body::new("sha256"), pair)?);
            number += 1;
        }
        level = above;
    }
    Ok(builder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_digest_is_wanted_and_buffers_come_first() {
        let plan = plan(8, 1).unwrap();
        assert_eq!((plan.len(), plan.outputs().len()), (15, 1));
        let is_first = |task: &u32| plan.priority(*task) == 1;
        let tasks = 0..u32::try_from(plan.len()).unwrap();
        assert_eq!(tasks.filter(is_first).count(), 8);
    }
}

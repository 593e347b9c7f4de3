//! The shapes of graphs for task rates. Every task is a `noop`: what is measured is everything else.

use std::path::Path;
use std::time::Instant;

use futures::StreamExt;
use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder};
use oxidask_client::{Client, GraphEvent, GraphRun};
use oxidask_exec::Body;

use crate::Failure;
use crate::cluster::{Cluster, Shape};
use crate::report::Measurement;

/// Runs every shape on one cluster.
pub(crate) async fn measure(oxidask: &Path, runs: u32) -> Result<Vec<Measurement>, Failure> {
    let (_cluster, client) = Cluster::start(oxidask, Shape::default()).await?;
    let shapes = [
        ("independent-10k", independent(10_000)?),
        ("independent", independent(100_000)?),
        ("independent-1m", independent(1_000_000)?),
        ("merge", merge(100_000)?),
        ("tree", tree(1 << 15)?),
        ("stencil", stencil(200, 200)?),
        ("all-to-all", all_to_all(200)?),
    ];
    let mut measurements = Vec::new();
    for (shape, plan) in shapes {
        let mut seconds = Vec::new();
        for run in 0..=runs {
            let elapsed = once(&client, &format!("{shape}-{run}"), &plan).await?;
            // The first run warms caches and learns durations.
            if run > 0 {
                seconds.push(elapsed);
            }
        }
        let edges = (0..u32::try_from(plan.len())?)
            .map(|task| plan.inputs(task).len() as u64)
            .sum();
        let tasks = plan.len() as u64;
        measurements.push(Measurement {
            shape: shape.to_owned(),
            tasks,
            edges,
            bytes: 0,
            seconds,
        });
    }
    Ok(measurements)
}

/// Waits for the end of a graph; its first failure is the error.
pub(crate) async fn until_done(run: &mut GraphRun) -> Result<(), Failure> {
    loop {
        match run.next_event().await {
            Some(GraphEvent::Done) => return Ok(()),
            Some(GraphEvent::Failed { diagnostic, .. }) => {
                return Err(diagnostic.to_string().into());
            }
            Some(GraphEvent::Refused(error) | GraphEvent::Disconnected(error)) => {
                return Err(error.into());
            }
            Some(_) => {}
            None => return Err("the session ended before the graph".into()),
        }
    }
}

/// Seconds from handing over the graph until the client has all wanted results.
async fn once(client: &Client, name: &str, plan: &GraphPlan) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut run = client.submit(name, plan).await?;
    until_done(&mut run).await?;
    let mut fetched = 0;
    let mut results = run.fetch(plan.outputs().to_vec());
    while let Some((_, result)) = results.next().await {
        result?;
        fetched += 1;
    }
    drop(results);
    if fetched != plan.outputs().len() {
        return Err(format!("{fetched} results of {} came", plan.outputs().len()).into());
    }
    let elapsed = start.elapsed().as_secs_f64();
    run.close().await;
    Ok(elapsed)
}

fn noops(builder: &mut GraphPlanBuilder, prefix: &str, count: usize) -> Result<Vec<u32>, Failure> {
    let noop = Body::new("noop");
    let task = |number| Ok(builder.task(&format!("{prefix}-{number}"), &noop, &[])?);
    (0..count).map(task).collect()
}

/// Tasks that need nothing and do nothing; all results are wanted.
pub(crate) fn independent(count: usize) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("independent");
    noops(&mut builder, "task", count)?;
    Ok(builder.finish()?)
}

fn merge(count: usize) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("merge");
    let tasks = noops(&mut builder, "task", count)?;
    builder.task("merge", &Body::new("noop"), &tasks)?;
    Ok(builder.finish()?)
}

fn tree(leaves: usize) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("tree");
    let noop = Body::new("noop");
    let mut level = noops(&mut builder, "leaf", leaves)?;
    let mut number = 0;
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len() / 2);
        for pair in level.chunks(2) {
            above.push(builder.task(&format!("node-{number}"), &noop, pair)?);
            number += 1;
        }
        level = above;
    }
    Ok(builder.finish()?)
}

fn stencil(width: usize, steps: usize) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("stencil");
    let noop = Body::new("noop");
    let mut before = noops(&mut builder, "step-0", width)?;
    for step in 1..steps {
        let mut row = Vec::with_capacity(width);
        for cell in 0..width {
            let near = &before[cell.saturating_sub(1)..(cell + 2).min(width)];
            row.push(builder.task(&format!("step-{step}-{cell}"), &noop, near)?);
        }
        before = row;
    }
    Ok(builder.finish()?)
}

fn all_to_all(width: usize) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("all-to-all");
    let noop = Body::new("noop");
    let sources = noops(&mut builder, "source", width)?;
    for number in 0..width {
        builder.task(&format!("target-{number}"), &noop, &sources)?;
    }
    Ok(builder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(plan: &GraphPlan) -> usize {
        (0..u32::try_from(plan.len()).unwrap())
            .map(|task| plan.inputs(task).len())
            .sum()
    }

    #[test]
    fn shapes_have_the_tasks_and_edges_that_the_table_names() {
        let plan = tree(1 << 15).unwrap();
        assert_eq!(
            (plan.len(), edges(&plan), plan.outputs().len()),
            (65_535, 65_534, 1)
        );
        let plan = stencil(200, 200).unwrap();
        assert_eq!(
            (plan.len(), edges(&plan), plan.outputs().len()),
            (40_000, 119_002, 200)
        );
        let plan = all_to_all(200).unwrap();
        assert_eq!(
            (plan.len(), edges(&plan), plan.outputs().len()),
            (400, 40_000, 200)
        );
        let plan = merge(10).unwrap();
        assert_eq!(
            (plan.len(), edges(&plan), plan.outputs().len()),
            (11, 10, 1)
        );
        assert_eq!(independent(10).unwrap().outputs().len(), 10);
    }
}

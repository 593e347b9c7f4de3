//! 1 GiB as 16 buffers from one worker to the other.

use std::path::Path;
use std::time::Instant;

use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder, TaskOptions};
use oxidask_client::{Client, GraphEvent};
use oxidask_exec::Body;

use crate::Failure;
use crate::cluster::{Cluster, Shape};
use crate::report::Measurement;

const BUFFERS: u64 = 16;
const BUFFER_BYTES: u64 = 64 << 20;

/// Measures on one cluster.
pub(crate) async fn measure(oxidask: &Path, runs: u32) -> Result<Vec<Measurement>, Failure> {
    let (_cluster, client) = Cluster::start(oxidask, Shape::default()).await?;
    let plan = plan()?;
    let mut seconds = Vec::new();
    for run in 0..=runs {
        let elapsed = once(&client, &format!("transfer-{run}"), &plan).await?;
        // The first run opens the connection.
        if run > 0 {
            seconds.push(elapsed);
        }
    }
    let (shape, bytes) = ("transfer".to_owned(), BUFFERS * BUFFER_BYTES);
    Ok(vec![Measurement {
        shape,
        tasks: BUFFERS + 1,
        edges: BUFFERS,
        bytes,
        seconds,
    }])
}

/// Buffers on the first worker, and one task on the second that takes them all.
fn plan() -> Result<GraphPlan, Failure> {
    let on = |worker: &str| TaskOptions {
        workers: vec![worker.to_owned()],
        ..Default::default()
    };
    let mut builder = GraphPlanBuilder::new("transfer");
    let mut buffers = Vec::new();
    for seed in 0..BUFFERS {
        let body = Body::new("bytes")
            .with("len", BUFFER_BYTES)
            .with("seed", seed);
        let buffer = builder.task_with(&format!("buffer-{seed}"), &body, &[], on("bench-0"))?;
        buffers.push(buffer);
    }
    let take = builder.task_with("take", &Body::new("noop"), &buffers, on("bench-1"))?;
    for buffer in buffers {
        builder.output(buffer);
    }
    builder.output(take);
    Ok(builder.finish()?)
}

/// Seconds from when the last buffer is made until the task that takes all of them is done.
async fn once(client: &Client, name: &str, plan: &GraphPlan) -> Result<f64, Failure> {
    let mut run = client.submit(name, plan).await?;
    let mut ready = 0;
    let mut all_made = None;
    let elapsed = loop {
        match run.next_event().await {
            Some(GraphEvent::Ready(tasks)) => ready += tasks.len() as u64,
            Some(GraphEvent::Failed { diagnostic, .. }) => {
                return Err(diagnostic.to_string().into());
            }
            Some(GraphEvent::Refused(error) | GraphEvent::Disconnected(error)) => {
                return Err(error.into());
            }
            Some(_) => {}
            None => return Err("the session ended before the graph".into()),
        }
        if ready >= BUFFERS {
            let start: Instant = *all_made.get_or_insert_with(Instant::now);
            if ready > BUFFERS {
                break start.elapsed().as_secs_f64();
            }
        }
    };
    run.close().await;
    Ok(elapsed)
}

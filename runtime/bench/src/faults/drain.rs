//! A worker that holds 1 GiB is drained while another has room.

use std::path::Path;
use std::time::{Duration, Instant};

use oxidask_client::Client;
use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder};
use oxidask_exec::Body;
use oxidask_proto::wire::Standing;

use super::Figure;
use crate::Failure;
use crate::cluster::{Cluster, Services, Shape};
use crate::loads::until_done;

const RESULT_BYTES: u64 = 16 << 20;
/// Two workers hold them: 1 GiB each.
const RESULTS: u32 = 128;
const MEMORY_BYTES: u64 = 6 << 30;
const WAIT_MAX: Duration = Duration::from_mins(1);

pub(super) async fn measure(oxidask: &Path, runs: u32) -> Result<Vec<Figure>, Failure> {
    let (mut drained, mut beyond) = (Vec::new(), Vec::new());
    let mut held = 0;
    for _ in 0..runs {
        let outcome = once(oxidask).await?;
        drained.push(outcome.seconds);
        beyond.push(outcome.runs_beyond);
        held = outcome.held_bytes >> 20;
    }
    Ok(vec![
        Figure {
            what: "draining a worker that holds 1 GiB",
            must: "2 s",
            unit: "s",
            values: drained,
            note: format!("it held {held} MiB"),
        },
        Figure {
            what: "the same, tasks computed again",
            must: "0",
            unit: "runs",
            values: beyond,
            note: String::new(),
        },
    ])
}

struct Drained {
    seconds: f64,
    runs_beyond: f64,
    held_bytes: u64,
}

async fn once(oxidask: &Path) -> Result<Drained, Failure> {
    let shape = Shape {
        memory_bytes: Some(MEMORY_BYTES),
        ..Shape::default()
    };
    let services = Services {
        has_journal: true,
        has_http: true,
    };
    let (cluster, client) = Cluster::start_with(oxidask, shape, services).await?;
    let plan = plan()?;
    let mut run = client.submit("held", &plan).await?;
    until_done(&mut run).await?;
    let status = client.status().await?;
    let worker = status.workers.iter().max_by_key(|worker| worker.held_bytes);
    let worker = worker.ok_or("there is no worker")?;
    let start = Instant::now();
    cluster.retire(&worker.name).await?;
    let seconds = until_empty(&client, &worker.name, start).await?;
    let runs = cluster.worker_counters("oxidask_worker_tasks_finished_total")?;
    run.close().await;
    #[allow(clippy::cast_precision_loss, reason = "a count of runs")]
    Ok(Drained {
        seconds,
        runs_beyond: runs as f64 - f64::from(RESULTS),
        held_bytes: worker.held_bytes,
    })
}

fn plan() -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("held");
    for number in 0..RESULTS {
        let body = Body::new("bytes")
            .with("len", RESULT_BYTES)
            .with("seed", number);
        builder.task(&format!("held-{number}"), &body, &[])?;
    }
    Ok(builder.finish()?)
}

async fn until_empty(client: &Client, name: &str, start: Instant) -> Result<f64, Failure> {
    while start.elapsed() < WAIT_MAX {
        let status = client.status().await?;
        let worker = status.workers.iter().find(|worker| worker.name == name);
        if worker.is_none_or(|worker| worker.standing() == Standing::Empty) {
            return Ok(start.elapsed().as_secs_f64());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err(format!("worker `{name}` was not drained in time").into())
}

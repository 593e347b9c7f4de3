//! Large graphs: what the scheduler needs for a task, and ten million tasks to their end.

use std::path::Path;
use std::time::{Duration, Instant};

use oxidask_client::Client;
use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder};
use oxidask_exec::Body;

use super::Figure;
use crate::Failure;
use crate::cluster::{Cluster, Services, Shape};
use crate::loads::{independent, until_done};

const TASKS: u32 = 2_000_000;
const MANY: usize = 10_000_000;
const WAIT_MAX: Duration = Duration::from_mins(10);

pub(super) async fn measure(oxidask: &Path) -> Result<Vec<Figure>, Failure> {
    let plain = bytes_per_task(oxidask, 0).await?;
    let edges = bytes_per_task(oxidask, 3).await?;
    let (seconds, peak_gib) = many(oxidask).await?;
    let one = |what, must, unit, value| Figure {
        what,
        must,
        unit,
        values: vec![value],
        note: String::new(),
    };
    Ok(vec![
        one(
            "scheduler's memory for a task, key bytes aside, no edges",
            "128 B",
            "B",
            plain,
        ),
        one("the same with 3 edges", "192 B", "B", edges),
        one("10,000,000 tasks to the end", "finishes", "s", seconds),
        one(
            "the same, most memory of the scheduler",
            "2 GiB",
            "GiB",
            peak_gib,
        ),
    ])
}

/// Nobody runs them: what waits stays.
async fn bytes_per_task(oxidask: &Path, edges: u32) -> Result<f64, Failure> {
    let shape = Shape {
        workers: 0,
        ..Shape::default()
    };
    let (cluster, client) = Cluster::start_with(oxidask, shape, Services::default()).await?;
    let process = cluster.scheduler_process().ok_or("no scheduler")?;
    let before = resident_bytes(process, "VmRSS:")?;
    let plan = waiting(edges)?;
    let key_bytes: usize = (0..TASKS).map(|task| plan.key(task).len()).sum();
    let run = client.submit("waiting", &plan).await?;
    wait_arrived(&client).await?;
    let after = resident_bytes(process, "VmRSS:")?;
    run.close().await;
    let used = after
        .saturating_sub(before)
        .saturating_sub(key_bytes as u64);
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    Ok(used as f64 / f64::from(TASKS))
}

fn waiting(edges: u32) -> Result<GraphPlan, Failure> {
    let mut builder = GraphPlanBuilder::new("waiting");
    let noop = Body::new("noop");
    for number in 0..TASKS {
        let inputs: Vec<u32> = (0..edges.min(number))
            .map(|back| number - 1 - back)
            .collect();
        builder.task(&format!("task-{number}"), &noop, &inputs)?;
    }
    Ok(builder.finish()?)
}

async fn wait_arrived(client: &Client) -> Result<(), Failure> {
    let start = Instant::now();
    while start.elapsed() < WAIT_MAX {
        let status = client.status().await?;
        if status.graphs.first().map_or(0, |graph| graph.total) == u64::from(TASKS) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("the graph did not arrive".into())
}

/// Seconds and the most memory of the scheduler in GiB.
async fn many(oxidask: &Path) -> Result<(f64, f64), Failure> {
    let services = Services {
        has_journal: true,
        ..Services::default()
    };
    let (cluster, client) = Cluster::start_with(oxidask, Shape::default(), services).await?;
    let process = cluster.scheduler_process().ok_or("no scheduler")?;
    let plan = independent(MANY)?;
    let start = Instant::now();
    let mut run = client.submit("many", &plan).await?;
    tokio::time::timeout(WAIT_MAX, until_done(&mut run)).await??;
    let seconds = start.elapsed().as_secs_f64();
    let peak = resident_bytes(process, "VmHWM:")?;
    run.close().await;
    #[allow(clippy::cast_precision_loss, reason = "a size for people")]
    Ok((seconds, peak as f64 / f64::from(1 << 30)))
}

/// A line of a process's status, in bytes.
fn resident_bytes(process: u32, field: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kibibytes
        .ok_or("the process has no such line")?
        .parse::<u64>()?
        * 1024)
}

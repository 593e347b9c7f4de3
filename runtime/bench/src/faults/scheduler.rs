//! The scheduler is killed when half of a graph of a million tasks is done.

use std::path::Path;
use std::time::{Duration, Instant};

use oxidask_client::GraphRun;
use oxidask_client::{Client, GraphEvent};

use super::Figure;
use crate::Failure;
use crate::cluster::{Cluster, Services, Shape};
use crate::loads::independent;

const TASKS: u32 = 1_000_000;
/// What runs, and what is queued on its way to a report, when the scheduler dies.
const WAIT_MAX: Duration = Duration::from_mins(3);

pub(super) async fn measure(oxidask: &Path, runs: u32) -> Result<Vec<Figure>, Failure> {
    let (mut serving, mut working, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let outcome = once(oxidask).await?;
        serving.push(outcome.serving_seconds);
        working.push(outcome.working_seconds);
        again.push(outcome.runs_beyond);
    }
    Ok(vec![
        Figure {
            what: "scheduler `kill -9`, 1,000,000 tasks half done: start of its process to serving",
            must: "5 s",
            unit: "s",
            values: serving,
            note: String::new(),
        },
        Figure {
            what: "the same, to the next task done",
            must: "5 s",
            unit: "s",
            values: working,
            note: String::new(),
        },
        Figure {
            what: "the same, runs beyond one for each task",
            must: "0",
            unit: "runs",
            values: again,
            note: String::new(),
        },
    ])
}

struct Recovery {
    serving_seconds: f64,
    working_seconds: f64,
    runs_beyond: f64,
}

async fn once(oxidask: &Path) -> Result<Recovery, Failure> {
    let services = Services {
        has_journal: true,
        has_http: true,
    };
    let (mut cluster, client) = Cluster::start_with(oxidask, Shape::default(), services).await?;
    let plan = independent(TASKS as usize)?;
    let mut run = client.submit("half", &plan).await?;
    let half = u64::from(TASKS) / 2;
    wait_done(&mut run, half).await?;
    cluster.kill_scheduler();
    let start = Instant::now();
    cluster.start_scheduler_again()?;
    let serving_seconds = start.elapsed().as_secs_f64();
    let done = done_after(&client, half).await?;
    let working_seconds = start.elapsed().as_secs_f64();
    if done < half {
        return Err(format!("only {done} tasks are done after {half} were").into());
    }
    tokio::time::timeout(WAIT_MAX, crate::loads::until_done(&mut run)).await??;
    let runs = cluster.worker_counters("oxidask_worker_tasks_finished_total")?;
    run.close().await;
    #[allow(clippy::cast_precision_loss, reason = "a count of runs")]
    Ok(Recovery {
        serving_seconds,
        working_seconds,
        runs_beyond: runs as f64 - f64::from(TASKS),
    })
}

async fn wait_done(run: &mut GraphRun, count: u64) -> Result<(), Failure> {
    loop {
        match run.next_event().await {
            Some(GraphEvent::Progress(progress)) => {
                let done: u64 = progress.groups.iter().map(|group| group.done).sum();
                if done >= count {
                    return Ok(());
                }
            }
            Some(GraphEvent::Done) => return Err("the graph was done too early".into()),
            Some(GraphEvent::Disconnected(error)) => return Err(error.into()),
            Some(_) => {}
            None => return Err("the session has ended".into()),
        }
    }
}

/// How many tasks are done as soon as more than so many are, by a scheduler that has just started.
async fn done_after(client: &Client, count: u64) -> Result<u64, Failure> {
    let start = Instant::now();
    let mut first = None;
    while start.elapsed() < WAIT_MAX {
        if let Ok(status) = client.status().await {
            let done = status.graphs.first().map_or(0, |graph| graph.done);
            let at_first = *first.get_or_insert(done);
            if done > at_first || done >= count.saturating_mul(2) {
                return Ok(done);
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err("no task was done after the scheduler's start".into())
}

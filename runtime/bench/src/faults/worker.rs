//! A worker is killed, or stopped so that it says nothing any more: how long until its tasks run
//! elsewhere.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use oxidask_client::graph_file::{GraphPlan, GraphPlanBuilder};
use oxidask_exec::Body;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use super::Figure;
use crate::Failure;
use crate::cluster::{Cluster, Shape};

/// Tasks are long, so that none ends by itself while one is waited for.
const TASK_SECONDS: u32 = 600;
const WORKERS: u32 = 4;
/// One slot of the others is left for what ran on the worker that goes.
const TASKS: u32 = WORKERS - 1;
const WAIT_MAX: Duration = Duration::from_secs(30);

pub(super) async fn measure(oxidask: &Path, runs: u32) -> Result<Vec<Figure>, Failure> {
    let (mut killed, mut silent) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        killed.push(until_elsewhere(oxidask, Signal::KILL).await?);
        silent.push(until_elsewhere(oxidask, Signal::STOP).await?);
    }
    Ok(vec![
        Figure {
            what: "worker `kill -9` to its task running elsewhere",
            must: "0.5 s",
            unit: "s",
            values: killed,
            note: String::new(),
        },
        Figure {
            what: "worker silent (`kill -STOP`) to its task running elsewhere",
            must: "5 s",
            unit: "s",
            values: silent,
            note: String::new(),
        },
    ])
}

async fn until_elsewhere(oxidask: &Path, signal: Signal) -> Result<f64, Failure> {
    let shape = Shape {
        workers: WORKERS,
        ..Shape::default()
    };
    let (cluster, client) = Cluster::start(oxidask, shape).await?;
    let starts = Starts::new()?;
    let run = client.submit("starts", &starts.plan()?).await?;
    let before = starts.wait(TASKS as usize, Instant::now()).await?;
    let victim = before.first().ok_or("no task has started")?.worker;
    let process = i32::try_from(victim).ok().and_then(Pid::from_raw);
    let began = micros_now();
    kill_process(process.ok_or("the worker has no process")?, signal)?;
    let after = starts.wait(TASKS as usize + 1, Instant::now()).await?;
    drop(run);
    drop(cluster);
    let again = after.iter().map(|start| start.micros).max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "microseconds of a short time")]
    Ok(again.saturating_sub(began) as f64 / 1e6)
}

fn micros_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// A file to which each task appends a line when it starts.
struct Starts {
    folder: TempDir,
}

/// One task has started.
struct Start {
    micros: u64,
    /// The process of its worker.
    worker: u32,
}

impl Starts {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            folder: tempfile::tempdir()?,
        })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("starts")
    }

    /// Time and parent go to the file in one write.
    fn plan(&self) -> Result<GraphPlan, Failure> {
        let script = format!(
            "echo $(date +%s%6N) $PPID >> {}; exec sleep {TASK_SECONDS}",
            self.file().display()
        );
        let body = Body::new("exec").with("command", json!(["sh", "-c", script]));
        let mut builder = GraphPlanBuilder::new("starts");
        for number in 0..TASKS {
            builder.task(&format!("task-{number}"), &body, &[])?;
        }
        Ok(builder.finish()?)
    }

    async fn wait(&self, count: usize, since: Instant) -> Result<Vec<Start>, Failure> {
        loop {
            let starts = self.read();
            if starts.len() >= count {
                return Ok(starts);
            }
            if since.elapsed() > WAIT_MAX {
                return Err(format!("{} tasks have started, not {count}", starts.len()).into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn read(&self) -> Vec<Start> {
        let text = std::fs::read_to_string(self.file()).unwrap_or_default();
        let start = |line: &str| {
            let (micros, worker) = line.split_once(' ')?;
            Some(Start {
                micros: micros.parse().ok()?,
                worker: worker.parse().ok()?,
            })
        };
        text.lines().filter_map(start).collect()
    }
}

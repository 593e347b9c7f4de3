//! Two thousand workers on one scheduler, each with a stream and a TLS connection of its own.
//!
//! The workers are the product's own, many in this process: as processes they would need more memory
//! than the machine has.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxidask_client::Client;
use oxidask_exec::Builtin;
use oxidask_identity::Role;
use oxidask_logbook::Logbook;
use oxidask_worker::{Listeners, MemoryThresholds, WorkerConfig, serve};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Figure;
use crate::Failure;
use crate::cluster::{Cluster, Services, Shape};
use crate::loads::{independent, until_done};

const WORKERS: usize = 2_000;
/// Begun at once; each handshake takes some milliseconds of both sides.
const JOINING_MAX: usize = 50;
const TASKS: usize = 200_000;
/// Rounds of work, with a pause between them in which only beats come.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);
const JOIN_MAX: Duration = Duration::from_mins(3);
const WORKER_MEMORY_BYTES: u64 = 64 << 20;
const LAG: &str = "oxidask_scheduler_loop_lag_seconds_bucket{le=\"";

pub(super) async fn measure(oxidask: &Path) -> Result<Vec<Figure>, Failure> {
    allow_many_files()?;
    let shape = Shape {
        workers: 0,
        ..Shape::default()
    };
    let services = Services {
        has_journal: true,
        has_http: true,
    };
    let (cluster, client) = Cluster::start_with(oxidask, shape, services).await?;
    let scratch = tempfile::tempdir()?;
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    let start = Instant::now();
    for number in 0..WORKERS {
        let joined = number.saturating_sub(JOINING_MAX);
        wait_joined(&client, joined, start).await?;
        let config = config(&cluster, number, scratch.path()).await?;
        tokio::spawn(serve(config.0, config.1, shutdown.clone()));
    }
    wait_joined(&client, WORKERS, start).await?;
    let joining = start.elapsed().as_secs_f64();
    let plan = independent(TASKS)?;
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        tokio::time::sleep(PAUSE).await;
        let start = Instant::now();
        let mut run = client.submit(&format!("round-{round}"), &plan).await?;
        until_done(&mut run).await?;
        #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
        rates.push(TASKS as f64 / start.elapsed().as_secs_f64());
        run.close().await;
    }
    wait_joined(&client, WORKERS, Instant::now()).await?;
    let lag = lag_p99(&cluster.scheduler_metrics()?).ok_or("the scheduler names no loop lag")?;
    Ok(vec![
        Figure {
            what: "2,000 worker streams: loop lag, 99 of 100 inputs wait at most",
            must: "0.050 s",
            unit: "s",
            values: vec![lag],
            note: format!("all joined within {joining:.1} s"),
        },
        Figure {
            what: "2,000 worker streams: `noop` tasks a second",
            must: "works",
            unit: "/s",
            values: rates,
            note: "workers and client share the machine's two cores".to_owned(),
        },
    ])
}

async fn wait_joined(client: &Client, count: usize, since: Instant) -> Result<(), Failure> {
    loop {
        let joined = client.status().await?.workers.len();
        if joined >= count {
            return Ok(());
        }
        if since.elapsed() > JOIN_MAX {
            return Err(format!("{joined} workers have joined, not {count}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn config(
    cluster: &Cluster,
    number: usize,
    scratch: &Path,
) -> Result<(WorkerConfig, Listeners), Failure> {
    let data = TcpListener::bind("127.0.0.1:0").await?;
    let name = format!("crowd-{number}");
    let config = WorkerConfig {
        scheduler_address: cluster.address().to_owned(),
        group: "default".to_owned(),
        pod_uid: String::new(),
        node: String::new(),
        slots: 1,
        resources: Vec::new(),
        memory_bytes: WORKER_MEMORY_BYTES,
        // What is measured is the scheduler: nobody has to look at this process's memory.
        memory_thresholds: MemoryThresholds::OFF,
        system_dir: "/".into(),
        logbook: Arc::new(Logbook::default()),
        advertise_address: data.local_addr()?.to_string(),
        reconnect_time: Duration::from_secs(10),
        base_dir: scratch.to_owned(),
        scratch_dir: scratch.join(&name),
        spill_dir: None,
        spill_bytes_max: 0,
        compute: Handle::current(),
        credentials: cluster.credentials(Role::Worker)?,
        executors: vec![Arc::new(Builtin::new())],
        name,
    };
    Ok((config, Listeners { data, http: None }))
}

/// The upper end of the interval in which the 99th of 100 inputs lies.
fn lag_p99(metrics: &str) -> Option<f64> {
    let buckets: Vec<(f64, f64)> = metrics
        .lines()
        .filter_map(|line| {
            let (bound, count) = line.strip_prefix(LAG)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" {
                f64::INFINITY
            } else {
                bound.parse().ok()?
            };
            let count = count.split_whitespace().next()?.parse().ok()?;
            Some((bound, count))
        })
        .collect();
    let all = buckets.last()?.1;
    let found = buckets.iter().find(|(_, count)| *count >= all * 0.99);
    found.map(|(bound, _)| *bound)
}

fn allow_many_files() -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_the_bound_of_its_interval() {
        let metrics =
            format!("{LAG}0.001\"}} 10\n{LAG}0.01\"}} 990\n{LAG}0.1\"}} 999\n{LAG}+Inf\"}} 1000\n");
        assert_eq!(lag_p99(&metrics), Some(0.01));
        assert_eq!(lag_p99("nothing"), None);
    }
}

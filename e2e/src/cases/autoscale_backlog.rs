//! A cluster that follows its backlog: from no worker to eight and back.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::scheduler_pod_deleted::submit;
use crate::dask::{Sleeps, start_cluster_with, wait_workers};
use crate::process::failure;
use crate::submission::{attempts, check_once};

pub(crate) const CASE: Case = Case {
    name: "autoscale_backlog",
    about: "400 sleeping tasks: 8 pods asked for within 1 s, back to none, no task runs twice",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 400,
    seconds: 0.5,
};
const MAXIMUM: usize = 8;
/// From the backlog to the last pod. The clock starts before the program that submits does.
const ASKED_WITHIN: Duration = Duration::from_secs(1);
const WORKERS: &str = "dask.org/cluster-name=c,dask.org/component=worker";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let autoscale = json!({"worker": {"autoscale": {"minimum": 0, "maximum": MAXIMUM}}});
    start_cluster_with(kubectl, "c", 0, autoscale)?;
    wait_workers(kubectl, "c", 0)?;
    let watch = kubectl.watch("pods", WORKERS)?;
    let begin = Instant::now();
    let rows = std::thread::scope(|scope| {
        let submitting = scope.spawn(|| submit(context, kubectl, "c", WORK));
        let grown = wait_workers(kubectl, "c", MAXIMUM);
        let rows = submitting.join();
        grown?;
        rows.unwrap_or_else(|_| Err(failure("submitting panicked")))
    })?;
    WORK.check(&rows)?;
    wait_workers(kubectl, "c", 0)?;
    check_once(kubectl, "c", WORK)?;
    let asked: Vec<Duration> = watch
        .seen()
        .iter()
        .map(|(seen, _)| seen.saturating_duration_since(begin))
        .collect();
    let in_time = asked.iter().filter(|after| **after <= ASKED_WITHIN).count();
    if asked.len() == MAXIMUM && in_time == MAXIMUM {
        return Ok(());
    }
    Err(failure(format!(
        "{} workers in all, {in_time} of them asked for in time: {asked:?}; {} attempts",
        asked.len(),
        attempts(kubectl, "c")?
    )))
}

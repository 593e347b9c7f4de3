//! A node is cut off for a few seconds while 10,000 tasks run.

use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{MANY, name, schedulers, start_cluster, uid, workers};
use crate::link::Cut;
use crate::process::failure;
use crate::submission::Submission;

pub(crate) const CASE: Case = Case {
    name: "link_cut",
    about: "its worker comes back with what it has; only what was with it may have run twice",
    run,
};

/// Longer than it takes to run a silent worker's tasks elsewhere, shorter than it is waited for.
const CUT: Duration = Duration::from_secs(6);
/// Tasks that are with a worker of one thread at a time: one that runs, and a short queue with which
/// it goes on alone.
const TASKS_THERE_MAX: u64 = 8;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let before = workers(kubectl, "c")?;
    let schedulers = schedulers(kubectl, "c")?;
    let near = schedulers.first().map(node).unwrap_or_default();
    let far = before
        .iter()
        .map(node)
        .find(|node| *node != near)
        .ok_or_else(|| failure("both workers are on the scheduler's node"))?;
    let work = Submission::start(kubectl, "c", MANY, Some(near))?;
    work.wait_done(1_000)?;
    let cut = Cut::new(&context.settings, far)?;
    std::thread::sleep(CUT);
    cut.restore()?;
    work.finish()?;
    let after = workers(kubectl, "c")?;
    if before.iter().map(uid).ne(after.iter().map(uid)) {
        return Err(failure("the workers' pods are not the same any more"));
    }
    let (runs, tasks) = (work.runs()?, work.tasks());
    if !(tasks..=tasks + TASKS_THERE_MAX).contains(&runs) {
        let names: Vec<&str> = after.iter().map(name).collect();
        return Err(failure(format!(
            "{tasks} tasks ran {runs} times in all, on {names:?}"
        )));
    }
    Ok(())
}

fn node(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

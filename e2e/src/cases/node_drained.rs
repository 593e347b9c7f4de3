//! `kubectl drain` of a worker's node while 10,000 tasks run.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{MANY, name, start_cluster, uid, wait_workers, workers};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::submission::Submission;

pub(crate) const CASE: Case = Case {
    name: "node_drained",
    about: "its worker hands over what it holds, another one comes, and nothing runs twice",
    run,
};

const DRAIN_SECONDS_MAX: u64 = 90;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let before = workers(kubectl, "c")?;
    let worker = before.first().ok_or_else(|| failure("no worker"))?;
    let node = worker["spec"]["nodeName"].as_str().unwrap_or_default();
    let work = Submission::start(kubectl, "c", MANY, None)?;
    work.wait_done(1_000)?;
    let cordon = Cordon { kubectl, node };
    let drain = [
        "drain",
        node,
        "--force",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        // What else is on the node is not ours to move.
        "--pod-selector=dask.org/cluster-name=c,dask.org/component=worker",
    ];
    kubectl.run_long(&drain, DRAIN_SECONDS_MAX)?;
    let after = wait_workers(kubectl, "c", 2)?;
    if after.iter().any(|pod| uid(pod) == uid(worker)) {
        return Err(failure(format!("{} is still there", name(worker))));
    }
    work.finish()?;
    drop(cordon);
    let recomputed = work.recomputed()?;
    if recomputed != 0 {
        return Err(failure(format!("{recomputed} tasks were computed again")));
    }
    Ok(())
}

/// A node that takes no new pods. Takes them again when this is dropped.
struct Cordon<'a> {
    kubectl: &'a Kubectl,
    node: &'a str,
}

impl Drop for Cordon<'_> {
    fn drop(&mut self) {
        // A later case that misses the node says so.
        let _ = self.kubectl.run(&["uncordon", self.node]);
    }
}

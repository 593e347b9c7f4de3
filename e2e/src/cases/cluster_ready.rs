//! A cluster becomes Ready, with its workers on both nodes.

use std::collections::BTreeSet;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{has, start_cluster, wait_workers};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "cluster_ready",
    about: "kubectl apply and kubectl wait; conditions and counts are true; workers on all nodes",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let cluster = kubectl.get("daskcluster/c")?;
    let status = &cluster["status"];
    for (condition, wanted) in [
        ("Ready", "True"),
        ("SchedulerReady", "True"),
        ("WorkersReady", "True"),
        ("Reconciling", "False"),
        ("Stalled", "False"),
    ] {
        if !has(&cluster, condition, wanted) {
            return Err(failure(format!("{condition} is not {wanted}: {status}")));
        }
    }
    let is_right = status["readyReplicas"] == 2
        && status["replicas"] == 2
        && status["phase"] == "Running"
        && status["observedGeneration"] == cluster["metadata"]["generation"];
    if !is_right {
        return Err(failure(format!("not a status of two workers: {status}")));
    }
    // Ready must not be said too early: nothing is waited for here.
    let workers = wait_workers(kubectl, "c", 2)?;
    let used: BTreeSet<&str> = workers
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    let nodes = kubectl.list("nodes", "")?;
    if used.len() < nodes.len().min(2) {
        return Err(failure(format!("the workers are all on {used:?}")));
    }
    Ok(())
}

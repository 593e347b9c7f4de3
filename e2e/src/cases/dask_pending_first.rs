//! Scale-down with pods that no node takes. dask-kubernetes retires running workers first.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::process::failure;
use crate::stock::{
    deployments, expect_held, hold, manifest, scale, start, wait_deployments, worker_spec,
};
use serde_json::json;

pub(crate) const CASE: Case = Case {
    name: "dask_pending_first",
    about: "workers that wait for a node go before workers that hold data",
    run,
};

const SCALED_SECONDS_MAX: u64 = 60;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 1)?;
    let running = deployments(kubectl, "c-default")?;
    hold(
        kubectl,
        running.first().ok_or_else(|| failure("no worker"))?,
        "unique",
    )?;
    // A roll to pods that no node takes stops after the first one, and keeps the old worker.
    let mut worker = worker_spec(1);
    worker["nodeSelector"] = json!({"no-node": "has-this"});
    let patch = json!({"spec": {"worker": worker}}).to_string();
    kubectl.run(&["patch", "daskcluster", "c", "--type=merge", "-p", &patch])?;
    wait_deployments(kubectl, "c-default", 2, SCALED_SECONDS_MAX)?;
    let spec = json!({"cluster": "c", "worker": worker});
    kubectl.apply(&manifest("DaskWorkerGroup", "c-other", &spec))?;
    scale(kubectl, "c-other", 3)?;
    wait_deployments(kubectl, "c-other", 3, SCALED_SECONDS_MAX)?;
    scale(kubectl, "c-other", 0)?;
    wait_deployments(kubectl, "c-other", 0, SCALED_SECONDS_MAX)?;
    let after = deployments(kubectl, "c-default")?;
    if !running.iter().all(|worker| after.contains(worker)) {
        return Err(failure(format!("{running:?} became {after:?}")));
    }
    expect_held(kubectl, "unique")
}

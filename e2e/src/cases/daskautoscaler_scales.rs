//! A `DaskAutoscaler` for a cluster that has no bounds of its own.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    API_VERSION, READY_SECONDS_MAX, Sleeps, group_replicas, has, start_cluster, wait_workers,
};
use crate::process::failure;
use crate::submission::Submission;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "daskautoscaler_scales",
    about: "a DaskAutoscaler grows the group and shrinks it to its minimum; its status says why",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 80,
    seconds: 0.5,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    let autoscaler = json!({
        "apiVersion": API_VERSION, "kind": "DaskAutoscaler", "metadata": {"name": "a"},
        "spec": {"cluster": "c", "minimum": 1, "maximum": 4},
    });
    kubectl.apply(&autoscaler.to_string())?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    wait_workers(kubectl, "c", 4)?;
    work.finish()?;
    wait_workers(kubectl, "c", 1)?;
    work.check_once()?;
    // The decision is written to the group that the operator made, never to the user's object.
    let replicas = group_replicas(kubectl, "c-default")?;
    let cluster = kubectl.get("daskcluster/c")?;
    if replicas != 1 || cluster["spec"]["worker"]["replicas"] != 1 {
        return Err(failure(format!(
            "group {replicas}, cluster {}",
            cluster["spec"]["worker"]["replicas"]
        )));
    }
    until("the autoscaler to be Ready", READY_SECONDS_MAX, || {
        let autoscaler = kubectl.get("daskautoscaler/a")?;
        let status = &autoscaler["status"];
        let has_decision = status["desired"] == 1 && status["reason"].is_string();
        done_if(
            has_decision && has(&autoscaler, "Ready", "True"),
            status.to_string(),
        )
    })
}

//! A cluster without pods, for a while.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::scheduler_pod_deleted::submit;
use crate::dask::{
    GONE_SECONDS_MAX, Sleeps, start_cluster, wait_condition, wait_ready, wait_workers,
};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "cluster_suspend",
    about: "suspend removes the pods and keeps the object; without it the cluster works again",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 4,
    seconds: 0.1,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    suspend(kubectl, true)?;
    wait_condition(
        kubectl,
        "daskcluster/c",
        "Suspended",
        "True",
        GONE_SECONDS_MAX,
    )?;
    until("all pods to be gone", GONE_SECONDS_MAX, || {
        let pods = kubectl.list("pods", "")?.len();
        done_if(pods == 0, format!("{pods} pods"))
    })?;
    let cluster = kubectl.get("daskcluster/c")?;
    if cluster["spec"]["worker"]["replicas"] != 2 {
        return Err(failure(format!("changed: {}", cluster["spec"])));
    }
    suspend(kubectl, false)?;
    wait_workers(kubectl, "c", 2)?;
    wait_ready(kubectl, "c")?;
    WORK.check(&submit(context, kubectl, "c", WORK)?)
}

fn suspend(kubectl: &Kubectl, is_suspended: bool) -> Outcome {
    let patch = json!({"spec": {"suspend": is_suspended}});
    kubectl.patch("daskcluster/c", &patch).map(drop)
}

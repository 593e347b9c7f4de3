//! A job that waits to be let go, is stopped, and starts afresh.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, GONE_SECONDS_MAX, JOB_SECONDS_MAX, job_with, rows, runner_log, wait_busy,
    wait_condition, wait_job,
};
use crate::kubectl::Kubectl;
use crate::wait::{done_if, stays, until};

pub(crate) const CASE: Case = Case {
    name: "job_suspend_resume",
    about: "suspend: no pod before, none after; then it starts afresh and gives the right result",
    run,
};

const STAYS_SECONDS: u64 = 4;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({"graph": A_WHILE.graph(), "suspend": true});
    kubectl.apply(&job_with("j", 2, fields))?;
    wait_condition(kubectl, "daskjob/j", "Suspended", "True", GONE_SECONDS_MAX)?;
    stays("without pods", STAYS_SECONDS, || {
        let pods = kubectl.list("pods", "")?.len();
        done_if(pods == 0, format!("{pods} pods"))
    })?;
    suspend(kubectl, false)?;
    wait_busy(kubectl, "j")?;
    suspend(kubectl, true)?;
    until("all pods to be gone", GONE_SECONDS_MAX, || {
        let pods = kubectl.list("pods", "")?.len();
        let cluster = kubectl.find("daskcluster/j")?.is_some();
        done_if(
            pods == 0 && !cluster,
            format!("{pods} pods, a cluster: {cluster}"),
        )
    })?;
    wait_condition(kubectl, "daskjob/j", "Suspended", "True", GONE_SECONDS_MAX)?;
    suspend(kubectl, false)?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    A_WHILE.check(&rows(&runner_log(kubectl, "j")?)?)
}

fn suspend(kubectl: &Kubectl, is_suspended: bool) -> Outcome {
    let patch = json!({"spec": {"suspend": is_suspended}});
    kubectl.patch("daskjob/j", &patch).map(drop)
}

//! A failed job whose cluster stays to be looked at.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    GONE_SECONDS_MAX, JOB_SECONDS_MAX, failing, job_with, wait_gone, wait_job, wait_workers,
};
use crate::wait::{done_if, stays};

pub(crate) const CASE: Case = Case {
    name: "job_keep_on_failure",
    about: "the cluster of a failed job stays when it is asked to, and goes with the job",
    run,
};

const STAYS_SECONDS: u64 = 8;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({"graph": failing(), "keepCluster": "OnFailure"});
    kubectl.apply(&job_with("j", 1, fields))?;
    wait_job(kubectl, "j", "Failed", JOB_SECONDS_MAX)?;
    stays("with its cluster", STAYS_SECONDS, || {
        let cluster = kubectl.find("daskcluster/j")?;
        let is_there = cluster.is_some_and(|it| it["metadata"]["deletionTimestamp"].is_null());
        done_if(is_there, "no cluster")
    })?;
    wait_workers(kubectl, "j", 1)?;
    kubectl.run(&["delete", "daskjob", "j"])?;
    wait_gone(kubectl, "daskcluster/j", GONE_SECONDS_MAX)
}

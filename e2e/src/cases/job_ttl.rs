//! A job that is deleted some time after its end.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::cluster_deletion::wait_nothing_added;
use crate::dask::{JOB_SECONDS_MAX, check_quick, job_with, quick, wait_gone, wait_job};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "job_ttl",
    about: "ttlSecondsAfterFinished: the job goes with all that belongs to it, not before its time",
    run,
};

const TTL_SECONDS: u64 = 8;
const GONE_SECONDS_MAX: u64 = 40;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let before = kubectl.everything()?;
    let fields = json!({"graph": quick(), "ttlSecondsAfterFinished": TTL_SECONDS});
    kubectl.apply(&job_with("j", 1, fields))?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    check_quick(kubectl, "j")?;
    if kubectl.find("daskjob/j")?.is_none() {
        return Err(failure("the job went too early"));
    }
    wait_gone(kubectl, "daskjob/j", GONE_SECONDS_MAX)?;
    wait_nothing_added(kubectl, &before)
}

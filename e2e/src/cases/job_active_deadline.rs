//! A job that takes longer than it may.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    A_WHILE, GONE_SECONDS_MAX, find_condition, job_with, rows, runner_log, wait_gone, wait_job,
};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "job_active_deadline",
    about: "activeDeadlineSeconds: Failed with DeadlineExceeded, and the cluster is gone",
    run,
};

const DEADLINE_SECONDS: u64 = 10;
const ENDS_SECONDS_MAX: u64 = 40;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({"graph": A_WHILE.graph(), "activeDeadlineSeconds": DEADLINE_SECONDS});
    kubectl.apply(&job_with("j", 1, fields))?;
    wait_job(kubectl, "j", "Failed", ENDS_SECONDS_MAX)?;
    let job = kubectl.get("daskjob/j")?;
    let failed = find_condition(&job, "Failed").map(ToString::to_string);
    if !failed.is_some_and(|text| text.contains("DeadlineExceeded")) {
        return Err(failure(format!("not the deadline: {}", job["status"])));
    }
    // The work is not done, so nothing has printed its end.
    let log = runner_log(kubectl, "j").unwrap_or_default();
    if !rows(&log)?.is_empty() {
        return Err(failure(format!("the work was done:\n{log}")));
    }
    wait_gone(kubectl, "daskcluster/j", GONE_SECONDS_MAX)
}

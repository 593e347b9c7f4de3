//! Work that fails is started again as often as the job allows.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    JOB_SECONDS_MAX, failing, find_condition, job_with, runner_log, wait_job, wait_only_job_left,
};
use crate::process::failure;

pub(crate) const CASE: Case = Case {
    name: "job_backoff_limit",
    about: "backoffLimit: failed work starts afresh, and Failed says how often it was tried",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({"graph": failing(), "backoffLimit": 1});
    kubectl.apply(&job_with("j", 1, fields))?;
    wait_job(kubectl, "j", "Failed", JOB_SECONDS_MAX)?;
    let log = runner_log(kubectl, "j")?;
    if !log.contains("this task fails on purpose") {
        return Err(failure(format!("the log does not say what failed:\n{log}")));
    }
    let job = kubectl.get("daskjob/j")?;
    let failed = find_condition(&job, "Failed").map(ToString::to_string);
    let is_limit = failed.is_some_and(|text| text.contains("attempt 2 of 2"));
    if !is_limit || job["status"]["attempts"] != 2 {
        return Err(failure(format!(
            "not the limit after 2 attempts: {}",
            job["status"]
        )));
    }
    wait_only_job_left(kubectl, "j")
}

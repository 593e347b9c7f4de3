//! A job whose workers' image cannot be had.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::rolling_update::BAD_IMAGE;
use crate::dask::{
    GONE_SECONDS_MAX, READY_SECONDS_MAX, find_condition, job_with, quick, wait_gone, wait_job,
    wait_said, workers,
};
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "job_image_pull_error",
    about: "an image that cannot be pulled is said soon, and ends the job by its deadline",
    run,
};

/// Counted from when the kubelet says so in the pod's status, some seconds after it has failed.
const SAID_SECONDS_MAX: u64 = 10;
const DEADLINE_SECONDS: u64 = 45;
const ENDS_SECONDS_MAX: u64 = 90;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({
        "cluster": {"spec": {"worker": {"image": BAD_IMAGE}}},
        "graph": quick(),
        "activeDeadlineSeconds": DEADLINE_SECONDS,
    });
    kubectl.apply(&job_with("j", 1, fields))?;
    until("a pod whose image is missing", READY_SECONDS_MAX, || {
        let workers = workers(kubectl, "j")?;
        let is_missing = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            let reason = container["state"]["waiting"]["reason"].as_str();
            matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
        };
        done_if(workers.iter().any(is_missing), "no such worker")
    })?;
    let words: &[&[&str]] = &[&[BAD_IMAGE], &["ErrImagePull", "ImagePullBackOff", "pull"]];
    wait_said(kubectl, "daskjob/j", words, SAID_SECONDS_MAX)?;
    wait_job(kubectl, "j", "Failed", ENDS_SECONDS_MAX)?;
    let job = kubectl.get("daskjob/j")?;
    let failed = find_condition(&job, "Failed").map(ToString::to_string);
    if !failed.is_some_and(|text| text.contains(BAD_IMAGE)) {
        return Err(failure(format!(
            "the end does not say why: {}",
            job["status"]
        )));
    }
    wait_gone(kubectl, "daskcluster/j", GONE_SECONDS_MAX)
}

//! A quota that has no room for a job's workers.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{JOB_SECONDS_MAX, check_quick, job_with, quick, wait_job, wait_said};

pub(crate) const CASE: Case = Case {
    name: "job_quota",
    about: "a quota without room is said within 10 s; the runner is not starved; more room helps",
    run,
};

/// The runner and the scheduler.
const PODS: u32 = 2;
/// From the manifest to the words; the pods before the refused ones come meanwhile.
const SAID_SECONDS_MAX: u64 = 15;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
        "spec": {"hard": {"pods": PODS.to_string()}},
    });
    kubectl.apply(&quota.to_string())?;
    kubectl.apply(&job_with("j", 2, json!({"graph": quick()})))?;
    let words: &[&[&str]] = &[&["exceeded quota"], &["few"]];
    wait_said(kubectl, "daskjob/j", words, SAID_SECONDS_MAX)?;
    kubectl.get("pod/j-runner")?;
    kubectl.patch(
        "resourcequota/few",
        &json!({"spec": {"hard": {"pods": "9"}}}),
    )?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    check_quick(kubectl, "j")
}

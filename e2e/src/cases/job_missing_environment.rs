//! A job whose workers take their environment from a `ConfigMap` that comes later.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    JOB_SECONDS_MAX, READY_SECONDS_MAX, check_quick, job_with, quick, wait_job, wait_said, workers,
};
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "job_missing_environment",
    about: "a ConfigMap that workers lack is said within 10 s; the job goes on when it comes",
    run,
};

const SAID_SECONDS_MAX: u64 = 10;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let environment = json!([{"configMapRef": {"name": "late"}}]);
    let fields = json!({
        "cluster": {"spec": {"worker": {"envFrom": environment}}},
        "graph": quick(),
    });
    kubectl.apply(&job_with("j", 1, fields))?;
    until("a worker's pod", READY_SECONDS_MAX, || {
        done_if(!workers(kubectl, "j")?.is_empty(), "none")
    })?;
    let words: &[&[&str]] = &[&["late"], &["not found"]];
    wait_said(kubectl, "daskjob/j", words, SAID_SECONDS_MAX)?;
    kubectl.run(&["create", "configmap", "late", "--from-literal=A=b"])?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    check_quick(kubectl, "j")
}

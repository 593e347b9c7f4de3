//! A job whose workers fit on no node.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{READY_SECONDS_MAX, job_with, quick, wait_said, workers};
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "job_unschedulable",
    about: "a worker that fits on no node is said within 10 s, in the scheduler's words",
    run,
};

const SAID_SECONDS_MAX: u64 = 10;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let fields = json!({
        "cluster": {"spec": {"worker": {"nodeSelector": {"oxidask.dev/nowhere": "yes"}}}},
        "graph": quick(),
    });
    kubectl.apply(&job_with("j", 1, fields))?;
    until("a worker's pod", READY_SECONDS_MAX, || {
        done_if(!workers(kubectl, "j")?.is_empty(), "none")
    })?;
    let words: &[&[&str]] = &[&["nodes are available", "unschedulable", "Unschedulable"]];
    wait_said(kubectl, "daskjob/j", words, SAID_SECONDS_MAX)
}

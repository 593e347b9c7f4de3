//! An autoscaler that only says what it would do.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{READY_SECONDS_MAX, Sleeps, group_replicas, start_cluster_with, workers};
use crate::process::failure;
use crate::submission::Submission;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "recommend_only",
    about: "recommendOnly: the status says how many workers there should be; there are no more",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 40,
    seconds: 0.5,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let autoscale = json!({"minimum": 1, "maximum": 4, "recommendOnly": true});
    start_cluster_with(kubectl, "c", 1, json!({"worker": {"autoscale": autoscale}}))?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    until(
        "a recommendation of more workers",
        READY_SECONDS_MAX,
        || {
            let status = kubectl.get("daskworkergroup/c-default")?["status"].take();
            let wanted = status["scaling"]["recommendation"].as_u64();
            done_if(wanted > Some(1), status.to_string())
        },
    )?;
    work.finish()?;
    let (asked, there) = (
        group_replicas(kubectl, "c-default")?,
        workers(kubectl, "c")?.len(),
    );
    if asked != 1 || there != 1 {
        return Err(failure(format!("{asked} workers asked for, {there} there")));
    }
    work.check_once()
}

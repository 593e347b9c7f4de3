//! A cluster that is deleted when nobody needs it.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{GONE_SECONDS_MAX, Sleeps, start_cluster_with, wait_gone};
use crate::process::failure;
use crate::submission::Submission;

pub(crate) const CASE: Case = Case {
    name: "idle_timeout",
    about: "idleTimeout: a cluster at work stays, an idle one goes",
    run,
};

const IDLE_SECONDS: u64 = 8;
/// Longer than that.
const WORK: Sleeps = Sleeps {
    tasks: 12,
    seconds: 1.0,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster_with(kubectl, "c", 1, json!({"idleTimeout": IDLE_SECONDS}))?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.finish()?;
    let cluster = kubectl.get("daskcluster/c")?;
    if !cluster["metadata"]["deletionTimestamp"].is_null() {
        return Err(failure("it was deleted while it worked"));
    }
    wait_gone(kubectl, "daskcluster/c", GONE_SECONDS_MAX)
}

//! A group of workers is deleted while they hold what nobody else has.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    API_VERSION, GONE_SECONDS_MAX, Sleeps, start_cluster, wait_gone, wait_workers, worker,
};
use crate::submission::Submission;

pub(crate) const CASE: Case = Case {
    name: "worker_group_deleted",
    about: "its workers are drained first: nothing is computed again, nothing runs twice",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 60,
    seconds: 0.5,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    let group = json!({
        "apiVersion": API_VERSION, "kind": "DaskWorkerGroup", "metadata": {"name": "c-more"},
        "spec": {"cluster": "c", "worker": Value::clone(&worker(2))},
    });
    kubectl.apply(&group.to_string())?;
    wait_workers(kubectl, "c", 3)?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(20)?;
    kubectl.run(&["delete", "daskworkergroup", "c-more", "--wait=false"])?;
    wait_gone(kubectl, "daskworkergroup/c-more", GONE_SECONDS_MAX)?;
    wait_workers(kubectl, "c", 1)?;
    work.finish()?;
    work.check_once()
}

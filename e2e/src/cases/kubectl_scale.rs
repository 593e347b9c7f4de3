//! `kubectl scale` of a cluster and of a group while they work.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{Sleeps, start_cluster, wait_ready, wait_workers};
use crate::submission::Submission;

pub(crate) const CASE: Case = Case {
    name: "kubectl_scale",
    about: "kubectl scale of cluster and group in the middle of work: nothing runs twice",
    run,
};

const WORK: Sleeps = Sleeps {
    tasks: 150,
    seconds: 0.5,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 2)?;
    let work = Submission::start(kubectl, "c", WORK, None)?;
    work.wait_done(20)?;
    for (object, count) in [
        ("daskcluster/c", 4),
        ("daskcluster/c", 1),
        ("daskworkergroup/c-default", 3),
        ("daskworkergroup/c-default", 2),
    ] {
        kubectl.run(&["scale", object, &format!("--replicas={count}")])?;
        // A worker that goes hands over what only it holds.
        wait_workers(kubectl, "c", count)?;
    }
    work.finish()?;
    work.check_once()?;
    wait_ready(kubectl, "c")
}

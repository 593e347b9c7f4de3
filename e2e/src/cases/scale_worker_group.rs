//! `kubectl scale` of a worker group.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{start_cluster, wait_ready, wait_workers, workers};
use crate::wait::{done_if, stays};

pub(crate) const CASE: Case = Case {
    name: "scale_worker_group",
    about: "kubectl scale daskworkergroup up, down and to none; the operator does not undo it",
    run,
};

const STAYS_SECONDS: u64 = 5;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    for count in [3, 1] {
        let replicas = format!("--replicas={count}");
        kubectl.run(&["scale", "daskworkergroup", "c-default", &replicas])?;
        wait_workers(kubectl, "c", count)?;
        stays("as scaled", STAYS_SECONDS, || {
            let workers = workers(kubectl, "c")?.len();
            done_if(workers == count, format!("{workers} workers"))
        })?;
        wait_ready(kubectl, "c")?;
    }
    kubectl.run(&["scale", "daskworkergroup", "c-default", "--replicas=0"])?;
    wait_workers(kubectl, "c", 0).map(drop)
}

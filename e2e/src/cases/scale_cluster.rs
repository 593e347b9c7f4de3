//! `kubectl scale` of a cluster.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{READY_SECONDS_MAX, has, start_cluster, wait_workers};
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "scale_cluster",
    about: "kubectl scale daskcluster up and down; the status follows",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start_cluster(kubectl, "c", 1)?;
    for count in [3, 2] {
        let replicas = format!("--replicas={count}");
        kubectl.run(&["scale", "daskcluster", "c", &replicas])?;
        wait_workers(kubectl, "c", count)?;
        let what = format!("the status to say {count} ready workers");
        until(&what, READY_SECONDS_MAX, || {
            let cluster = kubectl.get("daskcluster/c")?;
            let status = &cluster["status"];
            let is_right = status["replicas"] == count
                && status["readyReplicas"] == count
                && has(&cluster, "Ready", "True")
                && status["observedGeneration"] == cluster["metadata"]["generation"];
            done_if(is_right, status.to_string())
        })?;
    }
    Ok(())
}

//! Deleting a namespace with a cluster and a job in it never hangs.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{A_WHILE, start_cluster, wait_busy};

pub(crate) const CASE: Case = Case {
    name: "namespace_deletion",
    about: "a namespace with a running cluster and a running job goes away",
    run,
};

/// Kubernetes looks at a namespace again after half of the longest grace period of its pods, however
/// soon they end: 151 s with the 300 s of workers.
const GONE_SECONDS_MAX: u64 = 240;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    kubectl.apply(&A_WHILE.job("j"))?;
    start_cluster(kubectl, "c", 1)?;
    wait_busy(kubectl, "j")?;
    let namespace = kubectl.namespace();
    kubectl
        .run_long(&["delete", "namespace", namespace], GONE_SECONDS_MAX)
        .map(drop)
}

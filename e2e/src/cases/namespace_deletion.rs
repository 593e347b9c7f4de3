//! Deleting a namespace with a cluster and a job in it never hangs.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{A_WHILE, GONE_SECONDS_MAX, start_cluster, wait_busy};

pub(crate) const CASE: Case = Case {
    name: "namespace_deletion",
    about: "a namespace with a running cluster and a running job goes away",
    run,
};

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

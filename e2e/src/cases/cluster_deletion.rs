//! Deleting a cluster leaves no object behind.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{GONE_SECONDS_MAX, start_cluster};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "cluster_deletion",
    about: "no object of any kind is left in the namespace",
    run,
};

/// Pods, Secrets, a Service, a Deployment, a group and more belong to a cluster.
const OBJECTS_MIN: usize = 10;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let before = kubectl.everything()?;
    start_cluster(kubectl, "c", 2)?;
    let there = added(kubectl, &before)?;
    if there.len() < OBJECTS_MIN {
        return Err(failure(format!("a cluster made only {there:?}")));
    }
    kubectl.run_long(&["delete", "daskcluster", "c"], GONE_SECONDS_MAX)?;
    wait_nothing_added(kubectl, &before)
}

/// Waits until the namespace holds nothing that it did not hold before.
pub(crate) fn wait_nothing_added(kubectl: &Kubectl, before: &[String]) -> Outcome {
    until("everything to be gone", GONE_SECONDS_MAX, || {
        let left = added(kubectl, before)?;
        done_if(left.is_empty(), left.join(", "))
    })
}

fn added(kubectl: &Kubectl, before: &[String]) -> Outcome<Vec<String>> {
    let mut names = kubectl.everything()?;
    names.retain(|name| !before.contains(name));
    Ok(names)
}

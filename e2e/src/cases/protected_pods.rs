//! Budgets around a cluster's pods.

use serde_json::Value;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    READY_SECONDS_MAX, cluster_with_journal, name, schedulers, uid, wait_ready, wait_workers,
};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::volume::Volume;
use crate::wait::{Seen, until};

pub(crate) const CASE: Case = Case {
    name: "protected_pods",
    about: "budgets let drains evict a worker, and a scheduler whose journal outlives its pod",
    run,
};

const EVICTED_SECONDS_MAX: u64 = 30;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let volume = Volume::create(kubectl)?;
    kubectl.apply(&cluster_with_journal("c", 2, &volume.name))?;
    wait_ready(kubectl, "c")?;
    let budgets = kubectl.list("poddisruptionbudgets", "dask.org/cluster-name=c")?;
    if budgets.is_empty() {
        return Err(failure("the cluster has no budget"));
    }
    budgets.iter().try_for_each(check)?;
    let workers = wait_workers(kubectl, "c", 2)?;
    evict(kubectl, workers.first().map(name).unwrap_or_default())?;
    let before = schedulers(kubectl, "c")?;
    let scheduler = before.first().ok_or_else(|| failure("no scheduler"))?;
    evict(kubectl, name(scheduler))?;
    until("another scheduler", READY_SECONDS_MAX, || {
        let now = schedulers(kubectl, "c")?;
        Ok(match now.iter().find(|pod| uid(pod) != uid(scheduler)) {
            Some(_) => Seen::Done(()),
            None => Seen::NotYet(format!("{} schedulers", now.len())),
        })
    })?;
    wait_workers(kubectl, "c", 2)?;
    wait_ready(kubectl, "c")
}

/// About pods of the cluster only.
fn check(budget: &Value) -> Outcome {
    if budget["spec"]["selector"]["matchLabels"]["dask.org/cluster-name"] == "c" {
        return Ok(());
    }
    Err(failure(format!("not of the cluster alone: {budget}")))
}

/// A budget may ask to wait a moment, but not for ever.
fn evict(kubectl: &Kubectl, pod: &str) -> Outcome {
    until(&format!("{pod} to be evicted"), EVICTED_SECONDS_MAX, || {
        kubectl.evict(pod).map(|_| Seen::Done(()))
    })
}

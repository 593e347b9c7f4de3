//! 200 workers over many clusters, made and removed: nothing is left over.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::cluster_deletion::wait_nothing_added;
use crate::dask::cluster;
use crate::kubectl::Kubectl;
use crate::operator::Operator;
use crate::process::failure;
use crate::say;

pub(crate) const CASE: Case = Case {
    name: "many_clusters",
    about: "200 workers over 20 clusters made and removed: no object, certificate or memory is left",
    run,
};

/// A node takes 110 pods, so that all at once would not fit beside others' on two.
const ROUNDS: u64 = 2;
const CLUSTERS: u64 = 10;
const WORKERS: u32 = 10;
const READY_SECONDS_MAX: u64 = 240;
const GONE_SECONDS_MAX: u64 = 120;
/// What a second round may need more than the first: an allocator does not give everything back.
const MORE_BYTES_MAX: u64 = 8 << 20;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let operator = Operator::new(&context.settings);
    let before = kubectl.everything()?;
    let at_start = operator.resident_bytes()?;
    let mut after = Vec::new();
    for _ in 0..ROUNDS {
        round(kubectl)?;
        wait_nothing_added(kubectl, &before)?;
        after.push(operator.resident_bytes()?);
    }
    say!("  many_clusters: operator {at_start} bytes at first, {after:?} after each round");
    match after.as_slice() {
        [first, .., last] if *last > first + MORE_BYTES_MAX => Err(failure(format!(
            "the operator keeps memory: {at_start} bytes at first, then {after:?}"
        ))),
        _ => Ok(()),
    }
}

fn round(kubectl: &Kubectl) -> Outcome {
    let manifests: Vec<String> = (0..CLUSTERS)
        .map(|number| cluster(&format!("c{number}"), WORKERS))
        .collect();
    kubectl.apply(&manifests.join("\n"))?;
    let ready = ["wait", "daskclusters", "--all", "--for=condition=Ready"];
    kubectl.run_long(&ready, READY_SECONDS_MAX)?;
    let deleted = ["delete", "daskclusters", "--all"];
    kubectl.run_long(&deleted, GONE_SECONDS_MAX).map(drop)
}

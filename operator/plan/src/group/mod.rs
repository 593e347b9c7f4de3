//! The plan for a `DaskWorkerGroup`: one pod for each wanted worker.
//!
//! Owns which pods are made, drained and deleted, and the number of workers if the group has bounds
//! of its own. Pods that exist are never applied again: a new template rolls through them.
//!
//! Invariants: a group never gets more pods than are wanted and a roll may add; a pod that may hold
//! the only copy of a result goes only when the scheduler says that it is empty, or at a deadline
//! that a manifest gives; while the scheduler is silent only pods without a running program go;
//! only pods of this very group are touched.

mod autoscale;
mod change;
mod deletion;
mod ends;
mod report;
mod workers;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use oxidask_operator_api::kubernetes::{
    DaskAutoscaler, DaskCluster, DaskWorkerGroup, WorkerGroupStatus,
};

use self::change::Outcome;
use self::workers::Workers;
use crate::build;
use crate::build::labels::DRAIN_FINALIZER;
use crate::signal::Signal;
use crate::{
    MetadataChange, ObjectKind, Plan, PlanError, Refusal, Settings, Timestamp, dask, names, owner,
};

pub(crate) use autoscale::{Counts, decide_by};
pub(crate) use autoscale::{events as number_events, scaling_of};
pub use deletion::DRAIN_ON_DELETION_MAX;

/// Pods that one plan makes or deletes; the rest follows in the next ones.
pub const PODS_PER_PLAN_MAX: usize = 64;

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The cluster that the group names, whoever made it.
    pub cluster: Option<DaskCluster>,
    /// The pods that the group owns, terminating ones included.
    pub pods: Vec<Arc<Pod>>,
    /// Whether the cluster's Secret with the workers' certificate is there and whole. A pod that
    /// comes before it would wait for kubelet's next try.
    pub has_certificates: bool,
    /// The Deployments that the group owns: the workers of the runtime `Dask`.
    pub deployments: Vec<Deployment>,
    /// The Deployment of the cluster's scheduler, for the order of an upgrade.
    pub scheduler: Option<Deployment>,
    /// The autoscalers of the namespace that name the group's cluster.
    pub autoscalers: Vec<DaskAutoscaler>,
    /// What the cluster's scheduler says; `None` while it is silent.
    pub signal: Option<Signal>,
    /// What the API server refused in the last round.
    pub refusals: Vec<Refusal>,
}

/// What has to be done for the group.
pub fn plan(
    group: &DaskWorkerGroup,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<WorkerGroupStatus> {
    if dask::group::is_dask(observed) {
        return dask::group::plan(group, observed, now);
    }
    let mut plan = Plan::default();
    if owner::is_terminating(&group.metadata) {
        deletion::plan(group, observed, now, &mut plan);
        return plan;
    }
    let template = template(group, settings);
    let hold = template.as_ref().err().map_or_else(
        || hold(observed),
        |_| Some(Hold::Waits("the group cannot be operated")),
    );
    let hash = template
        .as_ref()
        .ok()
        .map(|template| template.hash.as_str());
    let roll = change::Roll::new(group, observed, settings);
    let workers = Workers::new(group, observed, hash.filter(|_| roll.may_roll()), now);
    let mut outcome = Outcome::default();
    plan.ended = ends::ended(group, observed);
    match (&template, hold) {
        (Ok(template), None) => {
            plan.metadata.extend(finalizer(group));
            let signal = observed.signal.is_some();
            outcome = change::change(group, &workers, template, &roll, (signal, now), &mut plan);
        }
        (_, Some(Hold::Suspended)) => change::suspend(&workers, &mut plan),
        _ => {}
    }
    let is_operated = hold.is_none();
    let scaling = autoscale::decide(group, observed, &workers, is_operated, now, &mut plan);
    let error = template.as_ref().err();
    let parts = report::Parts {
        workers: &workers,
        outcome,
        roll: &roll,
        hold,
        scaling,
        is_heard: observed.signal.is_some(),
        refusals: &observed.refusals,
    };
    report::report(group, &parts, error, now, &mut plan);
    plan
}

fn template(
    group: &DaskWorkerGroup,
    settings: &Settings,
) -> Result<build::worker::WorkerPods, PlanError> {
    names::check_group(group.metadata.name.as_deref().unwrap_or_default())?;
    names::check("cluster", &group.spec.cluster)?;
    build::worker::WorkerPods::new(group, settings)
}

/// Why no pod is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Something is missing.
    Waits(&'static str),
    /// The cluster is to have no pods.
    Suspended,
}

fn hold(observed: &Observed) -> Option<Hold> {
    match &observed.cluster {
        None => Some(Hold::Waits("the cluster does not exist")),
        Some(cluster) if owner::is_terminating(&cluster.metadata) => {
            Some(Hold::Waits("the cluster is being deleted"))
        }
        Some(cluster) if cluster.spec.suspend == Some(true) => Some(Hold::Suspended),
        Some(_) if !observed.has_certificates => {
            Some(Hold::Waits("the cluster has no certificates yet"))
        }
        Some(_) => None,
    }
}

/// The finalizer that lets the workers of the group hand over what they hold before it goes. The
/// group `default` goes only with its cluster, and then nobody is left who could take anything.
fn finalizer(group: &DaskWorkerGroup) -> Option<MetadataChange> {
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let is_default = name == names::group(&group.spec.cluster, names::DEFAULT_GROUP);
    if is_default || owner::has_finalizer(&group.metadata, DRAIN_FINALIZER) {
        return None;
    }
    let mut finalizers = group.metadata.finalizers.clone().unwrap_or_default();
    finalizers.push(DRAIN_FINALIZER.to_owned());
    Some(MetadataChange {
        finalizers: Some(finalizers),
        ..MetadataChange::new(ObjectKind::WorkerGroup, &group.metadata)
    })
}

//! The plan for a `DaskCluster`: its certificates, its scheduler, its groups of workers.
//!
//! Owns the cluster's conditions and phase. The pods of workers are planned in `group`; here they
//! are only counted.

mod certificates;
mod report;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::{
    ClusterStatus, DaskCluster, DaskWorkerGroup, WorkerGroupSpec,
};

use crate::build;
use crate::{
    Adoption, Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, Settings, Timestamp,
    hash, names, owner,
};

pub use certificates::RENEW_BEFORE;
pub(crate) use report::ignored;

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The Service `{cluster}-scheduler`, whoever owns it.
    pub service: Option<Service>,
    /// The Deployment `{cluster}-scheduler`, whoever owns it.
    pub scheduler: Option<Deployment>,
    /// Every `DaskWorkerGroup` of the namespace whose `spec.cluster` is the cluster or that has the
    /// cluster as an owner, or the name of one of its groups.
    pub groups: Vec<DaskWorkerGroup>,
    /// The Secrets `{cluster}-ca` and `{cluster}-tls-{role}` that the cluster owns, by name.
    pub secrets: BTreeMap<String, SecretState>,
    /// Pods with the labels of the cluster's scheduler, for what keeps them from starting.
    pub scheduler_pods: Vec<Pod>,
    /// Pods whose owner is one of the groups.
    pub worker_pods: Vec<Pod>,
}

/// What a planner has to know of a Secret; never what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecretState {
    /// Whether `ca.crt`, `tls.crt` and `tls.key` are there.
    pub has_all_keys: bool,
    /// When the certificate ends; `None` if nobody knows. A role's is then issued anew.
    pub not_after: Option<Timestamp>,
}

/// What has to be done for the cluster.
pub fn plan(
    cluster: &DaskCluster,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<ClusterStatus> {
    let mut plan = Plan::default();
    if owner::is_terminating(&cluster.metadata) {
        return plan;
    }
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let error = match desired(cluster, name, observed, settings) {
        Ok(desired) => {
            (plan.certificates, plan.wake_after) =
                certificates::request(cluster, name, observed, now);
            (plan.apply, plan.delete) = desired;
            None
        }
        Err(error) => Some(error),
    };
    report::report(cluster, name, observed, error.as_ref(), now, &mut plan);
    plan
}

/// What the spec asks for, built completely before anything of it is applied.
fn desired(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    settings: &Settings,
) -> Result<(Vec<Object>, Vec<Deletion>), PlanError> {
    names::check("cluster", name)?;
    if cluster.spec.runtime() == Runtime::Dask {
        return Err(PlanError::NotOperated {
            what: "runtime `Dask`",
            instead: "use `runtime: Rust`; a pod spec is then a template onto which the runtime \
                      is laid",
        });
    }
    let owner = &cluster.metadata;
    let mut apply = Vec::new();
    let present = observed.service.as_ref().map(|service| &service.metadata);
    owner::refuse_foreign(owner, ObjectKind::Service, present)?;
    let service = Object::Service(Box::new(build::service::service(cluster, name)?));
    apply.extend(hash::unless_applied(service, present));
    let present = observed
        .scheduler
        .as_ref()
        .map(|scheduler| &scheduler.metadata);
    owner::refuse_foreign(owner, ObjectKind::Deployment, present)?;
    let scheduler = build::scheduler::deployment(cluster, name, settings)?;
    let scheduler = Object::Deployment(Box::new(scheduler));
    apply.extend(hash::unless_applied(scheduler, present));
    let groups = build::group::groups(cluster, name)?;
    for group in &groups {
        let present = find_group(observed, &group.name);
        let metadata = present.map(|group| &group.metadata);
        owner::refuse_foreign(owner, ObjectKind::WorkerGroup, metadata)?;
        check_template(cluster, name, group, settings)?;
        if !metadata.is_some_and(owner::is_terminating) {
            apply.extend(build::group::object(cluster, name, group, present));
        }
    }
    apply.extend(adoptions(cluster, name, observed));
    Ok((apply, removals(cluster, &groups, observed)))
}

/// Finds a template that cannot be used before anything is applied.
fn check_template(
    cluster: &DaskCluster,
    name: &str,
    group: &build::group::Group,
    settings: &Settings,
) -> Result<(), PlanError> {
    let object = DaskWorkerGroup {
        metadata: owner::metadata(group.name.clone(), "DaskCluster", &cluster.metadata),
        spec: WorkerGroupSpec {
            cluster: name.to_owned(),
            worker: group.worker.clone(),
        },
        status: None,
    };
    build::worker::WorkerPods::new(&object, settings).map(|_| ())
}

/// Groups that the operator made and the spec no longer has. Only they carry its mark.
fn removals(
    cluster: &DaskCluster,
    wanted: &[build::group::Group],
    observed: &Observed,
) -> Vec<Deletion> {
    let metadata = observed.groups.iter().map(|group| &group.metadata);
    let unwanted = metadata.filter(|metadata| {
        let is_wanted = wanted
            .iter()
            .any(|group| metadata.name.as_ref() == Some(&group.name));
        let is_ours = owner::owns(&cluster.metadata, metadata);
        let is_made = hash::applied_mark(metadata).is_some();
        is_ours && is_made && !is_wanted && !owner::is_terminating(metadata)
    });
    let reason = DeletionReason::GroupRemoved;
    unwanted
        .map(|metadata| Deletion::new(ObjectKind::WorkerGroup, metadata, reason))
        .collect()
}

/// Groups that a user made for this cluster and that nobody owns yet.
fn adoptions(cluster: &DaskCluster, name: &str, observed: &Observed) -> Vec<Object> {
    let groups = observed.groups.iter().filter(|group| {
        let metadata = &group.metadata;
        let is_owned = owner::owns(&cluster.metadata, metadata) || owner::has_controller(metadata);
        group.spec.cluster == name && !is_owned && !owner::is_terminating(metadata)
    });
    groups.map(|group| adoption(cluster, group)).collect()
}

fn adoption(cluster: &DaskCluster, group: &DaskWorkerGroup) -> Object {
    let name = group.metadata.name.clone().unwrap_or_default();
    let metadata = owner::metadata(name, "DaskCluster", &cluster.metadata);
    Object::Adoption(Box::new(Adoption { metadata }))
}

fn find_group<'a>(observed: &'a Observed, name: &str) -> Option<&'a DaskWorkerGroup> {
    let mut groups = observed.groups.iter();
    groups.find(|group| group.metadata.name.as_deref() == Some(name))
}

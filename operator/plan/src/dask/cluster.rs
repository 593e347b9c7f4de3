//! The plan for a Dask cluster: Service, scheduler, groups.
//!
//! Owns their order, their repair, the take-over of what dask-kubernetes made, and the end of an
//! idle cluster. Invariant: a group's own number of workers is the truth once the group is there;
//! the cluster's is applied only after it has changed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_operator_api::kubernetes::{
    ClusterStatus, DaskCluster, DaskWorkerGroup, WorkerGroupSpec,
};
use std::time::Duration;

use super::objects::{self, Workers};
use super::{repair, report, takeover};
use crate::build::group::Group;
use crate::build::labels::CLUSTER_REPLICAS;
use crate::cluster::Observed;
use crate::{
    Adoption, Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, Timestamp, build,
    hash, names, owner,
};

/// What has to be done for the cluster.
pub(crate) fn plan(
    cluster: &DaskCluster,
    observed: &Observed,
    now: Timestamp,
) -> Plan<ClusterStatus> {
    let mut plan = Plan::default();
    plan.metadata
        .extend(takeover::strip(ObjectKind::Cluster, &cluster.metadata));
    // A finalizer that nobody else would take off keeps even its namespace.
    if owner::is_terminating(&cluster.metadata) {
        return plan;
    }
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let error = Desired::new(cluster, name, observed)
        .and_then(|desired| desired.fill(&mut plan))
        .err();
    if error.is_none() {
        end_idle(cluster, observed, &mut plan);
    }
    report::cluster(cluster, observed, error.as_ref(), now, &mut plan);
    plan
}

/// Deletes a cluster that has had nothing to do for as long as its spec says.
fn end_idle(cluster: &DaskCluster, observed: &Observed, plan: &mut Plan<ClusterStatus>) {
    let limit = cluster.spec.idle_timeout.filter(|seconds| *seconds > 0);
    let idle = observed.signal.as_ref().and_then(|signal| signal.idle);
    let (Some(limit), Some(idle)) = (limit.map(Duration::from_secs), idle) else {
        return;
    };
    match limit.checked_sub(idle) {
        Some(left) if !left.is_zero() => plan.wake_after = Some(left),
        _ => {
            let reason = DeletionReason::IdleTimeout;
            let kind = ObjectKind::Cluster;
            plan.delete
                .push(Deletion::new(kind, &cluster.metadata, reason));
        }
    }
}

/// What the spec asks for, built completely before anything of it is applied.
struct Desired<'a> {
    cluster: &'a DaskCluster,
    name: &'a str,
    observed: &'a Observed,
    groups: Vec<Group>,
}

impl<'a> Desired<'a> {
    fn new(
        cluster: &'a DaskCluster,
        name: &'a str,
        observed: &'a Observed,
    ) -> Result<Self, PlanError> {
        names::check("cluster", name)?;
        let groups = build::group::groups(cluster, name)?;
        for group in &groups {
            let object = DaskWorkerGroup {
                metadata: owner::metadata(group.name.clone(), "DaskCluster", &cluster.metadata),
                spec: WorkerGroupSpec {
                    cluster: name.to_owned(),
                    worker: group.worker.clone(),
                },
                status: None,
            };
            Workers::new(&object, cluster)?;
        }
        Ok(Self {
            cluster,
            name,
            observed,
            groups,
        })
    }

    fn fill(&self, plan: &mut Plan<ClusterStatus>) -> Result<(), PlanError> {
        let mut part = Plan::default();
        self.scheduler(&mut part)?;
        for group in &self.groups {
            self.group(group, &mut part)?;
        }
        plan.metadata.append(&mut part.metadata);
        plan.apply.append(&mut part.apply);
        plan.apply.extend(self.adoptions());
        plan.delete.extend(self.removals());
        Ok(())
    }

    fn scheduler(&self, plan: &mut Plan<ClusterStatus>) -> Result<(), PlanError> {
        let service = self.observed.service.as_ref();
        let wanted = objects::service(self.cluster, self.name)?;
        let wanted = Object::Service(Box::new(wanted));
        let metadata = service.map(|service| &service.metadata);
        let spec = service.and_then(|service| service.spec.as_ref());
        self.child(wanted, metadata, spec, plan)?;
        let scheduler = self.observed.scheduler.as_ref();
        let wanted = objects::scheduler(self.cluster, self.name, scheduler)?;
        let wanted = Object::Deployment(Box::new(wanted));
        let metadata = scheduler.map(|scheduler| &scheduler.metadata);
        let spec = scheduler.and_then(|scheduler| scheduler.spec.as_ref());
        self.child(wanted, metadata, spec, plan)
    }

    fn child<S: serde::Serialize>(
        &self,
        wanted: Object,
        there: Option<&ObjectMeta>,
        spec: Option<&S>,
        plan: &mut Plan<ClusterStatus>,
    ) -> Result<(), PlanError> {
        owner::refuse_foreign(&self.cluster.metadata, wanted.kind(), there)?;
        if there.is_some_and(owner::is_terminating) {
            return Ok(());
        }
        match there.and_then(|there| takeover::adopt(&wanted, there)) {
            Some(adopted) => plan.metadata.push(adopted),
            None => plan.apply.extend(repair::due(wanted, there, spec)),
        }
        Ok(())
    }

    fn group(&self, group: &Group, plan: &mut Plan<ClusterStatus>) -> Result<(), PlanError> {
        let there = report::find_group(self.observed, &group.name);
        let metadata = there.map(|group| &group.metadata);
        let kind = ObjectKind::WorkerGroup;
        owner::refuse_foreign(&self.cluster.metadata, kind, metadata)?;
        if metadata.is_some_and(owner::is_terminating) {
            return Ok(());
        }
        // A group that dask-kubernetes made keeps the number of workers that it was scaled to.
        if let Some(metadata) = metadata.filter(|it| hash::applied_mark(it).is_none()) {
            let wanted = build::group::object(self.cluster, self.name, group, None);
            let adopted = wanted.and_then(|wanted| {
                let mut adopted = takeover::adopt(&wanted, metadata)?;
                let replicas = build::group::replicas(&group.worker).to_string();
                let note = (CLUSTER_REPLICAS.to_owned(), Some(replicas));
                adopted.annotations.extend([note]);
                Some(adopted)
            });
            plan.metadata.extend(adopted);
            return Ok(());
        }
        plan.apply
            .extend(build::group::object(self.cluster, self.name, group, there));
        Ok(())
    }

    /// Groups that a user made for this cluster and that nobody owns yet. They get no label.
    fn adoptions(&self) -> Vec<Object> {
        let cluster = &self.cluster.metadata;
        let groups = self.observed.groups.iter().filter(|group| {
            let metadata = &group.metadata;
            let is_owned = owner::owns(cluster, metadata) || owner::has_controller(metadata);
            group.spec.cluster == self.name && !is_owned && !owner::is_terminating(metadata)
        });
        let adoption = |group: &DaskWorkerGroup| {
            let name = group.metadata.name.clone().unwrap_or_default();
            Object::Adoption(Box::new(Adoption {
                kind: ObjectKind::WorkerGroup,
                metadata: owner::metadata(name, "DaskCluster", cluster),
            }))
        };
        groups.map(adoption).collect()
    }

    /// Groups that the operator made and the spec no longer has. Only they carry its mark.
    fn removals(&self) -> Vec<Deletion> {
        let groups = self.observed.groups.iter().map(|group| &group.metadata);
        let unwanted = groups.filter(|metadata| {
            let named = |group: &Group| metadata.name.as_ref() == Some(&group.name);
            let is_ours = owner::owns(&self.cluster.metadata, metadata);
            let is_made = hash::applied_mark(metadata).is_some();
            let is_wanted = self.groups.iter().any(named);
            is_ours && is_made && !is_wanted && !owner::is_terminating(metadata)
        });
        let reason = DeletionReason::GroupRemoved;
        unwanted
            .map(|metadata| Deletion::new(ObjectKind::WorkerGroup, metadata, reason))
            .collect()
    }
}

//! The `DaskWorkerGroup` objects of a cluster.
//!
//! Owns which number of workers they are applied with. A group's own `replicas` may be changed by
//! anybody who scales the group; the cluster's value is applied only when it has changed since it
//! was applied last, which an annotation of the group remembers.

use oxidask_operator_api::Worker;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup, WorkerGroupSpec};

use super::labels::{self, CLUSTER_NAME, CLUSTER_REPLICAS, COMPONENT};
use crate::scaling::Policy;
use crate::{Object, PlanError, hash, names, owner};

/// Workers of a group whose manifest names no number.
const DEFAULT_REPLICAS: u32 = 1;

/// A group of a cluster's spec.
#[derive(Debug)]
pub(crate) struct Group {
    /// Of its object.
    pub(crate) name: String,
    pub(crate) worker: Worker,
}

/// The groups of the cluster's spec, checked.
pub(crate) fn groups(cluster: &DaskCluster, name: &str) -> Result<Vec<Group>, PlanError> {
    let spec = &cluster.spec;
    let default = (names::DEFAULT_GROUP, spec.worker.clone());
    let further = spec
        .worker_groups
        .iter()
        .map(|group| (group.name.as_str(), group.to_worker()));
    let groups = std::iter::once(default).chain(further);
    groups
        .map(|(group, worker)| {
            let name = names::group(name, group);
            names::check_group(&name)?;
            Ok(Group { name, worker })
        })
        .collect()
}

/// The number of workers that a group's spec asks for. What follows the load stays within its
/// bounds, whoever wrote the number.
pub(crate) fn replicas(worker: &Worker) -> u32 {
    let given = given_replicas(worker);
    match worker.autoscale {
        Some(autoscale) if autoscale.recommend_only != Some(true) => {
            Policy::of_group(autoscale).bounded(given.into())
        }
        _ => given,
    }
}

/// The number that a manifest gives.
pub(crate) fn given_replicas(worker: &Worker) -> u32 {
    let minimum = worker.autoscale.map(|autoscale| autoscale.minimum);
    let replicas = worker
        .replicas
        .or_else(|| minimum.filter(|minimum| *minimum > 0));
    replicas
        .unwrap_or(DEFAULT_REPLICAS)
        .min(oxidask_operator_api::REPLICAS_MAX)
}

/// The group to apply, unless it is there as it should be.
pub(crate) fn object(
    cluster: &DaskCluster,
    cluster_name: &str,
    group: &Group,
    observed: Option<&DaskWorkerGroup>,
) -> Option<Object> {
    // The mark is that of the cluster's value, so that scaling the group changes nothing here.
    let object = unscaled(cluster, cluster_name, group);
    let object = hash::unless_applied(object, observed.map(|group| &group.metadata))?;
    Some(keeping_scale(
        object,
        given_replicas(&group.worker),
        observed,
    ))
}

/// The group with the cluster's number of workers.
pub(crate) fn unscaled(cluster: &DaskCluster, cluster_name: &str, group: &Group) -> Object {
    // Not the number within the bounds: new bounds are no new number.
    let given = given_replicas(&group.worker);
    let mut worker = group.worker.clone();
    worker.replicas = Some(given);
    let mut metadata = owner::metadata(group.name.clone(), "DaskCluster", &cluster.metadata);
    let reserved = [
        (CLUSTER_NAME, cluster_name),
        (COMPONENT, labels::WORKER_GROUP),
    ];
    metadata.labels = Some(labels::labels(
        cluster.metadata.labels.as_ref(),
        None,
        &reserved,
    ));
    let mut annotations =
        labels::annotations(cluster.metadata.annotations.as_ref(), None).unwrap_or_default();
    annotations.insert(CLUSTER_REPLICAS.to_owned(), given.to_string());
    metadata.annotations = Some(annotations);
    let object = DaskWorkerGroup {
        metadata,
        spec: WorkerGroupSpec {
            cluster: cluster_name.to_owned(),
            worker,
        },
        status: None,
    };
    Object::WorkerGroup(Box::new(object))
}

/// A field that is left out of an apply is removed if we owned it, so the group's own number is
/// applied again, under the condition that nobody has changed the group since.
pub(crate) fn keeping_scale(
    object: Object,
    given: u32,
    observed: Option<&DaskWorkerGroup>,
) -> Object {
    let Object::WorkerGroup(mut object) = object else {
        return object;
    };
    let Some(observed) = observed else {
        object.spec.worker.replicas = Some(replicas(&object.spec.worker));
        return Object::WorkerGroup(object);
    };
    let applied = labels::annotation(observed.metadata.annotations.as_ref(), CLUSTER_REPLICAS);
    let is_unchanged = applied.and_then(|applied| applied.parse().ok()) == Some(given);
    if is_unchanged {
        object.spec.worker.replicas = observed.spec.worker.replicas;
        object
            .metadata
            .resource_version
            .clone_from(&observed.metadata.resource_version);
    }
    Object::WorkerGroup(object)
}

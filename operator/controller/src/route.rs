//! Which objects have to be reconciled when something changes.
//!
//! Pure. An object that we reconcile is looked at again when its spec or metadata changes, not for
//! the status that we wrote ourselves; its owner and its children look at every change that
//! concerns them. Children are routed by owner reference and label, so a change of anything that
//! exists reaches whoever made it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt as _};
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, DaskWorkerGroup};
use oxidask_operator_plan::CLUSTER_NAME;

use crate::cache::{Cached, Change, ClusterKey};
use crate::context::{Caches, Context};
use crate::queue::Target;

const CLUSTER: &str = "DaskCluster";
const GROUP: &str = "DaskWorkerGroup";
const JOB: &str = "DaskJob";

/// A watched kind that knows whom its changes concern.
pub(crate) trait Routed: Cached {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target>;

    /// Forgets what was kept for an object that is gone.
    fn forget(&self, _context: &Context) {}
}

/// Every object that we reconcile.
pub(crate) fn everything(caches: &Caches) -> Vec<Target> {
    let clusters = caches
        .clusters
        .all()
        .into_iter()
        .map(|object| cluster(&object));
    let groups = caches.groups.all().into_iter().map(|object| group(&object));
    let jobs = caches.jobs.all().into_iter().map(|object| job(&object));
    clusters.chain(groups).chain(jobs).collect()
}

/// The cluster whose label an object carries.
pub(crate) fn labelled<K: Resource>(object: &K) -> Option<ClusterKey> {
    let cluster = object.meta().labels.as_ref()?.get(CLUSTER_NAME)?;
    Some(ClusterKey::new(
        object.meta().namespace.as_deref()?,
        cluster,
    ))
}

impl Routed for DaskCluster {
    fn forget(&self, context: &Context) {
        let key = ClusterKey::new(self.namespace().unwrap_or_default(), self.name_any());
        context.secrets.forget(&key);
    }

    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let (old, new, is_gone) = match change {
            Change::Everything => return everything(caches),
            Change::Put { old, new } => (old.as_deref(), new, false),
            Change::Gone(object) => (None, object, true),
        };
        let mut targets = owners(&**new, &[JOB]);
        if spec_changed(old.map(|old| &old.metadata), &new.metadata) {
            if !is_gone {
                targets.push(cluster(new));
            }
            let key = ClusterKey::new(new.namespace().unwrap_or_default(), new.name_any());
            targets.extend(groups_of(&key, caches));
        }
        targets
    }
}

impl Routed for DaskWorkerGroup {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let (old, new, is_gone) = match change {
            Change::Everything => return everything(caches),
            Change::Put { old, new } => (old.as_deref(), new, false),
            Change::Gone(object) => (None, object, true),
        };
        let mut targets = vec![Target::Cluster {
            namespace: new.namespace().unwrap_or_default(),
            name: new.spec.cluster.clone(),
        }];
        if !is_gone && spec_changed(old.map(|old| &old.metadata), &new.metadata) {
            targets.push(group(new));
        }
        targets
    }
}

impl Routed for DaskJob {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        match change {
            Change::Everything => everything(caches),
            Change::Put { old, new }
                if spec_changed(old.as_deref().map(|old| &old.metadata), &new.metadata) =>
            {
                vec![job(new)]
            }
            Change::Put { .. } | Change::Gone(_) => Vec::new(),
        }
    }
}

impl Routed for Pod {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let Some(object) = object(change) else {
            return everything(caches);
        };
        let mut targets = owners(&**object, &[GROUP, JOB]);
        targets.extend(labelled(&**object).map(|key| Target::Cluster {
            namespace: key.namespace,
            name: key.cluster,
        }));
        targets
    }
}

impl Routed for Service {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        object(change).map_or_else(
            || everything(caches),
            |object| owners(&**object, &[CLUSTER]),
        )
    }
}

impl Routed for Deployment {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        object(change).map_or_else(
            || everything(caches),
            |object| owners(&**object, &[CLUSTER]),
        )
    }
}

impl Routed for PartialObjectMeta<ConfigMap> {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        object(change).map_or_else(|| everything(caches), |object| owners(&**object, &[JOB]))
    }
}

impl Routed for PartialObjectMeta<Secret> {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let Some(object) = object(change) else {
            return everything(caches);
        };
        // Groups wait for the certificates of their cluster.
        let mut targets = owners(&**object, &[CLUSTER]);
        if let Some(key) = labelled(&**object) {
            targets.extend(groups_of(&key, caches));
        }
        targets
    }
}

fn object<K>(change: &Change<K>) -> Option<&Arc<K>> {
    match change {
        Change::Put { new: object, .. } | Change::Gone(object) => Some(object),
        Change::Everything => None,
    }
}

/// Status and managed fields apart, is it another object than before?
fn spec_changed(old: Option<&ObjectMeta>, new: &ObjectMeta) -> bool {
    old.is_none_or(|old| {
        old.uid != new.uid
            || old.generation != new.generation
            || old.deletion_timestamp != new.deletion_timestamp
            || old.finalizers != new.finalizers
            || old.labels != new.labels
            || old.annotations != new.annotations
            || old.owner_references != new.owner_references
    })
}

/// The owners of these kinds.
fn owners<K: Resource>(object: &K, kinds: &[&str]) -> Vec<Target> {
    let metadata = object.meta();
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let owners = metadata.owner_references.iter().flatten();
    let wanted = owners.filter(|owner| kinds.contains(&owner.kind.as_str()));
    let targets = wanted.filter_map(|owner| {
        let (namespace, name) = (namespace.clone(), owner.name.clone());
        match owner.kind.as_str() {
            CLUSTER => Some(Target::Cluster { namespace, name }),
            GROUP => Some(Target::Group { namespace, name }),
            JOB => Some(Target::Job { namespace, name }),
            _ => None,
        }
    });
    targets.collect()
}

fn groups_of(key: &ClusterKey, caches: &Caches) -> Vec<Target> {
    let groups = caches.groups.of_cluster(key);
    groups.iter().map(|object| group(object)).collect()
}

fn cluster(object: &DaskCluster) -> Target {
    Target::Cluster {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

fn group(object: &DaskWorkerGroup) -> Target {
    Target::Group {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

fn job(object: &DaskJob) -> Target {
    Target::Job {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn metadata(generation: i64) -> ObjectMeta {
        ObjectMeta {
            name: Some("a".to_owned()),
            namespace: Some("n".to_owned()),
            generation: Some(generation),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_written_status_is_no_change_of_the_spec() {
        let old = metadata(1);
        let mut new = metadata(1);
        new.resource_version = Some("7".to_owned());
        assert!(!spec_changed(Some(&old), &new));
        assert!(spec_changed(Some(&old), &metadata(2)));
        assert!(spec_changed(None, &new));
        new.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        assert!(spec_changed(Some(&old), &new));
    }

    #[test]
    fn a_pod_concerns_its_owner_and_its_cluster() {
        let (_, caches) = Caches::new();
        let mut pod = Pod {
            metadata: metadata(1),
            ..Pod::default()
        };
        pod.metadata.labels = Some([(CLUSTER_NAME.to_owned(), "x".to_owned())].into());
        pod.metadata.owner_references = Some(vec![OwnerReference {
            kind: GROUP.to_owned(),
            name: "x-default".to_owned(),
            ..OwnerReference::default()
        }]);
        let targets = Pod::targets(&Change::Gone(Arc::new(pod)), &caches);
        let namespace = || "n".to_owned();
        let (group, cluster) = ("x-default".to_owned(), "x".to_owned());
        assert_eq!(
            targets,
            [
                Target::Group {
                    namespace: namespace(),
                    name: group
                },
                Target::Cluster {
                    namespace: namespace(),
                    name: cluster
                },
            ]
        );
    }
}

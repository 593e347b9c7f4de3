//! Which objects have to be reconciled when something changes.
//!
//! Pure. An object that we reconcile is looked at again when its spec or metadata changes, not for
//! the status that we wrote ourselves; its owner and its children look at every change that
//! concerns them. Children are routed by owner reference and label, so a change of anything that
//! exists reaches whoever made it.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt as _};
use oxidask_operator_api::kubernetes::{DaskAutoscaler, DaskCluster, DaskJob, DaskWorkerGroup};
use oxidask_operator_plan::{CLUSTER_NAME, WORKER_GROUP_NAME};

use crate::cache::{Cached, Change, ClusterKey};
use crate::caches::Caches;
use crate::context::Context;
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
    let autoscalers = caches.autoscalers.all().into_iter();
    let autoscalers = autoscalers.map(|object| autoscaler(&object));
    let all = clusters.chain(groups).chain(jobs).chain(autoscalers);
    all.collect()
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
        context.links.drop_link(&key);
        context.metrics.certificates(&key, None);
        context.dask.forget(&key);
        context.queues.taken(&cluster(self));
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
            targets.extend(autoscalers_of(&key, caches));
        }
        targets
    }
}

impl Routed for DaskWorkerGroup {
    fn forget(&self, context: &Context) {
        context.queues.taken(&group(self));
    }

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
        // The bounds of an autoscaler are for the sum of the groups.
        let key = ClusterKey::new(new.namespace().unwrap_or_default(), &new.spec.cluster);
        targets.extend(autoscalers_of(&key, caches));
        targets
    }
}

impl Routed for DaskJob {
    fn forget(&self, context: &Context) {
        context.queues.taken(&job(self));
    }

    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let (old, new, is_gone) = match change {
            Change::Everything => return everything(caches),
            Change::Put { old, new } => (old.as_deref(), new, false),
            Change::Gone(object) => (None, object, true),
        };
        // A run of a scheduled job concerns that job.
        let mut targets = owners(&**new, &[JOB]);
        if !is_gone && spec_changed(old.map(|old| &old.metadata), &new.metadata) {
            targets.push(job(new));
        }
        targets
    }
}

impl Routed for DaskAutoscaler {
    fn forget(&self, context: &Context) {
        context.queues.taken(&autoscaler(self));
    }

    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let (old, new, is_gone) = match change {
            Change::Everything => return everything(caches),
            Change::Put { old, new } => (old.as_deref(), new, false),
            Change::Gone(object) => (None, object, true),
        };
        if !spec_changed(old.map(|old| &old.metadata), &new.metadata) {
            return Vec::new();
        }
        let namespace = new.namespace().unwrap_or_default();
        let key = ClusterKey::new(namespace.clone(), &new.spec.cluster);
        let mut targets = vec![Target::Cluster {
            namespace,
            name: new.spec.cluster.clone(),
        }];
        targets.extend(groups_of(&key, caches));
        if !is_gone {
            targets.push(autoscaler(new));
        }
        targets
    }
}

impl Routed for Pod {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let Some(object) = object(change) else {
            return everything(caches);
        };
        let mut targets = owners(&**object, &[GROUP, JOB]);
        // The pods of a Dask worker belong to the ReplicaSet of its Deployment.
        let labels = object.metadata.labels.as_ref();
        let group = labels.and_then(|labels| labels.get(WORKER_GROUP_NAME));
        if let Some(group) = group.filter(|_| targets.is_empty()) {
            targets.push(Target::Group {
                namespace: object.namespace().unwrap_or_default(),
                name: group.clone(),
            });
        }
        targets.extend(labelled(&**object).map(|key| Target::Cluster {
            namespace: key.namespace,
            name: key.cluster,
        }));
        targets
    }
}

impl Routed for Service {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        of_clusters(change, caches)
    }
}

impl Routed for Deployment {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        let Some(object) = object(change) else {
            return everything(caches);
        };
        // The workers of Dask's own runtime belong to groups.
        let mut targets = owners(&**object, &[CLUSTER, GROUP]);
        let is_scheduler = targets
            .iter()
            .any(|target| matches!(target, Target::Cluster { .. }));
        if let Some(key) = labelled(&**object) {
            if is_scheduler {
                // Workers are renewed after their scheduler.
                targets.extend(groups_of(&key, caches));
            } else {
                targets.push(Target::Cluster {
                    namespace: key.namespace,
                    name: key.cluster,
                });
            }
        }
        targets
    }
}

impl Routed for PartialObjectMeta<ConfigMap> {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        object(change).map_or_else(|| everything(caches), |object| owners(&**object, &[JOB]))
    }
}

impl Routed for PartialObjectMeta<PersistentVolumeClaim> {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        of_clusters(change, caches)
    }
}

impl Routed for PodDisruptionBudget {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        of_clusters(change, caches)
    }
}

impl Routed for NetworkPolicy {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        of_clusters(change, caches)
    }
}

impl Routed for ServiceAccount {
    fn targets(change: &Change<Self>, caches: &Caches) -> Vec<Target> {
        of_clusters(change, caches)
    }
}

/// What clusters own, and only they.
fn of_clusters<K: Resource>(change: &Change<K>, caches: &Caches) -> Vec<Target> {
    object(change).map_or_else(
        || everything(caches),
        |object| owners(&**object, &[CLUSTER]),
    )
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

fn autoscalers_of(key: &ClusterKey, caches: &Caches) -> Vec<Target> {
    let autoscalers = caches.autoscalers.of_cluster(key);
    autoscalers
        .iter()
        .map(|object| autoscaler(object))
        .collect()
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

fn autoscaler(object: &DaskAutoscaler) -> Target {
    Target::Autoscaler {
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

    fn owned(mut metadata: ObjectMeta, kind: &str, name: &str) -> ObjectMeta {
        metadata.labels = Some([(CLUSTER_NAME.to_owned(), "x".to_owned())].into());
        metadata.owner_references = Some(vec![OwnerReference {
            kind: kind.to_owned(),
            name: name.to_owned(),
            ..OwnerReference::default()
        }]);
        metadata
    }

    fn names(targets: &[Target]) -> Vec<String> {
        let names = targets.iter().map(|target| match target {
            Target::Cluster { name, .. } => format!("cluster {name}"),
            Target::Group { name, .. } => format!("group {name}"),
            Target::Job { name, .. } => format!("job {name}"),
            Target::Autoscaler { name, .. } => format!("autoscaler {name}"),
        });
        names.collect()
    }

    fn filled() -> Caches {
        let (mut feeds, caches) = Caches::new();
        let named = |name: &str| serde_json::json!({"name": name, "namespace": "n"});
        let group = serde_json::json!({
            "metadata": named("x-default"), "spec": {"cluster": "x", "worker": {}},
        });
        let autoscaler = serde_json::json!({"metadata": named("s"), "spec": {"cluster": "x"}});
        let group: DaskWorkerGroup = serde_json::from_value(group).unwrap();
        let autoscaler: DaskAutoscaler = serde_json::from_value(autoscaler).unwrap();
        feeds
            .groups
            .take(&kube::runtime::watcher::Event::Apply(group));
        feeds
            .autoscalers
            .take(&kube::runtime::watcher::Event::Apply(autoscaler));
        caches
    }

    #[test]
    fn a_deployment_concerns_the_cluster_or_the_group_that_made_it() {
        let caches = filled();
        let targets = |kind: &str, name: &str| {
            let deployment = Deployment {
                metadata: owned(metadata(1), kind, name),
                ..Deployment::default()
            };
            names(&Deployment::targets(
                &Change::Gone(Arc::new(deployment)),
                &caches,
            ))
        };
        // Workers are renewed after their scheduler.
        assert_eq!(targets(CLUSTER, "x"), ["cluster x", "group x-default"]);
        assert_eq!(targets(GROUP, "x-other"), ["group x-other", "cluster x"]);
    }

    #[test]
    fn an_autoscaler_and_its_groups_concern_each_other() {
        let caches = filled();
        let group = caches.groups.get("n", "x-default").unwrap();
        let changed = DaskWorkerGroup::targets(&Change::Gone(group), &caches);
        assert_eq!(names(&changed), ["cluster x", "autoscaler s"]);
        let autoscaler = caches.autoscalers.get("n", "s").unwrap();
        let put = Change::Put {
            old: None,
            new: Arc::clone(&autoscaler),
        };
        let changed = DaskAutoscaler::targets(&put, &caches);
        assert_eq!(
            names(&changed),
            ["cluster x", "group x-default", "autoscaler s"]
        );
        let written = Change::Put {
            old: Some(Arc::clone(&autoscaler)),
            new: autoscaler,
        };
        assert!(
            DaskAutoscaler::targets(&written, &caches).is_empty(),
            "its own status"
        );
    }

    #[test]
    fn a_run_concerns_the_job_that_it_is_a_run_of() {
        let (_, caches) = Caches::new();
        let spec =
            serde_json::json!({"cluster": {"spec": {"worker": {}}}, "sql": {"statements": ""}});
        let mut run = DaskJob::new("j-1", serde_json::from_value(spec).unwrap());
        run.metadata = owned(metadata(1), JOB, "j");
        let targets = DaskJob::targets(&Change::Gone(Arc::new(run)), &caches);
        assert_eq!(names(&targets), ["job j"]);
    }
}

//! The kinds that are reconciled: how each is observed and which planner plans it.

use std::{fmt, iter};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt as _};
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{
    ClusterStatus, DaskCluster, DaskJob, DaskWorkerGroup, JobStatus, WorkerGroupStatus,
};
use oxidask_operator_plan::{COMPONENT, ObjectKind, Plan, cluster, group, job, names};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::{Cache, Cached, ClusterKey};
use crate::context::{Caches, Context};
use crate::error::OperatorError;
use crate::execute::Written;
use crate::secrets;

const SCHEDULER: &str = "scheduler";
const WORKER: &str = "worker";

/// A kind that is reconciled.
pub(crate) trait Operated:
    Cached + Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned
{
    type Status: Serialize + fmt::Debug + Send + Sync + 'static;
    /// The label of metrics.
    const KIND: &'static str;

    fn cache(caches: &Caches) -> &Cache<Self>;

    /// Observes and plans.
    fn plan(
        &self,
        context: &Context,
    ) -> impl Future<Output = Result<Plan<Self::Status>, OperatorError>> + Send;

    /// How to tell that the cache shows a written status.
    fn written(namespace: &str, name: &str, version: Option<&str>) -> Written;

    /// The status that was observed.
    fn status(&self) -> Option<&Self::Status>;

    /// A few words for the log.
    fn summary(status: &Self::Status) -> String;
}

impl Operated for DaskCluster {
    type Status = ClusterStatus;
    const KIND: &'static str = "DaskCluster";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.clusters
    }

    async fn plan(&self, context: &Context) -> Result<Plan<ClusterStatus>, OperatorError> {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        let key = ClusterKey::new(namespace.clone(), name.clone());
        let uid = self.uid().unwrap_or_default();
        let secrets = secrets::observe(context, &key, &uid).await?;
        let caches = &context.caches;
        let scheduler = names::scheduler(&name);
        let mut groups = caches.groups.of_cluster(&key);
        // One of another cluster may have taken the name of a group of this one.
        let further = self
            .spec
            .worker_groups
            .iter()
            .map(|group| group.name.as_str());
        for group in iter::once(names::DEFAULT_GROUP).chain(further) {
            let name = names::group(&name, group);
            let found = caches.groups.get(&namespace, &name);
            groups.extend(found.filter(|group| group.spec.cluster != key.cluster));
        }
        let pods = caches.pods.of_cluster(&key);
        let of_component = |component: &str| -> Vec<Pod> {
            let wanted = pods
                .iter()
                .filter(|pod| pod.labels().get(COMPONENT).map(String::as_str) == Some(component));
            wanted.map(|pod| Pod::clone(pod)).collect()
        };
        let observed = cluster::Observed {
            service: caches
                .services
                .get(&namespace, &scheduler)
                .map(|it| (*it).clone()),
            scheduler: caches
                .deployments
                .get(&namespace, &scheduler)
                .map(|it| (*it).clone()),
            groups: groups.iter().map(|it| DaskWorkerGroup::clone(it)).collect(),
            secrets,
            scheduler_pods: of_component(SCHEDULER),
            worker_pods: of_component(WORKER),
        };
        Ok(cluster::plan(
            self,
            &observed,
            &context.settings,
            Timestamp::now(),
        ))
    }

    fn written(namespace: &str, name: &str, version: Option<&str>) -> Written {
        Written::put(ObjectKind::Cluster, namespace, name, version)
    }

    fn status(&self) -> Option<&ClusterStatus> {
        self.status.as_ref()
    }

    fn summary(status: &ClusterStatus) -> String {
        let phase = status.phase.map(|phase| phase.to_string());
        format!(
            "phase {}, {} of {} workers ready",
            phase.unwrap_or_default(),
            status.ready_replicas.unwrap_or_default(),
            status.replicas.unwrap_or_default()
        )
    }
}

impl Operated for DaskWorkerGroup {
    type Status = WorkerGroupStatus;
    const KIND: &'static str = "DaskWorkerGroup";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.groups
    }

    async fn plan(&self, context: &Context) -> Result<Plan<WorkerGroupStatus>, OperatorError> {
        let namespace = self.namespace().unwrap_or_default();
        let key = ClusterKey::new(namespace.clone(), self.spec.cluster.clone());
        let uid = self.uid().unwrap_or_default();
        let caches = &context.caches;
        let cluster = caches.clusters.get(&namespace, &key.cluster);
        let certificate = names::certificate_secret(&key.cluster, Role::Worker);
        let certificate = match cluster.as_ref().and_then(|cluster| cluster.uid()) {
            Some(owner) => secrets::state(context, &key, &certificate, &owner).await?,
            None => None,
        };
        let pods = caches.pods.of_cluster(&key);
        let own = pods
            .iter()
            .filter(|pod| pod.owner_references().iter().any(|owner| owner.uid == uid));
        let observed = group::Observed {
            cluster: cluster.map(|it| (*it).clone()),
            pods: own.map(|pod| Pod::clone(pod)).collect(),
            has_certificates: certificate.is_some_and(|state| state.has_all_keys),
        };
        Ok(group::plan(
            self,
            &observed,
            &context.settings,
            Timestamp::now(),
        ))
    }

    fn written(namespace: &str, name: &str, version: Option<&str>) -> Written {
        Written::put(ObjectKind::WorkerGroup, namespace, name, version)
    }

    fn status(&self) -> Option<&WorkerGroupStatus> {
        self.status.as_ref()
    }

    fn summary(status: &WorkerGroupStatus) -> String {
        format!(
            "{} of {} workers ready",
            status.ready_replicas.unwrap_or_default(),
            status.replicas.unwrap_or_default()
        )
    }
}

impl Operated for DaskJob {
    type Status = JobStatus;
    const KIND: &'static str = "DaskJob";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.jobs
    }

    async fn plan(&self, context: &Context) -> Result<Plan<JobStatus>, OperatorError> {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        let caches = &context.caches;
        let work = caches.config_maps.get(&namespace, &names::work(&name));
        let observed = job::Observed {
            cluster: caches
                .clusters
                .get(&namespace, &name)
                .map(|it| (*it).clone()),
            runner: caches
                .pods
                .get(&namespace, &names::runner(&name))
                .map(|it| (*it).clone()),
            // The planner compares a hash that stands in the metadata.
            work: work.map(|it| ConfigMap {
                metadata: it.metadata.clone(),
                ..ConfigMap::default()
            }),
        };
        Ok(job::plan(
            self,
            &observed,
            &context.settings,
            Timestamp::now(),
        ))
    }

    fn written(namespace: &str, name: &str, version: Option<&str>) -> Written {
        Written::job(namespace, name, version)
    }

    fn status(&self) -> Option<&JobStatus> {
        self.status.as_ref()
    }

    fn summary(status: &JobStatus) -> String {
        status
            .job_status
            .map_or_else(|| "no state".to_owned(), |state| state.to_string())
    }
}

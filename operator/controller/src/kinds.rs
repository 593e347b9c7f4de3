//! The kinds that are reconciled: how each is observed and which planner plans it.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, iter};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt as _};
use oxidask_identity::Role;
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::{
    AutoscalerStatus, ClusterStatus, DaskAutoscaler, DaskCluster, DaskJob, DaskWorkerGroup,
    JobStatus, WorkerGroupStatus,
};
use oxidask_operator_plan::{
    COMPONENT, ObjectKind, Plan, WORKER_GROUP_NAME, autoscaler, cluster, group, job, names,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::{Cache, Cached, ClusterKey};
use crate::caches::Caches;
use crate::context::Context;
use crate::error::OperatorError;
use crate::queue::Target;
use crate::{link, secrets, warnings};

/// Between two turns of an object that is changed by others meanwhile.
const DISTANCE: Duration = Duration::from_millis(200);
/// For each pod that a cluster has or is to have.
const DISTANCE_PER_POD: Duration = Duration::from_millis(5);
const DISTANCE_MAX: Duration = Duration::from_secs(1);

const SCHEDULER: &str = "scheduler";
const WORKER: &str = "worker";
const RUNNER: &str = "job-runner";

/// A kind that is reconciled.
pub(crate) trait Operated:
    Cached + Resource<Scope = NamespaceResourceScope> + Serialize + DeserializeOwned
{
    type Status: Serialize + fmt::Debug + Send + Sync + 'static;
    /// What it is among the objects of a plan.
    const OBJECT: ObjectKind;

    fn cache(caches: &Caches) -> &Cache<Self>;

    /// How it is called in the queues.
    fn target(namespace: String, name: String) -> Target;

    /// Observes and plans.
    fn plan(
        &self,
        context: &Context,
    ) -> impl Future<Output = Result<Plan<Self::Status>, OperatorError>> + Send;

    /// The status that was observed.
    fn status(&self) -> Option<&Self::Status>;

    /// A few words for the log.
    fn summary(status: &Self::Status) -> String;

    /// Between two turns if others change it all the time.
    fn distance(&self, _caches: &Caches) -> Duration {
        DISTANCE
    }
}

impl Operated for DaskCluster {
    type Status = ClusterStatus;
    const OBJECT: ObjectKind = ObjectKind::Cluster;

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.clusters
    }

    fn target(namespace: String, name: String) -> Target {
        Target::Cluster { namespace, name }
    }

    async fn plan(&self, context: &Context) -> Result<Plan<ClusterStatus>, OperatorError> {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        let key = ClusterKey::new(namespace.clone(), name.clone());
        let uid = self.uid().unwrap_or_default();
        let secrets = secrets::observe(context, &key, &uid).await?;
        let authority = names::authority_secret(&name);
        let leaves = secrets.iter().filter(|(secret, _)| **secret != authority);
        let end = leaves.filter_map(|(_, state)| state.not_after).min();
        context.metrics.certificates(&key, end);
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
        let of_component = |component: &str| -> Vec<Arc<Pod>> {
            let wanted = pods
                .iter()
                .filter(|pod| pod.labels().get(COMPONENT).map(String::as_str) == Some(component));
            wanted.map(Arc::clone).collect()
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
            journal_claim: caches
                .claims
                .get(&namespace, &names::journal_claim(&name))
                .map(|it| it.metadata.clone()),
            groups: groups.iter().map(|it| DaskWorkerGroup::clone(it)).collect(),
            secrets,
            scheduler_pods: of_component(SCHEDULER),
            worker_pods: of_component(WORKER),
            runner_pods: of_component(RUNNER),
            disruption_budgets: owned(&caches.budgets.of_cluster(&key)),
            network_policies: owned(&caches.policies.of_cluster(&key)),
            service_accounts: owned(&caches.accounts.of_cluster(&key)),
            signal: context.signals.get(&key),
            refusals: context.refusals.get(&uid),
        };
        link::follow(context, self, &observed.scheduler_pods);
        context.dask.follow(self, &observed.scheduler_pods);
        let now = Timestamp::now();
        let mut plan = cluster::plan(self, &observed, &context.settings, now);
        // Stock Dask has no Secrets of ours.
        if self.spec.runtime() == Runtime::Rust {
            plan.wake(secrets::look_again(caches.clusters.len()));
        }
        Ok(plan)
    }

    fn status(&self) -> Option<&ClusterStatus> {
        self.status.as_ref()
    }

    /// While many pods come or go, all that a turn does is to count them in the status. To a real API
    /// server one such write costs as much as three pods.
    fn distance(&self, caches: &Caches) -> Duration {
        let key = ClusterKey::new(self.namespace().unwrap_or_default(), self.name_any());
        let pods = caches.pods.of_cluster(&key).len();
        let groups = caches.groups.of_cluster(&key);
        let wanted = groups.iter().filter_map(|group| group.spec.worker.replicas);
        let wanted = wanted.fold(0, u32::saturating_add);
        let many = wanted.max(u32::try_from(pods).unwrap_or(u32::MAX));
        DISTANCE_PER_POD
            .saturating_mul(many)
            .clamp(DISTANCE, DISTANCE_MAX)
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
    const OBJECT: ObjectKind = ObjectKind::WorkerGroup;

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.groups
    }

    fn target(namespace: String, name: String) -> Target {
        Target::Group { namespace, name }
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
        // The pods of a Dask worker belong to the ReplicaSet of its Deployment.
        let name = self.name_any();
        let is_labelled = |pod: &Pod| pod.labels().get(WORKER_GROUP_NAME) == Some(&name);
        let is_dask = cluster
            .as_ref()
            .is_some_and(|cluster| cluster.spec.runtime() == Runtime::Dask);
        let own = pods
            .iter()
            .filter(|pod| is_owned(&***pod, &uid) || (is_dask && is_labelled(pod)));
        let deployments = caches.deployments.of_cluster(&key);
        let workers = deployments.iter().filter(|it| is_owned(&***it, &uid));
        let workers = workers.map(|it| Deployment::clone(it)).collect();
        let observed = group::Observed {
            cluster: cluster.map(|it| (*it).clone()),
            pods: own.map(Arc::clone).collect(),
            has_certificates: certificate.is_some_and(|state| state.has_all_keys),
            deployments: workers,
            scheduler: caches
                .deployments
                .get(&namespace, &names::scheduler(&key.cluster))
                .map(|it| (*it).clone()),
            autoscalers: owned(&caches.autoscalers.of_cluster(&key)),
            signal: context.signals.get(&key),
            refusals: context.refusals.get(&uid),
        };
        Ok(group::plan(
            self,
            &observed,
            &context.settings,
            Timestamp::now(),
        ))
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
    const OBJECT: ObjectKind = ObjectKind::Job;

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.jobs
    }

    fn target(namespace: String, name: String) -> Target {
        Target::Job { namespace, name }
    }

    async fn plan(&self, context: &Context) -> Result<Plan<JobStatus>, OperatorError> {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        let caches = &context.caches;
        let work = caches.config_maps.get(&namespace, &names::work(&name));
        let uid = self.uid().unwrap_or_default();
        let key = ClusterKey::new(namespace.clone(), name.clone());
        let mut runs = caches.jobs.of_cluster(&key);
        runs.retain(|run| is_owned(&**run, &uid));
        let mut observed = job::Observed {
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
            runs: owned(&runs),
            refusals: context.refusals.get(&uid),
            warnings: Vec::new(),
        };
        let now = Timestamp::now();
        if job::wants_warnings(self, &observed, now)
            && let Some(runner) = &observed.runner
        {
            observed.warnings = warnings::of_pod(context, runner).await;
        }
        Ok(job::plan(self, &observed, &context.settings, now))
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

impl Operated for DaskAutoscaler {
    type Status = AutoscalerStatus;
    const OBJECT: ObjectKind = ObjectKind::Autoscaler;

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.autoscalers
    }

    fn target(namespace: String, name: String) -> Target {
        Target::Autoscaler { namespace, name }
    }

    async fn plan(&self, context: &Context) -> Result<Plan<AutoscalerStatus>, OperatorError> {
        let namespace = self.namespace().unwrap_or_default();
        let key = ClusterKey::new(namespace.clone(), self.spec.cluster.clone());
        let caches = &context.caches;
        let observed = autoscaler::Observed {
            cluster: caches
                .clusters
                .get(&namespace, &key.cluster)
                .map(|it| (*it).clone()),
            groups: owned(&caches.groups.of_cluster(&key)),
            autoscalers: owned(&caches.autoscalers.of_cluster(&key)),
            signal: context.signals.get(&key),
            refusals: context.refusals.get(&self.uid().unwrap_or_default()),
        };
        Ok(autoscaler::plan(
            self,
            &observed,
            &context.settings,
            Timestamp::now(),
        ))
    }

    fn status(&self) -> Option<&AutoscalerStatus> {
        self.status.as_ref()
    }

    fn summary(status: &AutoscalerStatus) -> String {
        let ready = status.conditions.iter().find(|it| it.type_ == "Ready");
        ready.map_or_else(
            || "no conditions".to_owned(),
            |ready| format!("Ready is {} because of {}", ready.status, ready.reason),
        )
    }
}

fn is_owned(object: &impl Resource, uid: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| owner.uid == uid)
}

/// Planners take values.
fn owned<K: Clone>(objects: &[Arc<K>]) -> Vec<K> {
    objects.iter().map(|object| K::clone(object)).collect()
}

//! Copies of everything that is watched.
//!
//! Owns which kinds there are and what is kept of each: of `ConfigMap`s and claims only the metadata,
//! of pods what planners read. Secrets are not among them: those are read by name.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::WriterDropped;
use oxidask_operator_api::kubernetes::{DaskAutoscaler, DaskCluster, DaskJob, DaskWorkerGroup};
use tokio::sync::Notify;

use crate::cache::{Cache, ClusterKey, Feed};
use crate::doubts::Doubts;
use crate::route::labelled;

/// The readers' sides.
#[derive(Debug)]
pub(crate) struct Caches {
    pub(crate) clusters: Arc<Cache<DaskCluster>>,
    pub(crate) groups: Arc<Cache<DaskWorkerGroup>>,
    pub(crate) jobs: Arc<Cache<DaskJob>>,
    pub(crate) autoscalers: Arc<Cache<DaskAutoscaler>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) deployments: Arc<Cache<Deployment>>,
    pub(crate) config_maps: Arc<Cache<PartialObjectMeta<ConfigMap>>>,
    pub(crate) claims: Arc<Cache<PartialObjectMeta<PersistentVolumeClaim>>>,
    pub(crate) budgets: Arc<Cache<PodDisruptionBudget>>,
    pub(crate) policies: Arc<Cache<NetworkPolicy>>,
    pub(crate) accounts: Arc<Cache<ServiceAccount>>,
    /// Woken at every change of any of them.
    pub(crate) changed: Notify,
    /// Kinds whose watch may have lost something.
    pub(crate) doubts: Doubts,
}

/// What fills the caches.
pub(crate) struct Feeds {
    pub(crate) clusters: Feed<DaskCluster>,
    pub(crate) groups: Feed<DaskWorkerGroup>,
    pub(crate) jobs: Feed<DaskJob>,
    pub(crate) autoscalers: Feed<DaskAutoscaler>,
    pub(crate) pods: Feed<Pod>,
    pub(crate) services: Feed<Service>,
    pub(crate) deployments: Feed<Deployment>,
    pub(crate) config_maps: Feed<PartialObjectMeta<ConfigMap>>,
    pub(crate) claims: Feed<PartialObjectMeta<PersistentVolumeClaim>>,
    pub(crate) budgets: Feed<PodDisruptionBudget>,
    pub(crate) policies: Feed<NetworkPolicy>,
    pub(crate) accounts: Feed<ServiceAccount>,
}

impl Caches {
    /// Empty ones.
    pub(crate) fn new() -> (Feeds, Self) {
        let (clusters_feed, clusters) = Feed::new(|object: &DaskCluster| {
            Some(ClusterKey::new(object.namespace()?, object.name_any()))
        });
        let (groups_feed, groups) = Feed::new(|object: &DaskWorkerGroup| {
            Some(ClusterKey::new(object.namespace()?, &object.spec.cluster))
        });
        // A run of a scheduled job is found under the job that it is a run of.
        let (jobs_feed, jobs) = Feed::new(|object: &DaskJob| {
            let name = owning_job(object).unwrap_or_else(|| object.name_any());
            Some(ClusterKey::new(object.namespace()?, name))
        });
        let (autoscalers_feed, autoscalers) = Feed::new(|object: &DaskAutoscaler| {
            Some(ClusterKey::new(object.namespace()?, &object.spec.cluster))
        });
        let (pods_feed, pods) = Feed::new(labelled);
        let (services_feed, services) = Feed::new(labelled);
        let (deployments_feed, deployments) = Feed::new(labelled);
        let (config_maps_feed, config_maps) = Feed::new(labelled);
        let (claims_feed, claims) = Feed::new(labelled);
        let (budgets_feed, budgets) = Feed::new(labelled);
        let (policies_feed, policies) = Feed::new(labelled);
        let (accounts_feed, accounts) = Feed::new(labelled);
        let feeds = Feeds {
            clusters: clusters_feed,
            groups: groups_feed,
            jobs: jobs_feed,
            autoscalers: autoscalers_feed,
            pods: pods_feed,
            services: services_feed,
            deployments: deployments_feed,
            config_maps: config_maps_feed,
            claims: claims_feed,
            budgets: budgets_feed,
            policies: policies_feed,
            accounts: accounts_feed,
        };
        let caches = Self {
            clusters,
            groups,
            jobs,
            autoscalers,
            pods,
            services,
            deployments,
            config_maps,
            claims,
            budgets,
            policies,
            accounts,
            changed: Notify::new(),
            doubts: Doubts::new(),
        };
        (feeds, caches)
    }

    /// Waits until each watch has read its first list.
    pub(crate) async fn all_listed(&self) -> Result<(), WriterDropped> {
        self.clusters.store().wait_until_ready().await?;
        self.groups.store().wait_until_ready().await?;
        self.jobs.store().wait_until_ready().await?;
        self.autoscalers.store().wait_until_ready().await?;
        self.pods.store().wait_until_ready().await?;
        self.services.store().wait_until_ready().await?;
        self.deployments.store().wait_until_ready().await?;
        self.config_maps.store().wait_until_ready().await?;
        self.claims.store().wait_until_ready().await?;
        self.budgets.store().wait_until_ready().await?;
        self.policies.store().wait_until_ready().await?;
        self.accounts.store().wait_until_ready().await
    }
}

/// The name of the job that a job belongs to.
pub(crate) fn owning_job(job: &DaskJob) -> Option<String> {
    let owners = job.owner_references().iter();
    let mut jobs = owners.filter(|owner| owner.kind == "DaskJob");
    jobs.next().map(|owner| owner.name.clone())
}

//! One watched scope: all namespaces, or one of them, with watches, caches and controllers of its
//! own, so that rights within one namespace are enough for it.
//!
//! Nothing is reconciled before every watch has read its first list: what is not known yet would
//! be taken for missing.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::Client;
use kube::core::error_boundary::InvalidObject;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::store::WriterDropped;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, DaskWorkerGroup};
use oxidask_operator_plan::Settings;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backoff::Attempts;
use crate::context::{Caches, Context, Feeds};
use crate::controllers;
use crate::execute::SETTLE_LIMIT;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::queue::{Queues, Receivers};
use crate::route::everything;
use crate::secrets::SecretStates;
use crate::watch::{Watching, watch};

/// Pods of ours, whatever part they play.
const PODS: &str = "dask.org/cluster-name,dask.org/component in (scheduler,worker,job-runner)";

/// The Services and Deployments of schedulers.
const SCHEDULERS: &str = "dask.org/cluster-name,dask.org/component=scheduler";

/// Secrets and `ConfigMap`s of a cluster or a job.
const LABELLED: &str = "dask.org/cluster-name";

/// What all scopes share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) concurrency: u16,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    pub(crate) recorder: Recorder,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) shutdown: CancellationToken,
}

/// Runs a scope until the token fires and what was begun is done.
pub(crate) async fn run(shared: Shared, namespace: Option<String>) {
    let (feeds, caches) = Caches::new();
    let (queues, receivers) = Queues::new();
    let context = Arc::new(Context {
        client: shared.client.clone(),
        caches,
        secrets: SecretStates::default(),
        settings: shared.settings.clone(),
        metrics: Arc::clone(&shared.metrics),
        recorder: shared.recorder.clone(),
        attempts: Attempts::default(),
        requests: Arc::clone(&shared.requests),
        settle_limit: SETTLE_LIMIT,
    });
    let watching = Watching {
        context: Arc::clone(&context),
        queues: Arc::new(queues),
        health: Arc::clone(&shared.health),
        namespace,
    };
    // Dropped, and so ended, when the controllers have ended.
    let _watches = start_watches(&watching, feeds);
    let listed = tokio::select! {
        listed = all_listed(&context.caches) => listed.is_ok(),
        () = shared.shutdown.cancelled() => false,
    };
    if listed {
        let namespace = watching.namespace.as_deref().unwrap_or("all");
        tracing::info!(namespace, "everything is listed; reconciling");
        reconcile_all(&shared, &watching, context, receivers).await;
    }
}

async fn reconcile_all(
    shared: &Shared,
    watching: &Watching,
    context: Arc<Context>,
    receivers: Receivers,
) {
    watching.queues.open();
    let all = everything(&context.caches);
    let Receivers {
        clusters,
        groups,
        jobs,
    } = receivers;
    let (concurrency, shutdown) = (shared.concurrency, &shared.shutdown);
    let mut controllers = JoinSet::new();
    controllers.spawn(controllers::run(
        Arc::clone(&context),
        clusters,
        concurrency,
        shutdown.clone(),
    ));
    controllers.spawn(controllers::run(
        Arc::clone(&context),
        groups,
        concurrency,
        shutdown.clone(),
    ));
    controllers.spawn(controllers::run(
        context,
        jobs,
        concurrency,
        shutdown.clone(),
    ));
    watching.queues.send(all).await;
    while let Some(ended) = controllers.join_next().await {
        if let Err(error) = ended {
            // A bug of ours. Ending lets the kubelet start a fresh process.
            tracing::error!(%error, "a controller ended; stopping");
            shared.shutdown.cancel();
        }
    }
}

fn start_watches(watching: &Watching, feeds: Feeds) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    let health = &watching.health;
    for what in [
        watching.name::<DaskCluster>(),
        watching.name::<DaskWorkerGroup>(),
        watching.name::<DaskJob>(),
        watching.name::<Pod>(),
        watching.name::<Service>(),
        watching.name::<Deployment>(),
        watching.name::<ConfigMap>(),
        watching.name::<Secret>(),
    ] {
        health.expect(&what);
    }
    let shared = || watching.clone();
    watches.spawn(watch(shared(), None, feeds.clusters, guarded));
    watches.spawn(watch(shared(), None, feeds.groups, guarded));
    watches.spawn(watch(shared(), None, feeds.jobs, guarded));
    watches.spawn(watch(shared(), Some(PODS), feeds.pods, Ok));
    watches.spawn(watch(shared(), Some(SCHEDULERS), feeds.services, Ok));
    watches.spawn(watch(shared(), Some(SCHEDULERS), feeds.deployments, Ok));
    watches.spawn(watch(
        shared(),
        Some(LABELLED),
        feeds.config_maps,
        Ok::<PartialObjectMeta<ConfigMap>, _>,
    ));
    watches.spawn(watch(
        shared(),
        Some(LABELLED),
        feeds.secrets,
        Ok::<PartialObjectMeta<Secret>, _>,
    ));
    watches
}

/// Ours may have been stored under other definitions; one that cannot be read stands alone.
fn guarded<K>(received: DeserializeGuard<K>) -> Result<K, Box<InvalidObject>> {
    received.0.map_err(Box::new)
}

async fn all_listed(caches: &Caches) -> Result<(), WriterDropped> {
    caches.clusters.store().wait_until_ready().await?;
    caches.groups.store().wait_until_ready().await?;
    caches.jobs.store().wait_until_ready().await?;
    caches.pods.store().wait_until_ready().await?;
    caches.services.store().wait_until_ready().await?;
    caches.deployments.store().wait_until_ready().await?;
    caches.config_maps.store().wait_until_ready().await?;
    caches.secrets.store().wait_until_ready().await
}

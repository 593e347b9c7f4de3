//! One watched scope: all namespaces, or one of them, with watches, caches and controllers of its
//! own, so that rights within one namespace are enough for it.
//!
//! The watches run all the time; controllers and links run while this process leads. Nothing is
//! reconciled before every watch has read its first list: what is not known yet would be taken for
//! missing.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use kube::core::error_boundary::InvalidObject;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::Recorder;
use oxidask_operator_api::kubernetes::{DaskAutoscaler, DaskCluster, DaskJob, DaskWorkerGroup};
use oxidask_operator_plan::Settings;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Attempts;
use crate::caches::{Caches, Feeds};
use crate::context::Context;
use crate::controllers;
use crate::dask::DaskLinks;
use crate::discovery::wait_for_definitions;
use crate::execute::SETTLE_LIMIT;
use crate::health::Health;
use crate::leadership::Leadership;
use crate::link::{AddressTemplate, Environment, Links};
use crate::metrics::Metrics;
use crate::queue::Receivers;
use crate::refusals::Refusals;
use crate::route::everything;
use crate::secrets::SecretStates;
use crate::seen_pod::SeenPod;
use crate::turns::Turns;
use crate::watch::{Watching, watch};

/// Pods of ours, whatever part they play.
const PODS: &str = "dask.org/cluster-name,dask.org/component in (scheduler,worker,job-runner)";

/// The Services and claims of schedulers.
const SCHEDULERS: &str = "dask.org/cluster-name,dask.org/component=scheduler";

/// The Deployments of schedulers, and of workers of Dask's own runtime.
const DEPLOYMENTS: &str = "dask.org/cluster-name,dask.org/component in (scheduler,worker)";

/// Other objects of a cluster or a job.
const LABELLED: &str = "dask.org/cluster-name";

/// A term in which this process leads; none while it does not.
pub(crate) type Term = Option<CancellationToken>;

/// What all scopes share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) concurrency: u16,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
    pub(crate) recorder: Recorder,
    pub(crate) turns: Arc<Turns>,
    pub(crate) leadership: Leadership,
    pub(crate) addresses: AddressTemplate,
    pub(crate) shutdown: CancellationToken,
}

/// Runs a scope until the shutdown token fires and what was begun is done.
pub(crate) async fn run(shared: Shared, namespace: Option<String>, mut terms: Receiver<Term>) {
    let (feeds, caches) = Caches::new();
    let context = context(&shared, caches);
    let watching = Watching {
        context: Arc::clone(&context),
        health: Arc::clone(&shared.health),
        namespace,
    };
    // Dropped, and so ended, when the controllers have ended.
    let _watches = start_watches(&watching, feeds);
    let listed = tokio::select! {
        listed = context.caches.all_listed() => listed.is_ok(),
        () = shared.shutdown.cancelled() => false,
    };
    if !listed {
        return;
    }
    let namespace = watching.namespace.as_deref().unwrap_or("all");
    tracing::info!(namespace, "everything is listed");
    loop {
        let term = tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            term = terms.wait_for(Option::is_some) => term.ok().and_then(|term| term.clone()),
        };
        let Some(term) = term else { return };
        if term.is_cancelled() {
            // The next term is on its way.
            if terms.changed().await.is_err() {
                return;
            }
            continue;
        }
        reconcile_all(&shared, &context, namespace, &term).await;
    }
}

fn context(shared: &Shared, caches: Caches) -> Arc<Context> {
    let caches = Arc::new(caches);
    let environment = Arc::new(Environment::new(
        shared.client.clone(),
        Arc::clone(&caches),
        Arc::clone(&shared.metrics),
        shared.leadership.clone(),
        shared.addresses.clone(),
    ));
    shared.metrics.watch(&caches, &environment.queues);
    let (of_dask, queued) = (
        Arc::clone(&environment.signals),
        Arc::clone(&environment.queues),
    );
    Arc::new(Context {
        client: shared.client.clone(),
        dask: DaskLinks::new(Arc::clone(&caches), of_dask, queued),
        caches,
        secrets: SecretStates::default(),
        settings: shared.settings.clone(),
        metrics: Arc::clone(&shared.metrics),
        recorder: shared.recorder.clone(),
        attempts: Attempts::default(),
        refusals: Refusals::default(),
        signals: Arc::clone(&environment.signals),
        queues: Arc::clone(&environment.queues),
        links: Links::new(environment),
        turns: Arc::clone(&shared.turns),
        leadership: shared.leadership.clone(),
        settle_limit: SETTLE_LIMIT,
    })
}

/// One term: until it ends, or the process does.
async fn reconcile_all(
    shared: &Shared,
    context: &Arc<Context>,
    namespace: &str,
    term: &CancellationToken,
) {
    let stop = shared.shutdown.child_token();
    let ends = {
        let (stop, term) = (stop.clone(), term.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            term.cancelled().await;
            stop.cancel();
        }))
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => return,
        () = wait_for_definitions(&context.client, &shared.health) => {}
    }
    let mut controllers = start_controllers(shared, context, &stop);
    tracing::info!(namespace, "reconciling");
    context.queues.send(everything(&context.caches)).await;
    while let Some(ended) = controllers.join_next().await {
        if let Err(error) = ended {
            // A bug of ours. Ending lets the kubelet start a fresh process.
            tracing::error!(%error, "a controller ended; stopping");
            shared.shutdown.cancel();
        }
    }
    drop(ends);
    context.queues.close();
    context.links.clear();
    context.dask.clear();
}

fn start_controllers(
    shared: &Shared,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let Receivers {
        clusters,
        groups,
        jobs,
        autoscalers,
    } = context.queues.open();
    let (concurrency, context) = (shared.concurrency, || Arc::clone(context));
    let mut controllers = JoinSet::new();
    controllers.spawn(controllers::run(
        context(),
        clusters,
        concurrency,
        stop.clone(),
    ));
    controllers.spawn(controllers::run(
        context(),
        groups,
        concurrency,
        stop.clone(),
    ));
    controllers.spawn(controllers::run(context(), jobs, concurrency, stop.clone()));
    controllers.spawn(controllers::run(
        context(),
        autoscalers,
        concurrency,
        stop.clone(),
    ));
    controllers
}

fn start_watches(watching: &Watching, feeds: Feeds) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    let health = &watching.health;
    for what in [
        watching.name::<DaskCluster>(),
        watching.name::<DaskWorkerGroup>(),
        watching.name::<DaskJob>(),
        watching.name::<DaskAutoscaler>(),
        watching.name::<Pod>(),
        watching.name::<Service>(),
        watching.name::<Deployment>(),
        watching.name::<ConfigMap>(),
        watching.name::<PersistentVolumeClaim>(),
        watching.name::<PodDisruptionBudget>(),
        watching.name::<NetworkPolicy>(),
        watching.name::<ServiceAccount>(),
    ] {
        health.expect(&what);
    }
    let shared = || watching.clone();
    watches.spawn(watch(shared(), None, feeds.clusters, guarded));
    watches.spawn(watch(shared(), None, feeds.groups, guarded));
    watches.spawn(watch(shared(), None, feeds.jobs, guarded));
    watches.spawn(watch(shared(), None, feeds.autoscalers, guarded));
    watches.spawn(watch(shared(), Some(PODS), feeds.pods, |seen: SeenPod| {
        Ok(seen.0)
    }));
    watches.spawn(watch(shared(), Some(SCHEDULERS), feeds.services, Ok));
    watches.spawn(watch(shared(), Some(DEPLOYMENTS), feeds.deployments, Ok));
    watches.spawn(watch(
        shared(),
        Some(LABELLED),
        feeds.config_maps,
        Ok::<PartialObjectMeta<ConfigMap>, _>,
    ));
    watches.spawn(watch(
        shared(),
        Some(SCHEDULERS),
        feeds.claims,
        Ok::<PartialObjectMeta<PersistentVolumeClaim>, _>,
    ));
    watches.spawn(watch(shared(), Some(LABELLED), feeds.budgets, Ok));
    watches.spawn(watch(shared(), Some(LABELLED), feeds.policies, Ok));
    watches.spawn(watch(shared(), Some(LABELLED), feeds.accounts, Ok));
    watches
}

/// Ours may have been stored under other definitions; one that cannot be read stands alone.
fn guarded<K>(received: DeserializeGuard<K>) -> Result<K, Box<InvalidObject>> {
    received.0.map_err(Box::new)
}

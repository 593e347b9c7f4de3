//! The ways to the schedulers of the runtime `Rust`.
//!
//! Owns one link for each cluster with a scheduler: as long as it stands, the scheduler's telemetry
//! becomes the cluster's signal, and workers can be drained. Never decides anything.
//!
//! Invariants: links exist only while this process leads; a link that breaks silences its cluster at
//! once; every wait has an end; the operator's key is in memory only.

mod address;
mod convert;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, stream as streams};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt as _};
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::DaskCluster;
use oxidask_operator_plan::{Retirement, WorkerEnd, is_ready};
use oxidask_proto::wire;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use crate::cache::ClusterKey;
use crate::caches::Caches;
use crate::context::Context;
use crate::leadership::Leadership;
use crate::metrics::Metrics;
use crate::queue::Queues;
use crate::signals::Signals;

pub(crate) use address::{AddressTemplate, TEMPLATE_DEFAULT};

type SchedulerClient = wire::scheduler_client::SchedulerClient<Channel>;

/// Clusters that are followed at a time; further ones have no signal.
const LINKS_MAX: usize = 4096;

/// Links that are being set up at a time: after a restart all of them want to be.
const CONNECTS_MAX: usize = 64;

/// Bytes of a telemetry message: ten thousand workers fit many times.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How long a scheduler may take to answer.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Calls of one plan beside each other.
const CALLS_MAX: usize = 16;

/// Workers that one call names.
const NAMES_MAX: usize = 1024;

/// What every link works with.
pub(crate) struct Environment {
    pub(crate) client: Client,
    pub(crate) caches: Arc<Caches>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) leadership: Leadership,
    pub(crate) addresses: AddressTemplate,
    connects: Semaphore,
}

impl Environment {
    pub(crate) fn new(
        client: Client,
        caches: Arc<Caches>,
        metrics: Arc<Metrics>,
        leadership: Leadership,
        addresses: AddressTemplate,
    ) -> Self {
        Self {
            client,
            caches,
            signals: Arc::default(),
            queues: Arc::default(),
            metrics,
            leadership,
            addresses,
            connects: Semaphore::new(CONNECTS_MAX),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

/// What a link's task and its users share.
#[derive(Debug)]
struct Shared {
    key: ClusterKey,
    /// Whether the scheduler's pod says that it is ready.
    is_ready: watch::Sender<bool>,
    /// The way to the scheduler while the stream stands.
    client: Mutex<Option<SchedulerClient>>,
}

impl Shared {
    fn set(&self, client: Option<SchedulerClient>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn get(&self) -> Option<SchedulerClient> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.clone()
    }
}

#[derive(Debug)]
struct Link {
    /// The UID of the cluster: another one of the same name has another link.
    uid: String,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// All links of a scope.
#[derive(Debug)]
pub(crate) struct Links {
    environment: Arc<Environment>,
    links: Mutex<HashMap<ClusterKey, Link>>,
}

impl Links {
    pub(crate) fn new(environment: Arc<Environment>) -> Self {
        Self {
            environment,
            links: Mutex::default(),
        }
    }

    /// The cluster is gone, or nobody can speak with its scheduler.
    pub(crate) fn drop_link(&self, key: &ClusterKey) {
        let dropped = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.remove(key)
        };
        if dropped.is_some() {
            self.environment.signals.silence(key);
        }
    }

    /// This process does not lead any more.
    pub(crate) fn clear(&self) {
        let dropped: Vec<ClusterKey> = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.drain().map(|(key, _)| key).collect()
        };
        for key in dropped {
            self.environment.signals.silence(&key);
        }
    }

    fn follow(&self, key: &ClusterKey, uid: &str, is_ready: bool) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(key).filter(|link| link.uid == uid) {
            link.shared.is_ready.send_if_modified(|known| {
                let is_news = *known != is_ready;
                *known = is_ready;
                is_news
            });
            return;
        }
        if links.len() >= LINKS_MAX && !links.contains_key(key) {
            let object = format!("{}/{}", key.namespace, key.cluster);
            tracing::warn!(object, LINKS_MAX, "too many schedulers to follow this one");
            return;
        }
        let shared = Arc::new(Shared {
            key: key.clone(),
            is_ready: watch::channel(is_ready).0,
            client: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stream::run(
            Arc::clone(&self.environment),
            Arc::clone(&shared),
            stop.clone(),
        ));
        let link = Link {
            uid: uid.to_owned(),
            shared,
            _stop: stop.drop_guard(),
        };
        links.insert(key.clone(), link);
    }

    fn client(&self, key: &ClusterKey) -> Option<SchedulerClient> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(key)?.shared.get()
    }
}

/// Keeps a link to a cluster's scheduler as long as there is one.
pub(crate) fn follow(context: &Context, cluster: &DaskCluster, scheduler_pods: &[Arc<Pod>]) {
    let namespace = cluster.namespace().unwrap_or_default();
    let key = ClusterKey::new(namespace, cluster.name_any());
    let ends = cluster.metadata.deletion_timestamp.is_some();
    if ends || cluster.spec.runtime() != Runtime::Rust {
        context.links.drop_link(&key);
        return;
    }
    let uid = cluster.uid().unwrap_or_default();
    let is_ready = scheduler_pods.iter().any(|pod| is_ready(pod));
    context.links.follow(&key, &uid, is_ready);
}

/// What workers of one cluster are asked for together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    namespace: String,
    cluster: String,
    deadline_ms: u64,
    is_cancelled: bool,
}

/// Asks schedulers to drain workers. False if one could not be told.
pub(crate) async fn retire(context: &Context, retirements: &[Retirement]) -> bool {
    let mut orders: BTreeMap<Order, Vec<String>> = BTreeMap::new();
    for retirement in retirements {
        let deadline_ms = u64::try_from(retirement.deadline.as_millis());
        let order = Order {
            namespace: retirement.namespace.clone(),
            cluster: retirement.cluster.clone(),
            deadline_ms: deadline_ms.unwrap_or(u64::MAX),
            is_cancelled: retirement.is_cancelled,
        };
        let names = orders.entry(order).or_default();
        names.push(retirement.worker.clone());
    }
    let mut calls = Vec::new();
    for (order, names) in &orders {
        for names in names.chunks(NAMES_MAX) {
            calls.push(retire_some(context, order, names));
        }
    }
    let told = streams::iter(calls).buffer_unordered(CALLS_MAX);
    told.fold(true, |all, told| async move { all && told })
        .await
}

async fn retire_some(context: &Context, order: &Order, names: &[String]) -> bool {
    let key = ClusterKey::new(&order.namespace, &order.cluster);
    let object = format!("{}/{}", order.namespace, order.cluster);
    let Some(mut client) = context.links.client(&key) else {
        tracing::debug!(object, "no scheduler to drain workers");
        return false;
    };
    let request = wire::RetireRequest {
        workers: names.to_vec(),
        deadline_ms: order.deadline_ms,
        is_cancelled: order.is_cancelled,
        ..wire::RetireRequest::default()
    };
    match called(context, client.retire(request)).await {
        Ok(reply) => {
            let (accepted, refused) = (reply.accepted.len(), reply.refused.len());
            let first = reply.refused.first();
            let reason = first.map(|it| format!("{}: {}", it.worker, it.reason));
            let is_cancelled = order.is_cancelled;
            tracing::info!(
                object,
                accepted,
                refused,
                reason,
                is_cancelled,
                "asked to drain workers"
            );
            true
        }
        Err(error) => {
            tracing::warn!(
                object,
                error,
                "the scheduler was not asked to drain workers"
            );
            false
        }
    }
}

/// Tells schedulers of workers that have ended. One that is not told finds out by itself.
pub(crate) async fn ended(context: &Context, ends: &[WorkerEnd]) {
    let calls: Vec<_> = ends.iter().map(|end| end_one(context, end)).collect();
    let told = streams::iter(calls).buffer_unordered(CALLS_MAX);
    let all = told.for_each(|()| std::future::ready(()));
    if tokio::time::timeout(CALL_LIMIT, all).await.is_err() {
        let count = ends.len();
        tracing::debug!(count, "not every end of a worker was told in time");
    }
}

async fn end_one(context: &Context, end: &WorkerEnd) {
    let key = ClusterKey::new(&end.namespace, &end.cluster);
    let Some(mut client) = context.links.client(&key) else {
        return;
    };
    let request = wire::WorkerEndedRequest {
        worker: end.worker.clone(),
        pod_uid: end.pod_uid.clone(),
        reason: end.reason.clone(),
        process_id: 0,
    };
    let told = called(context, client.worker_ended(request)).await;
    let object = format!("{}/{}", end.namespace, end.worker);
    match told {
        Ok(reply) => {
            let (reason, was_known) = (&end.reason, reply.was_known);
            tracing::info!(object, reason, was_known, "told the scheduler of an end");
        }
        Err(error) => tracing::debug!(object, error, "the scheduler was not told of an end"),
    }
}

/// A call to a scheduler that changes something: only while this process leads.
async fn called<T>(
    context: &Context,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    let deposed = || Err("this process does not lead any more".to_owned());
    let lost = context.leadership.lost();
    if !context.leadership.holds() {
        return deposed();
    }
    let answered = tokio::select! {
        biased;
        () = lost => return deposed(),
        answered = tokio::time::timeout(CALL_LIMIT, call) => answered,
    };
    match answered {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(stream::said(&status)),
        Err(_) => Err(format!("no answer within {} s", CALL_LIMIT.as_secs())),
    }
}

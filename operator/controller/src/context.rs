//! What a reconciliation works with.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Pod, Secret, Service};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, ResourceExt as _};
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, DaskWorkerGroup};
use oxidask_operator_plan::Settings;
use tokio::sync::{Notify, Semaphore};

use crate::api_error::request_error;
use crate::backoff::Attempts;
use crate::cache::{Cache, Feed};
use crate::error::{OneLine, OperatorError};
use crate::metrics::Metrics;
use crate::route::labelled;
use crate::secrets::SecretStates;

/// Requests under way at the same time, over all objects; watches apart.
pub(crate) const REQUESTS_MAX: usize = 64;

/// How long one request may take, with the client's own repetitions.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Events are extras: nothing waits for them for long.
const EVENT_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of an event's note that the API server takes.
const NOTE_BYTES_MAX: usize = 1024;

/// Copies of everything that is watched. Of Secrets and `ConfigMap`s only the metadata.
#[derive(Debug)]
pub(crate) struct Caches {
    pub(crate) clusters: Arc<Cache<DaskCluster>>,
    pub(crate) groups: Arc<Cache<DaskWorkerGroup>>,
    pub(crate) jobs: Arc<Cache<DaskJob>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) deployments: Arc<Cache<Deployment>>,
    pub(crate) config_maps: Arc<Cache<PartialObjectMeta<ConfigMap>>>,
    pub(crate) secrets: Arc<Cache<PartialObjectMeta<Secret>>>,
    /// Woken at every change of any of them.
    pub(crate) changed: Notify,
}

/// What fills the caches.
pub(crate) struct Feeds {
    pub(crate) clusters: Feed<DaskCluster>,
    pub(crate) groups: Feed<DaskWorkerGroup>,
    pub(crate) jobs: Feed<DaskJob>,
    pub(crate) pods: Feed<Pod>,
    pub(crate) services: Feed<Service>,
    pub(crate) deployments: Feed<Deployment>,
    pub(crate) config_maps: Feed<PartialObjectMeta<ConfigMap>>,
    pub(crate) secrets: Feed<PartialObjectMeta<Secret>>,
}

impl Caches {
    /// Empty ones.
    pub(crate) fn new() -> (Feeds, Self) {
        use crate::cache::ClusterKey;
        let (clusters_feed, clusters) = Feed::new(|object: &DaskCluster| {
            Some(ClusterKey::new(object.namespace()?, object.name_any()))
        });
        let (groups_feed, groups) = Feed::new(|object: &DaskWorkerGroup| {
            Some(ClusterKey::new(
                object.namespace()?,
                object.spec.cluster.clone(),
            ))
        });
        let (jobs_feed, jobs) = Feed::new(|object: &DaskJob| {
            Some(ClusterKey::new(object.namespace()?, object.name_any()))
        });
        let (pods_feed, pods) = Feed::new(labelled);
        let (services_feed, services) = Feed::new(labelled);
        let (deployments_feed, deployments) = Feed::new(labelled);
        let (config_maps_feed, config_maps) = Feed::new(labelled);
        let (secrets_feed, secrets) = Feed::new(labelled);
        let feeds = Feeds {
            clusters: clusters_feed,
            groups: groups_feed,
            jobs: jobs_feed,
            pods: pods_feed,
            services: services_feed,
            deployments: deployments_feed,
            config_maps: config_maps_feed,
            secrets: secrets_feed,
        };
        let caches = Self {
            clusters,
            groups,
            jobs,
            pods,
            services,
            deployments,
            config_maps,
            secrets,
            changed: Notify::new(),
        };
        (feeds, caches)
    }
}

/// Everything that a reconciliation works with, one for each watched scope.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) caches: Caches,
    pub(crate) secrets: SecretStates,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recorder: Recorder,
    pub(crate) attempts: Attempts,
    /// Shared by all scopes.
    pub(crate) requests: Arc<Semaphore>,
    /// How long the caches may take to show what was written.
    pub(crate) settle_limit: Duration,
}

impl Context {
    /// Sends a request when it is its turn, and says what was tried if it fails.
    pub(crate) async fn request<T>(
        &self,
        what: impl FnOnce() -> String,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, OperatorError> {
        // The semaphore is never closed; without a permit the request would only be unbounded.
        let _permit = self.requests.acquire().await.ok();
        match tokio::time::timeout(REQUEST_LIMIT, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(request_error(what(), error)),
            Err(_) => Err(OperatorError::Timeout {
                what: what(),
                seconds: REQUEST_LIMIT.as_secs(),
            }),
        }
    }

    /// Publishes an event about an object. A failure is only logged.
    pub(crate) async fn publish(
        &self,
        object: ObjectReference,
        kind: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(cut(note, NOTE_BYTES_MAX).to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        let published = self.request(
            || format!("the event `{reason}` cannot be published"),
            self.recorder.publish(&event, &object),
        );
        match tokio::time::timeout(EVENT_LIMIT, published).await {
            Ok(Ok(())) => self.metrics.event(),
            Ok(Err(error)) => {
                tracing::debug!(error = %OneLine(&error), "an event was not published");
            }
            Err(_) => tracing::debug!(reason, "an event was not published in time"),
        }
    }
}

/// The start of a text, ending between two characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or(text)
}

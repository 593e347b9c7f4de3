//! Watches one kind: keeps its cache, tells the controllers, and reports whether it works.
//!
//! Never ends by itself: an error is said once for each reason, and the watch goes on later.

use std::fmt;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::Api;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::events::EventType;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt as _};
use oxidask_diagnostic::{Code, Coded as _};
use oxidask_operator_api::API_VERSION;
use serde::de::DeserializeOwned;

use crate::api_error::watch_error;
use crate::backoff::watch_pause;
use crate::cache::{Change, Feed};
use crate::context::Context;
use crate::error::OneLine;
use crate::health::Health;
use crate::route::Routed;

/// What all watches of a scope share.
#[derive(Clone)]
pub(crate) struct Watching {
    pub(crate) context: Arc<Context>,
    pub(crate) health: Arc<Health>,
    /// None for all namespaces.
    pub(crate) namespace: Option<String>,
}

impl Watching {
    /// How a watch is called in messages.
    pub(crate) fn name<K: Resource<DynamicType = ()>>(&self) -> String {
        let plural = K::plural(&());
        match &self.namespace {
            None => format!("`{plural}` in all namespaces"),
            Some(namespace) => format!("`{plural}` in namespace `{namespace}`"),
        }
    }
}

/// Watches objects of kind `K`, received as `W`: as they are, or under a guard against those that
/// cannot be read.
pub(crate) async fn watch<W, K>(
    watching: Watching,
    labels: Option<&'static str>,
    mut feed: Feed<K>,
    read: fn(W) -> Result<K, Box<InvalidObject>>,
) where
    W: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
    W: Resource<Scope = NamespaceResourceScope>,
    K: Routed,
{
    let client = watching.context.client.clone();
    let api: Api<W> = match &watching.namespace {
        None => Api::all(client),
        Some(namespace) => Api::namespaced(client, namespace),
    };
    let config = watcher::Config {
        label_selector: labels.map(str::to_owned),
        ..watcher::Config::default()
    };
    let what = watching.name::<K>();
    let kind = K::kind(&());
    let mut doubts = watching.context.caches.doubts.subscribe();
    let mut events = Box::pin(watcher(api.clone(), config.clone()));
    let mut failures = 0;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            doubted = doubts.recv() => {
                if doubted.is_ok_and(|doubted| doubted == kind) {
                    events = Box::pin(watcher(api.clone(), config.clone()));
                }
                continue;
            }
        };
        let Some(event) = event else { return };
        match event {
            Ok(event) => {
                // The start of a list says nothing yet.
                if !matches!(event, Event::Init) {
                    failures = 0;
                    works(&watching, &what, matches!(event, Event::InitDone));
                }
                take(&watching, &mut feed, event, read).await;
            }
            Err(error) => {
                fails(&watching, &what, error);
                tokio::time::sleep(watch_pause(failures)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
}

fn works(watching: &Watching, what: &str, is_listed: bool) {
    if watching.health.works(what, is_listed) {
        tracing::info!(watch = what, "the watch works again");
    }
}

fn fails(watching: &Watching, what: &str, error: watcher::Error) {
    let error = watch_error(format!("{what} cannot be watched"), error);
    if watching.health.fails(what, &error) {
        let (code, hint, text) = (error.code(), error.hint(), OneLine(&error));
        tracing::warn!(%code, error = %text, %hint, "a watch failed; trying again");
    }
}

async fn take<W, K: Routed>(
    watching: &Watching,
    feed: &mut Feed<K>,
    event: Event<W>,
    read: fn(W) -> Result<K, Box<InvalidObject>>,
) {
    let event = match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::Apply(object) => match read(object) {
            Ok(object) => Event::Apply(object),
            Err(invalid) => return report(watching, &invalid, &K::kind(&())).await,
        },
        Event::InitApply(object) => match read(object) {
            Ok(object) => Event::InitApply(object),
            Err(invalid) => {
                report(watching, &invalid, &K::kind(&())).await;
                let known = kept(feed, &invalid);
                let Some(known) = known else { return };
                Event::InitApply(known)
            }
        },
        Event::Delete(object) => match read(object) {
            Ok(object) => Event::Delete(object),
            Err(invalid) => match kept(feed, &invalid) {
                Some(known) => Event::Delete(known),
                None => return,
            },
        },
    };
    let pruned = event.modify(|object| object.managed_fields_mut().clear());
    let Some(change) = feed.take(&pruned) else {
        return;
    };
    let context = &watching.context;
    if let Change::Gone(object) = &change {
        let uid = object.uid().unwrap_or_default();
        context.attempts.forget(&uid);
        context.refusals.forget(&uid);
        K::forget(object, context);
    }
    let kind = K::kind(&());
    context
        .metrics
        .objects(&kind, watching.namespace.as_deref(), feed.cache().len());
    context.caches.changed.notify_waiters();
    let targets = K::targets(&change, &context.caches);
    context.queues.send(targets).await;
}

/// What was known of an object before it could not be read any more: better than nothing, because
/// an object that seems to be gone would take its children along.
fn kept<K: Routed>(feed: &Feed<K>, invalid: &InvalidObject) -> Option<K> {
    let metadata = &invalid.metadata;
    let known = feed
        .cache()
        .get(metadata.namespace.as_deref()?, metadata.name.as_deref()?)?;
    Some(K::clone(&known))
}

async fn report(watching: &Watching, invalid: &InvalidObject, kind: &str) {
    let (namespace, name) = (&invalid.metadata.namespace, &invalid.metadata.name);
    let object = format!(
        "{}/{}",
        namespace.as_deref().unwrap_or_default(),
        name.as_deref().unwrap_or_default()
    );
    let (code, error) = (Code::ObjectUnreadable, &invalid.error);
    let hint = code.hint();
    tracing::warn!(object, kind, %code, error, hint, "an object cannot be read");
    let reference = ObjectReference {
        api_version: Some(API_VERSION.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.clone(),
        name: name.clone(),
        uid: invalid.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    let note = format!("{code}: {error}; hint: {hint}");
    let warning = EventType::Warning;
    watching
        .context
        .publish(reference, warning, "ObjectUnreadable", "Read", &note)
        .await;
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use oxidask_operator_api::kubernetes::DaskWorkerGroup;
    use serde_json::{Value, json};

    use super::*;
    use crate::server;

    fn group(worker: &Value) -> DeserializeGuard<DaskWorkerGroup> {
        let object = json!({
            "apiVersion": API_VERSION, "kind": "DaskWorkerGroup",
            "metadata": {"name": "g", "namespace": "n", "uid": "u"},
            "spec": {"cluster": "c", "worker": worker},
        });
        serde_json::from_value(object).unwrap()
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_said_and_stays_as_it_was() {
        let (context, feeds, log) = server::context_with_feeds(server::stored);
        let watching = Watching {
            context: Arc::new(context),
            health: Arc::default(),
            namespace: None,
        };
        let read = |it: DeserializeGuard<DaskWorkerGroup>| it.0.map_err(Box::new);
        let (mut feed, bad) = (feeds.groups, json!("two of them"));
        take(
            &watching,
            &mut feed,
            Event::Apply(group(&json!({"replicas": 2}))),
            read,
        )
        .await;
        take(&watching, &mut feed, Event::Apply(group(&bad)), read).await;
        for event in [Event::Init, Event::InitApply(group(&bad)), Event::InitDone] {
            take(&watching, &mut feed, event, read).await;
        }
        let kept = watching.context.caches.groups.get("n", "g").unwrap();
        assert_eq!(kept.spec.worker.replicas, Some(2));
        let asked = log.lock().unwrap().clone();
        assert_eq!(asked[0].body["reason"], "ObjectUnreadable");
        assert_eq!(asked[0].body["regarding"]["name"], "g");
        take(&watching, &mut feed, Event::Delete(group(&bad)), read).await;
        assert!(watching.context.caches.groups.get("n", "g").is_none());
    }
}

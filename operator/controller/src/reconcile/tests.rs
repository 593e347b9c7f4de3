//! Whole turns against a scripted API server.

use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::ByteString;
use kube::runtime::watcher::Event;
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup};
use oxidask_pki::Authority;
use serde_json::{Value, json};

use super::*;
use crate::caches::Feeds;
use crate::leadership::Leadership;
use crate::server::{self, Answer, Asked, Log, failure, stored};

fn certificate() -> Value {
    let authority = Authority::new("n", "c").unwrap();
    let leaf = authority
        .issue(Role::Worker, Duration::from_hours(24 * 90))
        .unwrap();
    let bytes = |text: String| ByteString(text.into_bytes());
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": "c-tls-worker", "namespace": "n", "resourceVersion": "1",
            "ownerReferences": [
                {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskCluster", "name": "c", "uid": "c"},
            ],
        },
        "data": {
            "ca.crt": bytes(authority.ca_pem()),
            "tls.crt": bytes(leaf.cert_pem),
            "tls.key": bytes(leaf.key_pem),
        },
    })
}

fn cluster() -> DaskCluster {
    serde_json::from_value(json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "c", "resourceVersion": "1"},
        "spec": {"worker": {"replicas": 3}},
    }))
    .unwrap()
}

fn group() -> DaskWorkerGroup {
    serde_json::from_value(json!({
        "metadata": {"name": "c-default", "namespace": "n", "uid": "g", "resourceVersion": "1"},
        "spec": {"cluster": "c", "worker": {"replicas": 3}},
    }))
    .unwrap()
}

async fn turn(group: &Arc<DaskWorkerGroup>, context: &Arc<Context>) -> Result<Action, Failure> {
    Box::pin(reconcile(Arc::clone(group), Arc::clone(context))).await
}

/// A cluster with a group of three workers that do not exist yet.
fn scene(
    pod: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> (Arc<Context>, Feeds, Log, Arc<DaskWorkerGroup>) {
    let secret = certificate();
    let (context, mut feeds, log) =
        server::context_with_feeds(move |asked| match asked.method.as_str() {
            "GET" if asked.path.ends_with("/secrets/c-tls-worker") => (200, secret.clone()),
            "GET" => failure(404, "not found"),
            "POST" if asked.path.ends_with("/pods") => pod(asked),
            _ => stored(asked),
        });
    feeds.clusters.take(&Event::Apply(cluster()));
    feeds.groups.take(&Event::Apply(group()));
    let group = context.caches.groups.get("n", "c-default").unwrap();
    (Arc::new(context), feeds, log, group)
}

fn pods_asked_for(log: &Log) -> usize {
    let log = log.lock().unwrap();
    log.iter()
        .filter(|it| it.line() == "POST /api/v1/namespaces/n/pods")
        .count()
}

#[tokio::test]
async fn workers_are_made_in_one_turn() {
    let (context, _feeds, log, group) = scene(stored);
    turn(&group, &context).await.unwrap();
    assert_eq!(pods_asked_for(&log), 3);
    assert!(
        context
            .metrics
            .text()
            .contains("applied_total{kind=\"Pod\"} 3")
    );
}

#[tokio::test]
async fn a_quota_that_has_no_room_is_remembered_until_it_has() {
    let is_full = Arc::new(AtomicBool::new(true));
    let full = Arc::clone(&is_full);
    let (context, _feeds, log, group) = scene(move |asked| {
        if full.swap(false, Ordering::SeqCst) {
            return failure(403, "pods \"p\" is forbidden: exceeded quota: small");
        }
        stored(asked)
    });
    let failed = turn(&group, &context).await;
    let failure = failed.unwrap_err();
    assert_eq!(failure.error.class(), Class::Later);
    assert!(failure.wait <= Duration::from_secs(2), "{:?}", failure.wait);
    assert_eq!(pods_asked_for(&log), 3, "the other two as well");
    let refusals = context.refusals.get("g");
    assert_eq!(refusals.len(), 1);
    assert!(refusals[0].object.starts_with("Pod c-default-worker-"));
    assert!(refusals[0].message.contains("exceeded quota: small"));
    let event = log
        .lock()
        .unwrap()
        .iter()
        .any(|it| it.body["reason"] == "ApplyFailed");
    assert!(event, "and it is said");

    turn(&group, &context).await.unwrap();
    assert!(context.refusals.get("g").is_empty());
    assert!(
        context
            .metrics
            .text()
            .contains("refused_total{kind=\"Pod\",reason=\"quota\"} 1")
    );
}

#[tokio::test]
async fn a_template_that_the_server_does_not_take_is_not_tried_again_fast() {
    let (context, _feeds, _log, group) = scene(|_| failure(422, "spec.foo: unknown field"));
    let mut waits = Vec::new();
    for _ in 0..3 {
        let failed = turn(&group, &context).await;
        let failure = failed.unwrap_err();
        assert_eq!(failure.error.class(), Class::Rejected);
        waits.push(failure.wait);
    }
    assert!(waits[2] > Duration::from_secs(30), "{waits:?}");
    // After the first refusals one pod is tried, not all.
    assert_eq!(context.refusals.get("g").len(), 1);
}

#[tokio::test]
async fn an_overloaded_server_is_asked_again_soon() {
    let (context, _feeds, _log, group) = scene(|_| failure(503, "overloaded"));
    let failed = turn(&group, &context).await;
    let failure = failed.unwrap_err();
    assert_eq!(failure.error.class(), Class::Transient);
    assert!(failure.wait <= Duration::from_secs(1));
    assert!(context.refusals.get("g").is_empty(), "nothing was refused");
}

#[tokio::test]
async fn a_replica_that_stands_by_asks_for_nothing() {
    let (context, _feeds, log, group) = scene(stored);
    let Ok(mut context) = Arc::try_unwrap(context) else {
        panic!("shared");
    };
    context.leadership = Leadership::waiting();
    let action = turn(&group, &Arc::new(context)).await.unwrap();
    assert_eq!(action, Action::await_change());
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn another_object_of_the_name_has_a_turn_of_its_own() {
    let (context, mut feeds, log, group) = scene(stored);
    let mut other = DaskWorkerGroup::clone(&group);
    other.metadata.uid = Some("other".to_owned());
    feeds.groups.take(&Event::Apply(other));
    turn(&group, &context).await.unwrap();
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_is_in_a_hurry_does_not_wait_for_further_changes() {
    let (context, _feeds, _log, group) = scene(stored);
    let _receivers = context.queues.open();
    let target = <DaskWorkerGroup as Operated>::target("n".to_owned(), "c-default".to_owned());
    context.queues.hurry([target.clone()]).await;
    // A hundred turns of gathering would take two seconds.
    let began = Instant::now();
    for _ in 0..100 {
        gather(&context, &target, Duration::from_millis(200)).await;
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    drop(group);
}

#[tokio::test]
async fn a_large_cluster_says_less_often_how_many_of_its_pods_are_there() {
    let (context, mut feeds, _log, group) = scene(stored);
    let of_three = cluster().distance(&context.caches);
    assert_eq!(group.distance(&context.caches), of_three);
    let mut grown = DaskWorkerGroup::clone(&group);
    grown.spec.worker.replicas = Some(100);
    feeds.groups.take(&Event::Apply(grown.clone()));
    let of_hundred = cluster().distance(&context.caches);
    grown.spec.worker.replicas = Some(10_000);
    feeds.groups.take(&Event::Apply(grown));
    let of_many = cluster().distance(&context.caches);
    assert!(of_three < of_hundred && of_hundred < of_many);
    assert_eq!(of_many, Duration::from_secs(1));
}

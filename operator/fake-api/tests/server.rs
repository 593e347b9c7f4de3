//! The server over HTTP: what clients rely on.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use oxidask_fake_api::{Fake, Fault, Kubelet, On, Options, Verb, What, When};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PODS: &str = "/api/v1/namespaces/n/pods";
const GROUPS: &str = "/apis/kubernetes.dask.org/v1/namespaces/n/daskworkergroups";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const SOON: Duration = Duration::from_secs(20);

async fn server() -> Fake {
    Fake::start(Options {
        kubelet: None,
        ..Options::default()
    })
    .await
    .unwrap()
}

/// The whole answer as text; none if the connection ended without one.
async fn raw(fake: &Fake, method: &str, path: &str, media: &str, body: &str) -> Option<String> {
    let address = fake.url();
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    let (media, partial) = media.split_once('|').unwrap_or((media, "application/json"));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept: {partial}\r\n\
         Content-Type: {media}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    // A connection that is reset says as little as one that ends.
    let _ = stream.read_to_string(&mut text).await;
    (!text.is_empty()).then_some(text)
}

async fn call(fake: &Fake, method: &str, path: &str, media: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let text = raw(fake, method, path, media, &body).await.unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    (code, serde_json::from_str(body).unwrap())
}

async fn get(fake: &Fake, path: &str) -> (u16, Value) {
    call(fake, "GET", path, "", Value::Null).await
}

async fn apply(fake: &Fake, path: &str, manager: &str, body: Value) -> (u16, Value) {
    let path = format!("{path}?fieldManager={manager}");
    call(fake, "PATCH", &path, APPLY, body).await
}

/// The events of a watch that lasts a second.
async fn watch(fake: &Fake, path: &str, media: &str) -> Vec<Value> {
    let join = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{join}watch=true&timeoutSeconds=1");
    let text = raw(fake, "GET", &path, media, "").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with("{\"type\""));
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect()
}

fn pod(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "labels": labels},
        "spec": {"containers": [{"name": "a", "image": "i"}]},
    })
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn lists_come_in_pages_and_as_metadata_only() {
    let fake = server().await;
    for index in 0..7 {
        fake.create(pod(
            &format!("p{index}"),
            &json!({"odd": (index % 2).to_string()}),
        ))
        .unwrap();
    }
    let mut names = Vec::new();
    let mut path = format!("{PODS}?limit=3");
    loop {
        let (code, page) = get(&fake, &path).await;
        assert_eq!(code, 200);
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|it| it["metadata"]["name"].clone()));
        let Some(more) = page["metadata"]["continue"].as_str() else {
            break;
        };
        path = format!("/api/v1/pods?limit=3&continue={more}");
    }
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);
    let (_, odd) = get(&fake, "/api/v1/pods?labelSelector=odd%3D1").await;
    assert_eq!(odd["items"].as_array().unwrap().len(), 3);
    let partial = "|application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, list) = call(&fake, "GET", PODS, partial, Value::Null).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0]["spec"].is_null());
}

#[tokio::test]
async fn watches_go_on_where_they_were_or_say_that_it_is_too_late() {
    let fake = server().await;
    let first = fake.create(pod("a", &json!({"k": "1"}))).unwrap();
    fake.create(pod("b", &json!({"k": "2"}))).unwrap();
    fake.merge(
        "Pod",
        "n",
        "b",
        &json!({"metadata": {"labels": {"k": "1"}}}),
    )
    .unwrap();
    fake.merge(
        "Pod",
        "n",
        "a",
        &json!({"metadata": {"labels": {"k": "2"}}}),
    )
    .unwrap();
    fake.delete("Pod", "n", "b").unwrap();
    let since = version(&first);
    let all = watch(&fake, &format!("{PODS}?resourceVersion={since}"), "").await;
    assert_eq!(types(&all), ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]);
    let versions: Vec<u64> = all.iter().map(|it| version(&it["object"])).collect();
    assert!(versions.is_sorted(), "{versions:?}");
    // Through a selector an object comes and goes with its label.
    let path = format!("{PODS}?resourceVersion={since}&labelSelector=k%3D1");
    assert_eq!(
        types(&watch(&fake, &path, "").await),
        ["ADDED", "DELETED", "DELETED"]
    );
    fake.expire_watches("Pod");
    let (code, status) = get(&fake, &format!("{PODS}?watch=1&resourceVersion={since}")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark() {
    let fake = server().await;
    fake.create(pod("a", &json!({}))).unwrap();
    let path = format!("{PODS}?sendInitialEvents=true&allowWatchBookmarks=true");
    let events = watch(&fake, &path, "|application/json;as=PartialObjectMetadata").await;
    assert_eq!(types(&events), ["ADDED", "BOOKMARK"]);
    assert_eq!(events[0]["object"]["kind"], "PartialObjectMetadata");
    let marks = &events[1]["object"]["metadata"]["annotations"];
    assert_eq!(marks["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn an_apply_that_changes_nothing_keeps_the_version() {
    let fake = server().await;
    let path = format!("{PODS}/p");
    let (code, made) = apply(&fake, &path, "one", pod("p", &json!({"a": "1"}))).await;
    assert_eq!(code, 201);
    let (code, again) = apply(&fake, &path, "one", pod("p", &json!({"a": "1"}))).await;
    assert_eq!((code, version(&again)), (200, version(&made)));
    let (code, refused) = apply(&fake, &path, "two", pod("p", &json!({"a": "2"}))).await;
    assert_eq!(code, 409);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "FieldManagerConflict"
    );
    let (_, less) = apply(&fake, &path, "one", pod("p", &json!({}))).await;
    assert_eq!(less["metadata"]["labels"], json!({}));
    let (_, other) = apply(
        &fake,
        &path,
        "two",
        json!({"metadata": {"labels": {"b": "2"}}}),
    )
    .await;
    assert_eq!(other["metadata"]["labels"], json!({"b": "2"}));
}

#[tokio::test]
async fn the_generation_counts_specs_and_the_status_is_apart() {
    let fake = server().await;
    let path = format!("{GROUPS}/g");
    let group = |replicas: u32| {
        json!({
            "spec": {"cluster": "c", "worker": {"replicas": replicas}}, "status": {"replicas": 99},
        })
    };
    let (_, made) = apply(&fake, &path, "one", group(1)).await;
    assert_eq!(
        (&made["metadata"]["generation"], &made["status"]),
        (&json!(1), &Value::Null)
    );
    let status = json!({"status": {"replicas": 1}, "spec": {"cluster": "x"}});
    let (_, told) = apply(&fake, &format!("{path}/status"), "two", status).await;
    assert_eq!(
        (&told["metadata"]["generation"], &told["spec"]["cluster"]),
        (&json!(1), &json!("c"))
    );
    let scale = json!({"spec": {"replicas": 5}});
    let (_, scaled) = call(&fake, "PATCH", &format!("{path}/scale"), MERGE, scale).await;
    assert_eq!(
        (&scaled["spec"]["replicas"], &scaled["status"]["replicas"]),
        (&json!(5), &json!(1))
    );
    let (_, now) = get(&fake, &path).await;
    assert_eq!(now["metadata"]["generation"], 2);
    // Whoever scaled owns the number.
    let (code, _) = apply(&fake, &path, "one", group(1)).await;
    assert_eq!(code, 409);
}

#[tokio::test]
async fn stale_versions_and_other_uids_are_conflicts() {
    let fake = server().await;
    let made = fake.create(pod("p", &json!({}))).unwrap();
    fake.merge(
        "Pod",
        "n",
        "p",
        &json!({"metadata": {"labels": {"a": "1"}}}),
    )
    .unwrap();
    let path = format!("{PODS}/p");
    let (code, _) = call(&fake, "PUT", &path, "application/json", made).await;
    assert_eq!(code, 409);
    let other = json!({"preconditions": {"uid": "another"}});
    let (code, _) = call(&fake, "DELETE", &path, "application/json", other).await;
    assert_eq!(code, 409);
    let (code, status) = call(&fake, "DELETE", &path, "application/json", Value::Null).await;
    assert_eq!((code, &status["status"]), (200, &json!("Success")));
    let (code, _) = get(&fake, &path).await;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn finalizers_hold_and_children_follow() {
    let fake = server().await;
    let mut parent = pod("parent", &json!({}));
    parent["metadata"]["finalizers"] = json!(["x/y"]);
    let parent = fake.create(parent).unwrap();
    let mut child = pod("child", &json!({}));
    let owner = |uid: &Value| json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}]);
    child["metadata"]["ownerReferences"] = owner(&parent["metadata"]["uid"]);
    fake.create(child).unwrap();
    fake.delete("Pod", "n", "parent").unwrap();
    let held = fake.get("Pod", "n", "parent").unwrap();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert!(fake.get("Pod", "n", "child").is_some());
    fake.merge(
        "Pod",
        "n",
        "parent",
        &json!({"metadata": {"finalizers": null}}),
    )
    .unwrap();
    assert!(
        fake.until(SOON, |fake| fake.count("Pod", None, "") == 0)
            .await
    );
    // A child that comes too late is collected as well.
    let mut late = pod("late", &json!({}));
    late["metadata"]["ownerReferences"] = owner(&json!("gone"));
    fake.create(late).unwrap();
    assert!(
        fake.until(SOON, |fake| fake.count("Pod", None, "") == 0)
            .await
    );
}

#[tokio::test]
async fn deployments_get_a_pod_that_becomes_ready_and_is_replaced() {
    let kubelet = Kubelet {
        ready_after: Duration::from_millis(10),
        ..Kubelet::default()
    };
    let options = Options {
        kubelet: Some(kubelet),
        ..Options::default()
    };
    let fake = Fake::start(options).await.unwrap();
    let template = |image: &str| {
        json!({
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "a", "image": image}]},
        })
    };
    fake.create(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "n"},
        "spec": {"replicas": 1, "template": template("1")},
    }))
    .unwrap();
    let is_ready = |fake: &Fake, generation: u64| {
        let status = fake.get("Deployment", "n", "d").unwrap()["status"].clone();
        status["readyReplicas"] == 1 && status["observedGeneration"] == generation
    };
    assert!(fake.until(SOON, |fake| is_ready(fake, 1)).await);
    let first = fake.list("Pod", None, "app=a");
    fake.merge(
        "Deployment",
        "n",
        "d",
        &json!({"spec": {"template": template("2")}}),
    )
    .unwrap();
    assert!(fake.until(SOON, |fake| is_ready(fake, 2)).await);
    let second = fake.list("Pod", None, "app=a");
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(second[0]["spec"]["containers"][0]["image"], "2");
}

#[tokio::test]
async fn faults_strike_where_they_are_set() {
    let fake = server().await;
    let on = || On::kind("Pod", &[Verb::Apply]);
    let busy = What::Status {
        code: 429,
        retry_after_seconds: Some(3),
    };
    fake.set_faults(vec![
        Fault::nth(on(), 1, busy),
        Fault::nth(on(), 2, What::Drop),
        Fault::nth(on(), 3, What::LoseAnswer),
        Fault::new(On::verbs(&[Verb::Watch]), When::Always, What::RepeatEvents),
    ]);
    let path = format!("{PODS}/p?fieldManager=m");
    let body = pod("p", &json!({})).to_string();
    let answer = raw(&fake, "PATCH", &path, APPLY, &body).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 3"),
        "{answer}"
    );
    assert_eq!(raw(&fake, "PATCH", &path, APPLY, &body).await, None);
    assert!(fake.get("Pod", "n", "p").is_none());
    assert_eq!(raw(&fake, "PATCH", &path, APPLY, &body).await, None);
    assert!(fake.get("Pod", "n", "p").is_some());
    let since = version(&fake.get("Pod", "n", "p").unwrap()) - 1;
    let events = watch(&fake, &format!("{PODS}?resourceVersion={since}"), "").await;
    assert_eq!(types(&events), ["ADDED", "ADDED"]);
    assert_eq!(fake.struck(), 4);
    assert_eq!(fake.calls().of(Verb::Apply, "Pod"), 3);
}

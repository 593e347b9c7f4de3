//! Certificates in other hands, children of somebody else, clusters that go while they come.

use std::time::Duration;

use serde_json::{Value, json};

use crate::stage::{NAMESPACE, Stage, find_condition, is_true, name};

fn data(stage: &Stage, secret: &str) -> Value {
    let found = stage.fake.get("Secret", NAMESPACE, secret);
    found
        .map(|secret| secret["data"].clone())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_were_deleted_or_damaged_are_issued_again() {
    let stage = Stage::new().await;
    let operator = stage.operator();
    stage.cluster("c", 1);
    stage.until_whole("c", 1).await;
    let authority = data(&stage, "c-ca");
    // What is known of a Secret counts for a while; an operator that starts knows nothing.
    operator.kill().await;
    stage
        .fake
        .delete("Secret", NAMESPACE, "c-tls-worker")
        .unwrap();
    stage
        .fake
        .delete("Secret", NAMESPACE, "c-tls-scheduler")
        .unwrap();
    let patch = json!({"data": {"tls.key": null}});
    stage
        .fake
        .merge("Secret", NAMESPACE, "c-tls-client", &patch)
        .unwrap();
    let patch = json!({"data": {"tls.crt": "bm90IG9uZQ=="}});
    stage
        .fake
        .merge("Secret", NAMESPACE, "c-tls-operator", &patch)
        .unwrap();
    let _operator = stage.operator();
    for role in ["scheduler", "worker", "client", "operator"] {
        let secret = format!("c-tls-{role}");
        let is_there = |key: &str| {
            let data = data(&stage, &secret);
            data[key].as_str().is_some_and(|text| text.len() > 100)
        };
        stage
            .until(|| {
                if is_there("tls.crt") && is_there("tls.key") {
                    Ok(())
                } else {
                    Err(format!("{secret} is not whole"))
                }
            })
            .await;
        assert_eq!(data(&stage, &secret)["ca.crt"], authority["ca.crt"]);
    }
    assert_eq!(data(&stage, "c-ca"), authority);
    stage.until_whole("c", 1).await;
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_deleted_while_it_is_made_leaves_nothing() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    let delays = (0..30_u64).map(|n| (format!("c{n}"), Duration::from_millis(n * n / 2)));
    let delays: Vec<_> = delays.collect();
    for (cluster, delay) in &delays {
        stage.cluster(cluster, 3);
        tokio::time::sleep(*delay).await;
        stage
            .fake
            .delete("DaskCluster", NAMESPACE, cluster)
            .unwrap();
    }
    let nothing_left = || {
        let left = delays
            .iter()
            .flat_map(|(cluster, _)| stage.left_of(cluster));
        let left: Vec<String> = left.collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left: {left:?}"))
        }
    };
    stage.until(nothing_left).await;
    stage.until_silent().await;
    assert_eq!(nothing_left(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_comes_again_under_its_name_is_made_anew() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    for round in 1..=5 {
        stage.cluster("c", round);
        stage.until_whole("c", round).await;
        let authority = data(&stage, "c-ca");
        stage.fake.delete("DaskCluster", NAMESPACE, "c").unwrap();
        // At once, while its children are still being collected.
        stage
            .until(|| match stage.fake.get("DaskCluster", NAMESPACE, "c") {
                None => Ok(()),
                Some(_) => Err("c is still there".to_owned()),
            })
            .await;
        stage.cluster("c", round + 1);
        stage.until_whole("c", round + 1).await;
        assert_ne!(
            data(&stage, "c-ca"),
            authority,
            "another cluster's authority"
        );
        stage.fake.delete("DaskCluster", NAMESPACE, "c").unwrap();
        stage
            .until(|| match stage.left_of("c").as_slice() {
                [] => Ok(()),
                left => Err(format!("left: {left:?}")),
            })
            .await;
    }
}

fn says(text: &Value, word: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(word))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_somebody_else_is_left_alone_and_named() {
    let stage = Stage::new().await;
    let foreign = |kind: &str, version: &str, spec: Value| {
        json!({
            "apiVersion": version, "kind": kind,
            "metadata": {"name": format!("c-{}", kind.to_lowercase()), "namespace": NAMESPACE},
            "spec": spec,
        })
    };
    let mut service = foreign("Service", "v1", json!({"selector": {"app": "theirs"}}));
    service["metadata"]["name"] = json!("s-scheduler");
    let mut group = foreign(
        "DaskWorkerGroup",
        "kubernetes.dask.org/v1",
        json!({"cluster": "another", "worker": {"replicas": 1}}),
    );
    group["metadata"]["name"] = json!("g-default");
    for object in [service, group] {
        stage.fake.create(object).unwrap();
    }
    let spec =
        |kind: &str, name: &str| stage.fake.get(kind, NAMESPACE, name).unwrap()["spec"].clone();
    let before = (
        spec("Service", "s-scheduler"),
        spec("DaskWorkerGroup", "g-default"),
    );
    let _operator = stage.operator();
    for (cluster, named) in [("s", "s-scheduler"), ("g", "g-default")] {
        stage.cluster(cluster, 1);
        // What carries none of our labels is not watched: the API server refuses to take it over.
        let is_told = || {
            let found = stage.fake.get("DaskCluster", NAMESPACE, cluster).unwrap();
            let said = find_condition(&found["status"], "Ready").unwrap_or_default();
            let in_status = says(&said["message"], named) && said["status"] == "False";
            let notes = stage.fake.map("Event", Some(NAMESPACE), "", |event| {
                event["regarding"]["name"] == cluster && says(&event["note"], named)
            });
            if in_status || notes.contains(&true) {
                Ok(())
            } else {
                Err(format!("{cluster}: {}", found["status"]))
            }
        };
        stage.until(is_told).await;
    }
    assert_eq!(
        (
            spec("Service", "s-scheduler"),
            spec("DaskWorkerGroup", "g-default")
        ),
        before
    );
    // Once they are out of the way, all is well.
    stage
        .fake
        .delete("Service", NAMESPACE, "s-scheduler")
        .unwrap();
    stage
        .fake
        .delete("DaskWorkerGroup", NAMESPACE, "g-default")
        .unwrap();
    for cluster in ["s", "g"] {
        stage.scale(cluster, 2);
        stage.until_whole(cluster, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_too_long_are_refused_in_words_and_nothing_is_made() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    let long = "x".repeat(60);
    stage.cluster(&long, 2);
    stage
        .until(|| {
            let found = stage.fake.get("DaskCluster", NAMESPACE, &long).unwrap();
            let status = &found["status"];
            let is_said = status["phase"] == "Error" && is_true(status, "Stalled");
            if is_said {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .await;
    let left: Vec<String> = stage.left_of(&long);
    assert!(
        left.iter().all(|it| it.starts_with("DaskCluster")),
        "{left:?}"
    );
    // The longest that fits works.
    let fits = "y".repeat(53);
    stage.cluster(&fits, 2);
    stage.until_whole(&fits, 2).await;
    let pods = stage
        .fake
        .map("Pod", Some(NAMESPACE), "dask.org/component=worker", name);
    assert!(pods.iter().all(|pod| pod.len() <= 63), "{pods:?}");
    stage.until_silent().await;
}

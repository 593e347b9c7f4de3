//! Plans carried out against a scripted API server.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::runtime::watcher::Event;
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{DaskJob, JobState, JobStatus};
use oxidask_operator_plan::{
    AuthorityStep, CertificateRequest, Deletion, DeletionReason, MetadataChange, PlannedEvent,
    Scaling,
};
use oxidask_pki::Authority;

use super::*;
use crate::error::Class;
use crate::leadership::Leadership;
use crate::server::{self, Asked, Log, failure, stored};

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("n".to_owned()),
        uid: Some("job-uid".to_owned()),
        ..ObjectMeta::default()
    }
}

fn job() -> DaskJob {
    let spec = json!({"cluster": {"spec": {"worker": {}}}, "sql": {"statements": "SELECT 1"}});
    let mut job = DaskJob::new("j", serde_json::from_value(spec).unwrap());
    job.metadata = metadata("j");
    job
}

fn object(kind: &str, name: &str) -> Object {
    let metadata = metadata(name);
    match kind {
        "ConfigMap" => Object::ConfigMap(Box::new(ConfigMap {
            metadata,
            ..ConfigMap::default()
        })),
        _ => Object::Pod(Box::new(Pod {
            metadata,
            ..Pod::default()
        })),
    }
}

fn deletion() -> Deletion {
    Deletion {
        object: ObjectKey {
            kind: ObjectKind::Cluster,
            namespace: "n".to_owned(),
            name: "j".to_owned(),
            uid: "cluster-uid".to_owned(),
        },
        resource_version: None,
        reason: DeletionReason::JobFinished,
    }
}

fn event() -> PlannedEvent {
    PlannedEvent {
        reason: "Successful",
        kind: EventKind::Normal,
        action: "Finish",
        note: "the work is done".to_owned(),
    }
}

fn whole_plan() -> Plan<JobStatus> {
    let status = JobStatus {
        job_status: Some(JobState::Successful),
        ..JobStatus::default()
    };
    Plan {
        status: Some(status),
        apply: vec![object("ConfigMap", "j-work"), object("Pod", "j-runner")],
        delete: vec![deletion()],
        events: vec![event()],
        ..Plan::default()
    }
}

fn lines(log: &Log) -> Vec<String> {
    log.lock().unwrap().iter().map(Asked::line).collect()
}

fn done() -> server::Answer {
    (
        200,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
    )
}

#[tokio::test]
async fn status_comes_first_then_objects_then_deletions_then_events() {
    let (context, log) = server::context(|asked| match asked.method.as_str() {
        "DELETE" => done(),
        _ => stored(asked),
    });
    let outcome = carry_out(&context, &job(), whole_plan()).await.unwrap();
    assert_eq!(outcome.written.len(), 4);
    assert!(outcome.is_changed && outcome.refusals.is_empty());
    let base = "/apis/kubernetes.dask.org/v1/namespaces/n";
    assert_eq!(
        lines(&log),
        [
            format!("PATCH {base}/daskjobs/j/status"),
            "PATCH /api/v1/namespaces/n/configmaps/j-work".to_owned(),
            "POST /api/v1/namespaces/n/pods".to_owned(),
            format!("DELETE {base}/daskclusters/j"),
            "POST /apis/events.k8s.io/v1/namespaces/n/events".to_owned(),
        ]
    );
    let asked = log.lock().unwrap().clone();
    assert_eq!(asked[0].body["status"]["jobStatus"], "Successful");
    assert_eq!(asked[0].body["metadata"]["uid"], "job-uid");
    assert!(
        asked[0]
            .query
            .contains("fieldManager=oxidask-operator-status")
    );
    assert!(
        !asked[1].query.contains("force"),
        "what is not known as ours is not forced"
    );
    assert_eq!(asked[3].body["preconditions"]["uid"], "cluster-uid");
    assert_eq!(asked[3].body["propagationPolicy"], "Background");
}

#[tokio::test]
async fn a_status_that_cannot_be_written_ends_the_round() {
    let (context, log) = server::context(|_| failure(429, "too many requests"));
    let error = carry_out(&context, &job(), whole_plan()).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    assert_eq!(lines(&log).len(), 1);
}

#[tokio::test]
async fn what_is_refused_is_remembered_and_keeps_back_only_what_builds_on_it() {
    let (context, log) = server::context(|asked| {
        if asked.body["metadata"]["name"] == "a" {
            failure(403, "exceeded quota: small")
        } else if asked.method == "DELETE" {
            done()
        } else {
            stored(asked)
        }
    });
    let plan = Plan {
        apply: vec![
            object("Pod", "a"),
            object("Pod", "b"),
            object("ConfigMap", "c"),
        ],
        delete: vec![deletion()],
        ..Plan::default()
    };
    let outcome = carry_out(&context, &job(), plan).await.unwrap();
    assert_eq!(outcome.refused.unwrap().class(), Class::Later);
    let refusal = Refusal {
        object: "Pod a".to_owned(),
        message: "exceeded quota: small".to_owned(),
    };
    assert_eq!(outcome.refusals, [refusal]);
    let lines = lines(&log);
    assert_eq!(lines.len(), 3, "both pods and the deletion: {lines:?}");
    assert!(lines[2].starts_with("DELETE"));
}

#[tokio::test]
async fn an_error_of_another_kind_ends_the_round() {
    let (context, log) = server::context(|asked| {
        if asked.body["metadata"]["name"] == "a" {
            failure(500, "etcd has no leader")
        } else {
            stored(asked)
        }
    });
    let plan = Plan {
        apply: vec![object("Pod", "a"), object("Pod", "b")],
        delete: vec![deletion()],
        ..Plan::default()
    };
    let error = carry_out(&context, &job(), plan).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    assert_eq!(lines(&log).len(), 2, "both pods, and nothing after them");
}

fn group_key() -> ObjectKey {
    ObjectKey {
        kind: ObjectKind::WorkerGroup,
        namespace: "n".to_owned(),
        name: "c-default".to_owned(),
        uid: "g".to_owned(),
    }
}

#[tokio::test]
async fn a_number_of_workers_is_written_only_to_what_was_seen() {
    let (context, log) = server::context(stored);
    let scaling = Scaling {
        object: group_key(),
        resource_version: Some("5".to_owned()),
        from: 1,
        to: 8,
        reason: "400 tasks wait".to_owned(),
    };
    let plan = Plan {
        scale: vec![scaling.clone()],
        ..Plan::default()
    };
    let outcome = carry_out(&context, &job(), plan).await.unwrap();
    assert_eq!(outcome.written.len(), 1);
    let asked = log.lock().unwrap()[0].clone();
    assert_eq!(asked.body["spec"]["worker"]["replicas"], 8);
    assert_eq!(asked.body["metadata"]["resourceVersion"], "5");
    assert_eq!(asked.body["metadata"]["uid"], "g");
    assert!(asked.query.contains("fieldManager=oxidask-operator-scale"));

    // A status that is written before moves the version on, which is no conflict.
    log.lock().unwrap().clear();
    let mut job = job();
    job.metadata.uid = Some("g".to_owned());
    job.metadata.resource_version = Some("5".to_owned());
    let plan = Plan {
        scale: vec![scaling],
        ..whole_plan()
    };
    carry_out(&context, &job, plan).await.unwrap();
    let asked = log.lock().unwrap().clone();
    assert_eq!(asked[0].body["metadata"]["resourceVersion"], "5");
    assert_eq!(asked[3].body["spec"]["worker"]["replicas"], 8);
    assert_eq!(asked[3].body["metadata"]["resourceVersion"], "7");
}

#[tokio::test]
async fn finalizers_come_and_go_under_the_version_that_was_seen() {
    let (context, log) = server::context(|asked| {
        let (code, mut body) = stored(asked);
        // A merge takes away what is null.
        body["metadata"]["annotations"] = json!({});
        (code, body)
    });
    let change = MetadataChange {
        object: group_key(),
        resource_version: Some("5".to_owned()),
        finalizers: Some(vec!["kubernetes.dask.org/drain".to_owned()]),
        annotations: [("a".to_owned(), None)].into(),
    };
    let plan = Plan {
        metadata: vec![change],
        ..whole_plan()
    };
    carry_out(&context, &job(), plan).await.unwrap();
    let asked = log.lock().unwrap()[0].clone();
    assert!(asked.line().ends_with("daskworkergroups/c-default"));
    let metadata = &asked.body["metadata"];
    assert_eq!(metadata["finalizers"], json!(["kubernetes.dask.org/drain"]));
    assert_eq!(metadata["resourceVersion"], "5");
    assert!(metadata["annotations"].as_object().unwrap()["a"].is_null());
    assert!(asked.body.get("spec").is_none());
}

#[tokio::test]
async fn without_the_lease_nothing_is_written() {
    let (mut context, log) = server::context(stored);
    context.leadership = Leadership::waiting();
    let error = carry_out(&context, &job(), whole_plan()).await.unwrap_err();
    assert_eq!(error.class(), Class::Deposed);
    assert!(lines(&log).is_empty());
}

#[tokio::test]
async fn what_is_gone_or_another_one_needs_no_deletion() {
    for code in [404, 409] {
        let (context, _log) = server::context(move |_| failure(code, "x"));
        let plan = Plan {
            delete: vec![deletion()],
            ..Plan::default()
        };
        let outcome = carry_out(&context, &job(), plan).await.unwrap();
        assert!(outcome.written.is_empty() && !outcome.is_changed);
    }
}

#[tokio::test]
async fn an_authority_that_is_there_is_taken_and_never_replaced() {
    let authority = Authority::new("n", "c").unwrap();
    let kept = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": "c-ca", "namespace": "n",
            "ownerReferences": [{"apiVersion": "v1", "kind": "DaskCluster", "name": "c", "uid": "o"}],
        },
        "data": {
            "ca.crt": k8s_openapi::ByteString(authority.ca_pem().into_bytes()),
            "tls.crt": k8s_openapi::ByteString(authority.ca_pem().into_bytes()),
            "tls.key": k8s_openapi::ByteString(authority.key_pem().into_bytes()),
        },
    });
    let (context, log) = server::context(move |asked| match asked.method.as_str() {
        "POST" => failure(409, "already exists"),
        "GET" if asked.path.ends_with("c-ca") => (200, kept.clone()),
        "GET" => {
            let (code, mut body) = failure(404, "not found");
            body["reason"] = "NotFound".into();
            (code, body)
        }
        _ => stored(asked),
    });
    let request = CertificateRequest {
        cluster: "c".to_owned(),
        namespace: "n".to_owned(),
        authority: Some(AuthorityStep::Create),
        authority_version: None,
        authority_source: None,
        rotated_for: None,
        roles: vec![Role::Worker],
        bundles: Vec::new(),
        lifetime: Duration::from_hours(1),
        needs_http_token: false,
        issued: Vec::new(),
        owner: OwnerReference {
            uid: "o".to_owned(),
            ..OwnerReference::default()
        },
        labels: [("dask.org/cluster-name".to_owned(), "c".to_owned())].into(),
        scheduler_dns_names: Vec::new(),
    };
    certificates::provide(&context, &request).await.unwrap();
    let secrets = "/api/v1/namespaces/n/secrets";
    assert_eq!(
        lines(&log),
        [
            format!("POST {secrets}"),
            format!("GET {secrets}/c-ca"),
            format!("GET {secrets}/c-tls-worker"),
            format!("PATCH {secrets}/c-tls-worker"),
        ]
    );
    let asked = log.lock().unwrap().clone();
    let bundle: k8s_openapi::ByteString =
        serde_json::from_value(asked[3].body["data"]["ca.crt"].clone()).unwrap();
    assert_eq!(bundle.0, authority.ca_pem().into_bytes());

    let earlier = CertificateRequest {
        owner: OwnerReference::default(),
        ..request
    };
    let error = certificates::provide(&context, &earlier).await.unwrap_err();
    assert_eq!(
        error.class(),
        Class::Conflict,
        "of an earlier cluster of that name"
    );
}

#[tokio::test]
async fn the_next_round_waits_for_what_was_written() {
    let (mut context, mut feeds, _log) = server::context_with_feeds(stored);
    let written = || vec![Written::put(ObjectKind::Pod, "n", "p", Some("7"))];
    assert!(!settle(&context, written()).await, "nothing shows it");
    let pod = |version: &str| {
        let mut metadata = metadata("p");
        metadata.resource_version = Some(version.to_owned());
        Event::Apply(Pod {
            metadata,
            ..Pod::default()
        })
    };
    feeds.pods.take(&pod("6"));
    assert!(
        !settle(&context, written()).await,
        "an older version does not show it"
    );
    context.settle_limit = Duration::from_secs(30);
    let (settled, ()) = tokio::join!(settle(&context, written()), async {
        tokio::task::yield_now().await;
        feeds.pods.take(&pod("10"));
        context.caches.changed.notify_waiters();
    });
    assert!(settled, "a later one does");
}

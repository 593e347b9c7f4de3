//! Calls that fail, watches that lie, two operators at once.

use std::time::Duration;

use oxidask_fake_api::{Fault, On, Options, Verb, What, When};
use serde_json::json;

use crate::stage::{NAMESPACE, Stage, cluster, job};

/// More than a cluster or a job needs; a fault at a later write does not strike.
const WRITES: u64 = 24;

fn failures() -> Vec<(&'static str, What)> {
    let status = |code, retry_after_seconds| What::Status {
        code,
        retry_after_seconds,
    };
    vec![
        ("a429", status(429, Some(1))),
        ("a409", status(409, None)),
        ("a410", status(410, None)),
        ("a404", status(404, None)),
        ("a500", status(500, None)),
        ("a503", status(503, None)),
        ("drop", What::Drop),
        ("lost", What::LoseAnswer),
    ]
}

fn each_write(what: &[(&'static str, What)]) -> Vec<(String, Fault)> {
    let all = what.iter().flat_map(|(word, what)| {
        (1..=WRITES).map(move |n| {
            let name = format!("{word}-{n:02}x");
            let on = On {
                name: Some(name.clone()),
                ..On::writes()
            };
            (name, Fault::nth(on, n, what.clone()))
        })
    });
    all.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_comes_about_whichever_write_fails() {
    let stage = Stage::new().await;
    let cases = each_write(&failures());
    stage
        .fake
        .set_faults(cases.iter().map(|(_, fault)| fault.clone()).collect());
    let _operator = stage.operator();
    for (name, _) in &cases {
        stage.cluster(name, 2);
    }
    for (name, _) in &cases {
        stage.until_whole(name, 2).await;
        stage.assert_never_more(&format!("{name}-default"), 2);
    }
    // The first writes of every case at least.
    assert!(stage.fake.struck() > u64::try_from(failures().len()).unwrap() * 10);
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_well_whichever_write_fails() {
    let stage = Stage::with_runners().await;
    let cases = each_write(&failures()[4..]);
    stage
        .fake
        .set_faults(cases.iter().map(|(_, fault)| fault.clone()).collect());
    let _operator = stage.operator();
    for (name, _) in &cases {
        stage.fake.create(job(name, 1)).unwrap();
    }
    for (name, _) in &cases {
        let state = || stage.fake.get("DaskJob", NAMESPACE, name).unwrap()["status"].clone();
        stage
            .until(|| match state()["jobStatus"].as_str() {
                Some("Successful") => Ok(()),
                _ => Err(format!("{name}: {}", state())),
            })
            .await;
        stage.assert_never_more(&format!("{name}-default"), 1);
    }
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_watch_never_tells_is_listed() {
    let stage = Stage::new().await;
    let deaf = What::LoseEvents(u64::MAX);
    stage.fake.set_faults(vec![Fault {
        times_max: 1,
        ..Fault::new(On::kind("Service", &[Verb::Watch]), When::Always, deaf)
    }]);
    let _operator = stage.operator();
    stage.cluster("c", 2);
    // The watch itself ends much later.
    stage.until_whole("c", 2).await;
    assert_eq!(stage.fake.struck(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_its_own_grows_whichever_write_fails() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    stage.cluster("c", 1);
    stage.until_whole("c", 1).await;
    let cases = each_write(&failures()[4..6]);
    stage
        .fake
        .set_faults(cases.iter().map(|(_, fault)| fault.clone()).collect());
    for (name, _) in &cases {
        let group = json!({
            "apiVersion": "kubernetes.dask.org/v1", "kind": "DaskWorkerGroup",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"cluster": "c", "worker": {"replicas": 4}},
        });
        stage.fake.create(group).unwrap();
    }
    for (name, _) in &cases {
        let living = || stage.fake.living(NAMESPACE, name);
        stage
            .until(|| match living() {
                (4, 4) => Ok(()),
                other => Err(format!("{name}: {other:?}")),
            })
            .await;
    }
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_although_every_kind_of_call_fails_by_chance() {
    for seed in [11, 12, 13] {
        let options = Options {
            seed,
            ..Options::default()
        };
        let stage = Stage::with(options).await;
        let chance = |per_mille, what| Fault {
            times_max: 150,
            ..Fault::new(On::default(), When::PerMille(per_mille), what)
        };
        let watches = |per_mille, what| Fault {
            times_max: 50,
            ..Fault::new(On::verbs(&[Verb::Watch]), When::PerMille(per_mille), what)
        };
        let status = |code| What::Status {
            code,
            retry_after_seconds: None,
        };
        stage.fake.set_faults(vec![
            watches(150, What::CutWatch(3)),
            watches(150, What::ExpireWatch(2)),
            watches(150, What::LoseEvents(4)),
            watches(200, What::RepeatEvents),
            watches(200, What::LateEvents(Duration::from_millis(30))),
            chance(30, status(500)),
            chance(30, status(410)),
            chance(30, status(429)),
            chance(30, What::Drop),
            chance(30, What::LoseAnswer),
            chance(100, What::Delay(Duration::from_millis(40))),
        ]);
        let _operator = stage.operator();
        let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
        for name in &names {
            stage.cluster(name, 3);
        }
        for name in &names {
            stage.until_whole(name, 3).await;
            stage.assert_never_more(&format!("{name}-default"), 3);
        }
        assert!(stage.fake.struck() > 10, "the test must hurt");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_that_end_and_versions_that_are_too_old_lose_nothing() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    stage.cluster("c", 2);
    let _scheduler = stage.scheduler("c").await;
    stage.until_whole("c", 2).await;
    for round in 0..6 {
        let workers = if round % 2 == 0 { 6 } else { 2 };
        for kind in ["Pod", "DaskWorkerGroup", "DaskCluster", "Secret"] {
            if round % 3 == 0 {
                stage.fake.cut_watches(kind);
            } else {
                stage.fake.expire_watches(kind);
            }
        }
        // Gone while nobody looks.
        let pods = stage
            .fake
            .list("Pod", Some(NAMESPACE), "dask.org/component=worker");
        let gone = crate::stage::name(&pods[0]);
        stage.fake.delete("Pod", NAMESPACE, &gone).unwrap();
        stage.scale("c", workers);
        stage.until_whole("c", workers).await;
    }
    stage.assert_never_more("c-default", 6);
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_at_once_double_nothing() {
    let stage = Stage::new().await;
    let (_one, _other) = (stage.operator(), stage.operator());
    let names: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    for name in &names {
        stage.fake.create(cluster(name, 5)).unwrap();
    }
    for name in &names {
        stage.until_whole(name, 5).await;
        stage.assert_never_more(&format!("{name}-default"), 5);
    }
    stage.until_silent().await;
    for name in &names {
        stage.scale(name, 8);
    }
    for name in &names {
        stage.until_whole(name, 8).await;
        stage.assert_never_more(&format!("{name}-default"), 8);
    }
    stage.until_silent().await;
}

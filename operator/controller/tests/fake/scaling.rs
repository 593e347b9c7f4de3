//! Numbers of workers that follow a scheduler, and workers that are drained before they go.

use std::collections::BTreeSet;
use std::time::Duration;

use oxidask_fake_api::Verb;
use serde_json::json;

use crate::stage::{NAMESPACE, Stage, cluster, name};

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_with_the_backlog_and_stay_within_bounds() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    let mut cluster = cluster("c", 0);
    cluster["spec"]["worker"] = json!({"autoscale": {"minimum": 0, "maximum": 8}});
    stage.fake.create(cluster).unwrap();
    let scheduler = stage.scheduler("c").await;
    let living = || stage.fake.living(NAMESPACE, "c-default").0;
    for (wanted, workers) in [(3, 3), (50, 8)] {
        scheduler.want("default", wanted);
        stage
            .until(|| match living() {
                count if count == workers => Ok(()),
                count => Err(format!("{count} workers, {wanted} are wanted")),
            })
            .await;
    }
    stage.assert_never_more("c-default", 8);
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_drained_before_they_go_and_stay_while_they_hold_something() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    stage.cluster("c", 6);
    let scheduler = stage.scheduler("c").await;
    scheduler.want("default", 6);
    stage.until_whole("c", 6).await;
    let workers = || {
        let labels = "dask.org/component=worker";
        let names = stage.fake.map("Pod", Some(NAMESPACE), labels, name);
        names.into_iter().collect::<BTreeSet<_>>()
    };
    let before = workers();
    scheduler.hold_on(true);
    stage.scale("c", 2);
    stage
        .until(|| match scheduler.asked_to_drain().len() {
            4 => Ok(()),
            count => Err(format!("{count} workers are to be drained")),
        })
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(workers(), before, "a worker that holds something went");
    scheduler.hold_on(false);
    stage.until_whole("c", 2).await;
    let gone: BTreeSet<String> = before.difference(&workers()).cloned().collect();
    assert_eq!(gone, scheduler.asked_to_drain());
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_scheduler_means_that_nobody_goes() {
    let stage = Stage::new().await;
    let _operator = stage.operator();
    stage.cluster("c", 4);
    stage.until_whole("c", 4).await;
    stage.scale("c", 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.fake.living(NAMESPACE, "c-default").0, 4);
    assert_eq!(stage.fake.calls().of(Verb::Delete, "Pod"), 0);
    // As soon as it speaks, the rest is done.
    let _scheduler = stage.scheduler("c").await;
    stage.until_whole("c", 1).await;
}

//! Operators that are killed at any moment.

use std::time::{Duration, Instant};

use oxidask_fake_api::Verb;

use crate::stage::{NAMESPACE, Stage};

/// Moments from right after a change until long after it was carried out.
fn moment(round: usize) -> Duration {
    const MILLISECONDS: [u64; 10] = [0, 5, 15, 30, 45, 60, 90, 130, 200, 350];
    Duration::from_millis(MILLISECONDS[round * 7 % MILLISECONDS.len()])
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twenty_times_while_scaling_it_ends_right_and_doubles_nothing() {
    let stage = Stage::new().await;
    stage.cluster("c", 2);
    let operator = stage.operator();
    let _scheduler = stage.scheduler("c").await;
    stage.until_whole("c", 2).await;
    operator.kill().await;
    for round in 0..20 {
        let workers = [30, 3, 17, 1, 24][round % 5];
        stage.fake.forget_calls();
        let operator = stage.operator();
        stage.until_it_begins().await;
        stage.scale("c", workers);
        tokio::time::sleep(moment(round)).await;
        operator.kill().await;
        stage.assert_never_more("c-default", 30);
    }
    let mut operator = stage.operator();
    stage.scale("c", 6);
    stage.until_whole("c", 6).await;
    stage.until_silent().await;
    assert_eq!(stage.fake.living(NAMESPACE, "c-default").0, 6);
    assert!(operator.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_making_clusters_it_makes_each_of_them_once() {
    let stage = Stage::new().await;
    for round in 0..10 {
        stage.cluster(&format!("c{round}"), 3);
        let operator = stage.operator();
        tokio::time::sleep(moment(round) * 2).await;
        operator.kill().await;
    }
    let _operator = stage.operator();
    for round in 0..10 {
        stage.until_whole(&format!("c{round}"), 3).await;
        stage.assert_never_more(&format!("c{round}-default"), 3);
    }
    stage.until_silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_acts_when_the_leader_is_killed() {
    let stage = Stage::new().await;
    let flags = ["--leader-elect", "--lease-namespace", NAMESPACE];
    let mut operators = vec![stage.operator_with(&flags), stage.operator_with(&flags)];
    stage.cluster("c", 2);
    stage.until_whole("c", 2).await;
    let holder = || {
        let lease = stage
            .fake
            .get("Lease", NAMESPACE, "oxidask-operator")
            .unwrap();
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let first = holder();
    operators
        .remove(usize::from(first.contains("operator-1")))
        .kill()
        .await;
    let start = Instant::now();
    stage.scale("c", 5);
    stage.until_whole("c", 5).await;
    // The lease lasts 13 s; the machine may be busy.
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    assert_ne!(holder(), first);
    stage.assert_never_more("c-default", 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_with_many_clusters_it_writes_nothing() {
    let stage = Stage::new().await;
    let operator = stage.operator();
    let names: Vec<String> = (0..60).map(|n| format!("c{n}")).collect();
    for name in &names {
        stage.cluster(name, 2);
    }
    for name in &names {
        stage.until_whole(name, 2).await;
    }
    stage.until_silent().await;
    operator.kill().await;
    stage.fake.forget_calls();
    let _operator = stage.operator();
    stage.scale(&names[30], 4);
    stage.until_whole(&names[30], 4).await;
    stage.until_silent().await;
    let calls = stage.fake.calls();
    let made = |kind: &str| calls.of(Verb::Apply, kind) + calls.of(Verb::Create, kind);
    let others = made("Secret") + made("Service") + made("Deployment");
    assert_eq!(others, 0, "{}", calls.lines().join("\n"));
    assert_eq!(made("Pod"), 2);
}

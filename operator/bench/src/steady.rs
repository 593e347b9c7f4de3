//! Large clusters: what looking at one costs when nothing changes, and what it costs others when
//! one grows.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::figure::{Figure, quantile};
use crate::process::Operator;
use crate::stage::{NAMESPACE, Stage};
use crate::{Failure, Settings};

const WORKERS: usize = 1000;
const GROWN_BY: usize = 500;
const LOOKS: usize = 200;

/// How long a look may take to be counted.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

const SECONDS: &str = "oxidask_operator_reconcile_duration_seconds_sum";
const COUNT: &str = "oxidask_operator_reconcile_duration_seconds_count";

const KINDS: [&str; 2] = ["DaskCluster", "DaskWorkerGroup"];

/// Looks at a cluster of many workers in which nothing changes.
pub(crate) async fn unchanged(settings: &Settings) -> Result<Vec<Figure>, Failure> {
    let workers = settings.size(WORKERS);
    let stage = Stage::new(settings).await?;
    let operator = stage.operator(&[]).await?;
    stage.create("large", workers)?;
    stage
        .until("not ready", || stage.is_ready("large", workers))
        .await?;
    stage.until_silent().await?;
    stage.fake.forget_calls();
    let mut times: [Vec<f64>; 2] = Default::default();
    for look in 0..LOOKS {
        let before = measure(&operator).await?;
        // Concerns the cluster and, through it, its group; never handed down.
        let touched = json!({"metadata": {"annotations": {
            "kubernetes.dask.org/touched": look.to_string(),
        }}});
        stage
            .fake
            .merge("DaskCluster", NAMESPACE, "large", &touched)?;
        let end = Instant::now() + LOOK_LIMIT;
        let after = loop {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let now = measure(&operator).await?;
            if (0..2).all(|kind| now[kind].1 > before[kind].1) {
                break now;
            }
            if Instant::now() > end {
                return Err("the operator did not look".into());
            }
        };
        for kind in 0..2 {
            let (seconds, looks) = (
                after[kind].0 - before[kind].0,
                after[kind].1 - before[kind].1,
            );
            times[kind].push(seconds * 1000.0 / looks);
        }
    }
    let writes = stage.fake.calls().writes_but("Lease");
    let figures = times.into_iter().zip(KINDS).map(|(times, kind)| {
        let p99 = quantile(&times, 0.99);
        let half = quantile(&times, 0.5);
        let what = format!("reconcile of an unchanged {workers}-worker cluster, p99: {kind}");
        Figure::new(what, "10 ms", "ms", vec![p99]).note(format!(
            "median {half:.2} ms of {LOOKS} looks; {writes} API writes"
        ))
    });
    Ok(figures.collect())
}

async fn measure(operator: &Operator) -> Result<[(f64, f64); 2], Failure> {
    let mut found = [(0.0, 0.0); 2];
    for (kind, found) in KINDS.into_iter().zip(&mut found) {
        let label = format!("kind=\"{kind}\"");
        *found = (
            operator.metric(SECONDS, &label).await?,
            operator.metric(COUNT, &label).await?,
        );
    }
    Ok(found)
}

/// A cluster that is made alone, and one that is made while another grows by many workers.
pub(crate) async fn neighbour(settings: &Settings) -> Result<Vec<Figure>, Failure> {
    let (mut alone, mut beside, mut delays) = (Vec::new(), Vec::new(), Vec::new());
    let grown_by = settings.size(GROWN_BY);
    for _ in 0..settings.runs {
        let stage = Stage::new(settings).await?;
        let _operator = stage.operator(&[]).await?;
        stage.create("large", 2)?;
        stage
            .until("not ready", || stage.is_ready("large", 2))
            .await?;
        stage.until_silent().await?;
        stage.create("alone", 2)?;
        let without = stage
            .until("not ready", || stage.is_ready("alone", 2))
            .await?;
        stage.until_silent().await?;
        stage.scale("large", 2 + grown_by)?;
        stage.create("beside", 2)?;
        let with = stage
            .until("not ready", || stage.is_ready("beside", 2))
            .await?;
        stage
            .until("not grown", || stage.workers("large") == 2 + grown_by)
            .await?;
        alone.push(without.as_secs_f64());
        beside.push(with.as_secs_f64());
        delays.push((with.as_secs_f64() - without.as_secs_f64()).max(0.0));
    }
    let (alone, beside) = (quantile(&alone, 0.5), quantile(&beside, 0.5));
    let what = format!("a {grown_by}-worker scale-up delays another cluster by");
    let note =
        format!("until a new 2-worker cluster is ready: {alone:.2} s alone, {beside:.2} s beside");
    Ok(vec![Figure::new(what, "1 s", "s", delays).note(note)])
}

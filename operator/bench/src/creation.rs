//! Making clusters: how fast, with what memory, for what cost.

use std::time::Instant;

use crate::figure::{Figure, amount};
use crate::stage::Stage;
use crate::{Failure, Settings};

const CLUSTERS: usize = 100;
const WORKERS: usize = 100;

/// Small clusters over which the cost of one is measured.
const SMALL_CLUSTERS: usize = 200;

/// Pods a second from the manifests to the last pod, and memory with all of them.
pub(crate) async fn pods(settings: &Settings) -> Result<Vec<Figure>, Failure> {
    let workers = settings.size(WORKERS);
    let total = CLUSTERS * workers;
    let (mut rates, mut memories, mut notes) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..settings.runs {
        let stage = Stage::new(settings).await?;
        let operator = stage.operator(&[]).await?;
        let before = operator.processor_seconds()?;
        let start = Instant::now();
        let names: Vec<String> = (0..CLUSTERS).map(|n| format!("c{n:03}")).collect();
        for name in &names {
            stage.create(name, workers)?;
        }
        let all_there = || names.iter().map(|name| stage.workers(name)).sum::<usize>() == total;
        stage.until("not all pods came", all_there).await?;
        let seconds = start.elapsed().as_secs_f64();
        let processor = operator.processor_seconds()? - before;
        let all_ready = || names.iter().all(|name| stage.is_ready(name, workers));
        stage
            .until("not all clusters became ready", all_ready)
            .await?;
        let ready = start.elapsed().as_secs_f64();
        stage.until_silent().await?;
        let (now, most) = operator.memory_mb()?;
        rates.push(amount(total) / seconds);
        memories.push(now);
        let writes = stage.fake.calls().writes_but("Lease");
        notes = format!(
            "all clusters ready after {ready:.1} s, {processor:.1} s of the operator's processor \
             time until the last pod, {writes} writes in all; most memory {most:.0} MB"
        );
    }
    Ok(vec![
        Figure::new(
            format!("{total} worker pods over {CLUSTERS} clusters"),
            "2,000/s",
            "pods/s",
            rates,
        )
        .note(notes),
        Figure::new(
            format!("memory at {total} worker pods"),
            "150 MB",
            "MB",
            memories,
        ),
    ])
}

/// Writes and processor time of a cluster of two workers.
pub(crate) async fn cost(settings: &Settings) -> Result<Vec<Figure>, Failure> {
    let (mut writes, mut milliseconds, mut lines) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..settings.runs {
        let stage = Stage::new(settings).await?;
        let operator = stage.operator(&[]).await?;
        stage.until_silent().await?;
        stage.fake.forget_calls();
        stage.create("one", 2)?;
        stage
            .until("not ready", || stage.is_ready("one", 2))
            .await?;
        stage.until_silent().await?;
        let calls = stage.fake.calls();
        writes.push(amount(calls.writes_but("Lease")));
        let of_one: Vec<String> = calls.lines();
        let of_one = of_one.iter().map(|line| line.trim().to_owned());
        lines = of_one.collect::<Vec<_>>().join(", ");
        let clusters = settings.size(SMALL_CLUSTERS);
        let names: Vec<String> = (0..clusters).map(|n| format!("c{n:03}")).collect();
        let before = operator.processor_seconds()?;
        for name in &names {
            stage.create(name, 2)?;
        }
        let all_ready = || names.iter().all(|name| stage.is_ready(name, 2));
        stage.until("not all became ready", all_ready).await?;
        stage.until_silent().await?;
        let processor = operator.processor_seconds()? - before;
        milliseconds.push(processor * 1000.0 / amount(clusters));
    }
    crate::say(&format!("calls for one cluster: {lines}"));
    Ok(vec![
        Figure::new("writes for a cluster of 2 workers", "20", "writes", writes)
            .note("from the manifest to silence, Events included"),
        Figure::new(
            "processor time of the operator for it",
            "10 ms",
            "ms",
            milliseconds,
        )
        .note(format!(
            "{} of them made at once, divided",
            settings.size(SMALL_CLUSTERS)
        )),
    ])
}

//! One of 4 workers is killed in the middle of a query: the answer stays right, and takes longer.

use std::time::Duration;

use oxidask_tpch::{Answer, Strictness, compare, create_tables, order, query};
use serde_json::json;

use super::engine::Request;
use super::figures::{Section, median, seconds};
use super::ours::Ours;
use super::tpch::one_line;
use super::{Bench, DataKind, made, say};
use crate::Failure;
use crate::cluster::Shape;

const SHAPE: Shape = Shape {
    workers: 4,
    threads: 1,
    memory_bytes: None,
};
const QUERIES: [u32; 2] = [9, 18];

/// What one query took.
#[derive(Debug, Default)]
struct Runs {
    undisturbed: Vec<f64>,
    disturbed: Vec<f64>,
}

/// Runs each query undisturbed and disturbed, taking turns.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Section, Failure> {
    let scale = bench.arguments.scale;
    let folder = made(DataKind::Tpch { scale })?;
    let definitions: Vec<String> = create_tables(&folder)
        .lines()
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect();
    let mut settings = bench.settings.clone();
    settings.push("SET oxidask.stages = 'always'".to_owned());
    let mut ours = bench.ours(SHAPE, &settings).await?;
    let mut plain = bench.plain(2)?;
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    let mut faults = Vec::new();
    for number in QUERIES {
        let text = query(number).ok_or("there is no such query")?;
        let mut statements = definitions.clone();
        statements.push(text.trim().trim_end_matches(';').to_owned());
        let request = Request::Script { statements };
        let right = plain.ask(&request).await?.answer;
        let mut runs = Runs::default();
        let load = Load {
            request: &request,
            number,
            right: &right,
        };
        let outcome = load
            .run(&mut ours, bench.arguments.repetitions, &mut runs)
            .await;
        if let Err(error) = outcome {
            faults.push(format!("Q{number}: {}", one_line(&error.to_string())));
        }
        let (calm, killed) = (median(&runs.undisturbed), median(&runs.disturbed));
        let extra = (killed / calm - 1.0) * 100.0;
        let extra = if extra.is_finite() {
            format!("{extra:.0} %")
        } else {
            "-".to_owned()
        };
        rows.push(vec![
            format!("Q{number}"),
            seconds(calm),
            seconds(killed),
            extra,
        ]);
        figures.push(json!({
            "query": number,
            "undisturbed_seconds": runs.undisturbed,
            "disturbed_seconds": runs.disturbed,
        }));
        say(&format!("kill: Q{number} is done"));
    }
    plain.end().await;
    Ok(Section {
        name: "kill",
        title: format!(
            "One of 4 workers killed in the middle, TPC-H at scale {scale}; medians of {}",
            bench.arguments.repetitions
        ),
        header: ["query", "undisturbed s", "worker killed s", "longer by"]
            .map(str::to_owned)
            .to_vec(),
        rows,
        figures: json!(figures),
        faults,
    })
}

struct Load<'a> {
    request: &'a Request,
    number: u32,
    right: &'a Answer,
}

impl Load<'_> {
    async fn run(&self, ours: &mut Ours, repetitions: u32, runs: &mut Runs) -> Result<(), Failure> {
        // The first run after a start is not counted, here as below.
        self.once(ours).await?;
        for _ in 0..repetitions {
            runs.undisturbed.push(self.once(ours).await?);
            let middle = Duration::from_secs_f64(median(&runs.undisturbed) / 2.0);
            let outcome = self.disturbed(ours, middle).await;
            ours.cluster.add_worker()?;
            ours.cluster.wait_for_workers(&ours.client).await?;
            runs.disturbed.push(outcome?);
            self.once(ours).await?;
        }
        Ok(())
    }

    async fn once(&self, ours: &mut Ours) -> Result<f64, Failure> {
        let timed = ours.ask(self.request).await?;
        compare(
            order(self.number),
            self.right,
            &timed.answer,
            Strictness::Exact,
        )?;
        Ok(timed.seconds)
    }

    async fn disturbed(&self, ours: &mut Ours, after: Duration) -> Result<f64, Failure> {
        let victim = ours
            .cluster
            .first_worker()
            .ok_or("no worker is left to be killed")?;
        let victim = i32::try_from(victim)?;
        let victim = rustix::process::Pid::from_raw(victim).ok_or("a process has no number")?;
        let killer = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            rustix::process::kill_process(victim, rustix::process::Signal::KILL)
        });
        let outcome = self.once(ours).await;
        let killed = killer.await?;
        ours.cluster.forget_worker()?;
        killed?;
        outcome
    }
}

//! A stage of 10,000 tasks on 4 slots: what a task costs beyond its work.
//!
//! The work is the same query over the same files cut into as many tasks as there are slots. What a
//! stage of 10,000 takes longer, divided by the tasks, is the cost of a task.

use oxidask_tpch::{Order, Strictness, compare};
use serde_json::json;

use super::data::TINY_FILES;
use super::engine::{Engine, Request};
use super::figures::{Section, float, median, seconds};
use super::tpch::one_line;
use super::{Bench, DataKind, data, made, say};
use crate::Failure;
use crate::cluster::Shape;

const SHAPE: Shape = Shape {
    workers: 2,
    threads: 2,
    memory_bytes: None,
};
const SLOTS: u32 = 4;
const ANY_ORDER: Order = Order {
    columns: &[],
    limit: None,
};

/// Runs the query in many tasks, in few, and in plain `DataFusion`, taking turns.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Section, Failure> {
    let folder = made(DataKind::Tiny)?;
    let expected = data::expected(&folder)?;
    let location = folder.join("tiny");
    let location = location.to_string_lossy();
    let statements = vec![
        format!("CREATE EXTERNAL TABLE tiny STORED AS PARQUET LOCATION '{location}/'"),
        "SELECT count(*) AS rows, sum(v) AS total FROM tiny".to_owned(),
    ];
    let request = Request::Script { statements };
    let widths = [Some(u64::from(TINY_FILES)), Some(u64::from(SLOTS)), None];
    let mut ours = Engine::Ours(Box::new(bench.ours(SHAPE, &[]).await?));
    let mut plain = bench.plain(SLOTS)?;
    let mut runs: [Vec<f64>; 3] = Default::default();
    let mut faults = Vec::new();
    for round in 0..=bench.arguments.repetitions {
        for (width, runs) in widths.iter().zip(&mut runs) {
            if let (Engine::Ours(ours), Some(width)) = (&mut ours, width) {
                let mut settings = bench.settings.clone();
                settings.push("SET oxidask.stages = 'always'".to_owned());
                settings.push(format!("SET oxidask.width = {width}"));
                ours.set(settings);
            }
            let engine = if width.is_some() {
                &mut ours
            } else {
                &mut plain
            };
            let outcome = engine.ask(&request).await.and_then(|timed| {
                compare(ANY_ORDER, &expected, &timed.answer, Strictness::Exact)?;
                Ok(timed.seconds)
            });
            match outcome {
                Ok(seconds) if round > 0 => runs.push(seconds),
                Ok(_) => {}
                Err(error) => {
                    let error = error.to_string();
                    faults.push(format!(
                        "{}, {width:?}: {}",
                        engine.name(),
                        one_line(&error)
                    ));
                }
            }
        }
        say(&format!(
            "tasks: round {round} of {} is done",
            bench.arguments.repetitions
        ));
    }
    faults.dedup();
    plain.end().await;
    Ok(report(&runs, faults))
}

fn report(runs: &[Vec<f64>; 3], faults: Vec<String>) -> Section {
    let [many, few, plain] = [0, 1, 2].map(|index| median(&runs[index]));
    let micros = (many - few) * 1e6 / float(u64::from(TINY_FILES));
    let row = |name: &str, figure: f64, cost: String| vec![name.to_owned(), seconds(figure), cost];
    Section {
        name: "tasks",
        title: format!(
            "{TINY_FILES} files in a stage of {TINY_FILES} tasks on 2 workers of 2 slots; the work \
             is the same query in {SLOTS} tasks"
        ),
        header: ["run", "median s", "µs a task beyond the work"]
            .map(str::to_owned)
            .to_vec(),
        rows: vec![
            row(&format!("{TINY_FILES} tasks"), many, format!("{micros:.0}")),
            row(&format!("{SLOTS} tasks"), few, String::new()),
            row("datafusion, 4 threads", plain, String::new()),
        ],
        figures: json!({
            "many_seconds": runs[0],
            "few_seconds": runs[1],
            "datafusion_seconds": runs[2],
            "micros_per_task": micros,
        }),
        faults,
    }
}

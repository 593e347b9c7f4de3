//! Dirty CSV files: rows without a missing cell become Parquet files by category, and the mean,
//! deviation and number of values of each category.

use oxidask_tpch::{Order, Strictness, compare};
use serde_json::json;

use super::engine::{Engine, Request};
use super::figures::{Section, mebibytes, median, ratio, seconds};
use super::tpch::one_line;
use super::{Bench, DataKind, data, made, say};
use crate::Failure;

const BY_CATEGORY: Order = Order {
    columns: &[0],
    limit: None,
};

/// The job in SQL. The files are read once: the sums are over what was written.
pub(super) fn statements(input: &str, output: &str) -> Vec<String> {
    [
        format!("CREATE EXTERNAL TABLE dirty STORED AS CSV LOCATION '{input}/'"),
        format!(
            "COPY (SELECT * FROM dirty WHERE id IS NOT NULL AND value IS NOT NULL AND category IS \
             NOT NULL AND timestamp IS NOT NULL) TO '{output}/' STORED AS PARQUET PARTITIONED BY \
             (category)"
        ),
        format!(
            "CREATE EXTERNAL TABLE clean STORED AS PARQUET PARTITIONED BY (category) LOCATION \
             '{output}/'"
        ),
        "SELECT category, avg(value) AS mean, stddev(value) AS deviation, count(*) AS rows FROM \
         clean GROUP BY category ORDER BY category"
            .to_owned(),
    ]
    .to_vec()
}

/// Runs the job with every engine, taking turns.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Section, Failure> {
    let folder = made(DataKind::Csv)?;
    let expected = data::expected(&folder)?;
    let input = folder.to_string_lossy().into_owned();
    let outputs = tempfile::tempdir_in(folder.parent().ok_or("the data have no parent folder")?)?;
    let mut engines = bench.engines().await?;
    let mut runs: Vec<Vec<f64>> = vec![Vec::new(); engines.len()];
    let mut faults: Vec<String> = Vec::new();
    for round in 0..=bench.arguments.repetitions {
        for turn in 0..engines.len() {
            let turn = (turn + round as usize) % engines.len();
            let engine = &mut engines[turn];
            let output = outputs.path().join(format!("{}-{round}", engine.name()));
            let request = request(engine, &input, &output.to_string_lossy());
            let checked = engine.ask(&request).await.and_then(|timed| {
                compare(BY_CATEGORY, &expected, &timed.answer, Strictness::Peer)?;
                Ok(timed.seconds)
            });
            match checked {
                Ok(seconds) if round > 0 => runs[turn].push(seconds),
                Ok(_) => {}
                Err(error) => {
                    let fault = format!("by {}: {}", engine.name(), one_line(&error.to_string()));
                    faults.push(fault);
                }
            }
            // The next one should find the disk as it was.
            let _ = std::fs::remove_dir_all(&output);
        }
        say(&format!(
            "csv: round {round} of {} is done",
            bench.arguments.repetitions
        ));
    }
    faults.sort();
    faults.dedup();
    let section = report(bench, &engines, &runs, faults);
    for engine in engines {
        engine.end().await;
    }
    Ok(section)
}

fn request(engine: &Engine, input: &str, output: &str) -> Request {
    if engine.name() == "datafusion" {
        return Request::Script {
            statements: statements(input, output),
        };
    }
    Request::Csv {
        input: input.to_owned(),
        output: output.to_owned(),
    }
}

fn report(
    bench: &Bench<'_>,
    engines: &[Engine],
    runs: &[Vec<f64>],
    faults: Vec<String>,
) -> Section {
    let ours = median(&runs[0]);
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for (engine, runs) in engines.iter().zip(runs) {
        let peak = bench.sampler.peak(engine.name());
        let figure = median(runs);
        rows.push(vec![
            engine.name().to_owned(),
            seconds(figure),
            ratio(ours / figure),
            mebibytes(peak.total_bytes),
        ]);
        figures.push(json!({
            "engine": engine.name(),
            "seconds": runs,
            "peak_bytes": peak.total_bytes,
        }));
    }
    Section {
        name: "csv",
        title: format!(
            "5 CSV files of 1,000,000 rows, 5 % of the cells missing, to aggregates and Parquet by \
             category; median of {}",
            bench.arguments.repetitions
        ),
        header: ["engine", "median s", "ours / it", "peak memory"]
            .map(str::to_owned)
            .to_vec(),
        rows,
        figures: json!(figures),
        faults,
    }
}

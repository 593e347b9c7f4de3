//! The example on real data: every answer against numbers computed with pandas.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Worker, files};

/// The SQL of a manifest: the indented lines below `statements: |`.
fn statements(manifest: &Path) -> String {
    let yaml = fs::read_to_string(manifest).unwrap();
    let (_, text) = yaml.split_once("statements: |\n").unwrap();
    text.lines()
        .map(|line| line.trim_start_matches("      "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answers_are_right_on_the_first_and_the_second_run() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/flights");
    let worker = Worker::new();
    std::os::unix::fs::symlink(
        example.join("data").canonicalize().unwrap(),
        worker.path("data"),
    )
    .unwrap();
    let (reads, writes) = (example.join("flights.yaml"), example.join("clean.yaml"));
    for _ in 0..2 {
        let mut results = Vec::new();
        for manifest in [&reads, &writes] {
            match worker.sql(&statements(manifest)).await {
                Ok(more) => results.extend(more),
                Err(error) => panic!("{}", error.diagnostic),
            }
        }
        assert_eq!(results.len(), 6);
        assert_eq!(results[4].parts.concat(), b"327346");
        let rows = |index: usize| crate::harness::rows(&results[index]);

        let airlines = rows(0);
        assert_eq!(airlines.len(), 8);
        assert_eq!(
            airlines[0],
            json!({"airline": "Frontier Airlines Inc.", "flights": 685,
                   "minutes_late": 21.9, "percent_late": 25.1})
        );
        assert_eq!(
            airlines[7],
            json!({"airline": "JetBlue Airways", "flights": 54635,
                   "minutes_late": 9.5, "percent_late": 17.4})
        );

        assert_eq!(rows(1), weather());

        let planes = rows(2);
        assert_eq!(
            planes[0],
            json!({"plane": "N711MQ", "manufacturer": "GULFSTREAM AEROSPACE", "model": "G1159B",
                   "built": 1976, "flights": 462, "hours": 678.0, "miles": 250_957})
        );
        assert_eq!(
            planes[4],
            json!({"plane": "N351JB", "manufacturer": "EMBRAER", "model": "ERJ 190-100 IGW",
                   "built": 2012, "flights": 391, "hours": 514.0, "miles": 186_696})
        );

        assert_eq!(rows(3), january());
        assert_eq!(rows(5), months());

        let written = files(&worker.path("out"));
        assert_eq!(written.len(), 12);
        assert_eq!(written[0], "flights_clean/month=1/part-00000.parquet");
    }
}

fn weather() -> Vec<Value> {
    [
        ("heavy rain or snow", 4447, 40.6, 8.6),
        ("light rain or snow", 18555, 28.6, 8.3),
        ("fog", 6891, 23.1, 6.1),
        ("strong wind", 17910, 13.5, 4.0),
        ("fair", 287_417, 11.0, 1.8),
    ]
    .map(|(weather, flights, late, cancelled)| {
        json!({"weather": weather, "flights": flights, "minutes_late": late,
                   "percent_cancelled": cancelled})
    })
    .to_vec()
}

fn january() -> Vec<Value> {
    [
        ("EWR", 9893, 238, 39, 34),
        ("JFK", 9161, 100, 30, 71),
        ("LGA", 7950, 183, 16, 50),
    ]
    .map(|(origin, flights, cancelled, diverted, without_plane)| {
        json!({"origin": origin, "flights": flights, "cancelled": cancelled,
                           "diverted_or_unknown": diverted, "without_plane": without_plane})
    })
    .to_vec()
}

fn months() -> Vec<Value> {
    [
        (7, 28293, 16.7, 989),
        (6, 27075, 16.5, 1127),
        (12, 27020, 14.9, 878),
    ]
    .map(|(month, flights, late, latest)| {
        json!({"month": month, "flights": flights, "minutes_late": late,
                           "latest": latest})
    })
    .to_vec()
}

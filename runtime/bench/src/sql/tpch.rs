//! The 22 queries of TPC-H: ours beside plain `DataFusion` and others.

use std::collections::BTreeMap;

use oxidask_tpch::{Answer, Strictness, TABLES, compare, create_tables, order, queries};
use serde::Serialize;
use serde_json::json;

use super::engine::{Engine, Request};
use super::figures::{Section, float, mebibytes, median, ratio, seconds};
use super::{Bench, DataKind, made, say};
use crate::Failure;

/// Queries that the goal against Dask is about.
const FIVE: [u32; 5] = [1, 3, 5, 6, 10];

/// All runs of one query by one engine.
#[derive(Debug, Default, Serialize)]
struct Runs {
    seconds: Vec<f64>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// By query, then by engine in the engines' order.
type Results = BTreeMap<u32, Vec<Runs>>;

/// Runs every query with every engine, taking turns.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Section, Failure> {
    let scale = bench.arguments.scale;
    let folder = made(DataKind::Tpch { scale })?;
    let wanted: Vec<_> = queries()
        .into_iter()
        .filter(|(number, _)| {
            let only = &bench.arguments.queries;
            only.is_empty() || only.contains(number)
        })
        .collect();
    let mut engines = bench.engines().await?;
    let open = Request::Open {
        definitions: create_tables(&folder)
            .lines()
            .map(|line| line.trim_end_matches(';').to_owned())
            .collect(),
        folder: folder.to_string_lossy().into_owned(),
        tables: TABLES.iter().map(|table| (*table).to_owned()).collect(),
    };
    for engine in &mut engines {
        engine.ask(&open).await?;
    }
    let mut results = Results::new();
    let mut right: BTreeMap<u32, Answer> = BTreeMap::new();
    for round in 0..=bench.arguments.repetitions {
        for (number, sql) in &wanted {
            let request = Request::Query {
                number: *number,
                sql: (*sql).to_owned(),
            };
            let runs = results.entry(*number).or_default();
            runs.resize_with(engines.len(), Runs::default);
            let first = usize::try_from(round + number)? % engines.len();
            // The first round warms up, and plain `DataFusion` gives the right answers in it.
            let turns: Vec<usize> = match round {
                0 => (0..engines.len()).rev().collect(),
                _ => (0..engines.len())
                    .map(|turn| (first + turn) % engines.len())
                    .collect(),
            };
            let turns = plain_first(round == 0, turns);
            for turn in turns {
                let is_counted = round > 0;
                let turn = Turn {
                    engine: &mut engines[turn],
                    runs: &mut runs[turn],
                    is_counted,
                };
                turn.take(&request, *number, &mut right).await;
            }
        }
        say(&format!(
            "tpch: round {round} of {} is done",
            bench.arguments.repetitions
        ));
    }
    let section = report(bench, &engines, &results);
    for engine in engines {
        engine.end().await;
    }
    Ok(section)
}

/// In the first round the engine that the others are compared with goes first.
fn plain_first(is_first_round: bool, turns: Vec<usize>) -> Vec<usize> {
    const PLAIN: usize = 1;
    if !is_first_round {
        return turns;
    }
    let others = turns.into_iter().filter(|turn| *turn != PLAIN);
    std::iter::once(PLAIN).chain(others).collect()
}

/// One run of one query by one engine.
struct Turn<'a> {
    engine: &'a mut Engine,
    runs: &'a mut Runs,
    is_counted: bool,
}

impl Turn<'_> {
    async fn take(self, request: &Request, number: u32, right: &mut BTreeMap<u32, Answer>) {
        if self.runs.failure.is_some() {
            return;
        }
        let timed = match self.engine.ask(request).await {
            Ok(timed) => timed,
            Err(error) => {
                self.runs.failure = Some(error.to_string());
                self.runs.seconds.clear();
                return;
            }
        };
        if self.is_counted {
            self.runs.seconds.push(timed.seconds);
        }
        let Some(expected) = right.get(&number) else {
            right.insert(number, timed.answer);
            return;
        };
        let is_datafusion = self.engine.is_ours() || self.engine.name() == "datafusion";
        let strictness = if is_datafusion {
            Strictness::Exact
        } else {
            Strictness::Peer
        };
        if let Err(difference) = compare(order(number), expected, &timed.answer, strictness) {
            self.runs.failure = Some(format!("wrong answer: {difference}"));
        }
    }
}

fn report(bench: &Bench<'_>, engines: &[Engine], results: &Results) -> Section {
    let names: Vec<&str> = engines.iter().map(Engine::name).collect();
    let mut header = vec!["query".to_owned()];
    header.extend(names.iter().map(|name| format!("{name} s")));
    header.push("ours / plain".to_owned());
    let mut rows = Vec::new();
    let mut faults = Vec::new();
    for (number, runs) in results {
        let medians: Vec<f64> = runs.iter().map(|runs| median(&runs.seconds)).collect();
        let mut row = vec![format!("Q{number}")];
        row.extend(medians.iter().map(|figure| seconds(*figure)));
        row.push(ratio(medians[0] / medians[1]));
        rows.push(row);
        for (name, runs) in names.iter().zip(runs) {
            let has_no_text = *name == "dask" && !FIVE.contains(number);
            if let Some(failure) = runs.failure.as_ref().filter(|_| !has_no_text) {
                faults.push(format!("Q{number} by {name}: {}", one_line(failure)));
            }
        }
    }
    let all: Vec<u32> = results.keys().copied().collect();
    let five: Vec<u32> = FIVE
        .into_iter()
        .filter(|number| all.contains(number))
        .collect();
    rows.push(sums("sum of all", &all, results, engines.len()));
    if all.len() > five.len() && !five.is_empty() {
        rows.push(sums("sum of 1, 3, 5, 6, 10", &five, results, engines.len()));
    }
    let peaks: Vec<u64> = names
        .iter()
        .map(|name| bench.sampler.peak(name).total_bytes)
        .collect();
    let mut row = vec!["peak memory".to_owned()];
    row.extend(peaks.iter().map(|bytes| mebibytes(*bytes)));
    row.push(ratio(float(peaks[0]) / float(peaks[1])));
    rows.push(row);
    let scale = bench.arguments.scale;
    let repetitions = bench.arguments.repetitions;
    let settings = bench.settings.join("; ");
    Section {
        name: "tpch",
        title: format!(
            "TPC-H at scale {scale}, median of {repetitions} after one warm-up; ours: 2 workers of \
             1 slot, mutual TLS; the others: 2 threads{}{settings}",
            if settings.is_empty() { "" } else { "; " }
        ),
        header,
        rows,
        figures: json!({
            "scale": scale,
            "engines": names,
            "runs": results,
            "peak_bytes": peaks,
            "settings": bench.settings,
        }),
        faults,
    }
}

/// A row of sums; of an engine that has not answered all there is none.
fn sums(title: &str, numbers: &[u32], results: &Results, engines: usize) -> Vec<String> {
    let sum = |engine: usize| -> f64 {
        let runs = numbers
            .iter()
            .filter_map(|number| results.get(number)?.get(engine));
        runs.map(|runs| median(&runs.seconds)).sum()
    };
    let sums: Vec<f64> = (0..engines).map(sum).collect();
    let mut row = vec![title.to_owned()];
    row.extend(sums.iter().map(|figure| seconds(*figure)));
    row.push(ratio(sums[0] / sums[1]));
    row
}

/// The first line of a text, so that a table stays one.
pub(super) fn one_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_are_compared_with_runs_first_and_once() {
        assert_eq!(plain_first(true, vec![2, 1, 0]), [1, 2, 0]);
        assert_eq!(plain_first(false, vec![2, 0, 1]), [2, 0, 1]);
    }

    #[test]
    fn an_engine_that_has_not_answered_all_has_no_sum() {
        let run = |figures: &[f64]| Runs {
            seconds: figures.to_vec(),
            failure: None,
        };
        let results = Results::from([
            (1, vec![run(&[3.0]), run(&[2.0]), run(&[])]),
            (2, vec![run(&[1.0]), run(&[2.0]), run(&[1.0])]),
        ]);
        let row = sums("sum", &[1, 2], &results, 3);
        assert_eq!(row, ["sum", "4.000", "4.000", "-", "1.00x"]);
    }
}

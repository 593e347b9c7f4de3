//! `oxidask-sim`: looks for runs that fail, shows one, or measures placement.

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use oxidask_sim::{Config, Failure, Summary, makespans, run, run_with_log, shrink};

/// Runs between two lines about progress.
const RUNS_PER_LINE: u64 = 500;

/// Graphs of which a makespan is the sum.
const GRAPHS_PER_SHAPE: u64 = 10;
const USAGE: &str = "usage: oxidask-sim --seeds N [--from K] | --replay CONFIG | --makespan";

/// Prints a line; a closed standard output is not this program's concern.
macro_rules! say {
    ($($argument:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["--seeds", count] => numbers(count, "0").and_then(|(count, from)| seeds(count, from)),
        ["--seeds", count, "--from", from] => {
            numbers(count, from).and_then(|(count, from)| seeds(count, from))
        }
        ["--replay", config] => replay(config),
        ["--makespan"] => makespan(),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn numbers(count: &str, from: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| {
        text.parse()
            .map_err(|_| format!("`{text}` is no number\n{USAGE}"))
    };
    Ok((number(count)?, number(from)?))
}

fn seeds(count: u64, from: u64) -> Result<(), String> {
    let start = Instant::now();
    let mut sum = Summary::default();
    for (done, seed) in (1..=count).zip(from..) {
        let summary = run(&Config::of_seed(seed)).map_err(|failure| explain(&failure))?;
        sum.steps += summary.steps;
        sum.tasks += summary.tasks;
        sum.results += summary.results;
        sum.again += summary.again;
        sum.micros += summary.micros;
        if done % RUNS_PER_LINE == 0 || done == count {
            let seconds = start.elapsed().as_secs_f64().max(0.001);
            #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = done as f64 / seconds;
            say!(
                "{done} runs, {rate:.1} a second: {} steps, {} tasks, {} results, {} again, \
                 {} s of virtual time",
                sum.steps,
                sum.tasks,
                sum.results,
                sum.again,
                sum.micros / 1_000_000
            );
        }
    }
    Ok(())
}

/// A failure, the smallest one like it, and what happened in that.
fn explain(failure: &Failure) -> String {
    say!("failed: {failure}\nshrinking ...");
    let small = shrink(failure.clone());
    show(&small)
}

fn show(failure: &Failure) -> String {
    let log = match run_with_log(&failure.config) {
        Err(again) => again.log.join("\n"),
        Ok(_) => "the run does not fail again: it is not the same run each time".to_owned(),
    };
    format!(
        "{log}\n\nfailed: {failure}\nfor tests/regressions.rs: \"{}\"",
        failure.config
    )
}

fn replay(config: &str) -> Result<(), String> {
    let config: Config = config.parse().map_err(|error| format!("{error}"))?;
    match run(&config) {
        Ok(summary) => {
            say!("{summary:?}");
            Ok(())
        }
        Err(failure) => Err(show(&failure)),
    }
}

fn makespan() -> Result<(), String> {
    say!("4 workers with 2 slots; list: a list scheduler that knows everything");
    say!(
        "{:<22} {:>6} {:>10} {:>10} {:>6}",
        "graph",
        "tasks",
        "ours ms",
        "list ms",
        "ratio"
    );
    let all = makespans(GRAPHS_PER_SHAPE).map_err(|failure| show(&failure))?;
    for graph in all {
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = graph.micros as f64 / graph.list_micros.max(1) as f64;
        let millis = |micros: u64| format!("{}.{}", micros / 1_000, micros % 1_000 / 100);
        say!(
            "{:<22} {:>6} {:>10} {:>10} {ratio:>6.2}",
            graph.name,
            graph.tasks,
            millis(graph.micros),
            millis(graph.list_micros)
        );
    }
    Ok(())
}

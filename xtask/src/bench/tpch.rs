//! `cargo xtask bench tpch`: SQL and memory beside plain `DataFusion`, and other engines when asked.
//!
//! Builds what is measured, finds the peers' Python, and hands the rest of the command line to the
//! bench program.

use std::path::Path;
use std::process::Command;

use super::measured::{FIGURES, note};
use super::python;
use crate::Failure;
use crate::process::{binaries_dir, cargo, run as run_command};

/// Options that the bench program takes as they are.
const PASSED_ON: &[&str] = &[
    "--scale",
    "--repetitions",
    "--queries",
    "--only",
    "--set",
    "--memory-mib",
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    passed_on: Vec<String>,
    peers: Option<String>,
    is_recorded: bool,
}

/// Builds, and runs the loads.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let options = parse(words)?;
    // One call, so that all of it shares one build of the engine.
    let build = [
        "build",
        "--release",
        "--package",
        "oxidask",
        "--package",
        "oxidask-bench",
        "--package",
        "oxidask-exec-frame",
        "--bins",
        "--example",
        "plain_datafusion",
    ];
    run_command(&mut cargo(root, &build))?;
    let binaries = binaries_dir(root, "release")?;
    let mut bench = Command::new(binaries.join("oxidask-bench"));
    bench.current_dir(root).arg("sql");
    bench.arg("--oxidask").arg(binaries.join("oxidask"));
    bench
        .arg("--plain")
        .arg(binaries.join("examples/plain_datafusion"));
    bench.args(&options.passed_on);
    if let Some(peers) = &options.peers {
        bench.arg("--peers").arg(peers);
        bench.arg("--python").arg(python::environment()?);
        bench
            .arg("--peer-script")
            .arg(root.join("runtime/bench/peers/sql_peer.py"));
    }
    if options.is_recorded {
        bench.arg("--record").arg(root.join(FIGURES));
        bench.arg("--note").arg(note(root)?);
    }
    run_command(&mut bench)
}

fn parse(words: &[&str]) -> Result<Options, Failure> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == "--record" {
            options.is_recorded = true;
            continue;
        }
        let Some(value) = words.next() else {
            return Err(format!("`{word}` is unknown or has no value").into());
        };
        match *word {
            "--peers" => options.peers = Some((*value).to_owned()),
            word if PASSED_ON.contains(&word) => {
                options
                    .passed_on
                    .extend([word.to_owned(), (*value).to_owned()]);
            }
            word => return Err(format!("unknown option `{word}`").into()),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_on_and_unknown_ones_refused() {
        let words = [
            "--scale",
            "0.1",
            "--record",
            "--peers",
            "duckdb,dask",
            "--only",
            "csv",
        ];
        let options = parse(&words).unwrap();
        let expected = Options {
            passed_on: ["--scale", "0.1", "--only", "csv"]
                .map(str::to_owned)
                .to_vec(),
            peers: Some("duckdb,dask".to_owned()),
            is_recorded: true,
        };
        assert_eq!(options, expected);
        for words in [&["--scale"][..], &["--speed", "1"], &["tpch"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}

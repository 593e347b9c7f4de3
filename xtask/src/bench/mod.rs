//! `cargo xtask bench`: our loads, and the same loads run by peers in the same session.
//!
//! The bench program measures; this module builds it, installs peers into environments of their own
//! and hands their figures, or the means to ask them, to it, so that one table holds both.

mod clients;
mod faults;
mod measured;
mod operator;
pub(crate) mod python;
mod tpch;

use std::path::Path;
use std::process::Command;

use crate::packages::RUNTIME;
use crate::process::{binaries_dir, output, run as run_command};
use crate::{Failure, say};

pub(crate) use clients::run as clients;
pub(crate) use faults::run as faults;
pub(crate) use operator::run as operator;
pub(crate) use tpch::run as tpch;

const RUNS_DEFAULT: u32 = 5;

struct Options {
    runs: u32,
    is_against_dask: bool,
}

/// Runs one load, `e2e` or `transfer`.
pub(crate) fn run(root: &Path, kind: &str, words: &[&str]) -> Result<(), Failure> {
    let options = parse(words)?;
    // The whole family: a part of it would be built with other features, and so a second time.
    run_command(&mut RUNTIME.cargo(root, &["build", "--release"]))?;
    let binaries = binaries_dir(root, "release")?;
    let runs = options.runs.to_string();
    let peers = tempfile::tempdir()?;
    let mut bench = Command::new(binaries.join("oxidask-bench"));
    bench.current_dir(root).args([kind, "--runs", &runs]);
    bench.arg("--oxidask").arg(binaries.join("oxidask"));
    if options.is_against_dask {
        let figures = peers.path().join("dask.jsonl");
        std::fs::write(&figures, dask_figures(root, kind, &runs)?)?;
        bench.arg("--peer").arg(figures);
    }
    run_command(&mut bench)
}

fn parse(words: &[&str]) -> Result<Options, Failure> {
    let mut options = Options {
        runs: RUNS_DEFAULT,
        is_against_dask: false,
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match (*word, words.next().copied()) {
            ("--runs", Some(count)) => options.runs = count.parse()?,
            ("--against", Some("dask")) => options.is_against_dask = true,
            (word, _) => return Err(format!("unknown or incomplete option `{word}`").into()),
        }
    }
    Ok(options)
}

fn dask_figures(root: &Path, kind: &str, runs: &str) -> Result<String, Failure> {
    let python = python::environment()?;
    say!("running the loads with dask.distributed …");
    let script = root.join("runtime/bench/peers/dask_loads.py");
    output(Command::new(&python).arg(script).args([kind, runs]))
}

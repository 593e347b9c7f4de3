//! The only task runner: `cargo xtask test | lint | gen | bench | dist`.
//!
//! Owns how the project is checked, generated, measured and packed. Holds no knowledge of what the
//! product does: it starts cargo and the product's own binaries.

mod alerts;
mod bench;
mod charts;
mod dask;
mod demo;
mod dist;
mod e2e;
mod generate;
mod gitops;
mod images;
mod lab;
mod lint;
mod packages;
mod process;
mod sim;
mod test;
mod wheel;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Any failure ends the task; its text is all that a developer needs.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Prints a line for the developer; a closed standard output is not this program's concern.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}
pub(crate) use say;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [FILTER]     everything this machine can run; names what it skipped and why
                    FILTER: only the stages whose name contains it
  lint              formatting, clippy, dependency bans, purity, file limits
  gen [--check]     write the generated files, or fail if one is stale
  bench e2e         tasks per second for five shapes of graphs   [--against dask] [--runs N]
  bench transfer    GiB per second between two workers           [--against dask] [--runs N]
  bench tpch        SQL and memory beside plain DataFusion       [--scale 1] [--repetitions N]
                    [--peers duckdb,polars,dask] [--queries 1,3] [--memory-mib N] [--set NAME=VALUE]
                    [--only tpch,csv,join,tree,tasks,kill] [--record]
  bench faults      seconds until all is well after a kill, and costs  [--runs N] [--only LOADS]
  bench operator    pods per second, costs and delays of the operator  [--runs N] [--only LOADS]
                    [--small] [--record]; --lab: on a real API server, beside a bare client
  bench python      stock Dask code beside Dask's own cluster    [--repetitions N] [--only NAMES] [--small]
  bench kubernetes  seconds from apply to a ready cluster, to a job's first result  [--runs N]
  sim --seeds N     scheduler and workers in virtual time, a run a seed   [--from K]
  sim --replay RUN  one run and what happened in it
  sim --makespan    our placement against a list scheduler that knows everything
  dist              the static binary for publishing, with its size
  wheel             the Python package for this machine   [--output DIR]
  images            both images as OCI archives   [--output DIR] [--profile release|dist]
                    [--push REGISTRY/FOLDER]; --check: compare them with buildah's
  e2e [FILTER]      a lab, the images, the charts, the cases  [--keep] [--jobs N]
  demo              a lab with the operator and a finished job, left running
  lab VERB          up, down, list, load, logs, enter: a Kubernetes on this machine;
                    argocd, prometheus: what it can be given";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match root() {
        Ok(root) => run(&root, &words),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    match words {
        ["test"] => test::run(root, None),
        ["test", filter] => test::run(root, Some(filter)),
        ["lint"] => lint::run(root),
        ["gen"] => generate::write(root),
        ["gen", "--check"] => generate::check(root),
        ["bench", kind @ ("e2e" | "transfer"), rest @ ..] => bench::run(root, kind, rest),
        ["bench", "tpch", rest @ ..] => bench::tpch(root, rest),
        ["bench", "faults", rest @ ..] => bench::faults(root, rest),
        ["bench", "operator", rest @ ..] => bench::operator(root, rest),
        ["bench", "python", rest @ ..] => bench::clients(root, rest),
        ["bench", "kubernetes", rest @ ..] => e2e::figures(root, rest),
        ["sim", rest @ ..] => sim::run(root, rest),
        ["dist"] => dist::run(root),
        ["wheel", rest @ ..] => wheel::run(root, rest),
        ["e2e", rest @ ..] => e2e::run(root, rest),
        ["demo"] => demo::run(root),
        ["lab", rest @ ..] => lab::run(root, rest),
        ["images", rest @ ..] => images::run(root, rest),
        _ => Err(USAGE.into()),
    }
}

/// The workspace's root: the folder above this crate.
fn root() -> Result<PathBuf, Failure> {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(crate_dir
        .parent()
        .ok_or("the xtask crate has no parent folder")?
        .to_owned())
}

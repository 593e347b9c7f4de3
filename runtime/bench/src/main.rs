//! `oxidask-bench`: loads against a real cluster, measured end to end.
//!
//! Owns the shapes of the loads and their timing: from handing over the graph until the client has
//! every wanted result. Run it through `cargo xtask bench`.

mod cluster;
mod faults;
mod loads;
mod report;
mod sql;
mod transfer;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::faults::FaultArguments;
use crate::report::Report;
use crate::sql::{DataKind, SqlArguments};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Any failure ends the program; its text says why.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures local clusters of real processes, mutual TLS on.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Tasks a second for several shapes of graphs
    E2e(RateArguments),
    /// GiB a second between two workers
    Transfer(RateArguments),
    /// Queries and memory, beside other engines
    Sql(Box<SqlArguments>),
    /// What goes wrong, and how long until all is well again
    Faults(FaultArguments),
    /// Makes data and keeps them
    Make {
        #[command(subcommand)]
        kind: DataKind,
    },
}

/// One scheduler, two workers of one thread.
#[derive(Debug, Args)]
struct RateArguments {
    /// The `oxidask` binary to measure
    #[arg(long)]
    oxidask: PathBuf,
    /// Counted runs of each shape, after one that is not counted
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// A peer's measurements, a JSON object a line, to print beside ours
    #[arg(long)]
    peer: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "oxidask-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    oxidask_comm::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match &arguments.load {
        Load::E2e(rate) => {
            let measured = runtime.block_on(loads::measure(&rate.oxidask, rate.runs))?;
            print(&Report::new(measured, rate.peer.as_deref())?)
        }
        Load::Transfer(rate) => {
            let measured = runtime.block_on(transfer::measure(&rate.oxidask, rate.runs))?;
            print(&Report::new(measured, rate.peer.as_deref())?)
        }
        Load::Sql(arguments) => runtime.block_on(sql::run(arguments)),
        Load::Faults(arguments) => runtime.block_on(faults::run(arguments)),
        Load::Make { kind } => sql::make(*kind),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}\n\n{}", report.table(), report.json()?)?;
    Ok(())
}

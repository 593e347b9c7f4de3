//! `oxidask-bench`: loads against a real cluster, measured end to end.
//!
//! Owns the shapes of the loads and their timing: from handing over the graph until the client has
//! every wanted result. Run it through `cargo xtask bench`.

mod cluster;
mod loads;
mod report;
mod transfer;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Any failure ends the program; its text says why.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures a local cluster of one scheduler and two workers of one thread, mutual TLS on.
#[derive(Debug, Parser)]
struct Arguments {
    /// The load
    #[arg(value_enum)]
    load: Load,
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Load {
    /// Tasks a second for several shapes of graphs
    E2e,
    /// GiB a second between two workers
    Transfer,
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
    let measured = runtime.block_on(async {
        match arguments.load {
            Load::E2e => loads::measure(&arguments.oxidask, arguments.runs).await,
            Load::Transfer => transfer::measure(&arguments.oxidask, arguments.runs).await,
        }
    })?;
    let report = Report::new(measured, arguments.peer.as_deref())?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}\n\n{}", report.table(), report.json()?)?;
    Ok(())
}

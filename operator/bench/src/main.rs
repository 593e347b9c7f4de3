//! `oxidask-operator-bench`: the operator's process against an API server in memory, or a real one.
//!
//! Owns the loads and their table. Every load has a server and an operator of its own and measures
//! from outside: what the server was asked, and what the kernel says of the process. The one on a real
//! server has that server to itself.

mod apiserver;
mod backlog;
mod creation;
mod figure;
mod process;
mod restart;
mod stage;
mod steady;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::figure::Figure;

/// Any failure ends the program; its text says why.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures an operator.
#[derive(Debug, Parser)]
#[command(name = "oxidask-operator-bench", version)]
struct Arguments {
    /// The `oxidask-operator` binary to measure
    #[arg(long)]
    operator: PathBuf,
    /// Runs of each figure
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Only these figures
    #[arg(long, value_delimiter = ',')]
    only: Vec<Load>,
    /// Only pods on the real API server that this file leads to; the definitions must be there
    #[arg(long, conflicts_with = "only")]
    kubeconfig: Option<PathBuf>,
    /// A tenth of every size, to try the bench itself
    #[arg(long)]
    small: bool,
    /// Writes the table to this file, and the raw figures beside it as `.json`
    #[arg(long)]
    record: Option<PathBuf>,
    /// What a record says of its day and revision
    #[arg(long, default_value = "")]
    note: String,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Pods a second and memory, 10,000 workers of 100 clusters
    Creation,
    /// Writes and processor time of a small cluster
    Cost,
    /// Reconciliations of a large cluster in which nothing changes
    Steady,
    /// What a large scale-up costs another cluster
    Neighbour,
    /// A restart with many clusters
    Restart,
    /// From a backlog to pods
    Backlog,
}

const ALL: [Load; 6] = [
    Load::Creation,
    Load::Cost,
    Load::Steady,
    Load::Neighbour,
    Load::Restart,
    Load::Backlog,
];

/// What every load needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) operator: PathBuf,
    pub(crate) runs: u32,
    pub(crate) is_small: bool,
}

impl Settings {
    /// A size, or a tenth of it.
    pub(crate) fn size(&self, full: usize) -> usize {
        if self.is_small { full / 10 } else { full }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    // It fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("oxidask-operator-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let settings = Settings {
        operator: arguments.operator,
        runs: arguments.runs,
        is_small: arguments.small,
    };
    let figures = match &arguments.kubeconfig {
        Some(kubeconfig) => apiserver::rate(&settings, kubeconfig).await?,
        None => in_memory(&settings, &arguments.only).await?,
    };
    let table = figure::table(&figures, &arguments.note);
    say(&format!("\n{table}"));
    if let Some(file) = &arguments.record {
        std::fs::write(file, &table)?;
        let raw = figure::json(&figures, &arguments.note);
        std::fs::write(file.with_extension("json"), format!("{raw:#}\n"))?;
    }
    Ok(())
}

/// The loads whose API server is a part of this program.
async fn in_memory(settings: &Settings, only: &[Load]) -> Result<Vec<Figure>, Failure> {
    let wanted = ALL
        .into_iter()
        .filter(|load| only.is_empty() || only.contains(load));
    let mut figures: Vec<Figure> = Vec::new();
    for load in wanted {
        let measured = match load {
            Load::Creation => creation::pods(settings).await?,
            Load::Cost => creation::cost(settings).await?,
            Load::Steady => steady::unchanged(settings).await?,
            Load::Neighbour => steady::neighbour(settings).await?,
            Load::Restart => restart::measure(settings).await?,
            Load::Backlog => backlog::measure(settings).await?,
        };
        for figure in &measured {
            say(&figure.row());
        }
        figures.extend(measured);
    }
    Ok(figures)
}

/// Prints a line; a reader that went away does not end a measurement.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

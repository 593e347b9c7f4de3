//! SQL and memory under measurement: TPC-H, a CSV job, a join and a tree larger than memory, many
//! small tasks, and the death of a worker.
//!
//! Owns which engines run beside each other and in which order. Engines alternate within one run,
//! because times on a machine move together: what is reported are ratios. Every answer is compared.

#![allow(
    clippy::doc_markdown,
    reason = "some of these comments are help texts for a terminal"
)]

mod csv;
mod data;
mod engine;
pub(crate) mod figures;
mod join;
mod kill;
mod memory;
mod ours;
mod tasks;
mod tpch;
mod tree;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use self::engine::{Engine, Program};
use self::figures::Section;
use self::memory::Sampler;
use self::ours::Ours;
use crate::Failure;
use crate::cluster::Shape;
use crate::report::machine;

pub(crate) use self::data::{Kind as DataKind, make};

/// Threads of each engine, and workers of our cluster.
const THREADS: u32 = 2;

/// What to run, and against whom.
#[derive(Debug, Args)]
pub(crate) struct SqlArguments {
    /// The `oxidask` binary to measure
    #[arg(long)]
    oxidask: PathBuf,
    /// The program that runs plain DataFusion
    #[arg(long)]
    plain: PathBuf,
    /// Scale factor of TPC-H
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Counted runs of each query, after one that is not counted
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
    /// Other engines beside ours and plain DataFusion
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// A Python that has the peers' packages
    #[arg(long, required_if_eq_any = [("peers", "duckdb"), ("peers", "polars"), ("peers", "dask")])]
    python: Option<PathBuf>,
    /// The script that answers for the peers
    #[arg(long, requires = "python")]
    peer_script: Option<PathBuf>,
    /// Only these queries
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=22))]
    queries: Vec<u32>,
    /// Only these loads
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Load>,
    /// Options of our statements, as in `oxidask.stages=always`
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// MiB of memory of each worker in the loads that are larger than memory
    #[arg(long, default_value_t = 512)]
    memory_mib: u64,
    /// Folder for the tables and the raw figures
    #[arg(long)]
    record: Option<PathBuf>,
    /// A line about when and what was measured
    #[arg(long, default_value = "")]
    note: String,
}

/// Another engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    Duckdb,
    Polars,
    Dask,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Duckdb => "duckdb",
            Self::Polars => "polars",
            Self::Dask => "dask",
        }
    }
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// The 22 queries of TPC-H
    Tpch,
    /// Dirty CSV files to aggregates and partitioned Parquet
    Csv,
    /// A join whose build side is four times the memory of a worker
    Join,
    /// A tree over buffers of 4 GiB in all
    Tree,
    /// A stage of 10,000 tasks
    Tasks,
    /// One of 4 workers is killed in the middle of two queries
    Kill,
}

const LOADS: [Load; 6] = [
    Load::Tpch,
    Load::Csv,
    Load::Join,
    Load::Tree,
    Load::Tasks,
    Load::Kill,
];

/// What all loads share.
struct Bench<'a> {
    arguments: &'a SqlArguments,
    sampler: Sampler,
    /// `SET` statements.
    settings: Vec<String>,
}

/// Runs the chosen loads and reports them.
pub(crate) async fn run(arguments: &SqlArguments) -> Result<(), Failure> {
    let bench = Bench {
        arguments,
        sampler: Sampler::start(),
        settings: set_statements(&arguments.settings)?,
    };
    let mut sections = Vec::new();
    for load in LOADS {
        if !arguments.only.is_empty() && !arguments.only.contains(&load) {
            continue;
        }
        let section = match load {
            Load::Tpch => tpch::measure(&bench).await?,
            Load::Csv => csv::measure(&bench).await?,
            Load::Join => join::measure(&bench).await?,
            Load::Tree => tree::measure(&bench).await?,
            Load::Tasks => tasks::measure(&bench).await?,
            Load::Kill => kill::measure(&bench).await?,
        };
        say(&format!("\n{}\n", section.markdown()));
        if let Some(folder) = &arguments.record {
            record(folder, &section, &arguments.note)?;
        }
        sections.push(section);
    }
    let faults: Vec<_> = sections
        .iter()
        .flat_map(|section| &section.faults)
        .collect();
    match faults.len() {
        0 => Ok(()),
        count => Err(format!("{count} answers were wrong or did not come").into()),
    }
}

impl Bench<'_> {
    async fn ours(&self, shape: Shape, settings: &[String]) -> Result<Ours, Failure> {
        Ours::start(&self.arguments.oxidask, shape, settings).await
    }

    fn plain(&self, threads: u32) -> Result<Engine, Failure> {
        let threads = threads.to_string();
        let program = Program::start("datafusion", &self.arguments.plain, &[&threads])?;
        Ok(Engine::Program(Box::new(program)))
    }

    /// Ours, plain `DataFusion`, and the peers that were asked for.
    async fn engines(&self) -> Result<Vec<Engine>, Failure> {
        let shape = Shape {
            workers: THREADS,
            ..Shape::default()
        };
        let ours = self.ours(shape, &self.settings).await?;
        let mut engines = vec![Engine::Ours(Box::new(ours)), self.plain(THREADS)?];
        let python = (&self.arguments.python, &self.arguments.peer_script);
        if let (Some(python), Some(script)) = python {
            let script = script.to_string_lossy();
            let threads = THREADS.to_string();
            for peer in &self.arguments.peers {
                let words = [&*script, peer.name(), &threads];
                let program = Program::start(peer.name(), python, &words)?;
                engines.push(Engine::Program(Box::new(program)));
            }
        }
        for engine in &engines {
            engine.watch(&self.sampler, engine.name());
        }
        Ok(engines)
    }
}

/// Makes data in a process of its own, so that their making does not show in this one's memory.
fn made(kind: DataKind) -> Result<PathBuf, Failure> {
    let folder = data::folder(kind)?;
    let words = data::words(kind);
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let status = command.arg("make").args(words).status()?;
    if status.success() {
        Ok(folder)
    } else {
        Err(format!("the data for `{}` were not made", folder.display()).into())
    }
}

fn set_statements(settings: &[String]) -> Result<Vec<String>, Failure> {
    let statement = |setting: &String| {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| format!("`{setting}` is not NAME=VALUE"))?;
        Ok(format!("SET {name} = '{value}'"))
    };
    settings.iter().map(statement).collect()
}

pub(crate) fn say(text: &str) {
    // A reader that went away does not end a measurement.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Writes what was measured: a table to be included in a page, and the raw figures.
fn record(folder: &Path, section: &Section, note: &str) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let machine = machine();
    let conditions = if note.is_empty() {
        machine.clone()
    } else {
        format!("{note}: {machine}")
    };
    let text = format!("{conditions}.\n\n{}\n", section.markdown());
    std::fs::write(folder.join(format!("{}.md", section.name)), text)?;
    let figures = json!({"note": note, "machine": machine, "section": section});
    let figures = serde_json::to_string_pretty(&figures)? + "\n";
    std::fs::write(folder.join(format!("{}.json", section.name)), figures)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_statements() {
        let settings = [
            "oxidask.stages=always".to_owned(),
            "oxidask.width=8".to_owned(),
        ];
        let expected = ["SET oxidask.stages = 'always'", "SET oxidask.width = '8'"];
        assert_eq!(set_statements(&settings).unwrap(), expected);
        assert!(set_statements(&["nonsense".to_owned()]).is_err());
    }
}

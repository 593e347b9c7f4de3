//! What goes wrong, how long it takes until all is well again, and what it costs to be ready for it.
//!
//! Owns the figures and their table. Each figure starts a cluster of its own, does one bad thing to
//! it, and measures from outside. A figure that cannot be measured is an error, not a blank.

mod crowd;
mod drain;
mod journal;
mod scheduler;
mod size;
mod worker;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::Failure;
use crate::report::machine;
use crate::sql::figures::median;
use crate::sql::say;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct FaultArguments {
    /// The `oxidask` binary to measure
    #[arg(long)]
    oxidask: PathBuf,
    /// Runs of each figure
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Only these figures
    #[arg(long, value_delimiter = ',')]
    only: Vec<Load>,
    /// Writes the table to this file, and the raw figures beside it as `.json`
    #[arg(long)]
    record: Option<PathBuf>,
    /// What a record says of its day and revision
    #[arg(long, default_value = "")]
    note: String,
}

/// One thing that goes wrong, or that costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// A worker is killed, or says nothing any more
    Worker,
    /// The scheduler is killed in the middle of a large graph
    Scheduler,
    /// The journal is on or off
    Journal,
    /// A worker is drained
    Drain,
    /// Graphs are large
    Size,
    /// There are many workers
    Crowd,
}

const ALL: [Load; 6] = [
    Load::Worker,
    Load::Scheduler,
    Load::Journal,
    Load::Drain,
    Load::Size,
    Load::Crowd,
];

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Figure {
    /// What was measured.
    what: &'static str,
    /// What it must be, in words.
    must: &'static str,
    unit: &'static str,
    /// Each run.
    values: Vec<f64>,
    /// What else there is to say.
    note: String,
}

impl Figure {
    fn row(&self) -> String {
        let Self {
            what,
            must,
            unit,
            values,
            note,
        } = self;
        let (least, most) = values
            .iter()
            .fold((f64::MAX, f64::MIN), |(least, most), v| {
                (least.min(*v), most.max(*v))
            });
        let middle = median(values);
        format!("| {what} | {must} | {middle:.3} {unit} | {least:.3} to {most:.3} | {note} |")
    }

    fn json(&self) -> Value {
        json!({"what": self.what, "unit": self.unit, "values": self.values, "note": self.note})
    }
}

/// Measures what is asked for.
pub(crate) async fn run(arguments: &FaultArguments) -> Result<(), Failure> {
    let wanted = ALL
        .into_iter()
        .filter(|load| arguments.only.is_empty() || arguments.only.contains(load));
    let (oxidask, runs) = (&arguments.oxidask, arguments.runs);
    let mut figures = Vec::new();
    for load in wanted {
        let measured = match load {
            Load::Worker => worker::measure(oxidask, runs).await?,
            Load::Scheduler => scheduler::measure(oxidask, runs).await?,
            Load::Journal => journal::measure(oxidask, runs).await?,
            Load::Drain => drain::measure(oxidask, runs).await?,
            Load::Size => size::measure(oxidask).await?,
            Load::Crowd => crowd::measure(oxidask).await?,
        };
        for figure in &measured {
            say(&figure.row());
        }
        figures.extend(measured);
    }
    let table = table(&figures, &arguments.note);
    say(&format!("\n{table}"));
    if let Some(file) = &arguments.record {
        std::fs::write(file, &table)?;
        let raw: Vec<Value> = figures.iter().map(Figure::json).collect();
        let raw = json!({"note": arguments.note, "machine": machine(), "figures": raw});
        std::fs::write(file.with_extension("json"), format!("{raw:#}\n"))?;
    }
    Ok(())
}

fn table(figures: &[Figure], note: &str) -> String {
    let conditions = match note {
        "" => machine(),
        note => format!("{note}: {}", machine()),
    };
    let mut text =
        format!("{conditions}.\n\n| figure | must | median | range | |\n|---|---|---:|---:|---|\n");
    for figure in figures {
        let _ = writeln!(text, "{}", figure.row());
    }
    text
}

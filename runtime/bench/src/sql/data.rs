//! What the loads read: made once, kept below the user's folder for caches, with the right answers.
//!
//! Invariant: the same bytes on every machine. The right answers are summed up while the data are
//! made, so they owe nothing to any engine.

mod csv;
mod join;
mod tiny;

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::record_batch::RecordBatch;
use clap::Subcommand;
use oxidask_tpch::{Answer, Kind as Column, cache_folder, cache_root, generate, made_once};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::Failure;

pub(crate) use tiny::FILES as TINY_FILES;

/// Files of each table of TPC-H.
const TPCH_FILES: usize = 4;
/// The right answer, beside the data.
const EXPECTED: &str = "expected.json";
/// Rows of a row group of Parquet, as many as `DuckDB` writes.
const ROW_GROUP_ROWS: usize = 122_880;
/// Changes when the same command would make other bytes.
const VERSION: u32 = 2;

/// One set of data.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Kind {
    /// The tables of TPC-H
    Tpch {
        /// Scale factor
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
    },
    /// Dirty CSV files
    Csv,
    /// Two tables, the smaller of which has four times this memory
    Join {
        /// The memory in MiB
        #[arg(long, default_value_t = 512)]
        memory_mib: u64,
    },
    /// Ten thousand small files
    Tiny,
}

/// Where they are.
pub(super) fn folder(kind: Kind) -> Result<PathBuf, Failure> {
    let name = match kind {
        Kind::Tpch { scale } => return Ok(cache_folder(scale, TPCH_FILES)?),
        Kind::Csv => format!("bench-csv-v{VERSION}"),
        Kind::Join { memory_mib } => format!("bench-join-{memory_mib}-v{VERSION}"),
        Kind::Tiny => format!("bench-tiny-v{VERSION}"),
    };
    Ok(cache_root()?.join(name))
}

/// The words of the command line that make them.
pub(super) fn words(kind: Kind) -> Vec<String> {
    match kind {
        Kind::Tpch { scale } => vec!["tpch".to_owned(), format!("--scale={scale}")],
        Kind::Csv => vec!["csv".to_owned()],
        Kind::Join { memory_mib } => vec!["join".to_owned(), format!("--memory-mib={memory_mib}")],
        Kind::Tiny => vec!["tiny".to_owned()],
    }
}

/// Makes them unless they are there.
pub(crate) fn make(kind: Kind) -> Result<(), Failure> {
    let folder = folder(kind)?;
    let marker = format!("{kind:?}, version {VERSION}");
    let expected = |draft: &Path, answer: Answer| -> Result<(), Failure> {
        Ok(std::fs::write(
            draft.join(EXPECTED),
            serde_json::to_vec(&answer)?,
        )?)
    };
    match kind {
        Kind::Tpch { scale } => Ok(generate(&folder, scale, TPCH_FILES, |step| {
            super::say(&format!(
                "{}: file {} of {}",
                step.table, step.files_done, step.files_total
            ));
        })?),
        Kind::Csv => made_once(&folder, &marker, |draft| {
            expected(draft, csv::write(draft, &csv::Size::FULL)?)
        }),
        Kind::Join { memory_mib } => made_once(&folder, &marker, |draft| {
            expected(
                draft,
                join::write(draft, join::Size::of_memory(memory_mib << 20))?,
            )
        }),
        Kind::Tiny => made_once(&folder, &marker, |draft| {
            expected(draft, tiny::write(&draft.join("tiny"), TINY_FILES)?)
        }),
    }
}

/// The right answer of the query over these data.
pub(super) fn expected(folder: &Path) -> Result<Answer, Failure> {
    Ok(serde_json::from_slice(&std::fs::read(
        folder.join(EXPECTED),
    )?)?)
}

/// Numbers that look random and are the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }

    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A number that looks random, a function of another.
fn mixed(number: u64) -> u64 {
    let mut bits = number;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// Writes batches to a Parquet file.
fn write_parquet(
    path: &Path,
    mut batches: impl Iterator<Item = Result<RecordBatch, Failure>>,
) -> Result<(), Failure> {
    let first = batches.next().ok_or("a file needs a batch")??;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let file = File::create(path)?;
    let mut writer = ArrowWriter::try_new(file, first.schema(), Some(properties))?;
    writer.write(&first)?;
    for batch in batches {
        writer.write(&batch?)?;
    }
    writer.close()?;
    Ok(())
}

/// An answer of rows of cells that are all there.
fn answer<const WIDTH: usize>(columns: [Column; WIDTH], rows: Vec<[String; WIDTH]>) -> Answer {
    let rows = rows.into_iter().map(|row| row.map(Some).to_vec()).collect();
    Answer {
        columns: columns.to_vec(),
        rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_come_everywhere() {
        let mut random = Random(0);
        assert_eq!(random.next(), 0xE220_A839_7B1D_CDAF);
        assert!((0..1_000).all(|_| random.below(7) < 7));
    }

    #[test]
    fn each_kind_has_a_folder_and_words_of_its_own() {
        let kinds = [
            Kind::Tpch { scale: 0.5 },
            Kind::Csv,
            Kind::Join { memory_mib: 64 },
            Kind::Join { memory_mib: 512 },
            Kind::Tiny,
        ];
        let folders: std::collections::BTreeSet<_> =
            kinds.iter().map(|kind| folder(*kind).unwrap()).collect();
        assert_eq!(folders.len(), kinds.len());
        assert_eq!(words(kinds[2]), ["join", "--memory-mib=64"]);
    }
}

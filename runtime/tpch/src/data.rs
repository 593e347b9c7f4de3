//! The tables as Parquet files in a folder, made once and kept.
//!
//! All files are written below another name beside the folder, which one rename puts in place: a
//! run that is interrupted, or two at once, leave nothing half done.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde::Serialize;

use crate::TpchError;
use crate::tables::{TABLES, batches, is_fixed, row_group_rows};

/// Changes when files of the same scale would hold something else.
const DATA_VERSION: u32 = 1;
const MARKER: &str = "oxidask-tpch.json";
/// Files that are written at once; each writer holds a row group in memory.
const WRITERS_MAX: usize = 8;

/// What a data folder was made with.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Marker {
    version: u32,
    scale: f64,
    files_per_table: usize,
}

/// How far the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationProgress {
    /// The table whose file was just finished.
    pub table: &'static str,
    /// Files that are finished.
    pub files_done: usize,
    /// Files there will be.
    pub files_total: usize,
}

/// A file to write: its table, and which of the table's parts.
#[derive(Debug, Clone, Copy)]
struct Job {
    table: &'static str,
    part: i32,
    parts: i32,
}

/// The folder where data for measurements are kept between runs.
pub fn cache_root() -> Result<PathBuf, TpchError> {
    let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
        .ok_or(TpchError::NoCache)?;
    Ok(base.join("oxidask"))
}

/// Where data of this scale are kept between runs: below the user's folder for caches.
pub fn cache_folder(scale: f64, files_per_table: usize) -> Result<PathBuf, TpchError> {
    Ok(cache_root()?.join(format!("tpch-{scale}-{files_per_table}-v{DATA_VERSION}")))
}

/// Makes `folder` with a folder of Parquet files for each table, unless it is there already.
///
/// Of tables with a fixed number of rows there is one file. `progress` is called after each file,
/// from several threads.
pub fn generate(
    folder: &Path,
    scale: f64,
    files_per_table: usize,
    progress: impl Fn(GenerationProgress) + Sync,
) -> Result<(), TpchError> {
    let parts = i32::try_from(files_per_table)
        .ok()
        .filter(|parts| *parts > 0);
    let (true, Some(parts)) = (scale.is_finite() && scale > 0.0, parts) else {
        return Err(TpchError::Arguments {
            scale,
            files_per_table,
        });
    };
    let wanted = Marker {
        version: DATA_VERSION,
        scale,
        files_per_table,
    };
    let marker = serde_json::to_string(&wanted).map_err(TpchError::Marker)?;
    made_once(folder, &marker, |draft| {
        write_tables(draft, scale, parts, &progress)
    })
}

/// Makes a folder of data unless it is there already; `marker` says what it holds.
///
/// `make` fills an empty folder beside it, which becomes `folder` when all of it is written.
///
/// # Errors
///
/// A folder that is there with another marker, or none, is not touched: `OtherData`.
pub fn made_once<E: From<TpchError>>(
    folder: &Path,
    marker: &str,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if is_there(folder, marker)? {
        return Ok(());
    }
    let parent = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(parent).map_err(TpchError::io(parent))?;
    let draft = tempfile::Builder::new()
        .prefix(".oxidask-tpch-")
        .tempdir_in(parent)
        .map_err(TpchError::io(parent))?;
    let whole = draft.path().join("whole");
    std::fs::create_dir(&whole).map_err(TpchError::io(&whole))?;
    make(&whole)?;
    std::fs::write(whole.join(MARKER), marker).map_err(TpchError::io(&whole))?;
    match std::fs::rename(&whole, folder) {
        Ok(()) => Ok(()),
        // Another process was faster: its data are as good.
        Err(_) if is_there(folder, marker)? => Ok(()),
        Err(source) => Err(TpchError::Io {
            path: folder.to_owned(),
            source,
        }
        .into()),
    }
}

/// Statements that name the tables of a data folder, one a table.
pub fn create_tables(folder: &Path) -> String {
    let statement = |table: &&str| {
        // A quote in a path is written twice in SQL.
        let location = folder.join(table).to_string_lossy().replace('\'', "''");
        format!("CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{location}/';\n")
    };
    TABLES.iter().map(statement).collect()
}

/// Whether the folder holds what is wanted. An empty folder counts as absent.
fn is_there(folder: &Path, marker: &str) -> Result<bool, TpchError> {
    let entries = std::fs::read_dir(folder).map(|mut entries| entries.next().is_some());
    if !matches!(entries, Ok(true)) {
        return Ok(false);
    }
    match std::fs::read_to_string(folder.join(MARKER)) {
        Ok(found) if found == marker => Ok(true),
        found => Err(TpchError::OtherData {
            path: folder.to_owned(),
            found: found.unwrap_or_else(|_| "no marker file".to_owned()),
            wanted: marker.to_owned(),
        }),
    }
}

fn write_tables(
    folder: &Path,
    scale: f64,
    parts: i32,
    progress: &(impl Fn(GenerationProgress) + Sync),
) -> Result<(), TpchError> {
    let mut jobs = Vec::new();
    for table in TABLES {
        let path = folder.join(table);
        std::fs::create_dir_all(&path).map_err(TpchError::io(&path))?;
        let parts = if is_fixed(table) { 1 } else { parts };
        jobs.extend((1..=parts).map(|part| Job { table, part, parts }));
    }
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let work = || -> Result<(), TpchError> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            write_file(folder, scale, *job)?;
            progress(GenerationProgress {
                table: job.table,
                files_done: done.fetch_add(1, Ordering::Relaxed) + 1,
                files_total: jobs.len(),
            });
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..cores.min(WRITERS_MAX))
            .map(|_| scope.spawn(work))
            .collect();
        let mut outcome = Ok(());
        for writer in writers {
            outcome = outcome.and(writer.join().unwrap_or(Err(TpchError::Writer)));
        }
        outcome
    })
}

fn write_file(folder: &Path, scale: f64, job: Job) -> Result<(), TpchError> {
    let Some(batches) = batches(job.table, scale, job.part, job.parts) else {
        return Err(TpchError::Writer);
    };
    let path = folder
        .join(job.table)
        .join(format!("part-{}.parquet", job.part - 1));
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(row_group_rows(job.table)))
        .build();
    let file = File::create(&path).map_err(TpchError::io(&path))?;
    let mut writer = ArrowWriter::try_new(file, batches.schema(), Some(properties))
        .map_err(TpchError::parquet(&path))?;
    for batch in batches {
        writer.write(&batch?).map_err(TpchError::parquet(&path))?;
    }
    writer.close().map_err(TpchError::parquet(&path))?;
    Ok(())
}

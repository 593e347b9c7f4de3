//! Writes a table to a location.
//!
//! Owns what `COPY … TO` and the operation `write` do: the format, one file or a folder, what may
//! be replaced, and the names of the files. On this machine an output appears at once, when it is
//! whole; in an object store its files appear one after the other when all are whole, and only then an
//! existing output is removed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::sql::parser::{CopyToStatement, Statement as Syntax};
use futures::TryStreamExt;
use object_store::path::Path as StorePath;

use crate::FrameError;
use crate::error::Stage;
use crate::location::{Format, Location, by_name};
use crate::remote_store::remove;
use crate::script::check_options;
use crate::session::Session;
use crate::source::{put, take};
use crate::staging::{Staging, obstacle};

/// Objects that a write may replace.
const REPLACED_MAX: usize = 100_000;

/// Runs a `COPY` statement and gives the number of rows.
pub(crate) async fn copy(session: &Session, copy: CopyToStatement) -> Result<u64, FrameError> {
    let mut copy = copy;
    if let Err(refused) = check_options(&copy.options) {
        return Err(FrameError::Unsupported {
            what: refused.what,
            hint: refused.hint.into(),
        });
    }
    let may_replace = take_overwrite(&mut copy)?;
    let text = copy.target.clone();
    let location = Location::parse(&text, &session.base_dir)?;
    if location.is_pattern() {
        return Err(FrameError::Unsupported {
            what: format!("the output `{text}` is a pattern"),
            hint: "name one file, or a folder with a slash at its end".into(),
        });
    }
    let format = complete(&mut copy)?;
    match location {
        Location::Local { path, has_slash } => {
            let is_folder = has_slash
                || !copy.partitioned_by.is_empty()
                || path.extension().is_none()
                || path.is_dir();
            local(
                session,
                copy,
                Local {
                    path,
                    is_folder,
                    may_replace,
                    format,
                },
            )
            .await
        }
        Location::Remote(_) => remote(session, copy, &location, may_replace).await,
    }
}

/// The option that lets a write replace what is there.
fn take_overwrite(copy: &mut CopyToStatement) -> Result<bool, FrameError> {
    match take(&mut copy.options, "overwrite")
        .map(|text| text.to_lowercase())
        .as_deref()
    {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(FrameError::Unsupported {
            what: format!("the option `overwrite` is `{other}`"),
            hint: "write OPTIONS ('overwrite' 'true') or leave the option out".into(),
        }),
    }
}

/// Says format and compression where only the name tells them.
fn complete(copy: &mut CopyToStatement) -> Result<Format, FrameError> {
    let (by_name, compression) = by_name(copy.target.trim_end_matches('/'));
    let format = match (&copy.stored_as, by_name) {
        (Some(name), _) => Format::parse(name)?,
        (None, Some(format)) => format,
        (None, None) => {
            return Err(FrameError::Unsupported {
                what: format!("the format of the output `{}` is not told", copy.target),
                hint: "add STORED AS PARQUET, CSV or JSON, or an ending such as .parquet".into(),
            });
        }
    };
    copy.stored_as = Some(format.name().to_owned());
    if let Some(compression) = compression
        && format != Format::Parquet
        && crate::source::option(&copy.options, "compression").is_none()
    {
        put(&mut copy.options, "compression", compression);
    }
    Ok(format)
}

struct Local {
    path: PathBuf,
    is_folder: bool,
    may_replace: bool,
    format: Format,
}

async fn local(
    session: &Session,
    mut copy: CopyToStatement,
    output: Local,
) -> Result<u64, FrameError> {
    let Local {
        path,
        is_folder,
        may_replace,
        format,
    } = output;
    obstacle(&path, may_replace, &session.base_dir, format.endings())?;
    let staging = Staging::begin(&path)?;
    let made = staging.path();
    copy.target = made.to_string_lossy().into_owned();
    if is_folder {
        fs::create_dir(&made).map_err(|source| output_error(&path, source))?;
        copy.target.push('/');
    }
    let written = session.write(Syntax::CopyTo(copy)).await;
    let rows = written.map_err(|error| explained(error, session, &path))?;
    let placed = tokio::task::spawn_blocking(move || {
        if is_folder {
            name_parts(&made).map_err(|source| output_error(&path, source))?;
        }
        staging.commit(may_replace)
    });
    placed.await.map_err(|_| FrameError::Cancelled)??;
    Ok(rows)
}

fn output_error(path: &Path, source: io::Error) -> FrameError {
    let location = path.display().to_string();
    let operation = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "find room on the disk for",
        _ => "write",
    };
    FrameError::Output {
        operation,
        location,
        source,
    }
}

/// A failed write in the output's own words; the temporary path helps nobody.
fn explained(error: FrameError, session: &Session, path: &Path) -> FrameError {
    match (&error, session.write_fault.get()) {
        (FrameError::Engine { .. }, Some(fault)) => output_error(path, fault),
        _ => error,
    }
}

/// Gives the files of a folder names that are the same for every run.
fn name_parts(folder: &Path) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        // The engine's names: a random word, the number of the file, the endings.
        files.sort_by_key(|name| (part_number(name), name.clone()));
        for (index, name) in files.iter().enumerate() {
            let ending = name.split_once('.').map_or("", |(_, ending)| ending);
            let named = folder.join(format!("part-{index:05}.{ending}"));
            fs::rename(folder.join(name), named)?;
        }
    }
    Ok(())
}

fn part_number(name: &str) -> Option<u64> {
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    stem.rsplit_once('_')?.1.parse().ok()
}

async fn remote(
    session: &Session,
    mut copy: CopyToStatement,
    location: &Location,
    may_replace: bool,
) -> Result<u64, FrameError> {
    copy.target = location.to_engine();
    if !copy.partitioned_by.is_empty() && !copy.target.ends_with('/') {
        copy.target.push('/');
    }
    let write = |error| FrameError::engine(Stage::Write, error);
    let url = ListingTableUrl::parse(&copy.target).map_err(write)?;
    let state = session.context.state();
    let store = state.runtime_env().object_store(&url).map_err(write)?;
    let existing: Vec<_> = {
        let listing = url
            .list_all_files(&state, store.as_ref(), "")
            .await
            .map_err(write)?;
        listing
            .map_ok(|file| file.location)
            .try_collect()
            .await
            .map_err(write)?
    };
    if !existing.is_empty() && !may_replace {
        return Err(FrameError::OutputExists {
            location: copy.target,
        });
    }
    if existing.len() > REPLACED_MAX {
        let reason = format!("it has more than {REPLACED_MAX} files");
        return Err(FrameError::OutputKept {
            location: copy.target,
            reason,
        });
    }
    let mut outcome = session.write(Syntax::CopyTo(copy)).await;
    if outcome.is_ok() {
        let committed = session.writes.commit().await;
        outcome = outcome.and_then(|rows| match committed {
            Ok(()) => Ok(rows),
            Err(error) => Err(write(error.into())),
        });
    }
    let surplus = if outcome.is_ok() {
        without(existing, &session.writes.written())
    } else {
        session.writes.discard().await;
        without(session.writes.written(), &existing)
    };
    if surplus.is_empty() {
        return outcome;
    }
    let removed = remove(store.as_ref(), surplus).await;
    match (outcome, removed) {
        (Ok(rows), removed) => removed.map(|()| rows).map_err(|error| write(error.into())),
        // The first fault is the one to mend.
        (Err(error), _) => Err(error),
    }
}

fn without(paths: Vec<StorePath>, others: &[StorePath]) -> Vec<StorePath> {
    let others: HashSet<_> = others.iter().collect();
    let mut kept = paths;
    kept.retain(|path| !others.contains(path));
    kept
}

//! The folder that a store's files are in, and what is to be done in it beside writing.
//!
//! Each store makes a folder of its own, beside a lock file that it holds as long as it lives. A
//! folder whose lock nobody holds was left by a process that was killed: whoever comes next removes
//! it. So several workers may share one place, and none removes what another one uses.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::StoreError;
use crate::spill_file::SpillFile;

/// Folders and locks are called so, then by process and number.
const NAME_PREFIX: &str = "oxidask-spill-";

const LOCK_SUFFIX: &str = "lock";

/// Names that are tried before giving up.
const NAMES_MAX: u32 = 64;

/// A folder with its lock.
#[derive(Debug)]
pub(crate) struct SpillFolder {
    pub(crate) path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl SpillFolder {
    /// Removes what killed processes left, and makes a folder.
    pub(crate) fn make(parent: &Path) -> Result<Self, StoreError> {
        let fail = |source: io::Error| StoreError::OpenFolder {
            folder: parent.to_owned(),
            source: Arc::new(source),
        };
        std::fs::create_dir_all(parent).map_err(fail)?;
        remove_leftovers(parent).map_err(fail)?;
        for number in 0..NAMES_MAX {
            let name = format!("{NAME_PREFIX}{}-{number}", std::process::id());
            let path = parent.join(name);
            let lock_path = path.with_extension(LOCK_SUFFIX);
            let Some(lock) = take_lock(&lock_path).map_err(fail)? else {
                continue;
            };
            std::fs::create_dir(&path).map_err(fail)?;
            return Ok(Self {
                path,
                lock_path,
                _lock: lock,
            });
        }
        Err(fail(io::Error::from(io::ErrorKind::AlreadyExists)))
    }
}

impl SpillFolder {
    /// Removes the folder with everything in it.
    pub(crate) fn remove(&self) {
        // If this fails, the next store does it.
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// The lock of a new folder; `None` if the name is taken.
fn take_lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = match options.write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Somebody who cleans up may have taken it between the two steps.
    let is_still_there = std::fs::metadata(path)
        .is_ok_and(|found| file.metadata().is_ok_and(|ours| found.ino() == ours.ino()));
    Ok(is_still_there.then_some(file))
}

fn remove_leftovers(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        let is_lock = path.extension().is_some_and(|suffix| suffix == LOCK_SUFFIX)
            && path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(NAME_PREFIX));
        if !is_lock {
            continue;
        }
        // Whatever cannot be removed now is tried by the next one.
        if let Ok(file) = OpenOptions::new().write(true).open(&path)
            && file.try_lock().is_ok()
        {
            let folder = path.with_extension("");
            let is_gone = match std::fs::remove_dir_all(&folder) {
                Ok(()) => true,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if is_gone {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(())
}

/// Something to do on the disk when there is time.
#[derive(Debug)]
pub(crate) enum Chore {
    Remove(PathBuf),
    Punch(Arc<SpillFile>, Range<u64>),
}

/// What is to be done; as many as there are files and freed slices at most.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    list: Mutex<Vec<Chore>>,
}

impl Chores {
    pub(crate) fn remove_later(&self, path: PathBuf) {
        self.add(Chore::Remove(path));
    }

    pub(crate) fn add(&self, chore: Chore) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(chore);
    }

    pub(crate) fn take(&self) -> Vec<Chore> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *list)
    }
}

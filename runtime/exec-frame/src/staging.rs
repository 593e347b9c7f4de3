//! Makes an output on this machine appear at once, or not at all.
//!
//! Owns the folder beside an output in which it is made, and the step that puts it in place.
//! Invariants: what was there before stays whole until the new output is whole; a failed or
//! cancelled write leaves nothing; what a killed worker left is recognised by its name and by its
//! lock, which died with the worker, and is removed by the next write to the same location.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::FrameError;

/// In the name of every folder that a write works in.
const MARK: &str = ".oxidask-";
const ENDING: &str = ".tmp";

/// Entries of a folder that are looked at before it is replaced.
const ENTRIES_MAX: usize = 1_000_000;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// An output in the making.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    folder: PathBuf,
    /// Locked while this process works here.
    _lock: File,
}

impl Staging {
    /// Makes room beside `target`.
    pub(crate) fn begin(target: &Path) -> Result<Self, FrameError> {
        let failed = |operation, path: &Path| {
            let location = path.display().to_string();
            move |source| FrameError::Output {
                operation,
                location,
                source,
            }
        };
        let name = target
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| {
                let location = target.display().to_string();
                FrameError::OutputKept {
                    location,
                    reason: "it has no name".to_owned(),
                }
            })?;
        let parent = target.parent().unwrap_or_else(|| Path::new("/"));
        fs::create_dir_all(parent).map_err(failed("create the folder of", target))?;
        remove_stale(parent, name);
        let unique = format!(
            "{name}{MARK}{}-{}{ENDING}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        let folder = parent.join(format!(".{unique}"));
        let made = fs::create_dir(&folder).or_else(|error| match error.kind() {
            // Another machine's process of the same number: unlocked, or it would not be met here.
            io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&folder)?;
                fs::create_dir(&folder)
            }
            _ => Err(error),
        });
        made.map_err(failed("write to the folder of", target))?;
        let lock = File::open(&folder).map_err(failed("write to the folder of", target))?;
        // Where a file system knows no locks, what killed workers leave is not removed.
        let _ = lock.try_lock();
        Ok(Self {
            target: target.to_owned(),
            folder,
            _lock: lock,
        })
    }

    /// Where the output is to be made: a path with the output's own name.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder
            .join(self.target.file_name().unwrap_or_default())
    }

    /// Puts the output in place. Blocks.
    pub(crate) fn commit(self, may_replace: bool) -> Result<(), FrameError> {
        let location = || self.target.display().to_string();
        let made = self.path();
        let placed = if may_replace {
            self.replace(&made)
        } else {
            self.place(&made)
        };
        placed.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                FrameError::OutputExists {
                    location: location(),
                }
            }
            _ => FrameError::Output {
                operation: "put in place",
                location: location(),
                source,
            },
        })
    }

    fn place(&self, made: &Path) -> io::Result<()> {
        // An empty folder is no output.
        if self.target.is_dir() {
            fs::remove_dir(&self.target)?;
        }
        match renameat_with(CWD, made, CWD, &self.target, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if self.target.exists() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(made, &self.target)
            }
            done => Ok(done?),
        }
    }

    fn replace(&self, made: &Path) -> io::Result<()> {
        if fs::symlink_metadata(&self.target).is_err() {
            return self.place(made);
        }
        match renameat_with(CWD, made, CWD, &self.target, RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::rename(&self.target, self.folder.join("replaced"))?;
                fs::rename(made, &self.target)
            }
            // The old output is now in the folder, and goes with it.
            done => Ok(done?),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.folder.display(), %error, "a temporary folder stays");
        }
    }
}

/// Removes folders of writes to the same name whose process is gone.
fn remove_stale(parent: &Path, name: &str) {
    let prefix = format!(".{name}{MARK}");
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let is_ours = file_name
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix) && name.ends_with(ENDING));
        if !is_ours {
            continue;
        }
        let path = entry.path();
        let is_stale = File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
        if is_stale && let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(folder = %path.display(), %error, "a stale temporary folder stays");
        }
    }
}

/// Whether something is at the location that a write must not touch: `Some(reason)`.
///
/// An empty folder is no output. Replacing a folder is refused where it holds the job itself or a
/// file that is no table's.
pub(crate) fn obstacle(
    target: &Path,
    may_replace: bool,
    base_dir: &Path,
    endings: &[&str],
) -> Result<(), FrameError> {
    let location = || target.display().to_string();
    let Ok(metadata) = fs::metadata(target) else {
        return Ok(());
    };
    if metadata.is_dir() && fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none()) {
        return Ok(());
    }
    if !may_replace {
        return Err(FrameError::OutputExists {
            location: location(),
        });
    }
    if !metadata.is_dir() {
        return Ok(());
    }
    let kept = |reason: String| FrameError::OutputKept {
        location: location(),
        reason,
    };
    if base_dir.starts_with(target) {
        return Err(kept("the job's own folder is inside".to_owned()));
    }
    let mut folders = vec![target.to_owned()];
    let mut seen = 0_usize;
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|error| kept(error.to_string()))?;
        for entry in entries.flatten() {
            seen += 1;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if seen > ENTRIES_MAX || !endings.iter().any(|ending| name.contains(ending)) {
                return Err(kept(format!("it holds `{name}`, which no COPY wrote")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_output_appears_whole_and_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/out.csv");
        let staging = Staging::begin(&target).unwrap();
        fs::write(staging.path(), "one").unwrap();
        assert!(!target.exists());
        staging.commit(false).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "one");

        let staging = Staging::begin(&target).unwrap();
        fs::write(staging.path(), "two").unwrap();
        assert!(matches!(
            staging.commit(false),
            Err(FrameError::OutputExists { .. })
        ));
        assert_eq!(fs::read_to_string(&target).unwrap(), "one");

        let staging = Staging::begin(&target).unwrap();
        fs::write(staging.path(), "three").unwrap();
        staging.commit(true).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "three");
        assert_eq!(names(&dir.path().join("deep")), ["out.csv"]);
    }

    #[test]
    fn folders_are_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        for text in ["one", "two"] {
            let staging = Staging::begin(&target).unwrap();
            fs::create_dir(staging.path()).unwrap();
            fs::write(staging.path().join(format!("{text}.csv")), text).unwrap();
            staging.commit(true).unwrap();
            assert_eq!(names(&target), [format!("{text}.csv")]);
        }
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn a_dropped_attempt_leaves_nothing_and_a_killed_one_is_tidied_up() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.csv");
        let other = Staging::begin(&target).unwrap();
        let stale = dir.path().join(".out.csv.oxidask-999999-0.tmp");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("part"), "x").unwrap();
        let mine = dir.path().join(".other.csv.oxidask-999999-0.tmp");
        fs::create_dir(&mine).unwrap();
        drop(Staging::begin(&target).unwrap());
        assert!(!stale.exists());
        assert!(mine.exists(), "another location's");
        assert!(other.path().parent().unwrap().exists(), "still at work");
        drop(other);
        assert_eq!(names(dir.path()), [".other.csv.oxidask-999999-0.tmp"]);
    }

    #[test]
    fn only_tables_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let check = |may_replace| obstacle(&target, may_replace, Path::new("/base"), &[".csv"]);
        check(false).unwrap();
        fs::create_dir_all(target.join("month=1")).unwrap();
        fs::write(target.join("month=1/part.csv"), "").unwrap();
        assert!(matches!(check(false), Err(FrameError::OutputExists { .. })));
        check(true).unwrap();
        fs::write(target.join("thesis.doc"), "").unwrap();
        assert!(matches!(check(true), Err(FrameError::OutputKept { .. })));
        let above = obstacle(dir.path(), true, &target.join("job"), &[".csv"]);
        assert!(matches!(above, Err(FrameError::OutputKept { .. })));
    }
}

//! Temporary folders beside outputs on this machine, and the marks of finished ones.
//!
//! Owns the names of these folders, the rooms of the attempts inside, and how an output is
//! recognised as one write's own. All attempts of one write agree on the folder; each works in a
//! room of its own. Invariants: a failed or cancelled attempt leaves nothing; what killed workers
//! left is recognised by its name, its lock, which died with the worker, and its age, and is
//! removed by the next write to the same location.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::FrameError;

/// In the name of every folder that a write works in.
const MARK: &str = ".oxidask-";
const ENDING: &str = ".tmp";

/// The end of the id of a write by many tasks. No lock says that such a write goes on.
const MANY: &str = "-parts";

/// A write by many tasks in whose folder nothing happened for so long is over.
const MANY_IDLE_SECONDS_MAX: u64 = 24 * 60 * 60;

/// Entries of a folder that are looked at before it is replaced.
const ENTRIES_MAX: usize = 1_000_000;

const SECOND_NS: u32 = 1_000_000_000;

/// A new id of a write.
pub(crate) fn new_id(has_many_tasks: bool) -> String {
    // Keyed anew, and by the system's random numbers, for each call.
    let number = RandomState::new().hash_one(SystemTime::now());
    format!("{number:016x}{}", if has_many_tasks { MANY } else { "" })
}

/// The folder of a write: beside its target, so on the same file system.
pub(crate) fn folder_of(target: &Path, id: &str) -> Result<PathBuf, FrameError> {
    let name = name_of(target)?;
    let parent = target.parent().unwrap_or_else(|| Path::new("/"));
    Ok(parent.join(format!(".{name}{MARK}{id}{ENDING}")))
}

fn name_of(target: &Path) -> Result<&str, FrameError> {
    let name = target.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| FrameError::OutputKept {
        location: target.display().to_string(),
        reason: "it has no name".to_owned(),
    })
}

/// Removes the folder of a write with all that is in it.
pub(crate) fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), %error, "a temporary folder stays");
    }
}

/// The room of one attempt of one task of a write.
#[derive(Debug)]
pub(crate) struct Room {
    folder: PathBuf,
    path: PathBuf,
    /// While this process works here, others see it by the lock.
    _lock: File,
    is_kept: bool,
}

impl Room {
    /// Makes room beside `target`.
    pub(crate) fn begin(target: &Path, id: &str, part: u32) -> Result<Self, FrameError> {
        let failed = |operation| {
            let location = target.display().to_string();
            move |source| FrameError::Output {
                operation,
                location,
                source,
            }
        };
        let folder = folder_of(target, id)?;
        let parent = folder.parent().unwrap_or_else(|| Path::new("/"));
        fs::create_dir_all(parent).map_err(failed("create the folder of"))?;
        remove_stale(target, &folder);
        let path = folder.join(format!("{part}-{}", new_id(false)));
        // An attempt that ends meanwhile may just remove the empty folder.
        let made = fs::create_dir_all(&path).or_else(|_| fs::create_dir_all(&path));
        made.map_err(failed("write to the folder of"))?;
        let lock = File::open(&folder).map_err(failed("write to the folder of"))?;
        // Where a file system knows no locks, what killed workers leave is not removed.
        let _ = lock.try_lock_shared();
        Ok(Self {
            folder,
            path,
            _lock: lock,
            is_kept: false,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file's path inside the folder of the write.
    pub(crate) fn inside(&self, file: &Path) -> String {
        let inside = file.strip_prefix(&self.folder).unwrap_or(file);
        inside.to_string_lossy().into_owned()
    }

    /// What is here stays for the commit.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        remove(&self.path);
        // Gone with the last room.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Removes folders of other writes to the same name that are over.
fn remove_stale(target: &Path, mine: &Path) {
    let Ok(name) = name_of(target) else {
        return;
    };
    let prefix = format!(".{name}{MARK}");
    let entries = mine.parent().map(fs::read_dir);
    let Some(Ok(entries)) = entries else {
        return;
    };
    for entry in entries.flatten() {
        let (path, file_name) = (entry.path(), entry.file_name());
        let file_name = file_name.to_string_lossy();
        if path == mine || !file_name.starts_with(&prefix) || !file_name.ends_with(ENDING) {
            continue;
        }
        let is_unlocked = File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
        let has_many_tasks = file_name.ends_with(&format!("{MANY}{ENDING}"));
        if is_unlocked && (!has_many_tasks || is_idle(&path)) {
            remove(&path);
        }
    }
}

fn is_idle(folder: &Path) -> bool {
    let rooms = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = rooms.map(|room| room.path()).chain([folder.to_owned()]);
    let newest = paths.filter_map(|path| fs::metadata(path).ok()?.modified().ok());
    let idle = newest.max().map(|newest| newest.elapsed());
    idle.is_some_and(|idle| idle.is_ok_and(|idle| idle.as_secs() > MANY_IDLE_SECONDS_MAX))
}

/// The part of a second that the files of a write were last changed in. A retry knows by it that an
/// attempt before it has put the output in place, although nothing else tells.
fn mark_of(id: &str) -> u32 {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u32::try_from(hash % u64::from(SECOND_NS - 1)).map_or(1, |mark| mark + 1)
}

/// Marks a file as the write's own. Gives the time of its last change in nanoseconds.
pub(crate) fn mark(file: &Path, id: &str) -> io::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Not in the future.
    let second = now.map_or(0, |now| now.as_secs().saturating_sub(1));
    let changed = UNIX_EPOCH + Duration::new(second, mark_of(id));
    let opened = File::options().write(true).open(file)?;
    opened.set_modified(changed)?;
    modified_ns(&fs::metadata(file)?)
}

/// When a file was last changed, in nanoseconds.
pub(crate) fn modified_ns(metadata: &fs::Metadata) -> io::Result<u64> {
    let since = metadata.modified()?.duration_since(UNIX_EPOCH);
    Ok(since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or_default()
    }))
}

/// Whether the output is there and was put in place by this very write.
pub(crate) fn is_own(target: &Path, id: &str) -> bool {
    let mark = u64::from(mark_of(id));
    let has_mark = |file: &Path| {
        let modified = fs::metadata(file).and_then(|metadata| modified_ns(&metadata));
        modified.is_ok_and(|modified| modified % u64::from(SECOND_NS) == mark)
    };
    if target.is_file() {
        return has_mark(target);
    }
    let mut files = files_below(target, ENTRIES_MAX).unwrap_or_default();
    !files.is_empty() && files.drain(..).all(|file| has_mark(&file))
}

/// All files below a folder; none if there are too many.
pub(crate) fn files_below(folder: &Path, entries_max: usize) -> io::Result<Vec<PathBuf>> {
    let (mut folders, mut files, mut seen) = (vec![folder.to_owned()], Vec::new(), 0_usize);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            seen += 1;
            if seen > entries_max {
                return Ok(Vec::new());
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
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
    fn a_dropped_attempt_leaves_nothing_and_a_killed_one_is_tidied_up() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.csv");
        let other = Room::begin(&target, "a", 0).unwrap();
        let stale = dir.path().join(".out.csv.oxidask-999999-0.tmp");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("part"), "x").unwrap();
        let many = dir.path().join(".out.csv.oxidask-9-parts.tmp");
        fs::create_dir(&many).unwrap();
        let foreign = dir.path().join(".other.csv.oxidask-999999-0.tmp");
        fs::create_dir(&foreign).unwrap();
        drop(Room::begin(&target, "b", 0).unwrap());
        assert!(!stale.exists());
        assert!(many.exists(), "another write's, between two of its tasks");
        assert!(foreign.exists(), "another location's");
        assert!(other.path().exists(), "still at work");
        let idle = SystemTime::now() - Duration::from_secs(MANY_IDLE_SECONDS_MAX + 60);
        File::open(&many).unwrap().set_modified(idle).unwrap();
        drop(Room::begin(&target, "b", 0).unwrap());
        assert!(!many.exists());
        drop(other);
        assert_eq!(names(dir.path()), [".other.csv.oxidask-999999-0.tmp"]);
    }

    #[test]
    fn an_output_is_known_by_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        assert!(!is_own(&target, "a"));
        fs::create_dir_all(target.join("month=1")).unwrap();
        assert!(!is_own(&target, "a"));
        let files = [target.join("month=1/x"), target.join("y")];
        for file in &files {
            fs::write(file, "1").unwrap();
            mark(file, "a").unwrap();
        }
        assert!(is_own(&target, "a"));
        assert!(!is_own(&target, "b"));
        assert!(is_own(&files[0], "a"));
        fs::write(target.join("month=1/z"), "2").unwrap();
        assert!(!is_own(&target, "a"), "with a file of somebody else");
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

//! The commit of an output on this machine.
//!
//! Owns the steps from the files of the attempts that succeeded to the output in its place.
//! Invariants: each step may be the last one before the process dies, and whoever does it again
//! ends with exactly the right files; what was there before stays whole until the new output is
//! whole; a file that is not to be seen from here is told, not left out.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::FrameError;
use crate::staging::{self, files_below, modified_ns};

/// The output in the folder of the write, before it is put in place.
const WHOLE: &str = "whole";

/// What an output replaces, where a file system cannot exchange two names.
const REPLACED: &str = "replaced";

/// A file that an attempt has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StagedFile {
    /// Its path inside the folder of the write.
    pub(crate) staged: String,
    /// Its path inside the output; empty if it is the output.
    pub(crate) name: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// When it was last changed.
    pub(crate) modified_ns: u64,
}

/// The last step of a write.
#[derive(Debug)]
pub(crate) struct LocalCommit {
    pub(crate) target: PathBuf,
    pub(crate) id: String,
    pub(crate) is_folder: bool,
    pub(crate) may_replace: bool,
    pub(crate) files: Vec<StagedFile>,
}

impl LocalCommit {
    /// Puts the files in place. Blocks. `at` is told each step that has been done.
    pub(crate) fn run(&self, at: &mut dyn FnMut(&'static str)) -> Result<(), FrameError> {
        let folder = staging::folder_of(&self.target, &self.id)?;
        if !staging::is_own(&self.target, &self.id) {
            at("looked");
            let whole = folder.join(WHOLE);
            self.gather(&folder, &whole, at)?;
            at("gathered");
            self.place(&folder, &whole)?;
            at("placed");
        }
        staging::remove(&folder);
        at("tidied");
        Ok(())
    }

    /// Removes what the write has made so far.
    pub(crate) fn give_up(&self) {
        if let Ok(folder) = staging::folder_of(&self.target, &self.id) {
            staging::remove(&folder);
        }
    }

    /// Makes the output in the folder of the write.
    fn gather(
        &self,
        folder: &Path,
        whole: &Path,
        at: &mut dyn FnMut(&'static str),
    ) -> Result<(), FrameError> {
        if self.is_folder && (folder.exists() || self.files.is_empty()) {
            fs::create_dir_all(whole).map_err(|source| self.failed("write", source))?;
        }
        let mut expected = HashSet::new();
        for file in &self.files {
            let from = folder.join(&file.staged);
            let to = if self.is_folder {
                whole.join(&file.name)
            } else {
                whole.to_owned()
            };
            if is_there(&from, file) {
                let moved = to.parent().map_or(Ok(()), fs::create_dir_all);
                let moved = moved.and_then(|()| fs::rename(&from, &to));
                moved.map_err(|source| self.failed("put together", source))?;
                at("moved");
            } else if !is_there(&to, file) {
                return Err(FrameError::PartUnseen {
                    location: self.location(),
                    part: from.display().to_string(),
                });
            }
            expected.insert(to);
        }
        if self.is_folder {
            // An attempt whose work was done again may have had other files.
            let others = files_below(whole, usize::MAX);
            for other in others.map_err(|source| self.failed("put together", source))? {
                if !expected.contains(&other) {
                    let removed = fs::remove_file(&other);
                    removed.map_err(|source| self.failed("put together", source))?;
                    // Only empty folders go with it.
                    let above = other.ancestors().skip(1);
                    for folder in above.take_while(|above| *above != whole) {
                        let _ = fs::remove_dir(folder);
                    }
                }
            }
        }
        Ok(())
    }

    fn location(&self) -> String {
        self.target.display().to_string()
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> FrameError {
        FrameError::Output {
            operation,
            location: self.location(),
            source,
        }
    }

    fn place(&self, folder: &Path, whole: &Path) -> Result<(), FrameError> {
        let placed = if self.may_replace {
            self.replace(folder, whole)
        } else {
            self.appear(whole)
        };
        match placed {
            Ok(()) => Ok(()),
            // Another attempt at the same time was faster.
            Err(_) if staging::is_own(&self.target, &self.id) => Ok(()),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                    FrameError::OutputExists {
                        location: self.location(),
                    }
                }
                _ => self.failed("put in place", source),
            }),
        }
    }

    fn appear(&self, whole: &Path) -> io::Result<()> {
        // An empty folder is no output.
        if self.target.is_dir() {
            fs::remove_dir(&self.target)?;
        }
        match renameat_with(CWD, whole, CWD, &self.target, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if self.target.exists() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(whole, &self.target)
            }
            done => Ok(done?),
        }
    }

    fn replace(&self, folder: &Path, whole: &Path) -> io::Result<()> {
        if fs::symlink_metadata(&self.target).is_err() {
            return self.appear(whole);
        }
        match renameat_with(CWD, whole, CWD, &self.target, RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                let replaced = folder.join(REPLACED);
                fs::rename(&self.target, &replaced)?;
                fs::rename(whole, &self.target).inspect_err(|_| {
                    // The old output is not to go with the failed one.
                    let _ = fs::rename(&replaced, &self.target);
                })
            }
            // The old output is now in the folder, and goes with it.
            done => Ok(done?),
        }
    }
}

/// Whether the very file that was written is at the path.
fn is_there(path: &Path, file: &StagedFile) -> bool {
    fs::metadata(path).is_ok_and(|found| {
        let modified = modified_ns(&found).ok();
        found.is_file() && found.len() == file.bytes && modified == Some(file.modified_ns)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::process::Command;

    const ID: &str = "0123456789abcdef-parts";

    /// Steps at which a committing process is killed; `moved` comes once for each file.
    const STEPS: [(&str, usize); 7] = [
        ("looked", 1),
        ("moved", 1),
        ("moved", 2),
        ("moved", 3),
        ("gathered", 1),
        ("placed", 1),
        ("tidied", 1),
    ];

    /// As an attempt of a task does.
    fn write_part(target: &Path, part: u32, files: &[(&str, &str)]) -> Vec<StagedFile> {
        let room = staging::Room::begin(target, ID, part).unwrap();
        let written = files.iter().map(|(name, text)| {
            let path = room.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            StagedFile {
                staged: room.inside(&path),
                name: (*name).to_owned(),
                bytes: text.len() as u64,
                modified_ns: staging::mark(&path, ID).unwrap(),
            }
        });
        let written = written.collect();
        room.keep();
        written
    }

    fn commit(target: &Path, files: Vec<StagedFile>, may_replace: bool) -> LocalCommit {
        LocalCommit {
            target: target.to_owned(),
            id: ID.to_owned(),
            is_folder: target.extension().is_none(),
            may_replace,
            files,
        }
    }

    fn run(commit: &LocalCommit) -> Result<(), FrameError> {
        commit.run(&mut |_| {})
    }

    /// Paths and contents below a folder, also hidden ones.
    fn content(folder: &Path) -> Vec<(String, String)> {
        let files = files_below(folder, usize::MAX).unwrap();
        let mut files: Vec<_> = files
            .into_iter()
            .map(|file| {
                let name = file.strip_prefix(folder).unwrap().display().to_string();
                (name, fs::read_to_string(file).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn texts(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let files = files.iter();
        files
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    /// Two parts, of one of which a killed attempt left a file too.
    fn parts(target: &Path) -> Vec<StagedFile> {
        write_part(target, 1, &[("m=1/part-00001.csv", "left behind")]);
        let mut files = write_part(target, 0, &[("m=1/part-00000.csv", "a")]);
        let second = [("m=1/part-00001.csv", "bb"), ("m=2/part-00001.csv", "c")];
        files.extend(write_part(target, 1, &second));
        files
    }

    const DONE: [(&str, &str); 3] = [
        ("out/m=1/part-00000.csv", "a"),
        ("out/m=1/part-00001.csv", "bb"),
        ("out/m=2/part-00001.csv", "c"),
    ];

    /// Target, whether it is replaced, the files, and the step of which number is the last one.
    type Told = (PathBuf, bool, Vec<StagedFile>, String, usize);

    /// Run in a process of its own by the test below, which it does not survive.
    #[test]
    fn dies_while_it_commits() {
        let Ok(text) = std::env::var("OXIDASK_TEST_DYING_COMMIT") else {
            return;
        };
        let (target, may_replace, files, step, count): Told = serde_json::from_str(&text).unwrap();
        let mut left = count;
        let done = commit(&target, files, may_replace).run(&mut |at| {
            left -= usize::from(at == step);
            if left == 0 {
                std::process::abort();
            }
        });
        unreachable!("not killed at {step}: {done:?}");
    }

    #[test]
    fn a_commit_that_was_killed_at_any_step_is_done_again() {
        for (step, count) in STEPS {
            for may_replace in [false, true] {
                for is_written_again in [false, true] {
                    let dir = tempfile::tempdir().unwrap();
                    let target = dir.path().join("out");
                    if may_replace {
                        fs::create_dir(&target).unwrap();
                        fs::write(target.join("old.csv"), "old").unwrap();
                    }
                    let mut files = parts(&target);
                    let told = (&target, may_replace, &files, step, count);
                    let killed = Command::new(std::env::current_exe().unwrap())
                        .args(["--exact", "sink::local::tests::dies_while_it_commits"])
                        .env(
                            "OXIDASK_TEST_DYING_COMMIT",
                            serde_json::to_string(&told).unwrap(),
                        )
                        .output()
                        .unwrap();
                    assert!(killed.status.code().is_none(), "{step}: {killed:?}");
                    if is_written_again {
                        // The results of the parts died with the worker, too.
                        files = parts(&target);
                    }
                    let case = (step, count, may_replace, is_written_again);
                    run(&commit(&target, files, may_replace)).unwrap_or_else(|error| {
                        panic!("{case:?}: {error}");
                    });
                    assert_eq!(content(dir.path()), texts(&DONE), "{case:?}");
                    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{case:?}");
                }
            }
        }
    }

    #[test]
    fn one_file_appears_whole_and_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/out.csv");
        let written = |text| {
            let mut files = write_part(&target, 0, &[("out.csv", text)]);
            files[0].name.clear();
            files
        };
        let first = commit(&target, written("one"), false);
        assert!(!target.exists());
        run(&first).unwrap();
        run(&first).unwrap();
        assert_eq!(content(dir.path()), texts(&[("deep/out.csv", "one")]));
        // By another write: the mark of the first one does not count.
        let text = fs::read(&target).unwrap();
        fs::write(&target, text).unwrap();
        let second = commit(&target, written("two"), false);
        assert!(matches!(run(&second), Err(FrameError::OutputExists { .. })));
        second.give_up();
        assert_eq!(content(dir.path()), texts(&[("deep/out.csv", "one")]));
        run(&commit(&target, written("three"), true)).unwrap();
        assert_eq!(content(dir.path()), texts(&[("deep/out.csv", "three")]));
    }

    #[test]
    fn a_part_on_another_machine_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let mut files = parts(&target);
        files[2].staged = "1-on-another-disk/part".to_owned();
        let unseen = commit(&target, files, false);
        let error = run(&unseen).unwrap_err();
        assert!(matches!(error, FrameError::PartUnseen { .. }), "{error}");
        assert!(error.to_string().contains("1-on-another-disk"), "{error}");
        unseen.give_up();
        assert_eq!(content(dir.path()), []);
    }

    #[test]
    fn an_output_without_files_is_an_empty_folder() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        run(&commit(&target, Vec::new(), false)).unwrap();
        assert!(target.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

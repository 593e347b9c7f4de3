//! How a process ended, in words.
//!
//! Owns the guess why the kernel killed it: systems count the processes that they end for lack of
//! memory, of the whole machine and of a control group. Reads only.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Counts of the whole machine.
const MACHINE_FILE: &str = "/proc/vmstat";
/// The control groups of this process, and so of those that it starts.
const GROUPS_FILE: &str = "/proc/self/cgroup";
/// Where control groups are mounted.
const GROUPS_FOLDER: &str = "/sys/fs/cgroup";
/// Status with which a shell says that what it ran was killed.
const STATUS_KILLED: i32 = 137;

/// Processes that the kernel has ended for lack of memory.
#[derive(Debug)]
pub(crate) struct MemoryKills {
    files: Vec<PathBuf>,
    counted: Option<u64>,
}

/// Whether lack of memory is why a process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryVerdict {
    /// The kernel says that it ended something for that reason just now.
    Likely,
    /// The kernel says that it did not.
    No,
    /// The kernel does not say.
    Unknown,
}

impl MemoryKills {
    /// Counts from now on.
    pub(crate) fn new() -> Self {
        let groups = fs::read_to_string(GROUPS_FILE).unwrap_or_default();
        let mut files = group_files(&groups);
        files.push(PathBuf::from(MACHINE_FILE));
        let mut kills = Self {
            files,
            counted: None,
        };
        kills.counted = kills.count();
        kills
    }

    /// Whether there were any since the last call.
    pub(crate) fn look(&mut self) -> MemoryVerdict {
        let before = self.counted;
        self.counted = self.count();
        match (before, self.counted) {
            (Some(before), Some(now)) if now > before => MemoryVerdict::Likely,
            (Some(_), Some(_)) => MemoryVerdict::No,
            _ => MemoryVerdict::Unknown,
        }
    }

    fn count(&self) -> Option<u64> {
        let texts = self.files.iter().flat_map(fs::read_to_string);
        texts
            .filter_map(|text| counted(&text))
            .reduce(u64::saturating_add)
    }
}

/// The files of the memory controller, of version 2 and 1, for lines such as `4:memory:/a/b`.
fn group_files(groups: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let folder = Path::new(GROUPS_FOLDER);
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            return Some(folder.join(path).join("memory.events"));
        }
        let is_memory = controllers.split(',').any(|name| name == "memory");
        is_memory.then(|| folder.join("memory").join(path).join("memory.oom_control"))
    };
    groups.lines().filter_map(file).collect()
}

fn counted(text: &str) -> Option<u64> {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count?.trim().parse().ok()
}

/// Whether something else than the process itself ended it at once.
pub(crate) fn was_killed(status: &io::Result<ExitStatus>) -> bool {
    let Ok(status) = status else { return false };
    status.signal() == Some(9) || status.code() == Some(STATUS_KILLED)
}

/// How a process ended. `memory` counts only if it was killed.
pub(crate) fn describe(status: &io::Result<ExitStatus>, memory: MemoryVerdict) -> String {
    let killed = match memory {
        MemoryVerdict::Likely => ", killed by the kernel for lack of memory",
        MemoryVerdict::No => "",
        MemoryVerdict::Unknown => ", killed perhaps by the kernel for lack of memory",
    };
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(STATUS_KILLED), _) => format!("exit status {STATUS_KILLED}{killed}"),
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(9)) => format!("signal 9, SIGKILL{killed}"),
            (None, Some(signal)) => match name_of(signal) {
                Some(name) => format!("signal {signal}, {name}"),
                None => format!("signal {signal}"),
            },
            (None, None) => "an unknown status".to_owned(),
        },
        Err(error) => format!("an unknown status ({error})"),
    }
}

/// The signals by which defects show.
fn name_of(signal: i32) -> Option<&'static str> {
    match signal {
        4 => Some("SIGILL"),
        6 => Some("SIGABRT"),
        7 => Some("SIGBUS"),
        8 => Some("SIGFPE"),
        11 => Some("SIGSEGV"),
        15 => Some("SIGTERM"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_both_versions_are_found() {
        let groups =
            "9:name=systemd:/\n4:cpu,memory:/pod/a\n0::/user.slice\n3:memoryless:/x\nnonsense\n";
        let files = group_files(groups);
        let expected = [
            "/sys/fs/cgroup/memory/pod/a/memory.oom_control",
            "/sys/fs/cgroup/user.slice/memory.events",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
    }

    #[test]
    fn counts_are_read_and_compared() {
        assert_eq!(
            counted("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            Some(3)
        );
        assert_eq!(counted("low 0\noom 5\n"), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.events");
        let mut kills = MemoryKills {
            files: vec![file.clone()],
            counted: None,
        };
        assert_eq!(kills.look(), MemoryVerdict::Unknown);
        for (count, verdict) in [
            (1, MemoryVerdict::Unknown),
            (1, MemoryVerdict::No),
            (2, MemoryVerdict::Likely),
        ] {
            fs::write(&file, format!("oom 9\noom_kill {count}\n")).unwrap();
            assert_eq!(kills.look(), verdict);
        }
    }

    #[test]
    fn ends_in_words() {
        let ended = |raw| Ok(ExitStatus::from_raw(raw));
        let text = |raw, memory| describe(&ended(raw), memory);
        assert_eq!(text(0, MemoryVerdict::Likely), "exit status 0");
        assert_eq!(text(9, MemoryVerdict::No), "signal 9, SIGKILL");
        assert_eq!(
            text(9, MemoryVerdict::Likely),
            "signal 9, SIGKILL, killed by the kernel for lack of memory"
        );
        assert!(text(137 << 8, MemoryVerdict::Unknown).contains("perhaps"));
        assert_eq!(text(11, MemoryVerdict::Unknown), "signal 11, SIGSEGV");
        assert!(was_killed(&ended(9)) && was_killed(&ended(137 << 8)) && !was_killed(&ended(15)));
    }
}

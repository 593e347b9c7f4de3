//! The memory of this process and of the programs that it runs, as the system counts it.
//!
//! A program is its first process and what that started. What left it (a daemon) is on its own.

use std::fs::File;
use std::io::Read;

use crate::cgroup;

/// Processes that are looked at for one program; a program with more is counted too low.
const PROCESSES_MAX: usize = 4_096;
/// Bytes of a file that are read.
const FILE_BYTES_MAX: usize = 16 * 1024;

/// This process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OwnMemory {
    /// Everything that is in memory, its own files included.
    pub(crate) resident_bytes: u64,
    /// What only the disk of the system's own could take: neither code nor mapped files.
    pub(crate) anonymous_bytes: u64,
}

/// How a process is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Everything that is in memory; what processes share counts for each of them.
    Resident,
    /// What they share counts once. Takes longer.
    Proportional,
}

/// Reads `/proc`.
#[derive(Debug)]
pub(crate) struct Tree {
    own: Option<File>,
    buffer: Vec<u8>,
    processes: Vec<u32>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self {
            own: File::open("/proc/self/status").ok(),
            buffer: vec![0; FILE_BYTES_MAX],
            processes: Vec::new(),
        }
    }

    /// Nothing where the system does not say.
    pub(crate) fn own(&mut self) -> OwnMemory {
        let status = self.own.as_ref();
        let Some(text) = status.and_then(|file| cgroup::read(file, &mut self.buffer)) else {
            return OwnMemory::default();
        };
        let bytes = |name| kibibytes(text, name).unwrap_or(0);
        OwnMemory {
            resident_bytes: bytes("VmRSS:"),
            anonymous_bytes: bytes("RssAnon:").saturating_add(bytes("RssShmem:")),
        }
    }

    /// A program, by its first process.
    pub(crate) fn program_bytes(&mut self, leader: u32, measure: Measure) -> u64 {
        let mut sum = 0_u64;
        self.processes.clear();
        self.processes.push(leader);
        let mut next = 0;
        while let Some(process) = self.processes.get(next).copied() {
            next += 1;
            sum = sum.saturating_add(self.process_bytes(process, measure));
            self.add_children(process);
        }
        sum
    }

    /// One process; nothing if it has ended.
    fn process_bytes(&mut self, process: u32, measure: Measure) -> u64 {
        let (file, name) = match measure {
            Measure::Resident => ("status", "VmRSS:"),
            Measure::Proportional => ("smaps_rollup", "Pss:"),
        };
        let path = format!("/proc/{process}/{file}");
        let found = read_once(&path, &mut self.buffer).and_then(|text| kibibytes(text, name));
        match (found, measure) {
            (Some(bytes), _) => bytes,
            (None, Measure::Resident) => 0,
            // Not every system has it, and not for every process.
            (None, Measure::Proportional) => self.process_bytes(process, Measure::Resident),
        }
    }

    /// Each thread has children of its own.
    fn add_children(&mut self, process: u32) {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else {
            return;
        };
        for thread in threads.flatten() {
            let path = thread.path().join("children");
            let Some(path) = path.to_str() else { continue };
            let Some(text) = read_once(path, &mut self.buffer) else {
                continue;
            };
            let children = text.split_ascii_whitespace();
            let room = PROCESSES_MAX.saturating_sub(self.processes.len());
            let children = children
                .filter_map(|child| child.parse::<u32>().ok())
                .take(room);
            self.processes.extend(children);
        }
    }
}

fn read_once<'a>(path: &str, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut file = File::open(path).ok()?;
    let count = file.read(buffer).ok()?;
    std::str::from_utf8(&buffer[..count]).ok()
}

/// The number of a line `name  5 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    const MEBIBYTE: u64 = 1 << 20;

    #[test]
    fn this_process_has_memory() {
        let mut tree = Tree::new();
        let before = tree.own();
        assert!(before.anonymous_bytes > 0);
        assert!(before.resident_bytes >= before.anonymous_bytes);
        let more = vec![7_u8; 64 << 20];
        let after = tree.own();
        assert!(after.anonymous_bytes >= before.anonymous_bytes + 60 * MEBIBYTE);
        drop(more);
    }

    #[test]
    fn a_program_counts_with_what_it_started() {
        // `tail` keeps what has no line end: 48 MiB each, in a child and in a child of that.
        let hungry = "head -c 50331648 /dev/zero | tail";
        let script = format!("({hungry}; sleep 60) & {hungry} & sleep 60 | (sleep 60) & wait");
        let slow = script.replace("/dev/zero | tail", "/dev/zero | (cat; sleep 60) | tail");
        let mut child = Command::new("sh")
            .args(["-c", &slow])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut tree, start) = (Tree::new(), Instant::now());
        loop {
            let resident = tree.program_bytes(child.id(), Measure::Resident);
            let proportional = tree.program_bytes(child.id(), Measure::Proportional);
            if resident >= 96 * MEBIBYTE && proportional >= 96 * MEBIBYTE {
                assert!(proportional <= resident * 11 / 10);
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{resident}");
            std::thread::sleep(Duration::from_millis(10));
        }
        for process in tree.processes.iter().rev() {
            let mut kill = Command::new("kill");
            kill.args(["-9", &process.to_string()]);
            let _ = kill.stderr(Stdio::null()).status();
        }
        child.wait().unwrap();
        assert_eq!(tree.program_bytes(child.id(), Measure::Resident), 0);
    }
}

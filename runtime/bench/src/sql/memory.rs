//! How much memory processes hold, seen from outside.
//!
//! Owns a thread that adds up anonymous and shared memory of the watched processes, twenty times a
//! second. Files that are mapped or cached do not count: the system takes them back by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(50);
/// Intervals after which processes are looked for again.
const TREE_INTERVALS: u32 = 10;
/// Processes of one tree, far above what any engine starts.
const TREE_MAX: usize = 1_024;

/// The most that was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    /// Of all processes together.
    pub(crate) total_bytes: u64,
    /// Of the one that held most.
    pub(crate) process_bytes: u64,
}

/// Watches groups of processes, each under a name.
#[derive(Debug)]
pub(crate) struct Sampler {
    groups: Arc<Mutex<BTreeMap<String, Group>>>,
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Group {
    roots: Vec<u32>,
    /// Whether what the roots start counts too.
    has_children: bool,
    processes: Vec<u32>,
    peak: Peak,
}

impl Sampler {
    /// Begins to watch.
    pub(crate) fn start() -> Self {
        let groups = Arc::default();
        let is_ended = Arc::new(AtomicBool::new(false));
        let (seen, ended) = (Arc::clone(&groups), Arc::clone(&is_ended));
        let thread = std::thread::spawn(move || sample(&seen, &ended));
        Self {
            groups,
            is_ended,
            thread: Some(thread),
        }
    }

    /// Watches these processes from now on, and those that they start; peaks begin anew.
    pub(crate) fn watch_trees(&self, name: &str, roots: Vec<u32>) {
        self.watch(name, roots, true);
    }

    /// Watches exactly these processes from now on; peaks begin anew.
    pub(crate) fn watch_processes(&self, name: &str, processes: Vec<u32>) {
        self.watch(name, processes, false);
    }

    fn watch(&self, name: &str, roots: Vec<u32>, has_children: bool) {
        let group = Group {
            roots,
            has_children,
            ..Group::default()
        };
        locked(&self.groups).insert(name.to_owned(), group);
    }

    /// The most that was seen since the group is watched.
    pub(crate) fn peak(&self, name: &str) -> Peak {
        locked(&self.groups)
            .get(name)
            .map_or_else(Peak::default, |group| group.peak)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn locked(groups: &Mutex<BTreeMap<String, Group>>) -> MutexGuard<'_, BTreeMap<String, Group>> {
    groups.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sample(groups: &Mutex<BTreeMap<String, Group>>, is_ended: &AtomicBool) {
    let mut round = 0_u32;
    while !is_ended.load(Ordering::Relaxed) {
        for group in locked(groups).values_mut() {
            group.look(round.is_multiple_of(TREE_INTERVALS));
        }
        round = round.wrapping_add(1);
        std::thread::sleep(INTERVAL);
    }
}

impl Group {
    fn look(&mut self, is_tree_due: bool) {
        if self.processes.is_empty() || (self.has_children && is_tree_due) {
            self.processes.clone_from(&self.roots);
            let mut next = 0;
            while self.has_children && next < self.processes.len() && next < TREE_MAX {
                self.processes.extend(children(self.processes[next]));
                next += 1;
            }
        }
        let each = self.processes.iter().map(|process| held_bytes(*process));
        let (mut total_bytes, mut process_bytes) = (0, 0);
        for bytes in each {
            total_bytes += bytes;
            process_bytes = bytes.max(process_bytes);
        }
        self.peak.total_bytes = self.peak.total_bytes.max(total_bytes);
        self.peak.process_bytes = self.peak.process_bytes.max(process_bytes);
    }
}

/// What all threads of a process have started.
fn children(process: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let of_thread = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(thread.path().join("children")).unwrap_or_default()
    };
    let lists: Vec<String> = threads.flatten().map(of_thread).collect();
    let words = lists.iter().flat_map(|list| list.split_whitespace());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Anonymous and shared memory of a process; 0 if it is gone.
pub(crate) fn held_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    held_of_status(&status)
}

fn held_of_status(status: &str) -> u64 {
    let kilobytes = status.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        if !matches!(name, "RssAnon" | "RssShmem") {
            return None;
        }
        rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    kilobytes.sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_and_shared_memory_count_and_files_do_not() {
        let status = "VmRSS:\t  9000 kB\nRssAnon:\t    1000 kB\nRssFile:\t 7000 kB\nRssShmem:\t      24 kB\n";
        assert_eq!(held_of_status(status), 1_024 * 1_024);
        assert_eq!(held_of_status(""), 0);
    }

    #[test]
    fn what_a_process_takes_shows_in_its_peak() {
        let sampler = Sampler::start();
        sampler.watch_trees("self", vec![std::process::id()]);
        let before = held_bytes(std::process::id());
        let block = vec![1_u8; 64 << 20];
        std::thread::sleep(INTERVAL * 4);
        assert!(block.iter().all(|byte| *byte == 1));
        let peak = sampler.peak("self");
        assert!(peak.total_bytes >= before + (60 << 20), "{peak:?}");
        assert!(peak.process_bytes <= peak.total_bytes);
        assert_eq!(sampler.peak("nobody"), Peak::default());
    }
}

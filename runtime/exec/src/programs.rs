//! The programs that `exec` tasks run, for whoever watches the memory.
//!
//! Owns the list: which process group belongs to which task, how much memory it was seen to use, and
//! whether it is to end because of that. Measures nothing and ends nothing itself: the worker
//! measures, and the run of the program ends it.
//!
//! Invariant: a program is in the list exactly as long as its processes may be there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::TaskContext;

/// One program, as long as the list lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(u64);

/// Why a program is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEnd {
    /// Bytes that the program and its children used.
    pub program_bytes: u64,
    /// Bytes that were used in all.
    pub used_bytes: u64,
    /// Bytes that may be used in all.
    pub limit_bytes: u64,
}

/// A program as the list shows it.
#[derive(Debug, Clone)]
pub struct RunningProgram {
    /// Which.
    pub id: ProgramId,
    /// Its first process, which leads its process group.
    pub leader: u32,
    /// The number of the task's graph.
    pub graph: u32,
    /// The task's key.
    pub key: Arc<str>,
    /// The task's attempt.
    pub attempt: u32,
    /// What it used when it was last measured.
    pub resident_bytes: u64,
    /// Whether it is being ended because of its memory.
    pub is_ending: bool,
}

/// Counts processes that the system ended because memory ran out.
pub type OutOfMemoryCounter = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// The list of a worker.
#[derive(Default)]
pub struct Programs {
    state: Mutex<State>,
    out_of_memory: OnceLock<OutOfMemoryCounter>,
}

#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<ProgramId, Record>,
}

struct Record {
    program: RunningProgram,
    peak_bytes: u64,
    end: Option<MemoryEnd>,
    ended: CancellationToken,
    killed: CancellationToken,
}

impl Programs {
    /// Who counts the processes that the system ended; only the first one that is given counts.
    pub fn set_out_of_memory_counter(&self, counter: OutOfMemoryCounter) {
        let _ = self.out_of_memory.set(counter);
    }

    /// How many processes the system has ended because memory ran out, if anybody knows.
    pub fn out_of_memory_count(&self) -> Option<u64> {
        self.out_of_memory.get()?()
    }

    /// Everything that runs, in order of its start. The buffer is used again.
    pub fn list(&self, into: &mut Vec<RunningProgram>) {
        into.clear();
        let state = self.lock();
        into.extend(state.running.values().map(|record| record.program.clone()));
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.lock().running.len()
    }

    /// What a program was seen to use.
    pub fn measured(&self, id: ProgramId, resident_bytes: u64) {
        if let Some(record) = self.lock().running.get_mut(&id) {
            record.program.resident_bytes = resident_bytes;
            record.peak_bytes = record.peak_bytes.max(resident_bytes);
        }
    }

    /// Asks a program to end, because of its memory. Its task fails and says so.
    pub fn end(&self, id: ProgramId, end: MemoryEnd) {
        if let Some(record) = self.lock().running.get_mut(&id) {
            record.program.is_ending = true;
            record.end.get_or_insert(end);
            record.ended.cancel();
        }
    }

    /// Does not wait any longer for a program that was asked to end.
    pub fn kill(&self, id: ProgramId) {
        if let Some(record) = self.lock().running.get(&id) {
            record.killed.cancel();
        }
    }

    /// A program has started, or begins with a task.
    pub fn enter(self: &Arc<Self>, leader: u32, task: TaskName) -> Entry {
        let (ended, killed) = (CancellationToken::new(), CancellationToken::new());
        let mut state = self.lock();
        state.next += 1;
        let id = ProgramId(state.next);
        let program = RunningProgram {
            id,
            leader,
            graph: task.graph,
            key: task.key,
            attempt: task.attempt,
            resident_bytes: 0,
            is_ending: false,
        };
        let record = Record {
            program,
            peak_bytes: 0,
            end: None,
            ended: ended.clone(),
            killed: killed.clone(),
        };
        state.running.insert(id, record);
        drop(state);
        Entry {
            programs: Arc::clone(self),
            id,
            ended,
            killed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs")
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// To which task a program belongs.
#[derive(Debug, Clone)]
pub struct TaskName {
    /// The number of its graph.
    pub graph: u32,
    /// Its key.
    pub key: Arc<str>,
    /// Its attempt.
    pub attempt: u32,
}

impl TaskName {
    /// The task that runs there.
    pub fn of(context: &TaskContext) -> Self {
        Self {
            graph: context.graph,
            key: Arc::clone(&context.key),
            attempt: context.attempt,
        }
    }
}

/// The place of one program in the list; it goes with this.
#[derive(Debug)]
pub struct Entry {
    programs: Arc<Programs>,
    id: ProgramId,
    /// The program is to end because of its memory.
    pub ended: CancellationToken,
    /// And at once.
    pub killed: CancellationToken,
}

impl Entry {
    /// Why it is to end, if it is.
    pub fn end(&self) -> Option<MemoryEnd> {
        self.programs.lock().running.get(&self.id)?.end
    }

    /// The most that it was seen to use; `None` if it was never measured.
    pub fn peak_bytes(&self) -> Option<u64> {
        let state = self.programs.lock();
        let peak = state.running.get(&self.id)?.peak_bytes;
        (peak > 0).then_some(peak)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.programs.lock().running.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(key: &str) -> TaskName {
        TaskName {
            graph: 3,
            key: key.into(),
            attempt: 2,
        }
    }

    #[test]
    fn a_program_is_listed_as_long_as_it_runs() {
        let programs = Arc::new(Programs::default());
        let first = programs.enter(11, task("a"));
        let second = programs.enter(12, task("b"));
        let mut list = Vec::new();
        programs.list(&mut list);
        let leaders: Vec<_> = list.iter().map(|program| program.leader).collect();
        assert_eq!(leaders, [11, 12]);
        assert_eq!((&*list[0].key, list[0].graph, list[0].attempt), ("a", 3, 2));
        programs.measured(list[0].id, 500);
        programs.measured(list[0].id, 300);
        assert_eq!((first.peak_bytes(), second.peak_bytes()), (Some(500), None));
        let end = |used_bytes| MemoryEnd {
            program_bytes: 300,
            used_bytes,
            limit_bytes: 1_000,
        };
        programs.end(list[0].id, end(960));
        programs.end(list[0].id, end(990));
        assert_eq!(first.end(), Some(end(960)));
        assert!(first.ended.is_cancelled() && !first.killed.is_cancelled());
        programs.kill(list[0].id);
        assert!(first.killed.is_cancelled());
        assert!(!second.ended.is_cancelled());
        drop(first);
        programs.list(&mut list);
        assert_eq!((list.len(), programs.count()), (1, 1));
        assert!(!list[0].is_ending);
        // It has ended in the meantime.
        programs.end(ProgramId(1), end(1));
        assert_eq!(programs.out_of_memory_count(), None);
        programs.set_out_of_memory_counter(Box::new(|| Some(4)));
        assert_eq!(programs.out_of_memory_count(), Some(4));
    }
}

//! The engine's memory, taken from the worker's account.
//!
//! Owns the pool of one task: what each operator has taken, in pieces that the worker's account
//! grants. Operators that can work on the disk share what the others leave, so that none of them
//! takes all. Invariants: what operators have taken is at most what the account gave; everything is
//! given back when the task ends.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::disk_manager::{DiskManager, DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};
use datafusion::execution::{SpillFile, TempFileFactory};
use oxidask_exec::Memory;

/// The account is asked for this much at a time: operators ask often, and for little.
const PIECE_BYTES: u64 = 1024 * 1024;

/// Every operator gets this share of the worker's memory even if others hold the rest: with less,
/// none could do its work piece by piece.
const FLOOR_DIVISOR: u64 = 32;

/// More than this is never granted without asking.
const FLOOR_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Operators that can spill share at most this much of the worker's memory, in percent.
const SPILLABLE_PERCENT: u64 = 80;

/// Takers that an error names.
const NAMED_TAKERS: usize = 5;

/// The share of the free disk that a task's temporary files may take, in percent.
const DISK_PERCENT: u64 = 90;

/// An operator that tells what it took afterwards, and keeps all values of one group in tables that
/// are copied into ones twice as large when they are full.
const DOUBLING: &str = "AggregateStream";

/// Whether the next growth of this operator may need twice as much again as it has.
fn doubles(name: &str) -> bool {
    name.starts_with(DOUBLING)
}

/// Where a task's operators put what does not fit into memory: in at most `bytes_max`, or what is
/// free when the first of them does so, less a margin, so that they stop before everything else on
/// the disk does. Nothing is made before that: most tasks need no files.
pub(crate) fn temporary_files(scratch_dir: &Path, bytes_max: Option<u64>) -> DiskManagerBuilder {
    DiskManagerBuilder::default().with_temp_file_factory(Arc::new(TemporaryFiles {
        scratch_dir: scratch_dir.to_owned(),
        bytes_max,
        files: Mutex::new(None),
    }))
}

struct TemporaryFiles {
    scratch_dir: PathBuf,
    bytes_max: Option<u64>,
    files: Mutex<Option<Arc<DiskManager>>>,
}

impl TemporaryFiles {
    fn begin(&self) -> Result<Arc<DiskManager>> {
        std::fs::create_dir_all(&self.scratch_dir)?;
        let folders = DiskManagerMode::Directories(vec![self.scratch_dir.clone()]);
        let builder = DiskManagerBuilder::default().with_mode(folders);
        let free = || -> std::io::Result<u64> {
            let disk = rustix::fs::statvfs(&self.scratch_dir)?;
            Ok(disk.f_bavail.saturating_mul(disk.f_frsize) / 100 * DISK_PERCENT)
        };
        let bytes_max = self.bytes_max.map_or_else(free, Ok)?;
        Ok(Arc::new(
            builder.with_max_temp_directory_size(bytes_max).build()?,
        ))
    }
}

impl TempFileFactory for TemporaryFiles {
    fn create_temp_file(&self, description: &str) -> Result<Arc<dyn SpillFile>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let manager = match &*files {
            Some(manager) => Arc::clone(manager),
            None => Arc::clone(files.insert(self.begin()?)),
        };
        drop(files);
        manager.create_tmp_file(description)
    }
}

/// Memory that is given back when this is dropped.
pub(crate) struct Taken {
    memory: Arc<dyn Memory>,
    bytes: u64,
}

impl Taken {
    /// Nothing yet.
    pub(crate) fn new(memory: Arc<dyn Memory>) -> Self {
        Self { memory, bytes: 0 }
    }

    /// Takes more.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.memory.grow(bytes);
        self.bytes += bytes;
    }

    /// Bytes that the worker may use in all.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.memory.limit_bytes()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.memory.shrink(self.bytes);
    }
}

/// The memory of one task.
#[derive(Debug)]
pub(crate) struct TaskMemoryPool {
    memory: Arc<dyn Memory>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    takers: BTreeMap<usize, Taker>,
    /// What all takers have.
    used: u64,
    /// What the account gave.
    granted: u64,
}

#[derive(Debug)]
struct Taker {
    name: String,
    can_spill: bool,
    bytes: u64,
}

impl TaskMemoryPool {
    /// An empty pool over the task's account.
    pub(crate) fn new(memory: Arc<dyn Memory>) -> Self {
        Self {
            memory,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn floor_bytes(&self) -> u64 {
        (self.memory.limit_bytes() / FLOOR_DIVISOR).min(FLOOR_BYTES_MAX)
    }

    /// What one of the operators that can spill may have.
    fn fair_share(&self, state: &State) -> u64 {
        let all = self.memory.limit_bytes() / 100 * SPILLABLE_PERCENT;
        let (mut others, mut sharers) = (0, 0);
        for taker in state.takers.values() {
            if taker.can_spill {
                sharers += 1;
            } else {
                others += taker.bytes;
            }
        }
        all.saturating_sub(others) / sharers.max(1)
    }

    /// What is kept for operators that can spill: with less they could not even begin to.
    fn promised(&self, state: &State) -> u64 {
        let floor = self.floor_bytes();
        let spilling = state.takers.values().filter(|taker| taker.can_spill);
        spilling
            .map(|taker| floor.saturating_sub(taker.bytes))
            .sum()
    }

    /// Makes the account grant what is used and this much more. Whether it did.
    fn cover(&self, state: &mut State, bytes: u64) -> bool {
        let missing = state
            .used
            .saturating_add(bytes)
            .saturating_sub(state.granted);
        if missing == 0 {
            return true;
        }
        for ask in [missing.next_multiple_of(PIECE_BYTES), missing] {
            if self.memory.try_grow(ask).is_ok() {
                state.granted += ask;
                return true;
            }
        }
        false
    }

    fn refusal(&self, state: &State, name: &str, bytes: u64) -> DataFusionError {
        let mut takers: Vec<_> = state
            .takers
            .values()
            .filter(|taker| taker.bytes > 0)
            .collect();
        takers.sort_by_key(|taker| std::cmp::Reverse(taker.bytes));
        let named = takers.iter().take(NAMED_TAKERS);
        let named: Vec<_> = named
            .map(|taker| format!("{} `{}`", taker.name, taker.bytes))
            .collect();
        let takers = if named.is_empty() {
            "this task has taken nothing".to_owned()
        } else {
            format!("of this task, {}", named.join(", "))
        };
        let limit = self.memory.limit_bytes();
        DataFusionError::ResourcesExhausted(format!(
            "operator `{name}` needs `{bytes}` more bytes, and the worker cannot spare them of its \
             `{limit}`; {takers}"
        ))
    }
}

impl State {
    fn add(&mut self, consumer: &MemoryConsumer, bytes: u64) {
        self.taker(consumer).bytes += bytes;
        self.used += bytes;
    }

    fn taker(&mut self, consumer: &MemoryConsumer) -> &mut Taker {
        self.takers.entry(consumer.id()).or_insert_with(|| Taker {
            name: consumer.name().to_owned(),
            can_spill: consumer.can_spill(),
            bytes: 0,
        })
    }
}

impl MemoryPool for TaskMemoryPool {
    fn name(&self) -> &'static str {
        "oxidask"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.lock().taker(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.lock().takers.remove(&consumer.id());
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let bytes = additional as u64;
        let mut state = self.lock();
        if !self.cover(&mut state, bytes) {
            let missing = state.used + bytes - state.granted;
            self.memory.grow(missing);
            state.granted += missing;
        }
        state.add(reservation.consumer(), bytes);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut state = self.lock();
        let taker = state.taker(reservation.consumer());
        let bytes = (shrink as u64).min(taker.bytes);
        taker.bytes -= bytes;
        state.used -= bytes;
        let idle = state.granted - state.used;
        // One piece is kept: who gives back often asks again soon.
        if idle > 2 * PIECE_BYTES {
            self.memory.shrink(idle - PIECE_BYTES);
            state.granted -= idle - PIECE_BYTES;
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let (consumer, bytes) = (reservation.consumer(), additional as u64);
        let mut state = self.lock();
        let wanted = state.taker(consumer).bytes.saturating_add(bytes);
        let is_small = wanted <= self.floor_bytes();
        let is_fair = !consumer.can_spill() || wanted <= self.fair_share(&state);
        if is_small || is_fair {
            let promised = if consumer.can_spill() || is_small {
                0
            } else {
                let ahead = if doubles(consumer.name()) {
                    2 * wanted
                } else {
                    0
                };
                self.promised(&state).saturating_add(ahead)
            };
            if self.cover(&mut state, bytes.saturating_add(promised)) {
                state.add(consumer, bytes);
                return Ok(());
            }
            if is_small {
                let missing = state.used + bytes - state.granted;
                self.memory.grow(missing);
                state.granted += missing;
                state.add(consumer, bytes);
                return Ok(());
            }
        }
        Err(self.refusal(&state, consumer.name(), bytes))
    }

    fn reserved(&self) -> usize {
        usize::try_from(self.lock().used).unwrap_or(usize::MAX)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(usize::try_from(self.memory.limit_bytes()).unwrap_or(usize::MAX))
    }
}

impl fmt::Display for TaskMemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(
            f,
            "oxidask(used: {}, granted: {})",
            state.used, state.granted
        )
    }
}

impl Drop for TaskMemoryPool {
    fn drop(&mut self) {
        let granted = self.lock().granted;
        self.memory.shrink(granted);
    }
}

#[cfg(test)]
mod tests {
    use oxidask_exec::OwnMemory;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn pool(limit_bytes: usize) -> (Arc<OwnMemory>, Arc<dyn MemoryPool>) {
        let memory = Arc::new(OwnMemory::new(limit_bytes as u64));
        let pool = TaskMemoryPool::new(Arc::clone(&memory) as Arc<dyn Memory>);
        (memory, Arc::new(pool))
    }

    fn taker(name: &str, can_spill: bool, pool: &Arc<dyn MemoryPool>) -> MemoryReservation {
        MemoryConsumer::new(name)
            .with_can_spill(can_spill)
            .register(pool)
    }

    #[test]
    fn everything_is_given_back() {
        let (memory, pool) = pool(100 * MIB);
        let sort = taker("sort", true, &pool);
        let join = taker("join", false, &pool);
        sort.try_grow(30 * MIB).unwrap();
        join.try_grow(40 * MIB + 7).unwrap();
        assert_eq!(memory.taken_bytes(), 71 * MIB as u64);
        assert_eq!(pool.reserved(), 70 * MIB + 7);
        join.shrink(40 * MIB);
        assert!(memory.taken_bytes() <= 32 * MIB as u64);
        drop((sort, join));
        assert_eq!(pool.reserved(), 0);
        drop(pool);
        assert_eq!(memory.taken_bytes(), 0);
    }

    #[test]
    fn a_refusal_names_who_has_the_memory() {
        let (_memory, pool) = pool(64 * MIB);
        let join = taker("join", false, &pool);
        let other = taker("other", false, &pool);
        join.try_grow(50 * MIB).unwrap();
        let refused = other.try_grow(20 * MIB).unwrap_err().to_string();
        assert!(
            refused.contains("operator `other` needs `20971520` more bytes"),
            "{refused}"
        );
        assert!(refused.contains("join `52428800`"), "{refused}");
        // It can go on in small steps all the same.
        other.try_grow(2 * MIB).unwrap();
    }

    #[test]
    fn a_join_leaves_enough_for_the_sort_above_it() {
        let (_memory, pool) = pool(64 * MIB);
        let sort = taker("sort", true, &pool);
        let join = taker("join", false, &pool);
        assert!(join.try_grow(63 * MIB).is_err());
        join.try_grow(62 * MIB).unwrap();
        sort.try_grow(2 * MIB).unwrap();
        assert!(sort.try_grow(1).is_err());
    }

    #[test]
    fn what_doubles_is_refused_before_it_passes_the_limit() {
        let (memory, pool) = pool(96 * MIB);
        let values = taker("AggregateStream[0]", false, &pool);
        values.try_grow(30 * MIB).unwrap();
        assert!(memory.taken_bytes() >= 90 * MIB as u64, "the next table");
        assert!(values.try_grow(10 * MIB).is_err());
        drop(values);
        // A hash table that is grouped by keys tells beforehand.
        let groups = taker("SingleHashAggregateStream[0]", false, &pool);
        groups.try_grow(80 * MIB).unwrap();
    }

    #[test]
    fn those_that_can_spill_share_what_the_others_leave() {
        let (memory, pool) = pool(100 * MIB);
        let sorts = [taker("a", true, &pool), taker("b", true, &pool)];
        let join = taker("join", false, &pool);
        join.try_grow(20 * MIB).unwrap();
        assert!(sorts[0].try_grow(31 * MIB).is_err());
        sorts[0].try_grow(29 * MIB).unwrap();
        sorts[1].try_grow(29 * MIB).unwrap();
        // The share grows when one of them ends.
        let [first, second] = sorts;
        drop(second);
        first.try_grow(25 * MIB).unwrap();
        // Growing without asking is never refused.
        join.grow(200 * MIB);
        assert!(memory.taken_bytes() >= 270 * MIB as u64);
        assert!(first.try_grow(MIB).is_err());
    }
}

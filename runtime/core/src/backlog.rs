//! The scaling signal: how much work waits for which workers, and how many it would take.
//!
//! Counts come from the groups of tasks, which are kept as tasks change their state, so a look costs
//! a step for each group of tasks and each worker, never one for each task. Work that several worker
//! groups could do is shared out by their slots, so that it is counted once.
//!
//! Never decides to scale: bounds, delays and start times of workers are the caller's.

use std::collections::BTreeMap;

use crate::chunk::Requirement;
use crate::graph::Graph;
use crate::ids::Timestamp;
use crate::machine::Core;
use crate::place::Class;
use crate::pools::Pool;
use crate::transitions::TaskState;

/// Part of a worker's memory that results are meant to fill.
const MEMORY_FILL_PERCENT: u64 = 80;

/// What waits, and what it would take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backlog {
    /// By worker group, in order of the names; also groups that have no workers any more.
    pub groups: Vec<GroupBacklog>,
    /// Work that no group that was ever there could do.
    pub unplaceable: Vec<ClassBacklog>,
}

/// What one worker group has to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupBacklog {
    /// The worker group.
    pub group: String,
    /// Its workers, whatever their standing.
    pub workers: u32,
    /// Those of them that take new work.
    pub workers_open: u32,
    /// Slots of those that take new work.
    pub slots: u64,
    /// Tasks that are on none of its workers.
    pub waiting_tasks: u64,
    /// Expected run time of those, times the slots that each takes.
    pub waiting_micros: u64,
    /// Expected run time of what is on its workers, times slots.
    pub placed_micros: u64,
    /// How long the worker that has the most to do is expected to be busy with it.
    pub tail_micros: u64,
    /// Bytes of results and copies that its workers hold.
    pub held_bytes: u64,
    /// Bytes that the tasks on workers are expected to add.
    pub expected_bytes: u64,
    /// Bytes that its workers may hold.
    pub memory_bytes: u64,
    /// Workers it would take to finish within the target time and to hold the data.
    pub workers_wanted: u64,
    /// Since when it has nothing to do.
    pub idle_since: Option<Timestamp>,
    /// Why that many workers, in words.
    pub reason: String,
    /// The work by what it asks for.
    pub classes: Vec<ClassBacklog>,
}

/// Work that asks for the same of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClassBacklog {
    /// What it asks for.
    pub requirement: Requirement,
    /// Tasks that could run now.
    pub ready_tasks: u64,
    /// Tasks that wait for inputs.
    pub waiting_tasks: u64,
    /// Expected run time of all of them, one after the other.
    pub waiting_micros: u64,
    /// Bytes that the tasks on workers are expected to add.
    pub expected_bytes: u64,
}

impl ClassBacklog {
    fn is_empty(&self) -> bool {
        self.ready_tasks == 0 && self.waiting_tasks == 0 && self.expected_bytes == 0
    }

    fn tasks(&self) -> u64 {
        self.ready_tasks + self.waiting_tasks
    }

    /// Takes a share of what is there out.
    fn take_share(&mut self, part: u64, of: u64) -> Self {
        let take = |number: &mut u64| {
            let share = u128::from(*number) * u128::from(part) / u128::from(of.max(1));
            let share = u64::try_from(share).unwrap_or(u64::MAX);
            *number -= share;
            share
        };
        Self {
            requirement: self.requirement.clone(),
            ready_tasks: take(&mut self.ready_tasks),
            waiting_tasks: take(&mut self.waiting_tasks),
            waiting_micros: take(&mut self.waiting_micros),
            expected_bytes: take(&mut self.expected_bytes),
        }
    }
}

/// Tasks of one kind: the same group of tasks and the same requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work {
    pub(crate) ready: u64,
    pub(crate) waiting: u64,
    pub(crate) waiting_micros: u64,
    pub(crate) expected_bytes: u64,
}

impl Work {
    fn add(&mut self, counts: [u32; TaskState::COUNT], micros: u64, bytes: u64) {
        let count = |state: TaskState| u64::from(counts[state.number()]);
        let (ready, waiting) = (count(TaskState::Ready), count(TaskState::Waiting));
        let placed = TaskState::ALL.into_iter().filter(|state| state.is_placed());
        let placed: u64 = placed.map(count).sum();
        self.ready += ready;
        self.waiting += waiting;
        let micros = micros.saturating_mul(ready + waiting);
        self.waiting_micros = self.waiting_micros.saturating_add(micros);
        let bytes = bytes.saturating_mul(placed);
        self.expected_bytes = self.expected_bytes.saturating_add(bytes);
    }
}

/// The work of each class, from the counters of the groups of tasks.
pub(crate) fn work(core: &Core) -> BTreeMap<u32, Work> {
    let mut all: BTreeMap<u32, Work> = BTreeMap::new();
    for graph in core.graphs.values() {
        let mut plain: Vec<[u32; TaskState::COUNT]> =
            graph.groups.iter().map(|group| group.counts).collect();
        for (key, counts) in &graph.special {
            let (group, requirement) = ((key >> 16) as usize, (key & 0xffff) as usize);
            for (own, special) in plain[group].iter_mut().zip(counts) {
                *own -= special;
            }
            let (micros, bytes) = expected(core, graph, group);
            let work = all.entry(graph.classes[requirement]).or_default();
            work.add(*counts, micros, bytes);
        }
        for (group, counts) in plain.into_iter().enumerate() {
            let (micros, bytes) = expected(core, graph, group);
            let work = all.entry(graph.classes[0]).or_default();
            work.add(counts, micros, bytes);
        }
    }
    all
}

/// Expected run time and size of the result of one task of a group.
pub(crate) fn expected(core: &Core, graph: &Graph, group: usize) -> (u64, u64) {
    let group = &graph.groups[group];
    let guess = core.config.unknown_duration_micros.max(1);
    let micros = group.expected_micros().map_or(guess, u64::from);
    (micros, group.expected_bytes())
}

/// All that waits, by worker group.
pub(crate) fn backlog(core: &Core, target_seconds: u64) -> Backlog {
    let names: Vec<&str> = core.fleet.pools.iter().map(|(name, _)| name).collect();
    let pools: Vec<&Pool> = core.fleet.pools.iter().map(|(_, pool)| pool).collect();
    let mut groups: Vec<GroupBacklog> = names.iter().map(|name| empty(name)).collect();
    let mut pool_of_place = vec![usize::MAX; core.fleet.places()];
    let mut busy = vec![false; pools.len()];
    // What has seceded counts for nothing else, but its worker is needed.
    let mut has_placed = vec![false; pools.len()];
    for (place, worker) in core.fleet.iter() {
        let Ok(pool) = names.binary_search(&worker.group.as_str()) else {
            continue;
        };
        pool_of_place[place as usize] = pool;
        let group = &mut groups[pool];
        group.workers += 1;
        group.workers_open += u32::from(worker.is_open);
        group.slots += u64::from(worker.slots) * u64::from(worker.is_open);
        group.placed_micros = group.placed_micros.saturating_add(worker.occupancy);
        let tail = worker.occupancy / u64::from(worker.slots);
        group.tail_micros = group.tail_micros.max(tail);
        group.held_bytes = group.held_bytes.saturating_add(worker.held_bytes);
        group.memory_bytes = group.memory_bytes.saturating_add(worker.memory_bytes);
        group.idle_since = group.idle_since.max(worker.idle_since);
        has_placed[pool] |= worker.placed() > 0;
        busy[pool] |= worker.idle_since.is_none() || worker.placed() > 0;
    }
    let mut unplaceable = Vec::new();
    for (class, work) in work(core) {
        let Some(class) = core.classes.get(class) else {
            continue;
        };
        let shares = shares(core, class, (&names, &pools), &pool_of_place);
        share_out(class, work, &shares, &mut groups, &mut unplaceable);
    }
    for (at, group) in groups.iter_mut().enumerate() {
        if busy[at] || group.classes.iter().any(|class| class.tasks() > 0) {
            group.idle_since = None;
        }
        size(group, (pools[at], has_placed[at]), target_seconds);
    }
    Backlog {
        groups,
        unplaceable,
    }
}

fn empty(name: &str) -> GroupBacklog {
    GroupBacklog {
        group: name.to_owned(),
        ..GroupBacklog::default()
    }
}

/// The slots that each worker group offers to a class: of those workers that take it now, otherwise
/// of those that would if they were open, otherwise of one worker of each group that was like that.
fn shares(
    core: &Core,
    class: &Class,
    (names, pools): (&[&str], &[&Pool]),
    pool_of_place: &[usize],
) -> Vec<u64> {
    let mut shares = vec![0; pools.len()];
    let mut add = |place: u32| {
        let pool = pool_of_place.get(place as usize).copied();
        let share = pool.and_then(|pool| shares.get_mut(pool));
        if let (Some(share), Some(worker)) = (share, core.fleet.at(place)) {
            *share += u64::from(worker.slots);
        }
    };
    class.eligible.iter().copied().for_each(&mut add);
    if class.eligible.is_empty() {
        let closed = core.fleet.iter().filter(|(_, worker)| class.admits(worker));
        closed.for_each(|(place, _)| add(place));
    }
    if shares.iter().all(|share| *share == 0) {
        for (at, pool) in pools.iter().enumerate() {
            if pool.admits(names[at], &class.requirement) {
                shares[at] = u64::from(pool.slots);
            }
        }
    }
    shares
}

fn share_out(
    class: &Class,
    work: Work,
    shares: &[u64],
    groups: &mut [GroupBacklog],
    unplaceable: &mut Vec<ClassBacklog>,
) {
    let mut rest = ClassBacklog {
        requirement: class.requirement.clone(),
        ready_tasks: work.ready,
        waiting_tasks: work.waiting,
        waiting_micros: work.waiting_micros,
        expected_bytes: work.expected_bytes,
    };
    let mut left: u64 = shares.iter().sum();
    for (share, group) in shares.iter().zip(groups) {
        if *share > 0 {
            let before = rest.clone();
            let part = rest.take_share(*share, left);
            left -= share;
            if part.is_empty() {
                rest = before;
            } else {
                group.classes.push(part);
            }
        }
    }
    if !rest.is_empty() {
        unplaceable.push(rest);
    }
}

/// How many workers a group would need.
fn size(group: &mut GroupBacklog, (pool, has_placed): (&Pool, bool), target_seconds: u64) {
    let target = target_seconds.max(1).saturating_mul(1_000_000);
    let slots = u64::from(pool.slots.max(1));
    // What is on workers keeps each slot busy; what waits takes what its requirement says.
    let mut work = group.placed_micros / slots;
    let mut at_once = match group.placed_micros {
        0 => 0,
        _ => u64::from(group.workers),
    };
    for class in &group.classes {
        let per_worker = pool.tasks_at_once(&class.requirement);
        let taken = (slots / per_worker).max(1);
        let micros = class.waiting_micros.saturating_mul(taken);
        group.waiting_micros = group.waiting_micros.saturating_add(micros);
        group.waiting_tasks += class.tasks();
        group.expected_bytes = group.expected_bytes.saturating_add(class.expected_bytes);
        work = work.saturating_add(class.waiting_micros / per_worker);
        at_once = at_once.saturating_add(class.tasks().div_ceil(per_worker));
    }
    let has_work = has_placed || group.waiting_tasks > 0;
    let by_work = work.div_ceil(target).min(at_once).max(u64::from(has_work));
    let need = group.held_bytes.saturating_add(group.expected_bytes);
    let usable = (pool.memory_bytes / 100).saturating_mul(MEMORY_FILL_PERCENT);
    let by_memory = match usable {
        0 => u64::from(need > 0),
        usable => need.div_ceil(usable),
    };
    group.workers_wanted = by_work.max(by_memory);
    group.reason = reason(group, (by_work, by_memory), target_seconds);
}

fn reason(group: &GroupBacklog, (by_work, by_memory): (u64, u64), target_seconds: u64) -> String {
    let need = group.held_bytes.saturating_add(group.expected_bytes);
    if by_memory > by_work {
        return format!("{need} bytes of results need the memory of {by_memory} workers");
    }
    if by_work == 0 {
        return "nothing to do and nothing to keep".to_owned();
    }
    let seconds = |micros: u64| format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10);
    format!(
        "{} tasks with {} of work wait, {} are on workers: {by_work} workers finish that in {} s",
        group.waiting_tasks,
        seconds(group.waiting_micros),
        seconds(group.placed_micros),
        target_seconds.max(1),
    )
}

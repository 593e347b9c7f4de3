//! Empties retiring workers: what only they hold is copied to others, a few results at a time.
//!
//! Owns the copies on their way and the list of what each retiring worker still has to see to. Runs
//! before each placement, so every answer brings the next copies about; costs nothing while no
//! worker retires. Never makes a task run again, except those that still run at the deadline.
//!
//! Invariants: each result of a retiring worker without a safe holder is in its list, or on its way;
//! the traffic of a worker is the sum over the copies that name it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::effect::Effect;
use crate::fleet::{Fleet, Worker};
use crate::ids::{GraphId, IdMap, TaskRef, Timestamp, WorkerId};
use crate::machine::Core;
use crate::transitions::TaskState;

/// Copies on their way to one worker.
pub(crate) const COPIES_TO_MAX: u32 = 8;
/// Copies on their way from one worker.
pub(crate) const COPIES_FROM_MAX: u32 = 32;
/// A worker with a result that could not be copied more often than this does not retire.
const COPY_FAILURES_MAX: usize = 3;

/// What a retiring worker has to do.
#[derive(Debug)]
pub(crate) struct Retirement {
    /// When tasks that still run are moved.
    pub(crate) deadline: Timestamp,
    /// Results to look at: everything that might have no other holder.
    pub(crate) pending: Vec<TaskRef>,
    /// Results that are on their way from another holder.
    pub(crate) watched: Vec<TaskRef>,
    /// Who could not fetch a result.
    pub(crate) failures: BTreeMap<TaskRef, Vec<WorkerId>>,
    is_empty_told: bool,
}

impl Retirement {
    pub(crate) fn new(deadline: Timestamp, pending: Vec<TaskRef>) -> Self {
        Self {
            deadline,
            pending,
            watched: Vec::new(),
            failures: BTreeMap::new(),
            is_empty_told: false,
        }
    }
}

/// One copy on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) from: WorkerId,
    pub(crate) to: WorkerId,
    bytes: u64,
}

/// Copies that one worker fetches and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    pub(crate) incoming: u32,
    pub(crate) incoming_bytes: u64,
    pub(crate) outgoing: u32,
}

/// All copies that were asked for and are on their way.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    transfers: BTreeMap<TaskRef, Transfer>,
    traffic: IdMap<WorkerId, Traffic>,
}

impl Copies {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TaskRef, Transfer)> {
        self.transfers.iter().map(|(task, copy)| (*task, *copy))
    }

    pub(crate) fn traffic(&self, worker: WorkerId) -> Traffic {
        self.traffic.get(&worker).copied().unwrap_or_default()
    }

    pub(crate) fn contains(&self, task: TaskRef) -> bool {
        self.transfers.contains_key(&task)
    }

    fn begin(&mut self, task: TaskRef, transfer: Transfer) {
        self.transfers.insert(task, transfer);
        let to = self.traffic.entry(transfer.to).or_default();
        to.incoming += 1;
        to.incoming_bytes = to.incoming_bytes.saturating_add(transfer.bytes);
        self.traffic.entry(transfer.from).or_default().outgoing += 1;
    }

    /// The result is no longer on its way, wherever it went.
    pub(crate) fn drop_task(&mut self, task: TaskRef) -> Option<Transfer> {
        if self.transfers.is_empty() {
            return None;
        }
        let transfer = self.transfers.remove(&task)?;
        if let Some(to) = self.traffic.get_mut(&transfer.to) {
            to.incoming -= 1;
            to.incoming_bytes = to.incoming_bytes.saturating_sub(transfer.bytes);
        }
        if let Some(from) = self.traffic.get_mut(&transfer.from) {
            from.outgoing -= 1;
        }
        for worker in [transfer.to, transfer.from] {
            if self.traffic(worker) == Traffic::default() {
                self.traffic.remove(&worker);
            }
        }
        Some(transfer)
    }

    /// The worker has fetched the result, or could not.
    pub(crate) fn end(&mut self, task: TaskRef, worker: WorkerId) -> Option<Transfer> {
        if self.transfers.get(&task)?.to == worker {
            return self.drop_task(task);
        }
        None
    }

    /// The worker fetches nothing any more; what it should have fetched.
    pub(crate) fn drop_fetcher(&mut self, worker: WorkerId) -> Vec<(TaskRef, Transfer)> {
        let dropped: Vec<_> = self.iter().filter(|(_, copy)| copy.to == worker).collect();
        for (task, _) in &dropped {
            self.drop_task(*task);
        }
        dropped
    }

    /// The worker gives nothing any more.
    pub(crate) fn drop_source(&mut self, worker: WorkerId) {
        let of_it = self.iter().filter(|(_, copy)| copy.from == worker);
        let dropped: Vec<TaskRef> = of_it.map(|(task, _)| task).collect();
        for task in dropped {
            self.drop_task(task);
        }
    }

    /// The graph is gone.
    pub(crate) fn forget(&mut self, graph: GraphId) {
        let of_it = self.iter().filter(|(task, _)| task.graph == graph);
        let dropped: Vec<TaskRef> = of_it.map(|(task, _)| task).collect();
        for task in dropped {
            self.drop_task(task);
        }
    }
}

/// Who can take copies: of each worker group the one with the most room first.
#[derive(Debug, Default)]
struct Takers {
    groups: BTreeMap<String, BinaryHeap<(u64, Reverse<WorkerId>)>>,
    /// The most room of a worker that fetches as many as it may.
    busy_room: Option<u64>,
}

/// How it went with finding room.
enum Found {
    Room(WorkerId),
    /// Later, when others have arrived.
    Busy,
    Nobody,
}

impl Takers {
    fn of(fleet: &Fleet) -> Self {
        let mut takers = Self::default();
        for (_, worker) in fleet.iter() {
            takers.enter(fleet, worker);
        }
        takers
    }

    fn enter(&mut self, fleet: &Fleet, worker: &Worker) {
        if !worker.is_open {
            return;
        }
        let traffic = fleet.copies.traffic(worker.id);
        let room = room(fleet, worker);
        if traffic.incoming >= COPIES_TO_MAX {
            self.busy_room = self.busy_room.max(Some(room));
            return;
        }
        if !self.groups.contains_key(&worker.group) {
            self.groups.insert(worker.group.clone(), BinaryHeap::new());
        }
        if let Some(heap) = self.groups.get_mut(&worker.group) {
            heap.push((room, Reverse(worker.id)));
        }
    }

    /// A worker with room, if possible of the group, and none of those who could not; it is taken
    /// out until it is entered again.
    fn find(&mut self, group: &str, bytes: u64, unable: &[WorkerId]) -> Found {
        let own = self.groups.get_mut(group);
        if let Some(worker) = own.and_then(|heap| pop_able(heap, bytes, unable)) {
            return Found::Room(worker);
        }
        let mut rooms: Vec<(u64, String)> = self
            .groups
            .iter()
            .filter(|(name, _)| *name != group)
            .filter_map(|(name, heap)| Some((heap.peek()?.0, name.clone())))
            .collect();
        rooms.sort_unstable_by(|one, other| other.cmp(one));
        for (_, name) in rooms {
            let heap = self.groups.get_mut(&name);
            if let Some(worker) = heap.and_then(|heap| pop_able(heap, bytes, unable)) {
                return Found::Room(worker);
            }
        }
        match self.busy_room {
            Some(room) if room >= bytes => Found::Busy,
            _ => Found::Nobody,
        }
    }
}

/// Takes out the worker with the most room if that is enough; those that are unable stay.
fn pop_able(
    heap: &mut BinaryHeap<(u64, Reverse<WorkerId>)>,
    bytes: u64,
    unable: &[WorkerId],
) -> Option<WorkerId> {
    let mut passed = Vec::new();
    let mut found = None;
    while let Some((room, Reverse(worker))) = heap.pop() {
        if room < bytes {
            passed.push((room, Reverse(worker)));
            break;
        }
        if !unable.contains(&worker) {
            found = Some(worker);
            break;
        }
        passed.push((room, Reverse(worker)));
    }
    heap.extend(passed);
    found
}

/// Bytes that a worker can still take, with what is on its way to it counted.
pub(crate) fn room(fleet: &Fleet, worker: &Worker) -> u64 {
    let coming = fleet.copies.traffic(worker.id).incoming_bytes;
    worker
        .memory_bytes
        .saturating_sub(worker.held_bytes)
        .saturating_sub(coming)
}

/// How a result of a retiring worker stands.
enum Need {
    /// It is elsewhere too, or nobody needs it.
    No,
    /// It is on its way already.
    Coming,
    Copy(u64),
}

fn need(core: &Core, task: TaskRef, worker: WorkerId) -> Need {
    let Some(graph) = core.graphs.get(&task.graph) else {
        return Need::No;
    };
    let index = task.task.0;
    let holders = graph.holders(index);
    if graph.state[index as usize] != TaskState::Finished
        || !holders.contains(&worker)
        || holders.iter().any(|holder| core.fleet.is_safe(*holder))
    {
        Need::No
    } else if core.fleet.copies.contains(task) {
        Need::Coming
    } else {
        Need::Copy(graph.bytes[index as usize])
    }
}

/// Bytes that only workers that are about to go hold, of those that this is the first of them to
/// hold.
pub(crate) fn unsafe_bytes(core: &Core, place: u32) -> u64 {
    let Some(record) = core.fleet.at(place) else {
        return 0;
    };
    let pending = record.retirement.iter().flat_map(|own| &own.pending);
    let is_first = |task: TaskRef| core.holders(task).iter().min() == Some(&record.id);
    pending.fold(0, |sum, task| match need(core, *task, record.id) {
        Need::Copy(bytes) if is_first(*task) => sum.saturating_add(bytes),
        _ => sum,
    })
}

/// Goes on with all retirements.
pub(crate) fn pump(core: &mut Core, now: Timestamp, effects: &mut Vec<Effect>) {
    let mut retiring: Vec<(WorkerId, u32)> = core
        .fleet
        .iter()
        .filter(|(_, worker)| worker.is_retiring() && !worker.is_suspect())
        .map(|(place, worker)| (worker.id, place))
        .collect();
    retiring.sort_unstable();
    let mut takers = None;
    for (_, place) in retiring {
        move_late(core, place, now, effects);
        copy_results(core, place, &mut takers, effects);
        tell_if_empty(core, place, effects);
    }
}

/// Takes away what is still there at the deadline.
fn move_late(core: &mut Core, place: u32, now: Timestamp, effects: &mut Vec<Effect>) {
    let Some(record) = core.fleet.at(place) else {
        return;
    };
    let is_late = |own: &Retirement| now >= own.deadline;
    if record.placed() == 0 || !record.retirement.as_deref().is_some_and(is_late) {
        return;
    }
    let worker = record.id;
    let entries = record.entries.iter().flatten();
    let late: Vec<TaskRef> = entries.map(|entry| entry.task).collect();
    for task in late {
        if let Some(mut scope) = core.scope(task.graph, effects)
            && scope.is_at(task.task.0, worker)
        {
            scope.cancel(task.task.0);
            scope.requeue(task.task.0);
            scope.conclude();
        }
    }
}

/// Asks for copies of what is not safe, as many as may be on their way.
fn copy_results(
    core: &mut Core,
    place: u32,
    takers: &mut Option<Takers>,
    effects: &mut Vec<Effect>,
) {
    let Some(record) = core.fleet.at_mut(place) else {
        return;
    };
    let (from, group) = (record.id, record.group.clone());
    let Some(own) = &mut record.retirement else {
        return;
    };
    own.pending.append(&mut own.watched);
    let mut pending = std::mem::take(&mut own.pending);
    let failures = std::mem::take(&mut own.failures);
    let mut watched = Vec::new();
    let mut refusal = None;
    while let Some(task) = pending.pop() {
        let bytes = match need(core, task, from) {
            Need::No => continue,
            Need::Coming => {
                watched.push(task);
                continue;
            }
            Need::Copy(bytes) => bytes,
        };
        let unable = failures.get(&task).map_or(&[][..], Vec::as_slice);
        let takers = takers.get_or_insert_with(|| Takers::of(&core.fleet));
        let found = if core.fleet.copies.traffic(from).outgoing >= COPIES_FROM_MAX {
            Found::Busy
        } else if unable.len() > COPY_FAILURES_MAX {
            Found::Nobody
        } else {
            match takers.find(&group, bytes, unable) {
                // Better one that failed before than none.
                Found::Nobody => takers.find(&group, bytes, &[]),
                found => found,
            }
        };
        match found {
            Found::Room(to) => {
                let transfer = Transfer { from, to, bytes };
                core.fleet.copies.begin(task, transfer);
                if let Some(worker) = core.fleet.get(to) {
                    takers.enter(&core.fleet, worker);
                }
                let worker = to;
                effects.push(Effect::Copy { worker, task, from });
                watched.push(task);
            }
            Found::Busy => {
                pending.push(task);
                break;
            }
            Found::Nobody => {
                refusal = Some(no_room(core, task, bytes, unable));
                pending.push(task);
                break;
            }
        }
    }
    put_back(core, place, (pending, watched, failures));
    if let Some(reason) = refusal {
        refuse(core, place, reason, effects);
        *takers = None;
    }
}

type Lists = (Vec<TaskRef>, Vec<TaskRef>, BTreeMap<TaskRef, Vec<WorkerId>>);

fn put_back(core: &mut Core, place: u32, (pending, watched, failures): Lists) {
    let own = core
        .fleet
        .at_mut(place)
        .and_then(|record| record.retirement.as_mut());
    if let Some(own) = own {
        own.pending = pending;
        own.watched = watched;
        own.failures = failures;
    }
}

/// Why a result cannot be copied anywhere.
fn no_room(core: &Core, task: TaskRef, bytes: u64, unable: &[WorkerId]) -> String {
    let key = core.key(task).unwrap_or_default();
    if !unable.is_empty() {
        let count = unable.len();
        return format!("result `{key}` could not be copied: {count} workers failed to fetch it");
    }
    let open = core.fleet.iter().filter(|(_, worker)| worker.is_open);
    match open.map(|(_, worker)| room(&core.fleet, worker)).max() {
        None => format!("no other worker can take result `{key}`"),
        Some(most) => format!(
            "no other worker has room for result `{key}` of {bytes} bytes, the most is {most} bytes"
        ),
    }
}

/// The worker does not retire.
pub(crate) fn refuse(core: &mut Core, place: u32, reason: String, effects: &mut Vec<Effect>) {
    core.restand(place, |record| record.retirement = None);
    if let Some(worker) = core.fleet.at(place).map(|record| record.id) {
        effects.push(Effect::RetireRefused { worker, reason });
    }
}

fn tell_if_empty(core: &mut Core, place: u32, effects: &mut Vec<Effect>) {
    let Some(record) = core.fleet.at(place) else {
        return;
    };
    let (worker, is_idle) = (record.id, record.placed() == 0);
    let outgoing = core.fleet.copies.traffic(worker).outgoing;
    let record = core.fleet.at_mut(place);
    let Some(own) = record.and_then(|record| record.retirement.as_mut()) else {
        return;
    };
    let is_empty = is_idle && outgoing == 0 && own.pending.is_empty() && own.watched.is_empty();
    if is_empty && !own.is_empty_told {
        effects.push(Effect::WorkerEmpty { worker });
    }
    own.is_empty_told = is_empty;
}

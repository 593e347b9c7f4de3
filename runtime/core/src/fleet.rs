//! The workers that are connected, and what was handed to each.
//!
//! Invariants: load, occupancy and the amounts of resources in use are the sums over the entries of
//! a worker that have their slots; `held_bytes` and `held_count` those over the results that name it as a holder;
//! `is_open`, `suspects` and `retiring` follow from the standing of the workers, which only
//! [`Fleet::restand`] changes. Never looks into a graph.

use std::cmp::Reverse;

use crate::digest::{AttemptState, Digest};
use crate::drain::{Copies, Retirement};
use crate::event::WorkerInfo;
use crate::ids::{IdMap, TaskRef, Timestamp, WorkerId};
use crate::place::Rank;
use crate::pools::Pools;

/// Slots that a worker can have; more are not used.
pub(crate) const WORKER_SLOTS_MAX: u32 = 65_536;
/// Tasks of one slot that may wait at each slot of a worker.
pub(crate) const QUEUE_DEPTH_MAX: u64 = 1_024;
/// Tasks of a worker with more are not looked at one by one when a task is placed.
const ENTRIES_LOOKED_AT_MAX: usize = 32;
/// Entries of `held_log` beyond twice the results held, before it is cleaned.
const HELD_LOG_SLACK: usize = 1_024;

/// Whether a task on a worker has its slots and resources there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Taken,
    /// They are free for others while it runs.
    Given,
    /// It has them again, or brought them along, though others may have got them: so the sum may be
    /// more than there is.
    TakenBack,
}

/// A task on a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) task: TaskRef,
    pub(crate) priority: i32,
    /// As it was when the task was handed over.
    pub(crate) turn: u32,
    /// What its run is expected to take.
    pub(crate) expected_micros: u32,
    /// Slots it takes there.
    pub(crate) slots: u32,
    pub(crate) is_started: bool,
    /// Since when it runs, as far as is known here; none while others keep it waiting.
    pub(crate) begun_at: Option<Timestamp>,
    pub(crate) hold: Hold,
    /// How many tasks of its graph had finished when it was handed over.
    pub(crate) finishes_before: u64,
}

impl Entry {
    /// What its worker does with it, as far as is known.
    pub(crate) fn state(&self) -> AttemptState {
        match (self.is_started, self.hold) {
            (false, _) => AttemptState::Queued,
            (true, Hold::Given) => AttemptState::Seceded,
            (true, _) => AttemptState::Running,
        }
    }

    /// Its place in the order in which the worker starts tasks.
    fn rank(&self) -> Rank {
        let TaskRef { graph, task } = self.task;
        (Reverse(self.priority), graph, (self.turn, task.0))
    }

    /// Its part in the occupancy of the worker.
    fn occupancy(&self) -> u64 {
        u64::from(self.expected_micros) * u64::from(self.slots)
    }

    /// How much longer a run that began then is expected to take. It may end at any moment once it has
    /// taken as long as expected; one that takes more than twice as long may go on for long.
    fn remaining_micros(&self, begun_at: Timestamp, now: Timestamp) -> u64 {
        let expected = u64::from(self.expected_micros);
        let elapsed = now.micros_since(begun_at);
        let is_late = elapsed > 2 * expected;
        if is_late {
            elapsed - 2 * expected
        } else {
            expected.saturating_sub(elapsed)
        }
    }
}

/// A task resource that a worker offers.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) total: u64,
    pub(crate) used: u64,
}

/// One worker.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each says something of its own, and any of them may hold with any other"
)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) slots: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) offers: Vec<Offer>,
    /// Tasks handed to it, at positions that do not move.
    pub(crate) entries: Vec<Option<Entry>>,
    free_entries: Vec<u32>,
    /// Slots of all entries.
    pub(crate) load: u64,
    /// Expected run time times slots of all entries.
    pub(crate) occupancy: u64,
    pub(crate) started: u32,
    pub(crate) held_bytes: u64,
    pub(crate) held_count: usize,
    /// Of the results it holds.
    pub(crate) held_digest: Digest,
    /// Every result it holds, and some that it held.
    pub(crate) held_log: Vec<TaskRef>,
    /// Tasks that ran there when it was lost of sight and that run elsewhere now.
    pub(crate) rerun: Vec<TaskRef>,
    /// New work may go there: it is not suspect, not retiring, not paused.
    pub(crate) is_open: bool,
    /// It said that it has no room.
    pub(crate) is_paused: bool,
    /// Since when nobody hears of it.
    pub(crate) suspect_since: Option<Timestamp>,
    /// It is asked to go.
    pub(crate) retirement: Option<Box<Retirement>>,
    /// Since when it has nothing to do, as far as ticks can tell.
    pub(crate) idle_since: Option<Timestamp>,
    /// It had something to do since the last tick.
    pub(crate) was_busy: bool,
    /// In the fleet's list of changes.
    is_changed: bool,
}

impl Worker {
    fn new(id: WorkerId, info: WorkerInfo) -> Self {
        let mut offers: Vec<Offer> = Vec::with_capacity(info.resources.len());
        for (name, total) in info.resources {
            if !offers.iter().any(|offer| offer.name == name) {
                offers.push(Offer {
                    name,
                    total,
                    used: 0,
                });
            }
        }
        Self {
            id,
            name: info.name,
            group: info.group,
            slots: info.slots.clamp(1, WORKER_SLOTS_MAX),
            memory_bytes: info.memory_bytes,
            offers,
            entries: Vec::new(),
            free_entries: Vec::new(),
            load: 0,
            occupancy: 0,
            started: 0,
            held_bytes: 0,
            held_count: 0,
            held_digest: Digest::default(),
            held_log: Vec::new(),
            rerun: Vec::new(),
            is_open: true,
            is_paused: false,
            suspect_since: None,
            retirement: None,
            idle_since: None,
            was_busy: false,
            is_changed: false,
        }
    }

    /// Whether nobody hears of it, though it may come back.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect_since.is_some()
    }

    /// Whether it is asked to go.
    pub(crate) fn is_retiring(&self) -> bool {
        self.retirement.is_some()
    }

    /// Whether results that it holds are safe there for now.
    pub(crate) fn is_safe(&self) -> bool {
        self.suspect_since.is_none() && self.retirement.is_none()
    }

    /// Number of tasks handed to it.
    pub(crate) fn placed(&self) -> usize {
        self.entries.len() - self.free_entries.len()
    }

    /// Slots that a task takes here: one that asks for more than there are takes all.
    pub(crate) fn slots_taken(&self, asked: u32) -> u32 {
        asked.clamp(1, self.slots)
    }

    /// Whether a task could start at once.
    pub(crate) fn has_room(&self, slots: u32) -> bool {
        self.load + u64::from(slots) <= u64::from(self.slots)
    }

    /// How long a task that comes now is expected to wait, without regard to how long the others have
    /// run already.
    pub(crate) fn wait_micros(&self, slots: u32) -> u64 {
        if self.has_room(slots) {
            0
        } else {
            self.occupancy / u64::from(self.slots)
        }
    }

    /// How long a task of this rank that comes now is expected to wait: until the first run ends, and
    /// then as long as those take that go before it. Looks at every entry, unless there are many.
    pub(crate) fn wait_of_micros(&self, rank: Rank, slots: u32, now: Timestamp) -> u64 {
        if self.has_room(slots) || self.placed() > ENTRIES_LOOKED_AT_MAX {
            return self.wait_micros(slots);
        }
        let running = self.entries.iter().flatten();
        let running = running.filter(|entry| entry.hold != Hold::Given);
        let remaining = running.filter_map(|entry| {
            let begun_at = entry.begun_at?;
            Some(entry.remaining_micros(begun_at, now))
        });
        let soonest = remaining.min().unwrap_or(0);
        soonest + self.ahead_of(rank).1 / u64::from(self.slots)
    }

    /// Slots and occupancy of those that wait and go before a task of this rank.
    fn ahead_of(&self, rank: Rank) -> (u64, u64) {
        let ahead = self.entries.iter().flatten();
        let ahead = ahead.filter(|entry| entry.begun_at.is_none() && entry.rank() < rank);
        ahead.fold((0, 0), |(slots, occupancy), entry| {
            (
                slots + u64::from(entry.slots),
                occupancy + entry.occupancy(),
            )
        })
    }

    /// Whether so little goes before a task of this rank that it is among the next to start, however
    /// much waits there.
    pub(crate) fn is_short_before(&self, rank: Rank) -> bool {
        self.placed() <= ENTRIES_LOOKED_AT_MAX && self.ahead_of(rank).0 < u64::from(self.slots)
    }

    /// Orders workers by how soon a task of one slot could start.
    pub(crate) fn load_key(&self) -> u64 {
        const FULL: u64 = 1 << 63;
        let wait = self.occupancy / u64::from(self.slots);
        if self.load < u64::from(self.slots) {
            wait
        } else {
            wait | FULL
        }
    }

    /// Whether the amounts are free now.
    pub(crate) fn has_free(&self, resources: &[(String, u64)]) -> bool {
        resources.iter().all(|(name, amount)| {
            *amount == 0
                || self
                    .offer(name)
                    .is_some_and(|offer| offer.total.saturating_sub(offer.used) >= *amount)
        })
    }

    fn offer(&self, name: &str) -> Option<&Offer> {
        self.offers.iter().find(|offer| offer.name == name)
    }

    /// Whether the worker has the amounts at all.
    pub(crate) fn offers_all(&self, resources: &[(String, u64)]) -> bool {
        resources.iter().all(|(name, amount)| {
            *amount == 0 || self.offer(name).is_some_and(|offer| offer.total >= *amount)
        })
    }

    /// Takes the amounts, or gives them back.
    pub(crate) fn use_resources(&mut self, resources: &[(String, u64)], is_taken: bool) {
        for (name, amount) in resources {
            if let Some(offer) = self.offers.iter_mut().find(|offer| offer.name == *name) {
                offer.used = if is_taken {
                    offer.used + amount
                } else {
                    offer.used.saturating_sub(*amount)
                };
            }
        }
    }

    /// Adds a task; returns its position.
    pub(crate) fn add(&mut self, entry: Entry) -> u32 {
        self.load += u64::from(entry.slots);
        self.occupancy += entry.occupancy();
        self.was_busy = true;
        if let Some(position) = self.free_entries.pop() {
            self.entries[position as usize] = Some(entry);
            return position;
        }
        self.entries.push(Some(entry));
        u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
    }

    /// The task at a position.
    pub(crate) fn entry(&self, position: u32) -> Option<&Entry> {
        self.entries.get(position as usize)?.as_ref()
    }

    /// Removes the task at a position; whether it had its slots and resources.
    pub(crate) fn remove(&mut self, position: u32) -> bool {
        let entry = self.entries.get_mut(position as usize);
        let Some(entry) = entry.and_then(Option::take) else {
            return false;
        };
        self.free_entries.push(position);
        self.started -= u32::from(entry.is_started);
        let has_slots = entry.hold != Hold::Given;
        if has_slots {
            self.load -= u64::from(entry.slots);
            self.occupancy -= entry.occupancy();
        }
        has_slots
    }

    /// The task at a position gives its slots to others, or takes them again; whether that changes
    /// anything.
    pub(crate) fn give_slots(&mut self, position: u32, is_given: bool) -> bool {
        let entry = self.entries.get_mut(position as usize);
        let Some(Some(entry)) = entry else {
            return false;
        };
        if (entry.hold == Hold::Given) == is_given {
            return false;
        }
        let (slots, occupancy) = (u64::from(entry.slots), entry.occupancy());
        if is_given {
            entry.hold = Hold::Given;
            self.load -= slots;
            self.occupancy -= occupancy;
        } else {
            entry.hold = Hold::TakenBack;
            self.load += slots;
            self.occupancy += occupancy;
        }
        true
    }

    /// The task at a position runs now.
    pub(crate) fn start(&mut self, position: u32, now: Timestamp) {
        if let Some(Some(entry)) = self.entries.get_mut(position as usize)
            && !entry.is_started
        {
            entry.is_started = true;
            entry.begun_at.get_or_insert(now);
            self.started += 1;
        }
    }

    /// It holds one more result.
    pub(crate) fn hold(&mut self, task: TaskRef, bytes: u64) {
        self.held_bytes = self.held_bytes.saturating_add(bytes);
        self.held_count += 1;
        self.held_digest.add_held(task);
        self.held_log.push(task);
        if let Some(retirement) = &mut self.retirement {
            retirement.pending.push(task);
        }
    }

    /// It holds one result less.
    pub(crate) fn unhold(&mut self, task: TaskRef, bytes: u64) {
        self.held_digest.remove_held(task);
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        self.held_count = self.held_count.saturating_sub(1);
    }

    /// Whether most of the log is about results that are gone.
    pub(crate) fn is_log_stale(&self) -> bool {
        self.held_log.len() > 2 * self.held_count + HELD_LOG_SLACK
    }
}

/// All workers, at places that are used again when a worker is gone.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    places: Vec<Option<Worker>>,
    free: Vec<u32>,
    by_id: IdMap<WorkerId, u32>,
    /// Places whose load may have changed.
    changed: Vec<u32>,
    /// Retractions that were not answered yet.
    pub(crate) retracting: usize,
    /// Workers that are suspect.
    pub(crate) suspects: usize,
    /// Workers that are retiring.
    pub(crate) retiring: usize,
    /// Copies that were asked for and are on their way.
    pub(crate) copies: Copies,
    /// The worker groups, present and remembered.
    pub(crate) pools: Pools,
    /// Results that had to be made again: workers no longer had them.
    pub(crate) recomputed: u64,
    /// Of all workers.
    pub(crate) slots: u64,
    /// The time of the last event.
    pub(crate) now: Timestamp,
}

impl Fleet {
    /// Adds a worker; returns its place.
    pub(crate) fn add(&mut self, id: WorkerId, info: WorkerInfo) -> u32 {
        let worker = Worker::new(id, info);
        self.pools.worker_joined(&worker);
        self.slots += u64::from(worker.slots);
        let place = if let Some(place) = self.free.pop() {
            self.places[place as usize] = Some(worker);
            place
        } else {
            self.places.push(Some(worker));
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_id.insert(id, place);
        self.changed.push(place);
        place
    }

    /// Takes a worker out.
    pub(crate) fn remove(&mut self, id: WorkerId) -> Option<(u32, Worker)> {
        let place = self.by_id.remove(&id)?;
        self.free.push(place);
        self.changed.push(place);
        let worker = self.places.get_mut(place as usize)?.take()?;
        self.slots -= u64::from(worker.slots);
        self.suspects -= usize::from(worker.is_suspect());
        self.retiring -= usize::from(worker.is_retiring());
        Some((place, worker))
    }

    /// Changes the standing of a worker: suspect, retiring, paused.
    pub(crate) fn restand(&mut self, place: u32, change: impl FnOnce(&mut Worker)) {
        let Some(worker) = self.at_mut(place) else {
            return;
        };
        let before = (worker.is_suspect(), worker.is_retiring());
        change(worker);
        worker.is_open = worker.is_safe() && !worker.is_paused;
        let after = (worker.is_suspect(), worker.is_retiring());
        self.suspects = self.suspects + usize::from(after.0) - usize::from(before.0);
        self.retiring = self.retiring + usize::from(after.1) - usize::from(before.1);
    }

    /// Whether a result with this holder would be there if the holder were gone soon.
    pub(crate) fn is_safe(&self, holder: WorkerId) -> bool {
        self.get(holder).is_some_and(Worker::is_safe)
    }

    /// Whether a holder can be heard.
    pub(crate) fn is_heard(&self, holder: WorkerId) -> bool {
        self.get(holder).is_some_and(|worker| !worker.is_suspect())
    }

    /// Where a worker is.
    pub(crate) fn place_of(&self, id: WorkerId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn at(&self, place: u32) -> Option<&Worker> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(crate) fn at_mut(&mut self, place: u32) -> Option<&mut Worker> {
        let worker = self.places.get_mut(place as usize)?.as_mut()?;
        if !worker.is_changed {
            worker.is_changed = true;
            self.changed.push(place);
        }
        Some(worker)
    }

    /// A place whose load may have changed since it was last asked for.
    pub(crate) fn next_changed(&mut self) -> Option<u32> {
        let place = self.changed.pop()?;
        if let Some(Some(worker)) = self.places.get_mut(place as usize) {
            worker.is_changed = false;
        }
        Some(place)
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.at(self.place_of(id)?)
    }

    pub(crate) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        let place = self.place_of(id)?;
        self.at_mut(place)
    }

    /// Number of places, used or not.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// All workers with their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Worker)> {
        (0..)
            .zip(&self.places)
            .filter_map(|(place, worker)| Some((place, worker.as_ref()?)))
    }

    /// All workers.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.places.iter_mut().flatten()
    }

    /// Number of workers.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

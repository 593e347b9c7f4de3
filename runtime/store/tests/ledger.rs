//! What the ledger decides, without threads and disks.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};

use oxidask_store::{Arrival, Ledger, LedgerSettings, Origin, Part, Place, ResultKey, SpillStep};
use proptest::prelude::*;

fn key(task: u32) -> ResultKey {
    ResultKey::new(1, task)
}

fn arrival(address: usize, bytes: u64, origin: Origin) -> Arrival<()> {
    Arrival {
        bytes,
        parts: vec![Part { address, bytes }],
        origin,
        value: (),
    }
}

fn ledger(disk_limit_bytes: u64) -> Ledger<()> {
    Ledger::new(LedgerSettings::new(1_000, disk_limit_bytes))
}

fn hold(ledger: &mut Ledger<()>, task: u32, bytes: u64, now: u64) {
    let arrival = arrival(task as usize + 1, bytes, Origin::Result);
    ledger.insert(key(task), arrival, now).unwrap();
}

#[test]
fn nothing_is_done_below_the_share_and_the_least_useful_goes_first() {
    let mut ledger = ledger(10_000);
    hold(&mut ledger, 0, 300, 0);
    hold(&mut ledger, 1, 300, 5);
    hold(&mut ledger, 2, 100, 6);
    assert!(ledger.next_spill_steps(10).is_empty());
    hold(&mut ledger, 3, 1, 9);
    let steps = ledger.next_spill_steps(10);
    let generation = ledger.get(key(0)).unwrap().generation;
    let first = SpillStep::Write {
        key: key(0),
        generation,
    };
    assert_eq!(steps, [first]);
    // It is being written: that is enough to come below the target.
    assert!(ledger.next_spill_steps(11).is_empty());
    assert_eq!(
        ledger.end_write(key(0), generation, true),
        Some(Place::Both)
    );
    assert!(ledger.drop_memory(key(0)).is_some());
    assert_eq!(ledger.held().bytes(), 401);
    assert_eq!(ledger.held().disk_bytes, 300);
    assert_eq!(ledger.get(key(0)).unwrap().place, Place::Disk);
}

#[test]
fn memory_that_is_had_for_nothing_goes_before_anything_is_written() {
    let mut ledger = ledger(10_000);
    hold(&mut ledger, 0, 800, 0);
    ledger
        .insert(key(1), arrival(100, 100, Origin::Copy), 50)
        .unwrap();
    hold(&mut ledger, 2, 100, 51);
    // One that is on the disk already and was read back.
    let pinned = ledger.pin(key(0)).unwrap();
    let steps = ledger.next_spill_steps(60);
    let generation = ledger.get(key(2)).unwrap().generation;
    let write = SpillStep::Write {
        key: key(2),
        generation,
    };
    assert_eq!(steps, [SpillStep::DropCopy(key(1)), write]);
    ledger.remove(key(1));
    ledger.end_write(key(2), generation, true);
    // Nobody took its memory back yet, so this is the cheapest step; the pinned one stays.
    assert_eq!(ledger.next_spill_steps(61), [SpillStep::DropMemory(key(2))]);
    ledger.drop_memory(key(2)).unwrap();
    assert!(ledger.next_spill_steps(62).is_empty());
    assert!(!ledger.is_spill_due());
    ledger.unpin(key(0), pinned);
    assert_eq!(ledger.next_spill_steps(63).len(), 1);
}

#[test]
fn what_is_larger_than_everything_is_kept_and_goes_first() {
    let mut ledger = ledger(10_000);
    hold(&mut ledger, 0, 500, 0);
    hold(&mut ledger, 1, 2_000, 1_000);
    let steps = ledger.next_spill_steps(1_000);
    assert!(matches!(steps[0], SpillStep::Write { key: first, .. } if first == key(1)));
    assert_eq!(steps.len(), 1);
}

#[test]
fn runs_are_held_back_and_let_go_at_different_marks() {
    let mut ledger = ledger(10_000);
    let run = ledger.open_reservation();
    ledger.grow(run, 799);
    assert!(!ledger.pressure().is_paused);
    ledger.grow(run, 1);
    assert!(ledger.pressure().is_paused);
    ledger.shrink(run, 100);
    assert!(ledger.pressure().is_paused);
    ledger.shrink(run, 1);
    assert!(!ledger.pressure().is_paused);
    ledger.grow(run, 500);
    ledger.close_reservation(run);
    assert_eq!(ledger.pressure(), ledger.pressure());
    assert_eq!(ledger.pressure().memory_bytes, 0);
    assert!(!ledger.pressure().is_paused);
}

#[test]
fn nobody_is_held_back_when_waiting_changes_nothing() {
    let mut ledger = ledger(10_000);
    hold(&mut ledger, 0, 900, 0);
    let pinned = ledger.pin(key(0)).unwrap();
    assert!(ledger.pressure().is_paused);
    // The only entry is pinned: there is nothing to spill and nothing runs.
    assert!(ledger.next_spill_steps(1).is_empty());
    assert!(!ledger.pressure().is_paused);
    ledger.unpin(key(0), pinned);
    assert!(ledger.pressure().is_paused);

    let mut without_disk = self::ledger(0);
    hold(&mut without_disk, 0, 900, 0);
    assert!(!without_disk.pressure().is_paused);
    without_disk.open_reservation();
    assert!(without_disk.pressure().is_paused);
}

#[test]
fn a_task_gets_what_can_be_spared_and_a_promise_is_kept() {
    let mut ledger = ledger(10_000);
    let (one, two) = (ledger.open_reservation(), ledger.open_reservation());
    // 900 may be granted; 225 of it are promised to the other one.
    assert!(ledger.try_grow(one, 675).is_ok());
    let refused = ledger.try_grow(one, 1).unwrap_err();
    assert_eq!(
        (refused.needed, refused.taken, refused.limit),
        (1, 675, 900)
    );
    assert!(ledger.try_grow(two, 225).is_ok());
    assert!(ledger.try_grow(two, 1).is_err());
    ledger.grow(two, 50);
    assert_eq!(ledger.held().reserved_bytes, 950);
    ledger.close_reservation(one);
    assert!(ledger.try_grow(two, 600).is_ok());
    ledger.shrink(two, u64::MAX);
    assert_eq!(ledger.reserved_bytes(two), 0);
    ledger.grow(two, u64::MAX);
    ledger.grow(two, u64::MAX);
    ledger.close_reservation(two);
    assert_eq!(ledger.held().reserved_bytes, 0);
}

#[test]
fn what_will_be_spilled_soon_counts_as_free_up_to_a_bound() {
    let mut ledger = ledger(10_000);
    hold(&mut ledger, 0, 600, 0);
    let run = ledger.open_reservation();
    assert!(ledger.try_grow(run, 400).is_ok());
    assert!(ledger.try_grow(run, 1).is_err());
    // The refusal makes room although the disk would not be used yet.
    assert!(ledger.is_spill_due());
    ledger.shrink(run, 400);
    assert_eq!(ledger.next_spill_steps(1).len(), 0);
    assert!(ledger.try_grow(run, 500).is_err());
    assert_eq!(ledger.next_spill_steps(1).len(), 1);
}

#[test]
fn a_full_disk_refuses_arrivals_only_past_the_limit() {
    let mut ledger = ledger(10_000);
    hold(&mut ledger, 0, 900, 0);
    let steps = ledger.next_spill_steps(1);
    let generation = ledger.get(key(0)).unwrap().generation;
    assert_eq!(steps.len(), 1);
    ledger.end_write(key(0), generation, false);
    ledger.set_disk_usable(false);
    assert!(ledger.pressure().is_disk_full);
    assert_eq!(ledger.held().disk_bytes, 0);
    hold(&mut ledger, 1, 100, 2);
    let refused = ledger.insert(key(2), arrival(9, 1, Origin::Result), 3);
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.needed, refused.held, refused.limit),
        (1, 1_000, 1_000)
    );
    assert!(ledger.next_spill_steps(4).is_empty());
    ledger.set_disk_usable(true);
    assert!(
        ledger
            .insert(key(2), arrival(9, 1, Origin::Result), 3)
            .is_ok()
    );
    assert_eq!(ledger.next_spill_steps(5).len(), 1);
}

#[test]
fn the_share_of_the_disk_is_kept_and_comes_back() {
    let mut ledger = ledger(500);
    hold(&mut ledger, 0, 400, 0);
    hold(&mut ledger, 1, 400, 1);
    let steps = ledger.next_spill_steps(2);
    assert_eq!(steps.len(), 1);
    let SpillStep::Write {
        key: first,
        generation,
    } = steps[0]
    else {
        unreachable!("a write")
    };
    ledger.end_write(first, generation, true);
    ledger.drop_memory(first);
    hold(&mut ledger, 2, 400, 3);
    assert!(ledger.next_spill_steps(4).is_empty());
    assert!(ledger.pressure().is_disk_full);
    assert!(
        ledger
            .insert(key(3), arrival(77, 400, Origin::Result), 4)
            .is_err()
    );
    ledger.remove(first);
    assert!(!ledger.pressure().is_disk_full);
    assert_eq!(ledger.next_spill_steps(5).len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, usize, u64, Origin),
    Remove(u32),
    RemoveGraph,
    Clear,
    Touch(u32),
    Pin(u32),
    Unpin,
    Spill,
    EndWrite(bool),
    Load(u32, usize),
    Open,
    Close,
    Grow(u64),
    TryGrow(u64),
    Shrink(u64),
    Disk(bool),
    Free(u32),
}

fn any_step() -> impl Strategy<Value = Step> {
    let task = 0..8_u32;
    let origin = prop_oneof![3 => Just(Origin::Result), 1 => Just(Origin::Copy)];
    prop_oneof![
        8 => (task.clone(), 1..6_usize, 0..400_u64, origin).prop_map(|(t, a, b, o)| Step::Insert(t, a, b, o)),
        3 => task.clone().prop_map(Step::Remove),
        1 => Just(Step::RemoveGraph),
        1 => Just(Step::Clear),
        2 => task.clone().prop_map(Step::Touch),
        3 => task.clone().prop_map(Step::Pin),
        3 => Just(Step::Unpin),
        6 => Just(Step::Spill),
        5 => any::<bool>().prop_map(Step::EndWrite),
        3 => (task.clone(), 6..9_usize).prop_map(|(t, a)| Step::Load(t, a)),
        2 => Just(Step::Open),
        1 => Just(Step::Close),
        2 => (0..500_u64).prop_map(Step::Grow),
        2 => (0..500_u64).prop_map(Step::TryGrow),
        2 => (0..500_u64).prop_map(Step::Shrink),
        1 => any::<bool>().prop_map(Step::Disk),
        2 => task.prop_map(Step::Free),
    ]
}

/// A ledger beside what a simple mind would remember of it.
struct Model {
    ledger: Ledger<()>,
    pins: Vec<(ResultKey, u64)>,
    writes: Vec<(ResultKey, u64)>,
    /// Parts of the entries in memory.
    parts: BTreeMap<ResultKey, Vec<Part>>,
    wanted: BTreeSet<ResultKey>,
    runs: Vec<(u64, u64)>,
    steps_seen: Vec<SpillStep>,
    now: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            ledger: ledger(1_500),
            pins: Vec::new(),
            writes: Vec::new(),
            parts: BTreeMap::new(),
            wanted: BTreeSet::new(),
            runs: Vec::new(),
            steps_seen: Vec::new(),
            now: 0,
        }
    }

    fn apply(&mut self, step: &Step) {
        self.now += 1;
        match *step {
            Step::Insert(task, address, bytes, origin) => {
                // Equal parts are equal bytes, so the length goes with the address.
                let arrival = arrival(address, bytes / 100 * 100 + 1, origin);
                let parts = arrival.parts.clone();
                if self.ledger.insert(key(task), arrival, self.now).is_ok() {
                    self.parts.insert(key(task), parts);
                    self.wanted.insert(key(task));
                }
            }
            Step::Remove(task) => {
                let removed = self.ledger.remove(key(task)).is_some();
                assert_eq!(removed, self.wanted.remove(&key(task)));
                self.parts.remove(&key(task));
            }
            Step::RemoveGraph => {
                assert_eq!(self.ledger.remove_graph(1).len(), self.wanted.len());
                self.forget_all();
            }
            Step::Clear => {
                assert_eq!(self.ledger.clear().len(), self.wanted.len());
                self.forget_all();
            }
            Step::Touch(task) => self.ledger.touch(key(task), self.now),
            Step::Pin(task) => {
                let pinned = self.ledger.pin(key(task));
                self.pins
                    .extend(pinned.map(|generation| (key(task), generation)));
            }
            Step::Unpin => {
                if let Some((key, generation)) = self.pins.pop() {
                    self.ledger.unpin(key, generation);
                }
            }
            Step::Spill => self.spill(),
            Step::EndWrite(is_written) => self.end_write(is_written),
            Step::Load(task, address) => self.load(key(task), address),
            Step::Open => {
                let run = self.ledger.open_reservation();
                self.runs.push((run, 0));
            }
            Step::Close => {
                if let Some((run, _)) = self.runs.pop() {
                    self.ledger.close_reservation(run);
                }
            }
            Step::Grow(bytes) => self.with_run(|ledger, (run, taken)| {
                ledger.grow(*run, bytes);
                *taken += bytes;
            }),
            Step::TryGrow(bytes) => self.with_run(|ledger, (run, taken)| {
                if ledger.try_grow(*run, bytes).is_ok() {
                    *taken += bytes;
                }
            }),
            Step::Shrink(bytes) => self.with_run(|ledger, (run, taken)| {
                ledger.shrink(*run, bytes);
                *taken = taken.saturating_sub(bytes);
            }),
            Step::Disk(is_usable) => self.ledger.set_disk_usable(is_usable),
            Step::Free(task) => {
                if let Some(parts) = self.parts.get_mut(&key(task)) {
                    self.ledger.shrink_entry(key(task), parts, 10);
                    parts.clear();
                }
            }
        }
    }

    fn forget_all(&mut self) {
        self.wanted.clear();
        self.parts.clear();
    }

    fn with_run(&mut self, act: impl FnOnce(&mut Ledger<()>, &mut (u64, u64))) {
        if let Some(run) = self.runs.first_mut() {
            act(&mut self.ledger, run);
        }
    }

    fn spill(&mut self) {
        let pinned: BTreeSet<_> = self.pins.iter().copied().collect();
        let is_pinned = |ledger: &Ledger<()>, key| {
            let generation = ledger.get(key).unwrap().generation;
            pinned.contains(&(key, generation))
        };
        for step in self.ledger.next_spill_steps(self.now) {
            match step {
                SpillStep::DropMemory(key) => {
                    assert!(!is_pinned(&self.ledger, key));
                    assert!(self.ledger.drop_memory(key).is_some());
                    self.parts.remove(&key);
                }
                SpillStep::DropCopy(key) => {
                    assert!(!is_pinned(&self.ledger, key));
                    assert_eq!(self.ledger.remove(key).unwrap().origin, Origin::Copy);
                    self.wanted.remove(&key);
                    self.parts.remove(&key);
                }
                SpillStep::Write { key, generation } => {
                    assert!(!is_pinned(&self.ledger, key));
                    self.writes.push((key, generation));
                }
            }
            self.steps_seen.push(step);
        }
    }

    fn end_write(&mut self, is_written: bool) {
        let Some((key, generation)) = self.writes.pop() else {
            return;
        };
        let place = self.ledger.end_write(key, generation, is_written);
        let is_there = self
            .ledger
            .get(key)
            .is_some_and(|e| e.generation == generation);
        assert_eq!(place.is_some(), is_there);
        if place == Some(Place::Both) && self.ledger.drop_memory(key).is_some() {
            self.parts.remove(&key);
        }
    }

    fn load(&mut self, key: ResultKey, address: usize) {
        let Some(entry) = self.ledger.get(key) else {
            return;
        };
        let (generation, place) = (entry.generation, entry.place);
        let parts = vec![Part { address, bytes: 77 }];
        let loaded = self.ledger.loaded(key, generation, parts.clone(), self.now);
        assert_eq!(loaded.is_some(), place == Place::Disk);
        if loaded.is_some() {
            self.parts.insert(key, parts);
        }
    }

    fn check(&self) {
        let held = self.ledger.held();
        let unique: BTreeSet<_> = self.parts.values().flatten().copied().collect();
        let bytes: u64 = unique.iter().map(|part| part.bytes).sum();
        assert_eq!(held.bytes(), bytes);
        let reserved: u64 = self.runs.iter().map(|(_, taken)| taken).sum();
        assert_eq!(held.reserved_bytes, reserved);
        let entries: Vec<_> = self.ledger.iter().collect();
        assert_eq!(held.results + held.copies, entries.len() as u64);
        assert_eq!(entries.len(), self.wanted.len());
        let (mut writing, mut pinned) = (0, 0);
        for (key, entry) in entries {
            assert!(self.wanted.contains(&key));
            let parts = self.parts.get(&key);
            // Never both gone and wanted.
            assert!(
                parts.is_some() || entry.place.is_on_disk(),
                "{key} is nowhere"
            );
            let memory: u64 = parts.into_iter().flatten().map(|part| part.bytes).sum();
            if entry.place == Place::Writing {
                writing += memory;
            }
            if entry.pins > 0 {
                pinned += memory;
                let is_pinned = |pin: &&(ResultKey, u64)| **pin == (key, entry.generation);
                assert_eq!(
                    self.pins.iter().filter(is_pinned).count(),
                    entry.pins as usize
                );
            }
        }
        assert_eq!((held.writing_bytes, held.pinned_bytes), (writing, pinned));
        if self.wanted.is_empty() {
            assert_eq!(held.disk_bytes, 0);
        }
        assert!(held.disk_bytes <= 1_500);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_sums_equal_the_entries_and_nothing_wanted_is_gone(
        steps in prop::collection::vec(any_step(), 0..300)
    ) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
            model.check();
        }
        // Equal calls lead to equal decisions.
        let mut again = Model::new();
        for step in &steps {
            again.apply(step);
        }
        prop_assert_eq!(&model.steps_seen, &again.steps_seen);
        prop_assert_eq!(model.ledger.pressure(), again.ledger.pressure());
    }

    #[test]
    fn spilling_ends_below_the_target_or_with_nothing_left(
        sizes in prop::collection::vec(1..400_u64, 1..30)
    ) {
        let mut ledger = ledger(1_000_000);
        for (task, bytes) in (0_u32..).zip(&sizes) {
            hold(&mut ledger, task, *bytes, u64::from(task));
        }
        let total: u64 = sizes.iter().sum();
        let mut rounds = 0;
        while ledger.is_spill_due() {
            for step in ledger.next_spill_steps(1_000) {
                if let SpillStep::Write { key, generation } = step {
                    ledger.end_write(key, generation, true);
                    ledger.drop_memory(key);
                }
            }
            rounds += 1;
            prop_assert!(rounds < 100);
        }
        let left_max = if total > 700 { 600 } else { 700 };
        prop_assert!(ledger.held().bytes() <= left_max);
    }
}

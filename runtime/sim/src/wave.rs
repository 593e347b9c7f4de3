//! An hour of load that comes and goes, with workers that come and go with it, down to none.
//!
//! Owns a plain rule that follows the scaling signal: up at once, down after a while of less, by
//! retiring. Nothing goes wrong in this hour, so nothing may run twice and nothing may starve.

use std::collections::BTreeSet;

use oxidask_core::WorkerId;

use crate::config::Config;
use crate::graphs::{Plan, Shape, layout};
use crate::network::Happening;
use crate::random::{Random, Stream};
use crate::scheduler::Input;
use crate::world::{Failure, World};

/// Time between two decisions.
const SCALE_MICROS: u64 = 5_000_000;
/// The signal must ask for less for so many decisions in a row.
const LOWER_FOR: u32 = 6;
/// The time in which waiting work is to be done.
const TARGET_SECONDS: u64 = 20;
const WORKERS_MAX: u64 = 8;
const SLOTS: u32 = 2;
/// Time for a retiring worker.
const DEADLINE_MICROS: u64 = 30_000_000;
/// From one load to the next.
const WAVE_MICROS: u64 = 600_000_000;
const WAVES: usize = 6;
/// What each wave brings, at most; all of it must be done within the first half of the wave.
const WAVE_TASKS: u32 = 400;

/// Who decides about workers, and what was seen of it.
#[derive(Debug, Default)]
pub(crate) struct Scaling {
    lower_for: u32,
    going: BTreeSet<WorkerId>,
    most: usize,
    /// Times that the last worker went.
    zeros: u32,
}

/// How the hour went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hour {
    /// Tasks of all waves.
    pub tasks: u64,
    /// Results that were made.
    pub results: u64,
    /// Tasks that had to run again.
    pub again: u64,
    /// Most workers at a time.
    pub workers_most: usize,
    /// Times that the last worker went.
    pub zeros: u32,
    /// The longest that one wave took from its graph's arrival to its end.
    pub slowest_micros: u64,
}

/// The hour.
pub fn square_wave(seed: u64) -> Result<Hour, Failure> {
    let config = Config {
        faults: 0,
        is_tight: false,
        is_fickle: false,
        has_failures: false,
        suspect_millis: 10_000,
        rerun_millis: 2_000,
        delay_micros: 2_000,
        grace_millis: 60_000,
        ..Config::of_seed(seed)
    };
    let plans = (0..WAVES).map(|wave| wave_plan(seed, wave)).collect();
    let mut world = World::empty(&config, plans);
    world.scaling = Some(Scaling::default());
    world.is_healed = true;
    world.at(0, Happening::Scale);
    let mut slowest = 0;
    for wave in 0..WAVES {
        let start = WAVE_MICROS * wave as u64 + 1_000_000;
        world.at(start, Happening::ClientConnects(wave));
        world.run_until(|world| world.runs[wave].is_complete(&world.plans[wave]))?;
        slowest = slowest.max(world.now - start);
        world.client_closes(wave);
        let end = WAVE_MICROS * (wave as u64 + 1);
        world.run_until(|world| world.now >= end)?;
        if !world.scheduler.core.workers().is_empty() {
            world.violate("workers are left though nothing is to do");
            world.run_until(|_| false)?;
        }
    }
    let scaling = world.scaling.take().unwrap_or_default();
    Ok(Hour {
        tasks: world.plans.iter().map(|plan| plan.tasks.len() as u64).sum(),
        results: world.watch.results,
        again: world.watch.again,
        workers_most: scaling.most,
        zeros: scaling.zeros,
        slowest_micros: slowest,
    })
}

/// The graph of one wave: layers whose results are all read by the next layer, of tasks of seconds.
fn wave_plan(seed: u64, wave: usize) -> Plan {
    let mut random = Random::new(seed ^ (wave as u64) << 32, Stream::Graphs);
    let shapes = [
        Shape::Independent,
        Shape::Tree(2),
        Shape::AllToAll(20),
        Shape::Stencil(16),
        Shape::Random,
        Shape::Diamonds,
    ];
    let count = WAVE_TASKS / 2 + random.small(WAVE_TASKS / 2);
    let shape = shapes[wave % shapes.len()];
    // One after the other, most of them: an hour must do.
    let count = if shape == Shape::Diamonds { 60 } else { count };
    let tasks = layout(shape, count, &mut random).into_iter().map(|inputs| {
        let micros = random.between(200_000, 4_000_000);
        (inputs, micros, 8 + random.skewed(1 << 20))
    });
    let mut plan = Plan::for_makespan(tasks.collect());
    plan.rename(format!("wave-{wave}"), wave);
    plan
}

impl World {
    /// Looks at the signal and follows it.
    pub(crate) fn scale(&mut self) {
        self.at(self.now + SCALE_MICROS, Happening::Scale);
        let Some(mut scaling) = self.scaling.take() else {
            return;
        };
        let core = &self.scheduler.core;
        let backlog = core.backlog(TARGET_SECONDS);
        let unplaceable = !backlog.unplaceable.is_empty();
        let of_groups = backlog.groups.iter().map(|group| group.workers_wanted);
        let wanted = of_groups.sum::<u64>().max(u64::from(unplaceable));
        let wanted = usize::try_from(wanted.min(WORKERS_MAX)).unwrap_or(0);
        let present: BTreeSet<WorkerId> =
            core.workers().iter().map(|worker| worker.worker).collect();
        let had_some = !scaling.going.is_empty();
        scaling.going.retain(|worker| present.contains(worker));
        scaling.zeros += u32::from(had_some && present.is_empty());
        scaling.most = scaling.most.max(present.len());
        let staying = present.len() - scaling.going.len();
        scaling.lower_for = if wanted < staying {
            scaling.lower_for + 1
        } else {
            0
        };
        for _ in staying..wanted {
            self.add_plain_process(SLOTS);
        }
        if scaling.lower_for >= LOWER_FOR {
            scaling.lower_for = 0;
            let stays = present
                .iter()
                .filter(|worker| !scaling.going.contains(worker));
            let goes: Vec<WorkerId> = stays.copied().take(staying - wanted).collect();
            scaling.going.extend(&goes);
            self.scheduler_takes(Input::Retire(goes, DEADLINE_MICROS));
        }
        self.scaling = Some(scaling);
    }
}

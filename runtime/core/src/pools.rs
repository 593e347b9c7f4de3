//! The worker groups: how many workers each has, and what one of its workers is like.
//!
//! A group without workers is remembered, so that work for it is known to be for it when it was
//! scaled to zero. Invariant: the counts are those of the workers in the fleet.

use std::collections::BTreeMap;

use crate::chunk::Requirement;
use crate::fleet::Worker;

/// Groups that are remembered; those without workers go first.
const POOLS_MAX: usize = 1_024;

/// One worker group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    pub(crate) workers: u32,
    /// Slots of the worker that joined last.
    pub(crate) slots: u32,
    /// Memory of the worker that joined last.
    pub(crate) memory_bytes: u64,
    /// Task resources of the worker that joined last.
    offers: Vec<(String, u64)>,
}

impl Pool {
    /// Whether the workers that it had could run tasks that ask for this.
    pub(crate) fn admits(&self, name: &str, requirement: &Requirement) -> bool {
        let is_named =
            requirement.workers.is_empty() || requirement.workers.iter().any(|own| own == name);
        is_named
            && requirement
                .resources
                .iter()
                .all(|(resource, amount)| self.total(resource) >= *amount)
    }

    fn total(&self, resource: &str) -> u64 {
        let offer = self.offers.iter().find(|(name, _)| name == resource);
        offer.map_or(0, |(_, total)| *total)
    }

    /// Tasks that ask for this and run on one worker at a time; at least 1.
    pub(crate) fn tasks_at_once(&self, requirement: &Requirement) -> u64 {
        let slots = u64::from(self.slots.max(1));
        let by_slots = slots / u64::from(requirement.slots.max(1)).min(slots);
        let resources = requirement.resources.iter();
        let by_resources = resources.filter(|(_, amount)| *amount > 0);
        by_resources
            .map(|(resource, amount)| self.total(resource) / amount)
            .fold(by_slots, u64::min)
            .max(1)
    }
}

/// All worker groups by name.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    all: BTreeMap<String, Pool>,
}

impl Pools {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Pool)> {
        self.all.iter().map(|(name, pool)| (name.as_str(), pool))
    }

    pub(crate) fn worker_joined(&mut self, worker: &Worker) {
        if !self.all.contains_key(&worker.group) && self.all.len() >= POOLS_MAX {
            let empty = self.all.iter().find(|(_, pool)| pool.workers == 0);
            if let Some(name) = empty.map(|(name, _)| name.clone()) {
                self.all.remove(&name);
            }
        }
        let pool = self.all.entry(worker.group.clone()).or_default();
        pool.workers += 1;
        pool.slots = worker.slots;
        pool.memory_bytes = worker.memory_bytes;
        let offers = worker.offers.iter();
        pool.offers = offers
            .map(|offer| (offer.name.clone(), offer.total))
            .collect();
    }

    pub(crate) fn worker_left(&mut self, worker: &Worker) {
        if let Some(pool) = self.all.get_mut(&worker.group) {
            pool.workers -= 1;
        }
    }
}

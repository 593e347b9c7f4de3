//! The graph that all tasks of clients are in: what its next chunk begins with.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use oxidask_core::{GraphId, Requirement};

use super::event::RestoredGraph;
use super::table::Fixed;
use super::{GROUPS_MAX, OTHER_GROUP, REQUIREMENTS_MAX};

/// Bodies are told apart by these two hashes, so that their contents need not be kept here.
type BodyHash = (u64, u64, usize);

/// The graph of all tasks.
#[derive(Debug)]
pub(super) struct TaskGraph {
    pub(super) id: GraphId,
    pub(super) next_chunk: u32,
    pub(super) tasks: u32,
    pub(super) edges: u64,
    pub(super) key_bytes: u64,
    bodies: u32,
    body_numbers: HashMap<BodyHash, u32, Fixed>,
    groups: HashMap<Arc<str>, u32, Fixed>,
    groups_count: u32,
    requirements: HashMap<Requirement, u32, Fixed>,
    requirements_count: u32,
    /// Chunks that were sent of all graphs before this one.
    pub(super) chunks_before: u64,
}

impl TaskGraph {
    pub(super) fn new(id: GraphId, chunks_before: u64) -> Self {
        Self {
            id,
            next_chunk: 0,
            tasks: 0,
            edges: 0,
            key_bytes: 0,
            bodies: 0,
            body_numbers: HashMap::default(),
            groups: HashMap::default(),
            groups_count: 0,
            requirements: HashMap::default(),
            requirements_count: 1,
            chunks_before,
        }
    }

    /// One that a journal has kept. What its bodies say is not known: they are not shared further.
    pub(super) fn restored(id: GraphId, known: &RestoredGraph) -> Self {
        let groups = (0..).zip(&known.groups);
        let requirements = (0..).zip(&known.requirements).skip(1);
        Self {
            next_chunk: known.next_chunk,
            tasks: known.tasks,
            edges: known.edges,
            key_bytes: known.key_bytes,
            bodies: known.bodies,
            groups: groups
                .map(|(number, name)| (Arc::clone(name), number))
                .collect(),
            groups_count: count(known.groups.len()),
            requirements: requirements
                .map(|(number, requirement)| (requirement.clone(), number))
                .collect(),
            requirements_count: count(known.requirements.len()).max(1),
            ..Self::new(id, 0)
        }
    }

    /// The number of a body, and whether it is new.
    pub(super) fn body(&mut self, content: &[u8]) -> (u32, bool) {
        let hash = hash(content);
        if let Some(number) = self.body_numbers.get(&hash) {
            return (*number, false);
        }
        let number = self.bodies;
        self.bodies += 1;
        self.body_numbers.insert(hash, number);
        (number, true)
    }

    /// The number of a group; beyond the bound it is the one of all others. A new one is pushed.
    pub(super) fn group(&mut self, name: &str, new: &mut Vec<String>) -> u32 {
        if let Some(number) = self.groups.get(name) {
            return *number;
        }
        let name = match self.groups_count as usize {
            count if count < GROUPS_MAX => name,
            _ => OTHER_GROUP,
        };
        if let Some(number) = self.groups.get(name) {
            return *number;
        }
        let number = self.groups_count;
        self.groups_count += 1;
        self.groups.insert(Arc::from(name), number);
        new.push(name.to_owned());
        number
    }

    /// The number of a requirement; nothing beyond the bound. A new one is pushed.
    pub(super) fn requirement(
        &mut self,
        requirement: &Requirement,
        new: &mut Vec<Requirement>,
    ) -> Option<u32> {
        if *requirement == Requirement::default() {
            return Some(0);
        }
        if let Some(number) = self.requirements.get(requirement) {
            return Some(*number);
        }
        if self.requirements_count as usize > REQUIREMENTS_MAX {
            return None;
        }
        let number = self.requirements_count;
        self.requirements_count += 1;
        self.requirements.insert(requirement.clone(), number);
        new.push(requirement.clone());
        Some(number)
    }

    /// Whether all of these requirements find room.
    pub(super) fn has_room_for(&self, requirements: &[Requirement]) -> bool {
        let is_new = |requirement: &&Requirement| {
            **requirement != Requirement::default() && !self.requirements.contains_key(*requirement)
        };
        let new = requirements.iter().filter(is_new).count();
        self.requirements_count as usize + new <= REQUIREMENTS_MAX + 1
    }
}

fn hash(content: &[u8]) -> BodyHash {
    let with = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        content.hash(&mut hasher);
        hasher.finish()
    };
    (with(0), with(1), content.len())
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

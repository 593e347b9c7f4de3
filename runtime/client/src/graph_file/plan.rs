//! A graph that is ready to be submitted.

use bytes::Bytes;
use oxidask_core::Requirement;

use super::chunks::Chunks;
use super::interner::Interner;
use super::order::Inputs;

/// Tasks in columns, each behind its inputs. A task is known by its position, which is also its
/// number in the scheduler.
#[derive(Debug, Clone, Default)]
pub struct GraphPlan {
    pub(super) names: Interner,
    pub(super) bodies: Vec<Bytes>,
    pub(super) groups: Vec<String>,
    pub(super) requirements: Vec<Requirement>,
    pub(super) outputs: Vec<u32>,
    pub(super) skipped: usize,
    // One entry a task.
    pub(super) name: Vec<u32>,
    pub(super) body: Vec<u32>,
    pub(super) group: Vec<u32>,
    pub(super) requirement: Vec<u32>,
    pub(super) priority: Vec<i32>,
    pub(super) retries: Vec<u32>,
    pub(super) input_ends: Vec<usize>,
    pub(super) inputs: Vec<u32>,
}

impl GraphPlan {
    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.name.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.name.is_empty()
    }

    /// A task's key.
    pub fn key(&self, task: u32) -> &str {
        std::str::from_utf8(self.names.get(self.name[task as usize])).unwrap_or_default()
    }

    /// A task's encoded body.
    pub fn body(&self, task: u32) -> &Bytes {
        &self.bodies[self.body[task as usize] as usize]
    }

    /// A task's inputs, in order.
    pub fn inputs(&self, task: u32) -> &[u32] {
        Inputs {
            ends: &self.input_ends,
            tasks: &self.inputs,
        }
        .of(task)
    }

    /// The name of a task's group.
    pub fn group(&self, task: u32) -> &str {
        &self.groups[self.group[task as usize] as usize]
    }

    /// What a task asks of a worker.
    pub fn requirement(&self, task: u32) -> &Requirement {
        &self.requirements[self.requirement[task as usize] as usize]
    }

    /// A task's priority.
    pub fn priority(&self, task: u32) -> i32 {
        self.priority[task as usize]
    }

    /// How often a failed attempt of a task is tried again.
    pub fn retries(&self, task: u32) -> u32 {
        self.retries[task as usize]
    }

    /// The different bodies, in the order of their first use.
    pub fn bodies(&self) -> &[Bytes] {
        &self.bodies
    }

    /// The names of the groups, in the order of their first use.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The different requirements; the first is the default, used or not.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// The first task with a requirement, by its position in [`GraphPlan::requirements`].
    pub fn first_with_requirement(&self, requirement: usize) -> Option<u32> {
        (0..)
            .zip(&self.requirement)
            .find(|(_, r)| **r as usize == requirement)
            .map(|(task, _)| task)
    }

    /// The wanted tasks, in the order in which their results are printed.
    pub fn outputs(&self) -> &[u32] {
        &self.outputs
    }

    /// Tasks that were left out because no output needs them.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Cuts the graph into chunks for the wire. There is always a last one, also without tasks.
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks::new(self)
    }
}

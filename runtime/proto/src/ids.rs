//! Tasks, attempts and workers: domain ids <-> messages.

use oxidask_core::{Attempt, GraphId, TaskIndex, TaskRef, WorkerId, WorkerInfo};

use crate::error::ProtoError;
use crate::wire;

impl From<TaskRef> for wire::TaskId {
    fn from(task: TaskRef) -> Self {
        Self {
            graph: task.graph.0,
            task: task.task.0,
        }
    }
}

impl From<wire::TaskId> for TaskRef {
    fn from(id: wire::TaskId) -> Self {
        Self {
            graph: GraphId(id.graph),
            task: TaskIndex(id.task),
        }
    }
}

/// The task that a message must name.
pub fn task(id: Option<wire::TaskId>, message: &'static str) -> Result<TaskRef, ProtoError> {
    id.map(TaskRef::from).ok_or(ProtoError::FieldMissing {
        message,
        field: "task",
    })
}

/// A list of tasks as the core has it.
pub fn tasks(ids: Vec<wire::TaskId>) -> Vec<TaskRef> {
    ids.into_iter().map(TaskRef::from).collect()
}

/// The number by which the bulk data plane knows a result.
pub fn bulk_key(task: TaskRef) -> u64 {
    u64::from(task.graph.0) << 32 | u64::from(task.task.0)
}

/// The task behind a number of the bulk data plane.
pub fn task_of_bulk_key(key: u64) -> TaskRef {
    let half = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default();
    TaskRef {
        graph: GraphId(half(key >> 32)),
        task: TaskIndex(half(key)),
    }
}

/// An attempt as retractions and cancellations name it.
pub fn attempt_to_wire(task: TaskRef, attempt: Attempt) -> wire::AttemptId {
    wire::AttemptId {
        task: Some(task.into()),
        epoch: attempt.epoch,
        attempt: attempt.number,
    }
}

/// The attempt that a retraction or a cancellation names.
pub fn attempt_from_wire(id: wire::AttemptId) -> Result<(TaskRef, Attempt), ProtoError> {
    let task = task(id.task, "AttemptId")?;
    Ok((
        task,
        Attempt {
            epoch: id.epoch,
            number: id.attempt,
        },
    ))
}

/// Copies that a peer did not have, each with the worker that was asked.
pub fn copies_missing(
    missing: Vec<wire::CopyMissing>,
) -> Result<Vec<(TaskRef, WorkerId)>, ProtoError> {
    let convert =
        |copy: wire::CopyMissing| Ok((task(copy.task, "CopyMissing")?, WorkerId(copy.worker)));
    missing.into_iter().map(convert).collect()
}

/// Named amounts, as messages have them.
pub fn amounts_to_wire(amounts: Vec<(String, u64)>) -> Vec<wire::Amount> {
    amounts
        .into_iter()
        .map(|(name, amount)| wire::Amount { name, amount })
        .collect()
}

/// Named amounts, as the core has them.
pub fn amounts_from_wire(amounts: Vec<wire::Amount>) -> Vec<(String, u64)> {
    amounts
        .into_iter()
        .map(|amount| (amount.name, amount.amount))
        .collect()
}

impl From<&wire::WorkerHello> for WorkerInfo {
    fn from(hello: &wire::WorkerHello) -> Self {
        Self {
            name: hello.name.clone(),
            group: hello.group.clone(),
            slots: hello.slots.max(1),
            resources: amounts_from_wire(hello.resources.clone()),
            memory_bytes: hello.memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back() {
        for (graph, index) in [(0, 0), (1, 2), (u32::MAX, 7), (7, u32::MAX)] {
            let task = TaskRef {
                graph: GraphId(graph),
                task: TaskIndex(index),
            };
            assert_eq!(TaskRef::from(wire::TaskId::from(task)), task);
            assert_eq!(task_of_bulk_key(bulk_key(task)), task);
            let attempt = Attempt {
                epoch: 3,
                number: 4,
            };
            assert_eq!(
                attempt_from_wire(attempt_to_wire(task, attempt)),
                Ok((task, attempt))
            );
        }
        assert!(attempt_from_wire(wire::AttemptId::default()).is_err());
    }

    #[test]
    fn a_worker_has_at_least_one_slot() {
        assert_eq!(WorkerInfo::from(&wire::WorkerHello::default()).slots, 1);
    }
}

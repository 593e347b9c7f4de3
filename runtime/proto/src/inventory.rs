//! What a worker has, in parts, when it comes back or is asked.
//!
//! Owns the bound of the whole, however many parts it comes in.

use oxidask_core::{Attempt, GraphId, Inventory, TaskIndex, TaskRef};

use crate::error::ProtoError;
use crate::{ids, wire};

/// Results and attempts in one inventory.
pub const INVENTORY_ENTRIES_MAX: usize = 16 * 1024 * 1024;

/// Results and attempts in one part.
pub const PART_ENTRIES_MAX: usize = 64 * 1024;

/// Appends a part to what has come before it.
pub fn append(whole: &mut Inventory, part: wire::Inventory) -> Result<(), ProtoError> {
    let held = part.held_graph.len();
    if part.held_task.len() != held || part.held_bytes.len() != held {
        return Err(ProtoError::InventoryColumns);
    }
    let before = whole.held.len() + attempts_of(whole);
    let attempts = part.running.len() + part.queued.len() + part.seceded.len();
    if before + held + attempts > INVENTORY_ENTRIES_MAX {
        let limit = INVENTORY_ENTRIES_MAX;
        return Err(ProtoError::InventoryLimit { limit });
    }
    let tasks = part.held_graph.into_iter().zip(part.held_task);
    let held = tasks.zip(part.held_bytes).map(|((graph, task), bytes)| {
        let (graph, task) = (GraphId(graph), TaskIndex(task));
        (TaskRef { graph, task }, bytes)
    });
    whole.held.extend(held);
    for (ids, attempts) in [
        (part.running, &mut whole.running),
        (part.queued, &mut whole.queued),
        (part.seceded, &mut whole.seceded),
    ] {
        for id in ids {
            attempts.push(ids::attempt_from_wire(id)?);
        }
    }
    Ok(())
}

fn attempts_of(whole: &Inventory) -> usize {
    whole.running.len() + whole.queued.len() + whole.seceded.len()
}

/// All that a worker has, in messages that are not too large; at least one.
pub fn parts(inventory: Inventory) -> Vec<wire::Inventory> {
    let mut parts = vec![wire::Inventory::default()];
    let mut entries = 0;
    let mut next = |parts: &mut Vec<wire::Inventory>| {
        if entries == PART_ENTRIES_MAX {
            entries = 0;
            parts.push(wire::Inventory::default());
        }
        entries += 1;
        parts.len() - 1
    };
    for (task, bytes) in inventory.held {
        let at = next(&mut parts);
        parts[at].held_graph.push(task.graph.0);
        parts[at].held_task.push(task.task.0);
        parts[at].held_bytes.push(bytes);
    }
    let to_wire = |(task, attempt): (TaskRef, Attempt)| ids::attempt_to_wire(task, attempt);
    for attempt in inventory.running {
        let at = next(&mut parts);
        parts[at].running.push(to_wire(attempt));
    }
    for attempt in inventory.queued {
        let at = next(&mut parts);
        parts[at].queued.push(to_wire(attempt));
    }
    for attempt in inventory.seceded {
        let at = next(&mut parts);
        parts[at].seceded.push(to_wire(attempt));
    }
    if let Some(last) = parts.last_mut() {
        last.is_last = true;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u32) -> TaskRef {
        TaskRef {
            graph: GraphId(7),
            task: TaskIndex(number),
        }
    }

    fn attempt(number: u32) -> Attempt {
        Attempt { epoch: 2, number }
    }

    #[test]
    fn an_inventory_comes_back_from_its_parts() {
        let many = u32::try_from(PART_ENTRIES_MAX).unwrap();
        let whole = Inventory {
            held: (0..=many).map(|n| (task(n), u64::from(n))).collect(),
            running: (0..many).map(|n| (task(n), attempt(n))).collect(),
            queued: vec![(task(1), attempt(9))],
            seceded: vec![(task(0), attempt(0)), (task(5), attempt(5))],
        };
        let parts = parts(whole.clone());
        assert_eq!(parts.len(), 3);
        let is_last: Vec<bool> = parts.iter().map(|part| part.is_last).collect();
        assert_eq!(is_last, [false, false, true]);
        let mut again = Inventory::default();
        for part in parts {
            append(&mut again, part).unwrap();
        }
        assert_eq!(again, whole);
        assert_eq!(super::parts(Inventory::default()).len(), 1);
    }

    #[test]
    fn columns_must_fit_and_attempts_name_a_task() {
        let mut whole = Inventory::default();
        let part = wire::Inventory {
            held_graph: vec![1],
            ..Default::default()
        };
        assert_eq!(append(&mut whole, part), Err(ProtoError::InventoryColumns));
        let part = wire::Inventory {
            running: vec![wire::AttemptId::default()],
            ..Default::default()
        };
        assert!(append(&mut whole, part).is_err());
    }
}

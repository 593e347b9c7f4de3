//! Orders of the scheduler as events of the machine.

use oxidask_core::{Attempt, TaskRef, WorkerId};
use oxidask_proto::{ids, wire};
use oxidask_store::ResultKey;

use crate::error::WorkerError;
use oxidask_worker_machine::{Assignment, BodyRef, Event, Input};

/// One order.
pub(crate) fn event(order: wire::Order) -> Result<Event, WorkerError> {
    use wire::order::Order;
    match order.order.ok_or(WorkerError::Order { field: "order" })? {
        Order::Assign(assign) => Ok(Event::Assigned(assignment(assign)?)),
        Order::Retract(id) => {
            let (task, attempt) = ids::attempt_from_wire(id).map_err(WorkerError::Message)?;
            Ok(Event::Retracted {
                task: key(task),
                attempt,
            })
        }
        Order::Cancel(id) => {
            let (task, attempt) = ids::attempt_from_wire(id).map_err(WorkerError::Message)?;
            Ok(Event::Cancelled {
                task: key(task),
                attempt,
            })
        }
        Order::Release(id) => Ok(Event::Released {
            task: key(id.into()),
        }),
    }
}

/// A copy to be fetched: what, how large it is, who has it.
pub(crate) fn copy(order: wire::CopyOrder) -> Result<(ResultKey, u64, WorkerId), WorkerError> {
    let task = order.task.ok_or(WorkerError::Order { field: "copies" })?;
    Ok((key(task.into()), order.bytes, WorkerId(order.from)))
}

fn assignment(assign: wire::Assign) -> Result<Assignment, WorkerError> {
    let graph = assign.graph;
    let count = assign.inputs.len();
    if assign.input_bytes.len() != count {
        return Err(WorkerError::Order {
            field: "input_bytes",
        });
    }
    if assign.holders.len() != count {
        return Err(WorkerError::Order { field: "holders" });
    }
    let columns = assign
        .inputs
        .into_iter()
        .zip(assign.input_bytes)
        .zip(assign.holders);
    let mut inputs: Vec<Input> = columns
        .map(|((task, bytes), holder)| Input {
            key: ResultKey::new(graph, task),
            bytes,
            holder: WorkerId(holder),
            alternates: Vec::new(),
        })
        .collect();
    for alternate in assign.alternates {
        let input = inputs
            .get_mut(alternate.position as usize)
            .ok_or(WorkerError::Order {
                field: "alternates",
            })?;
        input
            .alternates
            .extend(alternate.holders.into_iter().map(WorkerId));
    }
    let streamed = usize::try_from(assign.streamed_inputs)
        .ok()
        .filter(|streamed| *streamed <= count)
        .ok_or(WorkerError::Order {
            field: "streamed_inputs",
        })?;
    let given = inputs.split_off(streamed);
    let body = if assign.is_inline {
        BodyRef::Inline(assign.inline_body)
    } else {
        BodyRef::Shared(assign.body)
    };
    Ok(Assignment {
        task: ResultKey::new(graph, assign.task),
        attempt: Attempt {
            epoch: assign.epoch,
            number: assign.attempt,
        },
        priority: assign.priority,
        turn: assign.turn,
        slots: assign.slots,
        // Whoever knows the program says so.
        may_wait_in_line: false,
        key: assign.key.into(),
        body,
        part: assign.part,
        arguments: assign.arguments,
        streamed: inputs,
        inputs: given,
    })
}

fn key(task: TaskRef) -> ResultKey {
    ResultKey::new(task.graph.0, task.task.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign() -> wire::Assign {
        wire::Assign {
            graph: 3,
            task: 9,
            epoch: 1,
            attempt: 2,
            key: "k".into(),
            inputs: vec![4, 5],
            input_bytes: vec![40, 50],
            holders: vec![1, 2],
            alternates: vec![wire::Alternate {
                position: 1,
                holders: vec![7, 8],
            }],
            ..wire::Assign::default()
        }
    }

    #[test]
    fn an_assignment_keeps_its_columns_together() {
        let order = assignment(assign()).unwrap();
        assert_eq!(order.task, ResultKey::new(3, 9));
        assert_eq!(order.inputs[1].key, ResultKey::new(3, 5));
        assert_eq!(order.inputs[1].bytes, 50);
        assert_eq!(order.inputs[1].holder, WorkerId(2));
        assert_eq!(order.inputs[1].alternates, [WorkerId(7), WorkerId(8)]);
        assert_eq!(order.body, BodyRef::Shared(0));
        assert_eq!((order.part, order.streamed.len()), (0, 0));
    }

    #[test]
    fn the_first_inputs_may_be_streamed() {
        let order = assignment(wire::Assign {
            part: 7,
            streamed_inputs: 1,
            ..assign()
        })
        .unwrap();
        assert_eq!(order.part, 7);
        assert_eq!(order.streamed.len(), 1);
        assert_eq!(order.streamed[0].key, ResultKey::new(3, 4));
        assert_eq!(order.inputs.len(), 1);
        assert_eq!(order.inputs[0].alternates, [WorkerId(7), WorkerId(8)]);
    }

    #[test]
    fn columns_that_do_not_fit_are_refused() {
        let alternates = vec![wire::Alternate {
            position: 2,
            holders: vec![7],
        }];
        for broken in [
            wire::Assign {
                holders: vec![1],
                ..assign()
            },
            wire::Assign {
                input_bytes: vec![],
                ..assign()
            },
            wire::Assign {
                alternates,
                ..assign()
            },
            wire::Assign {
                streamed_inputs: 3,
                ..assign()
            },
        ] {
            assert!(matches!(assignment(broken), Err(WorkerError::Order { .. })));
        }
        assert!(event(wire::Order { order: None }).is_err());
    }
}

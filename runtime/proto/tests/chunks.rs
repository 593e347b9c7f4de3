//! Chunks of graphs over the wire: they come back unchanged, and nonsense is refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use bytes::Bytes;
use oxidask_core::{GraphChunk, GraphId, KEY_BYTES_MAX, Requirement, TaskIndex};
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::{ProtoError, wire};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

fn requirement() -> impl Strategy<Value = Requirement> {
    let resources = vec(("[a-z]{1,8}", any::<u64>()), 0..3);
    (1..u32::MAX, resources, vec("[a-z]{1,8}", 0..3)).prop_map(|(slots, resources, workers)| {
        Requirement {
            slots,
            resources,
            workers,
        }
    })
}

type Task = (String, u32, u32, u32, i32, u32, Vec<u32>);

fn task() -> impl Strategy<Value = Task> {
    let inputs = vec(any::<u32>(), 0..5);
    (
        "\\PC{1,9}",
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<i32>(),
        any::<u32>(),
        inputs,
    )
}

prop_compose! {
    fn chunk()(
        tasks in vec(task(), 0..20),
        has_all_columns in any::<bool>(),
        wanted in vec(any::<u32>(), 0..5),
        new_groups in vec("\\PC{0,8}", 0..4),
        new_requirements in vec(requirement(), 0..3),
        bodies in vec(vec(any::<u8>(), 0..9), 0..4),
        (graph, number, is_last) in any::<(u32, u32, bool)>(),
    ) -> PlacedChunk {
        let mut chunk = GraphChunk {
            wanted: wanted.into_iter().map(TaskIndex).collect(),
            new_groups,
            new_requirements,
            new_bodies_count: u32::try_from(bodies.len()).unwrap(),
            is_last,
            ..GraphChunk::default()
        };
        for (key, body, group, requirement, priority, retries, inputs) in tasks {
            chunk.keys.push_str(&key);
            chunk.key_lengths.push(u32::try_from(key.len()).unwrap());
            chunk.body.push(body);
            chunk.group.push(group);
            if has_all_columns {
                chunk.requirement.push(requirement);
                chunk.priority.push(priority);
                chunk.retries.push(retries);
                chunk.input_counts.push(u32::try_from(inputs.len()).unwrap());
                chunk.inputs.extend(inputs.into_iter().map(TaskIndex));
            }
        }
        let bodies = bodies.into_iter().map(Bytes::from).collect();
        let (mut part, mut streamed_inputs) = (Vec::new(), Vec::new());
        if has_all_columns {
            part.clone_from(&chunk.retries);
            streamed_inputs.extend(chunk.input_counts.iter().map(|count| count / 2));
        }
        PlacedChunk { graph: GraphId(graph), number, chunk, bodies, part, streamed_inputs, arguments: Vec::new() }
    }
}

proptest! {
    #[test]
    fn a_chunk_comes_back(placed in chunk()) {
        let bytes = wire::GraphChunk::from(placed.clone()).encode_to_vec();
        let decoded = wire::GraphChunk::decode(&bytes[..]).unwrap();
        prop_assert_eq!(PlacedChunk::try_from(decoded).unwrap(), placed);
    }

    #[test]
    fn what_is_accepted_can_be_indexed(
        keys in "\\PC{0,20}",
        key_lengths in vec(0..6_u32, 0..8),
        group in vec(any::<u32>(), 0..8),
        input_counts in vec(any::<u32>(), 0..3),
        inputs in vec(any::<u32>(), 0..3),
    ) {
        let body = vec![0; key_lengths.len()];
        let message =
            wire::GraphChunk { keys, key_lengths, body, group, input_counts, inputs, ..wire::GraphChunk::default() };
        if let Ok(placed) = PlacedChunk::try_from(message) {
            let mut at = 0;
            for length in &placed.chunk.key_lengths {
                let end = at + *length as usize;
                prop_assert!(!placed.chunk.keys[at..end].is_empty());
                at = end;
            }
            prop_assert_eq!(at, placed.chunk.keys.len());
            prop_assert_eq!(placed.chunk.group.len(), placed.chunk.len());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = wire::GraphChunk::decode(&bytes[..]) {
            let _ = PlacedChunk::try_from(message);
        }
    }
}

fn two_tasks() -> wire::GraphChunk {
    wire::GraphChunk {
        keys: "aä".to_owned(),
        key_lengths: vec![1, 2],
        body: vec![0, 0],
        group: vec![0, 0],
        ..wire::GraphChunk::default()
    }
}

fn refused(message: wire::GraphChunk) -> ProtoError {
    PlacedChunk::try_from(message).unwrap_err()
}

#[test]
fn columns_must_fit_each_other() {
    assert!(PlacedChunk::try_from(two_tasks()).is_ok());
    for message in [
        wire::GraphChunk {
            group: vec![0],
            ..two_tasks()
        },
        wire::GraphChunk {
            key_lengths: vec![3],
            ..two_tasks()
        },
        wire::GraphChunk {
            retries: vec![1],
            ..two_tasks()
        },
        wire::GraphChunk {
            priority: vec![1, 2, 3],
            ..two_tasks()
        },
        wire::GraphChunk {
            requirement: vec![1],
            ..two_tasks()
        },
        wire::GraphChunk {
            input_counts: vec![1],
            inputs: vec![0],
            ..two_tasks()
        },
        wire::GraphChunk {
            input_counts: vec![1, 1],
            inputs: vec![0],
            ..two_tasks()
        },
        wire::GraphChunk {
            inputs: vec![0],
            ..two_tasks()
        },
        wire::GraphChunk {
            part: vec![1],
            ..two_tasks()
        },
        wire::GraphChunk {
            streamed_inputs: vec![0, 0, 0],
            ..two_tasks()
        },
        wire::GraphChunk {
            keys: "aäb".to_owned(),
            ..two_tasks()
        },
    ] {
        let error = refused(message);
        assert!(matches!(error, ProtoError::ColumnLength { .. }), "{error}");
    }
}

#[test]
fn nobody_streams_more_inputs_than_there_are() {
    let none = wire::GraphChunk {
        streamed_inputs: vec![0, 1],
        ..two_tasks()
    };
    let (position, streamed, inputs) = (1, 1, 0);
    let expected = ProtoError::StreamedInputs {
        position,
        streamed,
        inputs,
    };
    assert_eq!(refused(none), expected);
    let all = wire::GraphChunk {
        input_counts: vec![0, 2],
        inputs: vec![0, 0],
        streamed_inputs: vec![0, 2],
        ..two_tasks()
    };
    assert!(PlacedChunk::try_from(all).is_ok());
}

#[test]
fn keys_have_their_limits() {
    let split = wire::GraphChunk {
        key_lengths: vec![2, 1],
        ..two_tasks()
    };
    assert_eq!(refused(split), ProtoError::KeyBoundary { position: 0 });
    let empty = wire::GraphChunk {
        key_lengths: vec![3, 0],
        ..two_tasks()
    };
    assert_eq!(refused(empty), ProtoError::KeyEmpty { position: 1 });
    let behind = wire::GraphChunk {
        key_lengths: vec![1, 1000],
        ..two_tasks()
    };
    assert_eq!(refused(behind), ProtoError::KeyBoundary { position: 1 });
    let long = wire::GraphChunk {
        keys: "x".repeat(KEY_BYTES_MAX + 2),
        key_lengths: vec![1, u32::try_from(KEY_BYTES_MAX).unwrap() + 1],
        ..two_tasks()
    };
    assert!(matches!(refused(long), ProtoError::LimitPassed { .. }));
}

#[test]
fn limits_and_requirements_are_checked() {
    let many = wire::GraphChunk {
        new_groups: vec![String::new(); 1025],
        ..two_tasks()
    };
    assert!(matches!(refused(many), ProtoError::LimitPassed { .. }));
    let inputs = wire::GraphChunk {
        input_counts: vec![u32::MAX, 0],
        ..two_tasks()
    };
    assert!(matches!(refused(inputs), ProtoError::LimitPassed { .. }));
    let none = wire::Requirement {
        slots: 0,
        ..wire::Requirement::default()
    };
    let slots = wire::GraphChunk {
        new_requirements: vec![none],
        ..two_tasks()
    };
    assert_eq!(refused(slots), ProtoError::SlotsZero);
}

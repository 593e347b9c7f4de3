//! Planned graphs: what is whole passes unchanged, what is not is an error.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use oxidask_client::{PlannedGraph, PlannedGraphError};
use oxidask_proto::wire;
use oxidask_store::{Payload, PayloadKind};
use prost::Message;

/// A producer, and a consumer that streams it: two chunks.
fn whole() -> wire::PlannedGraph {
    let chunk = |key: &str| wire::GraphChunk {
        keys: key.to_owned(),
        key_lengths: vec![1],
        body: vec![0],
        group: vec![0],
        ..Default::default()
    };
    let first = wire::GraphChunk {
        new_bodies: vec![Bytes::from_static(b"{}")],
        new_groups: vec!["stage 1".to_owned()],
        part: vec![7],
        ..chunk("a")
    };
    let second = wire::GraphChunk {
        input_counts: vec![1],
        inputs: vec![0],
        streamed_inputs: vec![1],
        wanted: vec![1],
        is_last: true,
        ..chunk("b")
    };
    wire::PlannedGraph {
        chunks: vec![first, second],
        outputs: vec![1],
    }
}

fn payload(planned: &wire::PlannedGraph) -> Payload {
    let bytes = Bytes::from(planned.encode_to_vec());
    let middle = bytes.len() / 2;
    let (head, tail) = (bytes.slice(..middle), bytes.slice(middle..));
    Payload {
        kind: PayloadKind::Graph,
        parts: vec![head, tail],
    }
}

fn refused(change: impl FnOnce(&mut wire::PlannedGraph)) -> PlannedGraphError {
    let mut planned = whole();
    change(&mut planned);
    PlannedGraph::from_payload(&payload(&planned)).unwrap_err()
}

#[test]
fn a_whole_plan_passes_unchanged() {
    let graph = PlannedGraph::from_payload(&payload(&whole())).unwrap();
    assert_eq!((graph.len(), graph.outputs()), (2, &[1][..]));
    assert_eq!(graph.into_chunks().collect::<Vec<_>>(), whole().chunks);
}

#[test]
fn what_cannot_be_decoded_is_an_error() {
    let other = Payload::new(PayloadKind::Table, Bytes::new());
    assert_eq!(
        PlannedGraph::from_payload(&other),
        Err(PlannedGraphError::Kind)
    );
    let bytes = whole().encode_to_vec();
    for length in 1..bytes.len() {
        let cut = Bytes::copy_from_slice(&bytes[..length]);
        let cut = Payload::new(PayloadKind::Graph, cut);
        assert!(PlannedGraph::from_payload(&cut).is_err(), "{length} bytes");
    }
}

#[test]
fn references_must_lead_somewhere() {
    let named = |error| match error {
        PlannedGraphError::Reference { what, number, .. } => (what, number),
        other => panic!("{other}"),
    };
    assert_eq!(
        named(refused(|plan| plan.chunks[1].inputs = vec![1])),
        ("input", 1)
    );
    assert_eq!(
        named(refused(|plan| plan.chunks[1].body = vec![1])),
        ("body", 1)
    );
    assert_eq!(
        named(refused(|plan| plan.chunks[0].group = vec![9])),
        ("group", 9)
    );
    let requirement = refused(|plan| plan.chunks[0].requirement = vec![1]);
    assert_eq!(named(requirement), ("requirement", 1));
    assert_eq!(
        named(refused(|plan| plan.chunks[0].wanted = vec![1])),
        ("wanted task", 1)
    );
}

#[test]
fn outputs_must_be_wanted_and_the_end_must_be_told() {
    assert_eq!(
        refused(|plan| plan.outputs = vec![0]),
        PlannedGraphError::Output { task: 0 }
    );
    assert_eq!(
        refused(|plan| plan.outputs = vec![1, 9]),
        PlannedGraphError::Output { task: 9 }
    );
    assert_eq!(
        refused(|plan| plan.chunks[1].is_last = false),
        PlannedGraphError::End
    );
    assert_eq!(
        refused(|plan| plan.chunks[0].is_last = true),
        PlannedGraphError::End
    );
    assert_eq!(refused(|plan| plan.chunks.clear()), PlannedGraphError::End);
    assert_eq!(
        refused(|plan| plan.outputs.clear()),
        PlannedGraphError::NoOutput
    );
    let contradiction = refused(|plan| plan.chunks[1].streamed_inputs = vec![2]);
    assert!(matches!(
        contradiction,
        PlannedGraphError::Chunk { chunk: 1, .. }
    ));
}

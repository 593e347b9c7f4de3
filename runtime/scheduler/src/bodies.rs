//! The bodies of a graph's tasks, as opaque bytes.
//!
//! Owns the bytes from the arrival of a chunk until the core forgets the graph, and the rule how a
//! body travels: one that a single task uses goes inside the assignment, one that several use goes
//! to each worker once. Never opens a body.

use bytes::{Bytes, BytesMut};

/// What a chunk adds to the bodies of its graph.
#[derive(Debug, Default)]
pub(crate) struct NewBodies {
    contents: Vec<Bytes>,
    /// Bodies used by the chunk's tasks, and whether more than once.
    uses: Vec<(u32, bool)>,
}

impl NewBodies {
    /// Copies the bodies out of the message, so that they do not keep all of it in memory, and
    /// counts which of the graph's bodies the chunk uses. Done before the main loop sees the chunk.
    pub(crate) fn new(received: &[Bytes], column: &[u32]) -> Self {
        let mut all = BytesMut::with_capacity(received.iter().map(Bytes::len).sum());
        for content in received {
            all.extend_from_slice(content);
        }
        let mut all = all.freeze();
        let contents = received
            .iter()
            .map(|content| all.split_to(content.len()))
            .collect();
        Self {
            contents,
            uses: count_uses(column),
        }
    }
}

fn count_uses(column: &[u32]) -> Vec<(u32, bool)> {
    let mut sorted = column.to_vec();
    sorted.sort_unstable();
    sorted
        .chunk_by(|a, b| a == b)
        .map(|same| (same[0], same.len() > 1))
        .collect()
}

/// How a body is sent with an assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sending {
    /// Inside the assignment.
    Inline(Bytes),
    /// Once per worker, before the first assignment that uses it.
    Shared(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Never,
    Once,
    Often,
}

/// All bodies of one graph, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct GraphBodies {
    contents: Vec<Bytes>,
    uses: Vec<Use>,
    next_chunk: u32,
}

impl GraphBodies {
    /// Appends the bodies of an accepted chunk. One that was accepted before changes nothing: false.
    pub(crate) fn accept(&mut self, number: u32, new: NewBodies) -> bool {
        if number != self.next_chunk {
            return false;
        }
        self.next_chunk += 1;
        self.contents.extend(new.contents);
        self.uses.resize(self.contents.len(), Use::Never);
        for (body, is_often) in new.uses {
            if let Some(known) = self.uses.get_mut(body as usize) {
                let is_often = is_often || *known != Use::Never;
                *known = if is_often { Use::Often } else { Use::Once };
            }
        }
        true
    }

    /// The bodies that have this content.
    pub(crate) fn with_content(&self, content: &[u8]) -> Vec<u32> {
        let numbers = (0..).zip(&self.contents);
        let equal = numbers.filter(|(_, other)| **other == *content);
        equal.map(|(number, _)| number).collect()
    }

    /// How to send a body; `None` if the graph has no such body.
    pub(crate) fn sending(&self, body: u32) -> Option<Sending> {
        let content = self.contents.get(body as usize)?.clone();
        Some(match self.uses.get(body as usize) {
            Some(Use::Often) => Sending::Shared(content),
            _ => Sending::Inline(content),
        })
    }
}

/// Which shared bodies of one graph a worker has.
#[derive(Debug, Default)]
pub(crate) struct BodiesSent(Vec<bool>);

impl BodiesSent {
    /// Notes a body as sent; true if it was not sent before.
    pub(crate) fn insert(&mut self, body: u32) -> bool {
        let position = body as usize;
        if self.0.len() <= position {
            self.0.resize(position + 1, false);
        }
        !std::mem::replace(&mut self.0[position], true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_body_is_inline_until_a_second_task_uses_it() {
        let mut bodies = GraphBodies::default();
        bodies.accept(0, NewBodies::new(&[bytes("a"), bytes("bc")], &[0, 1, 1]));
        assert_eq!(bodies.sending(0), Some(Sending::Inline(bytes("a"))));
        assert_eq!(bodies.sending(1), Some(Sending::Shared(bytes("bc"))));
        assert_eq!(bodies.sending(2), None);
        bodies.accept(1, NewBodies::new(&[bytes("d")], &[2, 0]));
        assert_eq!(bodies.sending(0), Some(Sending::Shared(bytes("a"))));
        assert_eq!(bodies.sending(2), Some(Sending::Inline(bytes("d"))));
    }

    #[test]
    fn a_chunk_that_comes_again_changes_nothing() {
        let mut bodies = GraphBodies::default();
        bodies.accept(0, NewBodies::new(&[bytes("a")], &[0]));
        bodies.accept(0, NewBodies::new(&[bytes("a")], &[0]));
        assert_eq!(bodies.sending(0), Some(Sending::Inline(bytes("a"))));
        assert_eq!(bodies.sending(1), None);
    }

    #[test]
    fn a_shared_body_is_sent_once() {
        let mut sent = BodiesSent::default();
        assert!(sent.insert(70));
        assert!(!sent.insert(70));
        assert!(sent.insert(3));
    }
}

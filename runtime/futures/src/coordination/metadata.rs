//! Metadata: one tree of keys with opaque values, as `Client.set_metadata` and `get_metadata` see it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::answer::{Answer, Refusal};
use super::bounds::{METADATA_BYTES_MAX, METADATA_DEPTH_MAX, METADATA_NODES_MAX};
use super::desk::{Desk, check_bound, check_name, check_values};
use super::error::CoordinationError;
use super::question::{MetadataQuestion, Node};

#[derive(Debug)]
enum Stored {
    Value(Bytes),
    Level(BTreeMap<String, Stored>),
}

/// What a part of the tree takes.
#[derive(Debug, Default, Clone, Copy)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Size {
    fn plus(self, other: Size) -> Size {
        Size {
            nodes: self.nodes + other.nodes,
            bytes: self.bytes + other.bytes,
        }
    }

    fn minus(self, other: Size) -> Size {
        let nodes = self.nodes.saturating_sub(other.nodes);
        Size {
            nodes,
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl Stored {
    fn size(&self) -> Size {
        match self {
            Stored::Value(value) => Size {
                nodes: 1,
                bytes: value.len(),
            },
            Stored::Level(level) => {
                level
                    .iter()
                    .fold(Size { nodes: 1, bytes: 0 }, |size, (key, stored)| {
                        size.plus(stored.size()).plus(Size {
                            nodes: 0,
                            bytes: key.len(),
                        })
                    })
            }
        }
    }

    /// What the values are of which nodes tell, at most `depth` levels.
    fn from_node(node: Node, values: &[Bytes], depth: usize) -> Result<Self, CoordinationError> {
        match node {
            Node::Leaf(index) => {
                let value = usize::try_from(index)
                    .ok()
                    .and_then(|index| values.get(index));
                let expected =
                    usize::try_from(index).map_or(usize::MAX, |index| index.saturating_add(1));
                let missing = CoordinationError::Values {
                    expected,
                    found: values.len(),
                };
                value.cloned().map(Stored::Value).ok_or(missing)
            }
            Node::Tree(tree) => {
                let Some(depth) = depth.checked_sub(1) else {
                    return Err(CoordinationError::Full {
                        what: "levels of metadata",
                        limit: METADATA_DEPTH_MAX,
                    });
                };
                let level = tree.into_iter().map(|(key, node)| {
                    check_name(&key)?;
                    Ok((key, Stored::from_node(node, values, depth)?))
                });
                level.collect::<Result<_, _>>().map(Stored::Level)
            }
        }
    }

    fn to_node(&self, values: &mut Vec<Bytes>) -> Node {
        match self {
            Stored::Value(value) => {
                values.push(value.clone());
                Node::Leaf(u32::try_from(values.len() - 1).unwrap_or(u32::MAX))
            }
            Stored::Level(level) => {
                let nodes = level
                    .iter()
                    .map(|(key, stored)| (key.clone(), stored.to_node(values)));
                Node::Tree(nodes.collect())
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Metadata {
    root: BTreeMap<String, Stored>,
    size: Size,
}

impl Metadata {
    pub(super) fn ask(
        &mut self,
        question: MetadataQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        match question {
            MetadataQuestion::Set { path, node } => self.set(&path, node, values, desk),
            MetadataQuestion::Get { path } => {
                check_values(values, 0)?;
                self.get(&path, desk);
                Ok(())
            }
        }
    }

    fn set(
        &mut self,
        path: &[String],
        node: Node,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        path.iter().try_for_each(|key| check_name(key))?;
        check_bound(path.len(), METADATA_DEPTH_MAX, "levels of metadata")?;
        if path.is_empty() {
            desk.answer(Answer::refused(
                Refusal::Invalid,
                "metadata needs a key".to_owned(),
            ));
            return Ok(());
        }
        let stored = Stored::from_node(node, values, METADATA_DEPTH_MAX - path.len())?;
        let path_bytes = path.iter().map(String::len).sum();
        let after = self.size.plus(stored.size()).plus(Size {
            nodes: path.len(),
            bytes: path_bytes,
        });
        check_bound(
            after.nodes,
            METADATA_NODES_MAX,
            "values and levels of metadata",
        )?;
        check_bound(after.bytes, METADATA_BYTES_MAX, "the bytes of metadata")?;
        set_at(&mut self.root, path, stored, &mut self.size);
        desk.answer(Answer::Done);
        Ok(())
    }

    fn get(&self, path: &[String], desk: &mut Desk<'_>) {
        let mut level = &self.root;
        let mut values = Vec::new();
        for (index, key) in path.iter().enumerate() {
            let rest = path.get(index + 1..).unwrap_or_default();
            match level.get(key) {
                Some(Stored::Level(next)) => level = next,
                Some(value @ Stored::Value(_)) => {
                    let node = Some(value.to_node(&mut values));
                    desk.answer_with(
                        Answer::Metadata {
                            node,
                            rest: rest.to_vec(),
                        },
                        values,
                    );
                    return;
                }
                None => {
                    desk.answer(Answer::Metadata {
                        node: None,
                        rest: Vec::new(),
                    });
                    return;
                }
            }
        }
        let nodes = level
            .iter()
            .map(|(key, stored)| (key.clone(), stored.to_node(&mut values)));
        let node = Some(Node::Tree(nodes.collect()));
        desk.answer_with(
            Answer::Metadata {
                node,
                rest: Vec::new(),
            },
            values,
        );
    }
}

/// Sets what is at a path; what is in the way, and not a level, becomes one.
fn set_at(level: &mut BTreeMap<String, Stored>, path: &[String], stored: Stored, size: &mut Size) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        replace(level, key, stored, size);
        return;
    }
    if !matches!(level.get(key), Some(Stored::Level(_))) {
        replace(level, key, Stored::Level(BTreeMap::new()), size);
    }
    if let Some(Stored::Level(next)) = level.get_mut(key) {
        set_at(next, rest, stored, size);
    }
}

fn replace(level: &mut BTreeMap<String, Stored>, key: &str, stored: Stored, size: &mut Size) {
    let own = Size {
        nodes: 0,
        bytes: key.len(),
    };
    *size = size.plus(stored.size()).plus(own);
    if let Some(earlier) = level.insert(key.to_owned(), stored) {
        *size = size.minus(earlier.size()).minus(own);
    }
}

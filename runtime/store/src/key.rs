//! Names of results, and maps over them.
//!
//! A result is called by the task that makes it. Keys are dense numbers that the scheduler gives
//! out, never user input, so their maps use a hash of one multiplication.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// A result: the graph's number in the upper half, the task's in the lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResultKey(pub u64);

impl ResultKey {
    /// The result of a task.
    pub fn new(graph: u32, task: u32) -> Self {
        Self(u64::from(graph) << 32 | u64::from(task))
    }

    /// The graph.
    pub fn graph(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The task in its graph.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the task"
    )]
    pub fn task(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for ResultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.graph(), self.task())
    }
}

/// A hash for small dense numbers: one multiplication, upper bits folded into the lower ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdHasher(u64);

/// 2^64 divided by the golden ratio: neighbours end far from each other.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(MULTIPLIER);
    }
}

/// A map from a small dense number.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// A map from results that can drop a whole graph without looking at the others.
#[derive(Debug, Clone)]
pub struct KeyMap<V> {
    graphs: IdMap<u32, IdMap<u32, V>>,
}

impl<V> Default for KeyMap<V> {
    fn default() -> Self {
        Self {
            graphs: IdMap::default(),
        }
    }
}

impl<V> KeyMap<V> {
    /// The value of a key.
    pub fn get(&self, key: ResultKey) -> Option<&V> {
        self.graphs.get(&key.graph())?.get(&key.task())
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: ResultKey) -> Option<&mut V> {
        self.graphs.get_mut(&key.graph())?.get_mut(&key.task())
    }

    /// Whether there is a value.
    pub fn contains(&self, key: ResultKey) -> bool {
        self.get(key).is_some()
    }

    /// Sets a value, returns the one before.
    pub fn insert(&mut self, key: ResultKey, value: V) -> Option<V> {
        self.graphs
            .entry(key.graph())
            .or_default()
            .insert(key.task(), value)
    }

    /// The value of a key, made if there is none.
    pub fn get_or_insert_with(&mut self, key: ResultKey, make: impl FnOnce() -> V) -> &mut V {
        self.graphs
            .entry(key.graph())
            .or_default()
            .entry(key.task())
            .or_insert_with(make)
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: ResultKey) -> Option<V> {
        self.graphs.get_mut(&key.graph())?.remove(&key.task())
    }

    /// Takes all values of a graph out.
    pub fn remove_graph(&mut self, graph: u32) -> impl Iterator<Item = (ResultKey, V)> + use<V> {
        let values = self.graphs.remove(&graph).unwrap_or_default();
        values
            .into_iter()
            .map(move |(task, value)| (ResultKey::new(graph, task), value))
    }

    /// Everything, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (ResultKey, &V)> {
        self.graphs.iter().flat_map(|(graph, values)| {
            values
                .iter()
                .map(|(task, value)| (ResultKey::new(*graph, *task), value))
        })
    }

    /// The values, in no order.
    pub fn into_values(self) -> impl Iterator<Item = V> {
        self.graphs.into_values().flat_map(HashMap::into_values)
    }

    /// Number of values. Costs a look at each graph.
    pub fn len(&self) -> usize {
        self.graphs.values().map(HashMap::len).sum()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.graphs.values().all(HashMap::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_holds_graph_and_task() {
        let key = ResultKey::new(u32::MAX, 7);
        assert_eq!((key.graph(), key.task()), (u32::MAX, 7));
        assert_eq!(ResultKey::new(3, u32::MAX).task(), u32::MAX);
        assert_eq!(ResultKey::new(3, 4).to_string(), "3/4");
    }

    #[test]
    fn a_graph_is_removed_alone() {
        let mut map = KeyMap::default();
        for graph in 0..3 {
            for task in 0..4 {
                map.insert(ResultKey::new(graph, task), task);
            }
        }
        let mut removed: Vec<_> = map.remove_graph(1).collect();
        removed.sort_unstable();
        assert_eq!(removed.len(), 4);
        assert!(
            removed
                .iter()
                .all(|(key, task)| key.graph() == 1 && key.task() == *task)
        );
        assert_eq!(map.len(), 8);
        assert!(!map.contains(ResultKey::new(1, 0)));
        assert_eq!(map.remove_graph(1).count(), 0);
    }

    #[test]
    fn neighbours_spread_over_the_lower_bits() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..1024_u64 {
            let mut hasher = IdHasher::default();
            hasher.write_u64(number);
            seen.insert(hasher.finish() & 1023);
        }
        assert!(seen.len() > 500, "`{}` of 1024 places used", seen.len());
    }
}

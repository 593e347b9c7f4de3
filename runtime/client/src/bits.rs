//! A set of task numbers, one bit each.

/// Numbers above this are not kept: no graph has so many tasks.
const NUMBER_MAX: u32 = oxidask_core::GRAPH_TASKS_MAX;

/// A set of small numbers.
#[derive(Debug, Default)]
pub(crate) struct BitSet {
    words: Vec<u64>,
}

impl BitSet {
    /// Adds a number; whether it is new. A number that no task has is always new.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        if number > NUMBER_MAX {
            return true;
        }
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        is_new
    }

    /// All numbers, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..)
            .zip(&self.words)
            .flat_map(|(place, word): (u32, &u64)| {
                (0..64)
                    .filter(move |bit| word & (1 << bit) != 0)
                    .map(move |bit| place * 64 + bit)
            })
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.words = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once() {
        let mut set = BitSet::default();
        for number in [5, 64, 63, 1_000_000] {
            assert!(set.insert(number));
            assert!(!set.insert(number));
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [5, 63, 64, 1_000_000]);
        assert!(set.insert(u32::MAX) && set.insert(u32::MAX), "not kept");
        set.clear();
        assert_eq!(set.iter().next(), None);
    }
}

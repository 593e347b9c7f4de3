//! A queue that forgets its oldest items when it passes its bounds.

use std::collections::VecDeque;

/// How much a ring keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Items.
    pub items_max: usize,
    /// Bytes of them, as whoever adds them counts.
    pub bytes_max: usize,
}

/// The newest items. Each has a number, one more than the one before.
#[derive(Debug, Clone)]
pub struct Ring<T> {
    bounds: Bounds,
    items: VecDeque<(usize, T)>,
    bytes: usize,
    /// The number of the oldest item that is kept.
    first: u64,
}

impl<T> Ring<T> {
    /// An empty ring.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            items: VecDeque::new(),
            bytes: 0,
            first: 0,
        }
    }

    /// Adds an item and forgets as many of the oldest as needed; one that alone is larger than the
    /// ring is forgotten with all others. Returns how many were forgotten.
    pub fn push(&mut self, item: T, bytes: usize) -> u64 {
        self.items.push_back((bytes, item));
        self.bytes = self.bytes.saturating_add(bytes);
        let before = self.first;
        while self.items.len() > self.bounds.items_max || self.bytes > self.bounds.bytes_max {
            let Some((bytes, _)) = self.items.pop_front() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(bytes);
            self.first += 1;
        }
        self.first - before
    }

    /// The number of the oldest item that is kept; if there is none, that of the next one.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next item gets.
    pub fn next(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many items are kept.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What is kept from this number on, oldest first, each with its number.
    pub fn from(&self, number: u64) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        let skipped = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let start = skipped.min(self.items.len());
        let first = self.first + start as u64;
        let items = self.items.range(start..).enumerate();
        items.map(move |(place, (_, item))| (first + place as u64, item))
    }

    /// Everything that is kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter().map(|(_, item)| item)
    }

    /// The newest items, oldest first, that fit into these bounds; and the number of the first.
    pub fn newest(&self, from: u64, bounds: Bounds) -> u64 {
        let (mut items, mut bytes) = (0, 0_usize);
        let mut start = self.next();
        let begin = from.max(self.first);
        for (size, _) in self.items.iter().rev() {
            items += 1;
            bytes = bytes.saturating_add(*size);
            if start <= begin || items > bounds.items_max || bytes > bounds.bytes_max {
                break;
            }
            start -= 1;
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let mut ring = Ring::new(Bounds {
            items_max: 3,
            bytes_max: 10,
        });
        assert_eq!((ring.push('a', 4), ring.push('b', 4)), (0, 0));
        assert_eq!(ring.push('c', 4), 1);
        assert_eq!(ring.from(0).collect::<Vec<_>>(), [(1, &'b'), (2, &'c')]);
        assert_eq!(ring.from(2).collect::<Vec<_>>(), [(2, &'c')]);
        assert_eq!(ring.from(9).count(), 0);
        // Larger than the whole ring.
        assert_eq!(ring.push('d', 11), 3);
        assert!(ring.is_empty());
        assert_eq!((ring.first(), ring.next(), ring.bytes()), (4, 4, 0));
    }

    #[test]
    fn the_newest_within_bounds() {
        let mut ring = Ring::new(Bounds {
            items_max: 10,
            bytes_max: 100,
        });
        for item in 0..6 {
            ring.push(item, 10);
        }
        let bounds = |items_max, bytes_max| Bounds {
            items_max,
            bytes_max,
        };
        assert_eq!(ring.newest(0, bounds(100, 1_000)), 0);
        assert_eq!(ring.newest(4, bounds(100, 1_000)), 4);
        assert_eq!(ring.newest(0, bounds(2, 1_000)), 4);
        assert_eq!(ring.newest(0, bounds(100, 35)), 3);
        assert_eq!(ring.newest(0, bounds(100, 5)), 6);
        assert_eq!(ring.newest(9, bounds(100, 1_000)), 6);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_numbers_stay(
            items_max in 0_usize..20,
            bytes_max in 0_usize..200,
            sizes in proptest::collection::vec(0_usize..60, 0..200),
            from in 0_u64..250,
        ) {
            let bounds = Bounds { items_max, bytes_max };
            let mut ring = Ring::new(bounds);
            let mut forgotten = 0;
            for (number, size) in sizes.iter().enumerate() {
                forgotten += ring.push((number as u64, *size), *size);
                prop_assert!(ring.len() <= items_max && ring.bytes() <= bytes_max);
                prop_assert_eq!(ring.bytes(), ring.iter().map(|(_, size)| size).sum::<usize>());
            }
            prop_assert_eq!(forgotten, ring.first());
            prop_assert_eq!(ring.next(), sizes.len() as u64);
            prop_assert_eq!(forgotten + ring.len() as u64, sizes.len() as u64);
            for (number, (pushed, _)) in ring.from(from) {
                prop_assert_eq!(number, *pushed);
                prop_assert!(number >= from);
            }
            // No item that would still fit was forgotten.
            if let Some(last) = ring.first().checked_sub(1) {
                let one_more = ring.bytes() + sizes[usize::try_from(last).unwrap()];
                prop_assert!(ring.len() == items_max || one_more > bytes_max);
            }
            let start = ring.newest(from, bounds);
            prop_assert!(start >= from.min(ring.next()).max(ring.first()));
        }
    }
}

//! A column whose last entries are left out while they are the default.
//!
//! Most graphs have no retries, no priorities, no requirements; many have no edges. What nobody says
//! costs nothing. Invariant: an entry beyond the end is the default.

use std::ops::{Index, IndexMut};

/// Entries by the number of their task.
#[derive(Debug)]
pub(crate) struct Column<T> {
    entries: Vec<T>,
    default: T,
}

impl<T: Copy + PartialEq> Column<T> {
    /// Every entry is `default`.
    pub(crate) fn new(default: T) -> Self {
        Self {
            entries: Vec::new(),
            default,
        }
    }

    /// Sets an entry.
    pub(crate) fn set(&mut self, at: usize, value: T) {
        if value != self.default || at < self.entries.len() {
            self[at] = value;
        }
    }
}

impl<T> Index<usize> for Column<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        self.entries.get(at).unwrap_or(&self.default)
    }
}

impl<T: Copy> IndexMut<usize> for Column<T> {
    /// Makes the column as long as that takes; use [`Column::set`] for what may be the default.
    fn index_mut(&mut self, at: usize) -> &mut T {
        let missing = (at + 1).saturating_sub(self.entries.len());
        if missing > 0 {
            grow(&mut self.entries, missing);
            self.entries.resize(at + 1, self.default);
        }
        &mut self.entries[at]
    }
}

/// Makes room, for half of what is there at least, so that columns are copied rarely and waste
/// little.
pub(crate) fn grow<T>(entries: &mut Vec<T>, more: usize) {
    if entries.capacity() - entries.len() < more {
        entries.reserve_exact(more.max(entries.len() / 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_default_and_takes_no_room() {
        let mut column = Column::new(7_u32);
        column.set(1_000_000, 7);
        assert_eq!((column[5], column.entries.len()), (7, 0));
        column.set(3, 1);
        assert_eq!((column[2], column[3], column[4]), (7, 1, 7));
        column[3] += 1;
        column.set(3, 7);
        assert_eq!((column[3], column.entries.len()), (7, 4));
    }
}

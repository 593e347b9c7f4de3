//! What goes first on a worker: the same order in which the scheduler hands tasks out.
//!
//! A task that comes later may have an earlier turn: it passes those that were handed over ahead of
//! it and have not begun, and so do the fetches of its inputs. So what a worker has in store never
//! keeps something more urgent waiting.

use std::cmp::Reverse;

/// Larger is earlier: larger priority, older graph, earlier turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Urgency {
    priority: i32,
    graph: Reverse<u32>,
    turn: Reverse<u32>,
}

impl Urgency {
    /// Of an ordered copy: before all tasks that have no priority of their own, because whoever
    /// ordered it wants to go.
    pub(crate) const COPY: Self = Self {
        priority: 0,
        graph: Reverse(0),
        turn: Reverse(0),
    };

    pub(crate) fn new(priority: i32, graph: u32, turn: u32) -> Self {
        Self {
            priority,
            graph: Reverse(graph),
            turn: Reverse(turn),
        }
    }
}

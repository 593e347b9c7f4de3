//! The worker with the least load, kept as a tournament: a change costs a few steps up a tree,
//! the winner is at its root.
//!
//! Invariant: each inner node names the place with the smaller load of its two halves.

use crate::fleet::{Fleet, Worker};

/// Load of a place without a worker that takes work: never wins against one with a worker.
const ABSENT: u64 = u64::MAX;

/// All places by load.
#[derive(Debug, Default)]
pub(crate) struct LeastLoaded {
    loads: Vec<u64>,
    /// Heap order, the root at 1; empty until there are two places.
    winners: Vec<u32>,
}

impl LeastLoaded {
    /// The place with the least load; the first of equals.
    pub(crate) fn first(&self) -> Option<u32> {
        let place = self.winners.get(1).copied().unwrap_or(0);
        (self.load(place) != ABSENT).then_some(place)
    }

    /// Takes over what has changed in the fleet.
    pub(crate) fn follow(&mut self, fleet: &mut Fleet) {
        while let Some(place) = fleet.next_changed() {
            let open = fleet.at(place).filter(|worker| worker.is_open);
            let load = open.map_or(ABSENT, Worker::load_key);
            self.set(place, load);
        }
    }

    fn load(&self, place: u32) -> u64 {
        self.loads.get(place as usize).copied().unwrap_or(ABSENT)
    }

    fn set(&mut self, place: u32, load: u64) {
        let at = place as usize;
        if at >= self.loads.len() {
            self.grow(at + 1);
        }
        self.loads[at] = load;
        let mut node = usize::midpoint(self.loads.len(), at);
        while node >= 1 && node < self.winners.len() {
            self.decide(node);
            node /= 2;
        }
    }

    fn grow(&mut self, places: usize) {
        let places = places.next_power_of_two();
        self.loads.resize(places, ABSENT);
        self.winners = vec![0; if places > 1 { places } else { 0 }];
        for node in (1..self.winners.len()).rev() {
            self.decide(node);
        }
    }

    fn decide(&mut self, node: usize) {
        let (left, right) = (self.winner(2 * node), self.winner(2 * node + 1));
        self.winners[node] = if self.load(right) < self.load(left) {
            right
        } else {
            left
        };
    }

    /// The winner below a node, or the place itself below the last level.
    fn winner(&self, node: usize) -> u32 {
        match self.winners.get(node) {
            Some(winner) => *winner,
            None => u32::try_from(node - self.winners.len()).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_is_always_the_least_of_all() {
        for places in [1_u32, 2, 3, 5, 64, 100] {
            let mut least = LeastLoaded::default();
            let mut loads = vec![ABSENT; places as usize];
            assert_eq!(least.first(), None);
            for step in 0..2_000_u32 {
                let place = step.wrapping_mul(2_654_435_761) % places;
                let load = match step % 7 {
                    0 => ABSENT,
                    _ => u64::from(step.wrapping_mul(40_503) % 1_000),
                };
                least.set(place, load);
                loads[place as usize] = load;
                let smallest = loads.iter().copied().min().unwrap();
                assert_eq!(
                    least.first().map(|first| loads[first as usize]),
                    (smallest != ABSENT).then_some(smallest)
                );
            }
        }
    }
}

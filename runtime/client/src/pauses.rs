//! Growing pauses between tries, each a little different for each process.
//!
//! Owns the rule only: whoever waits brings the time and decides when to give up. Invariant: a pause
//! is at least half and at most all of what its number of tries gives, and never more than the
//! largest.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Pauses that double up to a bound. Many processes that lose the same peer at once do not come
/// back at the same moment.
#[derive(Debug)]
pub struct Pauses {
    first: Duration,
    largest: Duration,
    next: Duration,
    random: RandomState,
    drawn: u64,
}

impl Pauses {
    /// Pauses from `first` to `largest`.
    pub fn new(first: Duration, largest: Duration) -> Self {
        Self {
            first,
            largest,
            next: first,
            random: RandomState::new(),
            drawn: 0,
        }
    }

    /// How long to wait now; the next one is longer.
    pub fn next_pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (self.next * 2).min(self.largest);
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.drawn);
        self.drawn += 1;
        let share = u32::try_from(hasher.finish() >> 48).unwrap_or(0);
        whole / 2 + (whole / 2) * share / (1 << 16)
    }

    /// Something worked: the next pause is a short one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_largest_and_differ() {
        let first = Duration::from_millis(50);
        let largest = Duration::from_secs(2);
        let mut one = Pauses::new(first, largest);
        let mut other = Pauses::new(first, largest);
        let mut whole = first;
        let mut differing = 0;
        for _ in 0..20 {
            let (a, b) = (one.next_pause(), other.next_pause());
            for pause in [a, b] {
                assert!(
                    pause >= whole / 2 && pause <= whole,
                    "{pause:?} of {whole:?}"
                );
            }
            differing += usize::from(a != b);
            whole = (whole * 2).min(largest);
        }
        assert!(differing > 10);
        one.reset();
        assert!(one.next_pause() <= first);
    }
}

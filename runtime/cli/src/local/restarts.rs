//! When a process that ended is started again, and when that is given up. Pure.
//!
//! Invariant: a process is started again at most [`RESTARTS_MAX`] times within [`WINDOW`].

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How often one process is started again within the window.
pub(crate) const RESTARTS_MAX: u32 = 5;
/// What counts; a process that works for longer than that has earned a new beginning.
pub(crate) const WINDOW: Duration = Duration::from_mins(1);
/// Pause before a restart that is not the first in the window; doubled with each.
const PAUSE: Duration = Duration::from_millis(20);

/// The restarts of one process.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    at: VecDeque<Instant>,
}

/// The process is started again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Restart {
    /// How many there were in the window, this one included.
    pub(crate) count: u32,
    /// The pause before it.
    pub(crate) pause: Duration,
}

impl Restarts {
    /// The process ended now; `None` if it is given up.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Restart> {
        let is_old = |at: &Instant| now.duration_since(*at) > WINDOW;
        while self.at.front().is_some_and(is_old) {
            self.at.pop_front();
        }
        let before = u32::try_from(self.at.len()).unwrap_or(u32::MAX);
        if before >= RESTARTS_MAX {
            return None;
        }
        self.at.push_back(now);
        let pause = match before {
            0 => Duration::ZERO,
            _ => PAUSE * 2u32.pow(before - 1),
        };
        Some(Restart {
            count: before + 1,
            pause,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_in_a_minute_and_then_no_more() {
        let mut restarts = Restarts::default();
        let start = Instant::now();
        let first = restarts.next(start).unwrap();
        assert_eq!((first.count, first.pause), (1, Duration::ZERO));
        for count in 2..=RESTARTS_MAX {
            let next = restarts.next(start + Duration::from_secs(10)).unwrap();
            assert_eq!(next.count, count);
            assert!(next.pause >= PAUSE && next.pause < Duration::from_secs(1));
        }
        assert_eq!(restarts.next(start + Duration::from_secs(20)), None);
        // The first is forgotten by then.
        let later = restarts.next(start + Duration::from_secs(61)).unwrap();
        assert_eq!(later.count, RESTARTS_MAX);
        assert_eq!(restarts.next(start + Duration::from_secs(62)), None);
        let much_later = restarts.next(start + Duration::from_mins(10)).unwrap();
        assert_eq!(much_later.count, 1);
    }
}

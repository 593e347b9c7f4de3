//! When ends of runs are told: at once, unless so much work waits here that nobody needs to know yet.
//!
//! A message costs the worker, the network and the scheduler about as much as a small task. While
//! runs beside the loop have plenty of others behind them, their ends wait for each other; so does
//! what the scheduler hands out for them. Whatever somebody may wait for is never kept back: a
//! result that a client wants, a failure, a heartbeat, the last runs that are queued.

use std::time::{Duration, Instant};

/// How long an end waits at most. Tasks that are handed out ahead take four times as long.
const LINGER_MILLIS: u64 = 2;
/// Tasks in the queue, for each slot, below which the scheduler is told at once.
const QUEUED_PER_SLOT_MIN: usize = 4;

/// Since when ends wait to be told.
#[derive(Debug, Default)]
pub(super) struct Linger {
    since: Option<Instant>,
}

impl Linger {
    /// Until when what is to be told waits; none if it is to be sent as soon as there is room.
    pub(super) fn until(&mut self, may_wait: bool, now: Instant) -> Option<Instant> {
        if !may_wait {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let until = since + Duration::from_millis(LINGER_MILLIS);
        (now < until).then_some(until)
    }

    /// It was sent.
    pub(super) fn sent(&mut self) {
        self.since = None;
    }
}

/// Whether so many tasks are queued that the slots have enough to do until a message has gone to the
/// scheduler and back.
pub(super) fn has_plenty(queued: usize, slots: u32) -> bool {
    queued >= QUEUED_PER_SLOT_MIN.saturating_mul(slots as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_wait_for_each_other_but_not_for_long() {
        let mut linger = Linger::default();
        let start = Instant::now();
        let after = |micros| start + Duration::from_micros(micros);
        let until = Some(start + Duration::from_millis(LINGER_MILLIS));
        assert_eq!(linger.until(true, start), until);
        assert_eq!(
            linger.until(true, after(500)),
            until,
            "others do not prolong it"
        );
        assert_eq!(linger.until(true, after(1_000 * LINGER_MILLIS)), None);
        // There was no room for the message: it still is not to wait.
        assert_eq!(linger.until(true, after(9_000)), None);
        linger.sent();
        assert!(linger.until(true, after(9_000)).is_some());
        assert_eq!(linger.until(false, after(9_001)), None, "somebody waits");
    }

    #[test]
    fn a_queue_that_is_about_to_run_dry_is_told_at_once() {
        assert!(has_plenty(8, 2));
        assert!(!has_plenty(7, 2));
        assert!(!has_plenty(0, 1));
    }
}

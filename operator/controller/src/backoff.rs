//! How long to wait after an error: per object, doubling, bounded; and the same for watches.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_mins(5);
/// After a conflict the next look is almost at once, as long as conflicts are few.
const CONFLICT: Duration = Duration::from_millis(50);
const CONFLICTS_AT_ONCE: u32 = 5;

const WATCH_FIRST: Duration = Duration::from_millis(500);
const WATCH_LAST: Duration = Duration::from_secs(10);

/// Failed attempts by object UID. Holds objects only while they fail.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<HashMap<String, u32>>);

impl Attempts {
    /// Counts a failure and says how long to wait.
    pub(crate) fn failed(&self, uid: &str, is_conflict: bool) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        if is_conflict && *count <= CONFLICTS_AT_ONCE {
            return CONFLICT;
        }
        doubled(FIRST, LAST, *count - 1)
    }

    /// Forgets an object: it succeeded, or is gone.
    pub(crate) fn forget(&self, uid: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.remove(uid);
    }
}

fn doubled(first: Duration, last: Duration, times: u32) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(last)
}

/// How long a watch waits after that many failures in a row. Less than kube's own default at most:
/// definitions and rights that were just installed should work at once.
pub(crate) fn watch_pause(failures: u32) -> Duration {
    doubled(WATCH_FIRST, WATCH_LAST, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_start_again() {
        let attempts = Attempts::default();
        let waits: Vec<u64> = (0..12)
            .map(|_| attempts.failed("a", false).as_secs())
            .collect();
        assert_eq!(waits[..4], [1, 2, 4, 8]);
        assert_eq!(waits[11], 300);
        assert_eq!(attempts.failed("b", false), FIRST);
        attempts.forget("a");
        assert_eq!(attempts.failed("a", false), FIRST);
        for _ in 0..100 {
            assert!(attempts.failed("a", false) <= LAST);
        }
    }

    #[test]
    fn a_few_conflicts_are_tried_again_at_once() {
        let attempts = Attempts::default();
        for _ in 0..CONFLICTS_AT_ONCE {
            assert_eq!(attempts.failed("a", true), CONFLICT);
        }
        assert!(attempts.failed("a", true) > FIRST);
    }

    #[test]
    fn a_watch_waits_longer_up_to_a_limit() {
        assert_eq!(watch_pause(0), WATCH_FIRST);
        assert_eq!(watch_pause(1), 2 * WATCH_FIRST);
        assert_eq!(watch_pause(1000), WATCH_LAST);
    }
}

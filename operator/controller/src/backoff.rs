//! How long to wait after an error: per object, doubling, bounded; and the same for watches.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::Class;

/// An outage ends without a word, so waits stay short.
const TRANSIENT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Room in a quota is not announced, nor that a new definition is taken up.
const LATER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));

/// A new spec is looked at at once; only policies and other people's objects change unseen.
const CONFIGURATION: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
const CONFIGURATION_FACTOR: u32 = 8;

/// After a conflict the next look is almost at once, as long as conflicts are few.
const CONFLICT: Duration = Duration::from_millis(50);
const CONFLICTS_AT_ONCE: u32 = 5;

/// Waits differ by up to this share, so that many objects do not come back at the same moment.
const SPREAD_PERCENT: u64 = 20;

const WATCH_FIRST: Duration = Duration::from_millis(500);
const WATCH_LAST: Duration = Duration::from_secs(10);

/// Failed attempts by object UID. Holds objects only while they fail.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<HashMap<String, Failed>>);

#[derive(Debug, Clone, Copy)]
struct Failed {
    class: Class,
    count: u32,
}

impl Attempts {
    /// Counts a failure and says how long to wait.
    pub(crate) fn failed(&self, uid: &str, class: Class) -> Duration {
        let mut attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = attempts
            .entry(uid.to_owned())
            .or_insert(Failed { class, count: 0 });
        if failed.class != class {
            // What is wrong now is something else.
            *failed = Failed { class, count: 0 };
        }
        failed.count = failed.count.saturating_add(1);
        let times = failed.count - 1;
        let wait = match class {
            Class::Conflict | Class::Gone if failed.count <= CONFLICTS_AT_ONCE => return CONFLICT,
            Class::Later => grown(LATER, 2, times),
            Class::Rejected => grown(CONFIGURATION, CONFIGURATION_FACTOR, times),
            _ => grown(TRANSIENT, 2, times),
        };
        spread(wait, uid, failed.count)
    }

    /// Forgets an object: it succeeded, or is gone.
    pub(crate) fn forget(&self, uid: &str) {
        let mut attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.remove(uid);
    }
}

fn grown((first, last): (Duration, Duration), factor: u32, times: u32) -> Duration {
    let factor = factor.saturating_pow(times);
    first.saturating_mul(factor).min(last)
}

/// Shorter by a share that only the object and the count decide.
fn spread(wait: Duration, uid: &str, count: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    (uid, count).hash(&mut hasher);
    let percent = hasher.finish() % (SPREAD_PERCENT + 1);
    let percent = u32::try_from(percent).unwrap_or_default();
    wait.saturating_sub(wait * percent / 100)
}

/// How long a watch waits after that many failures in a row. Less than kube's own default at most:
/// definitions and rights that were just installed should work at once.
pub(crate) fn watch_pause(failures: u32) -> Duration {
    grown((WATCH_FIRST, WATCH_LAST), 2, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds up to whole seconds.
    const CEILING: Duration = Duration::from_millis(999);

    fn waits(class: Class) -> Vec<u64> {
        let attempts = Attempts::default();
        let waits = (0..12).map(|_| attempts.failed("a", class));
        waits.map(|wait| (wait + CEILING).as_secs()).collect()
    }

    #[test]
    fn waits_grow_up_to_a_limit_that_fits_the_error() {
        assert_eq!(waits(Class::Transient)[0], 1);
        assert!(waits(Class::Transient)[11] <= 30);
        assert!(waits(Class::Transient)[11] >= 24);
        assert!(waits(Class::Later)[11] <= 60);
        let configuration = waits(Class::Rejected);
        assert_eq!(configuration[0], 1);
        assert!(
            configuration[1] >= 6,
            "not tried again fast: {configuration:?}"
        );
        assert!(configuration[11] >= 480);
    }

    #[test]
    fn another_error_and_success_start_anew() {
        let attempts = Attempts::default();
        for _ in 0..10 {
            attempts.failed("a", Class::Rejected);
        }
        assert!(attempts.failed("a", Class::Transient) <= TRANSIENT.0);
        attempts.failed("a", Class::Transient);
        attempts.forget("a");
        assert!(attempts.failed("a", Class::Transient) <= TRANSIENT.0);
    }

    #[test]
    fn a_few_conflicts_are_tried_again_at_once() {
        let attempts = Attempts::default();
        for _ in 0..CONFLICTS_AT_ONCE {
            assert_eq!(attempts.failed("a", Class::Conflict), CONFLICT);
        }
        assert!(attempts.failed("a", Class::Conflict) > Duration::from_secs(1));
    }

    #[test]
    fn objects_do_not_come_back_together() {
        let attempts = Attempts::default();
        let mut waits: Vec<_> = (0..50)
            .map(|it| attempts.failed(&it.to_string(), Class::Transient))
            .collect();
        waits.sort();
        waits.dedup();
        assert!(waits.len() > 5);
    }

    #[test]
    fn a_watch_waits_longer_up_to_a_limit() {
        assert_eq!(watch_pause(0), WATCH_FIRST);
        assert_eq!(watch_pause(1), 2 * WATCH_FIRST);
        assert_eq!(watch_pause(1000), WATCH_LAST);
    }
}

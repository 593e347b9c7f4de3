//! When to try to reach a scheduler again, and when to give up. Pure: the caller brings the time and
//! the chance by which pauses differ between workers.
//!
//! Invariants: pauses grow to [`PAUSE_MAX`] and shrink only after a session that was worth its
//! name; a worker is never without a scheduler for longer than its time; a cause is news once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::error::{Prospect, WorkerError};

/// Pause after the first failure; doubled with each.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A session of this length was no accident.
const SESSION_WORTH: Duration = Duration::from_secs(2);
/// How long a scheduler may take to notice that an older worker of the same name is gone. It asks
/// for a sign of life every 10 s and waits 5 s for it.
const NAME_TIME_MAX: Duration = Duration::from_mins(1);
/// Different causes that are told before the worker is registered again.
const CAUSES_TOLD_MAX: usize = 16;

/// The state of trying.
#[derive(Debug)]
pub(crate) struct Retry {
    /// How long to go without a scheduler.
    time: Duration,
    pause: Duration,
    alone_since: Instant,
    refused_since: Option<Instant>,
    told: BTreeSet<(String, String)>,
}

impl Retry {
    /// For a worker that starts now.
    pub(crate) fn new(time: Duration, now: Instant) -> Self {
        Self {
            time,
            pause: PAUSE_FIRST,
            alone_since: now,
            refused_since: None,
            told: BTreeSet::new(),
        }
    }

    /// The worker was registered for a while.
    pub(crate) fn session_ended(&mut self, since: Instant, now: Instant) {
        self.alone_since = now;
        self.refused_since = None;
        self.told.clear();
        if now.duration_since(since) >= SESSION_WORTH {
            self.pause = PAUSE_FIRST;
        }
    }

    /// How long to wait before the next try, or why there is none. `chance` shortens the pause by up
    /// to a half: workers that lost the same scheduler do not come back at the same moment.
    pub(crate) fn next_try(
        &mut self,
        error: WorkerError,
        name: &str,
        now: Instant,
        chance: u16,
    ) -> Result<Duration, WorkerError> {
        let (since, time) = match error.prospect() {
            Prospect::Final => return Err(error),
            Prospect::Passing => {
                self.refused_since = None;
                (self.alone_since, self.time)
            }
            Prospect::NameTaken => (
                *self.refused_since.get_or_insert(now),
                NAME_TIME_MAX.min(self.time),
            ),
        };
        if self.time.is_zero() {
            return Err(error);
        }
        let alone = now.duration_since(since);
        if alone >= time {
            return Err(WorkerError::NoScheduler {
                name: name.to_owned(),
                seconds: time.as_secs(),
                source: Box::new(error),
            });
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        let shorter = pause / 2 * u32::from(chance) / u32::from(u16::MAX);
        Ok(pause.saturating_sub(shorter))
    }

    /// Whether this has not been told yet.
    pub(crate) fn is_news(&mut self, message: &str, causes: &str) -> bool {
        self.told.len() < CAUSES_TOLD_MAX
            && self.told.insert((message.to_owned(), causes.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use oxidask_comm::CommError;
    use oxidask_diagnostic::{Code, Coded, Diagnostic};

    use super::*;
    use crate::error::Reported;

    const MINUTE: Duration = Duration::from_mins(1);

    fn unreachable() -> WorkerError {
        WorkerError::Connect {
            name: "w".into(),
            address: "oxidask://s:1".into(),
            source: Box::new(CommError::Connect {
                address: "s:1".into(),
                source: std::io::ErrorKind::ConnectionRefused.into(),
            }),
        }
    }

    fn refused(code: Code) -> WorkerError {
        WorkerError::Refused {
            name: "w".into(),
            source: Reported(Box::new(Diagnostic::new(code, "no"))),
        }
    }

    #[test]
    fn pauses_grow_and_the_time_is_bounded() {
        let start = Instant::now();
        let mut retry = Retry::new(10 * MINUTE, start);
        let mut now = start;
        let mut pauses = Vec::new();
        let error = loop {
            match retry.next_try(unreachable(), "w", now, 0) {
                Ok(pause) => {
                    pauses.push(pause.as_millis());
                    now += pause;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(pauses[..8], [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        let alone = now - start;
        assert!(
            alone >= 10 * MINUTE && alone < 10 * MINUTE + PAUSE_MAX,
            "{alone:?}"
        );
        let told = Diagnostic::from_error(&error);
        assert_eq!(told.code, Code::SchedulerUnreachable);
        assert_eq!(told.message, "worker `w` has had no scheduler for `600` s");
        assert!(told.causes[0].contains("cannot reach"), "{:?}", told.causes);
    }

    #[test]
    fn chance_shortens_a_pause_by_up_to_a_half() {
        let now = Instant::now();
        for (chance, millis) in [(0, 50), (u16::MAX, 25), (u16::MAX / 2, 37)] {
            let mut retry = Retry::new(MINUTE, now);
            let pause = retry.next_try(unreachable(), "w", now, chance).unwrap();
            assert_eq!(pause.as_millis(), millis);
        }
    }

    #[test]
    fn a_session_sets_the_time_back_and_a_long_one_the_pause_too() {
        let start = Instant::now();
        let mut retry = Retry::new(MINUTE, start);
        for _ in 0..8 {
            retry.next_try(unreachable(), "w", start, 0).unwrap();
        }
        let later = start + 2 * MINUTE;
        retry.session_ended(later, later);
        let pause = retry.next_try(unreachable(), "w", later, 0).unwrap();
        assert_eq!(
            pause, PAUSE_MAX,
            "a session of no length is no reason to hurry"
        );
        retry.session_ended(start, later);
        let pause = retry.next_try(unreachable(), "w", later, 0).unwrap();
        assert_eq!(pause, PAUSE_FIRST);
    }

    #[test]
    fn what_cannot_change_ends_it_at_once() {
        let now = Instant::now();
        for code in [
            Code::ProtocolMismatch,
            Code::CallForbidden,
            Code::IdentityRejected,
        ] {
            let mut retry = Retry::new(MINUTE, now);
            let error = retry.next_try(refused(code), "w", now, 0).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(matches!(error, WorkerError::Refused { .. }));
        }
        let other_cluster = WorkerError::Connect {
            name: "w".into(),
            address: "oxidask://s:1".into(),
            source: Box::new(CommError::IdentityRefusedByPeer {
                address: "s:1".into(),
            }),
        };
        let mut retry = Retry::new(MINUTE, now);
        assert!(retry.next_try(other_cluster, "w", now, 0).is_err());
    }

    #[test]
    fn a_name_that_is_taken_is_asked_for_a_while() {
        let start = Instant::now();
        let mut retry = Retry::new(10 * MINUTE, start);
        let taken = || refused(Code::WorkerRefused);
        assert!(retry.next_try(taken(), "w", start, 0).is_ok());
        assert!(retry.next_try(taken(), "w", start + MINUTE / 2, 0).is_ok());
        assert!(retry.next_try(taken(), "w", start + MINUTE, 0).is_err());
        // A scheduler that went away meanwhile has forgotten the name.
        let mut retry = Retry::new(10 * MINUTE, start);
        assert!(retry.next_try(taken(), "w", start, 0).is_ok());
        assert!(
            retry
                .next_try(unreachable(), "w", start + MINUTE / 2, 0)
                .is_ok()
        );
        assert!(retry.next_try(taken(), "w", start + MINUTE, 0).is_ok());
    }

    #[test]
    fn without_time_every_failure_is_the_last_and_as_it_was() {
        let now = Instant::now();
        let mut retry = Retry::new(Duration::ZERO, now);
        let error = retry.next_try(unreachable(), "w", now, 0).unwrap_err();
        assert!(matches!(error, WorkerError::Connect { .. }));
        let error = retry
            .next_try(refused(Code::WorkerRefused), "w", now, 0)
            .unwrap_err();
        assert!(matches!(error, WorkerError::Refused { .. }));
    }

    #[test]
    fn causes_are_news_once() {
        let now = Instant::now();
        let mut retry = Retry::new(MINUTE, now);
        assert!(retry.is_news("a", "x"));
        assert!(!retry.is_news("a", "x"));
        assert!(retry.is_news("a", "y"));
        for number in 0..100 {
            retry.is_news("a", &number.to_string());
        }
        assert!(!retry.is_news("b", "z"), "enough has been said");
        retry.session_ended(now, now);
        assert!(retry.is_news("a", "x"));
    }
}

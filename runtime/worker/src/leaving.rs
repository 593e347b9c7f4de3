//! A worker that wants to go: when it asks, and when it goes whatever the answer. Pure: the caller
//! brings the time.
//!
//! The scheduler has the results copied that nobody else holds, and says when nothing is left.
//! Invariant: it is over at the deadline, and earlier when there is nobody to hand anything to.

use std::time::{Duration, Instant};

/// How long a worker that has nothing waits for the scheduler to say so, too.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(500);
/// How long a worker that has something waits for a scheduler that is gone.
const ALONE_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause before it asks again: others that have room may have come.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// The scheduler is told an earlier deadline, so that tasks are moved before the worker ends: so
/// much earlier at most, and at most this share of the time.
const MARGIN_MAX: Duration = Duration::from_secs(3);
const MARGIN_SHARE: u32 = 5;

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Wait,
    /// Ask to be drained within this time.
    Ask(Duration),
    End(Reason),
}

/// Why it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It runs nothing and holds nothing.
    Empty,
    /// There is no scheduler that could have its results copied.
    Alone,
    /// The time is over.
    Late,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Without a scheduler since then.
    Alone(Instant),
    Asked(Instant),
    Refused(Instant),
}

/// The state of leaving.
#[derive(Debug)]
pub(crate) struct Leaving {
    deadline: Instant,
    state: State,
}

impl Leaving {
    /// From now on, without a scheduler until [`Leaving::opened`] says otherwise.
    pub(crate) fn new(grace: Duration, now: Instant) -> Self {
        Self {
            deadline: now + grace,
            state: State::Alone(now),
        }
    }

    /// There is a scheduler: what it is to be asked.
    pub(crate) fn opened(&mut self, now: Instant) -> Step {
        self.state = State::Asked(now);
        let left = self.deadline.saturating_duration_since(now);
        let margin = (left / MARGIN_SHARE).min(MARGIN_MAX);
        Step::Ask(left.saturating_sub(margin))
    }

    /// The scheduler is gone.
    pub(crate) fn closed(&mut self, now: Instant) {
        self.state = State::Alone(now);
    }

    /// Nobody can take what this worker has.
    pub(crate) fn refused(&mut self, now: Instant) {
        self.state = State::Refused(now);
    }

    /// When to look again.
    pub(crate) fn alarm(&self, now: Instant) -> Instant {
        let due = match self.state {
            State::Alone(since) => since + ALONE_TIME_MAX,
            State::Asked(at) => at + ANSWER_TIME_MAX,
            State::Refused(at) => at + REFUSED_PAUSE,
        };
        // What has passed without effect is over; beats look again.
        if due > now {
            due.min(self.deadline)
        } else {
            self.deadline
        }
    }

    /// What is to be done, now that the worker has something or nothing.
    pub(crate) fn step(&mut self, has_nothing: bool, now: Instant) -> Step {
        if now >= self.deadline {
            return Step::End(Reason::Late);
        }
        match self.state {
            State::Alone(_) if has_nothing => Step::End(Reason::Empty),
            State::Alone(since) if now >= since + ALONE_TIME_MAX => Step::End(Reason::Alone),
            State::Asked(at) if has_nothing && now >= at + ANSWER_TIME_MAX => {
                Step::End(Reason::Empty)
            }
            State::Refused(at) if now >= at + REFUSED_PAUSE => self.opened(now),
            _ => Step::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn asks_with_time_to_spare_and_ends_at_the_deadline() {
        let now = Instant::now();
        let mut leaving = Leaving::new(25 * SECOND, now);
        assert_eq!(leaving.opened(now), Step::Ask(22 * SECOND));
        assert_eq!(leaving.step(false, now + SECOND), Step::Wait);
        assert_eq!(leaving.alarm(now + SECOND), now + 25 * SECOND);
        let late = leaving.step(false, now + 25 * SECOND);
        assert_eq!(late, Step::End(Reason::Late));
        let mut short = Leaving::new(SECOND, now);
        let asked = Duration::from_millis(800);
        assert_eq!(short.opened(now), Step::Ask(asked));
        let mut none = Leaving::new(Duration::ZERO, now);
        assert_eq!(none.step(false, now), Step::End(Reason::Late));
    }

    #[test]
    fn who_has_nothing_does_not_wait_for_an_answer_for_long() {
        let now = Instant::now();
        let mut leaving = Leaving::new(25 * SECOND, now);
        assert_eq!(leaving.step(true, now), Step::End(Reason::Empty));
        leaving.opened(now);
        assert_eq!(leaving.step(true, now), Step::Wait);
        let alarm = leaving.alarm(now);
        assert_eq!(alarm, now + ANSWER_TIME_MAX);
        assert_eq!(leaving.step(false, alarm), Step::Wait);
        assert_eq!(leaving.step(true, alarm), Step::End(Reason::Empty));
    }

    #[test]
    fn without_a_scheduler_it_waits_a_while() {
        let now = Instant::now();
        let mut leaving = Leaving::new(25 * SECOND, now);
        leaving.opened(now);
        leaving.closed(now + SECOND);
        assert_eq!(leaving.step(false, now + 2 * SECOND), Step::Wait);
        let alarm = leaving.alarm(now + 2 * SECOND);
        assert_eq!(alarm, now + 6 * SECOND);
        assert_eq!(leaving.step(false, alarm), Step::End(Reason::Alone));
    }

    #[test]
    fn a_refusal_is_not_the_last_word() {
        let now = Instant::now();
        let mut leaving = Leaving::new(22 * SECOND, now);
        leaving.opened(now);
        leaving.refused(now);
        assert_eq!(leaving.step(false, now), Step::Wait);
        let alarm = leaving.alarm(now);
        assert_eq!(alarm, now + REFUSED_PAUSE);
        assert_eq!(leaving.step(false, alarm), Step::Ask(17 * SECOND));
        assert_eq!(leaving.step(false, alarm), Step::Wait);
    }
}

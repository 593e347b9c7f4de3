//! How the loop waits for its next input: asleep, or awake for a moment.
//!
//! Waking a thread takes 30 to 60 µs where a processor with nothing to do is handed back to the
//! machine below, and the round trip of a small task wakes eight threads. In the middle of a
//! conversation the loop therefore looks for the next input before it sleeps, as `cpuidle-haltpoll`
//! does in Linux. Owns that decision; looks at nothing and sleeps by itself.
//!
//! Invariants: it stays awake only if it told peers something twice within [`AWAKE_TIME`] while no
//! task waited for a slot, for then nobody waits for the loop; and no longer than that without telling
//! them more. Where somebody else needs the processor it sleeps at once, and looks again only after a
//! rest that doubles.

use std::time::{Duration, Instant};

/// How long the loop looks for an answer to what it has told. Clients of Python take about half as
/// long from a result to the next submission.
const AWAKE_TIME: Duration = Duration::from_millis(1);

/// Who gave way and came back later than this has let somebody work who is not part of the
/// conversation.
pub(crate) const AWAY_TIME_MIN: Duration = Duration::from_micros(500);

/// How long the loop goes on as if it were alone no more.
const REST_TIME_MIN: Duration = Duration::from_millis(20);
const REST_TIME_MAX: Duration = Duration::from_secs(1);

/// The state of a conversation.
#[derive(Debug)]
pub(crate) struct Attention {
    /// There is a processor for others.
    is_possible: bool,
    told_at: Option<Instant>,
    awake_until: Option<Instant>,
    rests_until: Option<Instant>,
    rest: Duration,
}

impl Attention {
    /// Nothing was told yet. With one processor, or a limit of less than two, the loop always sleeps.
    pub(crate) fn new(processors: usize) -> Self {
        Self {
            is_possible: processors > 1,
            told_at: None,
            awake_until: None,
            rests_until: None,
            rest: REST_TIME_MIN,
        }
    }

    /// Something was told to a peer, while tasks had to wait for slots or not.
    pub(crate) fn told(&mut self, now: Instant, tasks_wait: bool) {
        if tasks_wait {
            (self.told_at, self.awake_until) = (None, None);
            return;
        }
        let is_conversation = |at| now.saturating_duration_since(at) < AWAKE_TIME;
        if self.is_possible && self.told_at.is_some_and(is_conversation) {
            self.awake_until = Some(now + AWAKE_TIME);
        }
        self.told_at = Some(now);
    }

    /// Whether to look once more before sleeping.
    pub(crate) fn is_awake(&self, now: Instant) -> bool {
        self.awake_until.is_some_and(|until| now < until)
            && self.rests_until.is_none_or(|until| now >= until)
    }

    /// An input came while the loop was awake.
    pub(crate) fn found(&mut self) {
        self.rest = REST_TIME_MIN;
    }

    /// Others have used the processor meanwhile.
    pub(crate) fn was_away(&mut self, now: Instant) {
        self.rests_until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(REST_TIME_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> (Attention, Instant) {
        let mut attention = Attention::new(2);
        let now = Instant::now();
        attention.told(now, false);
        attention.told(now + AWAKE_TIME / 2, false);
        (attention, now + AWAKE_TIME / 2)
    }

    #[test]
    fn a_conversation_keeps_it_awake_for_a_moment() {
        let (mut attention, now) = conversation();
        assert!(attention.is_awake(now));
        assert!(!attention.is_awake(now + AWAKE_TIME));
        attention.told(now + AWAKE_TIME / 2, false);
        assert!(attention.is_awake(now + AWAKE_TIME));
    }

    #[test]
    fn what_is_told_now_and_then_does_not() {
        let mut attention = Attention::new(2);
        let now = Instant::now();
        for turn in 0..10 {
            let at = now + AWAKE_TIME * turn;
            attention.told(at, false);
            assert!(!attention.is_awake(at));
        }
    }

    #[test]
    fn work_that_waits_for_slots_is_no_conversation() {
        let (mut attention, now) = conversation();
        attention.told(now, true);
        assert!(!attention.is_awake(now));
        attention.told(now, false);
        assert!(!attention.is_awake(now), "it begins anew");
        attention.told(now, false);
        assert!(attention.is_awake(now));
    }

    #[test]
    fn without_a_second_processor_it_always_sleeps() {
        let mut attention = Attention::new(1);
        let now = Instant::now();
        attention.told(now, false);
        attention.told(now, false);
        assert!(!attention.is_awake(now));
    }

    #[test]
    fn others_that_need_the_processor_make_it_rest_longer_each_time() {
        let (mut attention, mut now) = conversation();
        let mut rests = Vec::new();
        for _ in 0..8 {
            attention.was_away(now);
            attention.told(now, false);
            let began = now;
            while !attention.is_awake(now) {
                now += Duration::from_micros(500);
                attention.told(now, false);
            }
            rests.push((now - began).as_millis());
        }
        assert_eq!(rests, [20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        attention.found();
        attention.was_away(now);
        assert!(!attention.is_awake(now));
        attention.told(now + REST_TIME_MIN, false);
        attention.told(now + REST_TIME_MIN, false);
        assert!(attention.is_awake(now + REST_TIME_MIN));
    }
}

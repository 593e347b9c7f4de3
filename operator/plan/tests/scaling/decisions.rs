//! The decision alone.

use std::time::Duration;

use oxidask_operator_plan::scaling::{Cause, Decision, Inputs, Memory, Policy, Wanted, decide};
use proptest::prelude::*;

use crate::world::at;

fn policy(minimum: u32, maximum: u32) -> Policy {
    Policy {
        minimum,
        maximum,
        window: Duration::from_secs(15),
        is_recommendation: false,
    }
}

/// A group that follows the decisions at once.
struct Follower {
    policy: Policy,
    inputs: Inputs,
    memory: Memory,
    now: i64,
    changes: Vec<u32>,
}

impl Follower {
    fn new(policy: Policy, current: u32) -> Self {
        let inputs = Inputs {
            current,
            ready: current,
            ..Inputs::default()
        };
        Self {
            policy,
            inputs,
            memory: Memory::default(),
            now: 1000,
            changes: Vec::new(),
        }
    }

    /// A second in which so many workers are wanted.
    fn second(&mut self, wanted: Option<u64>) -> Decision {
        self.now += 1;
        self.inputs.wanted = wanted.map(|workers| Wanted {
            workers,
            reason: String::new(),
        });
        let decision = decide(&self.policy, &self.inputs, &self.memory, at(self.now));
        self.memory = decision.memory;
        if decision.desired != self.inputs.current {
            self.changes.push(decision.desired);
        }
        self.inputs.current = decision.desired;
        self.inputs.ready = decision.desired;
        decision
    }

    fn seconds(&mut self, count: usize, wanted: u64) {
        for _ in 0..count {
            self.second(Some(wanted));
        }
    }
}

#[test]
fn up_at_once_in_one_step_and_down_after_the_window() {
    let mut group = Follower::new(policy(0, 8), 0);
    let decision = group.second(Some(400));
    assert_eq!((decision.desired, decision.cause), (8, Cause::ScaledUp));
    assert!(
        decision.message.contains("the scheduler wants 400"),
        "{}",
        decision.message
    );
    assert!(decision.message.contains("bounds 0 to 8"));
    group.seconds(14, 0);
    assert_eq!(group.inputs.current, 8);
    assert_eq!(
        group.second(Some(0)).wake_after,
        Some(Duration::from_secs(1))
    );
    let decision = group.second(Some(0));
    assert_eq!((decision.desired, decision.cause), (0, Cause::ScaledDown));
    assert_eq!(group.changes, [8, 0]);
}

#[test]
fn the_window_is_no_shorter_than_pods_take_to_start() {
    let mut group = Follower::new(policy(0, 8), 8);
    group.inputs.start = Some(Duration::from_secs(90));
    group.seconds(90, 0);
    assert_eq!(group.inputs.current, 8);
    group.seconds(2, 0);
    assert_eq!(group.inputs.current, 0);
}

#[test]
fn fewer_means_the_most_that_was_needed_in_the_window() {
    let mut group = Follower::new(policy(0, 8), 8);
    for _ in 0..4 {
        group.seconds(2, 1);
        group.seconds(2, 5);
    }
    assert_eq!(group.inputs.current, 5);
    assert_eq!(group.changes, [5]);
}

#[test]
fn a_square_wave_that_is_faster_than_the_window_changes_nothing() {
    let mut group = Follower::new(policy(0, 8), 0);
    for _ in 0..100 {
        group.seconds(5, 8);
        group.seconds(10, 0);
    }
    assert_eq!(group.changes, [8]);
}

#[test]
fn a_slow_square_wave_changes_twice_in_each_period() {
    let mut group = Follower::new(policy(0, 8), 0);
    for _ in 0..10 {
        group.seconds(60, 8);
        group.seconds(60, 0);
    }
    assert_eq!(group.changes.len(), 20);
}

#[test]
fn a_silent_scheduler_changes_nothing_and_starts_the_window_anew() {
    let mut group = Follower::new(policy(0, 8), 6);
    group.seconds(14, 0);
    let decision = group.second(None);
    assert_eq!(
        (decision.desired, decision.cause),
        (6, Cause::SchedulerSilent)
    );
    assert!(decision.message.contains("the scheduler is silent"));
    group.seconds(14, 0);
    assert_eq!(group.inputs.current, 6);
    group.seconds(3, 0);
    assert_eq!(group.inputs.current, 0);
}

#[test]
fn a_clock_that_is_set_back_starts_the_window_anew() {
    let mut group = Follower::new(policy(0, 8), 8);
    group.seconds(10, 0);
    group.now -= 500;
    group.seconds(15, 0);
    assert_eq!(group.inputs.current, 8);
    group.seconds(2, 0);
    assert_eq!(group.inputs.current, 0);
}

#[test]
fn more_that_would_not_help_is_not_asked_for() {
    let cases = [
        (
            Inputs {
                stuck: 3,
                ..Inputs::default()
            },
            "3 pods could not start",
        ),
        (
            Inputs {
                refusal: Some("exceeded quota".to_owned()),
                ..Inputs::default()
            },
            "exceeded quota",
        ),
        (
            Inputs {
                idle: 1,
                ..Inputs::default()
            },
            "1 worker of 4 had nothing to do",
        ),
    ];
    for (inputs, words) in cases {
        let mut group = Follower::new(policy(0, 100), 4);
        group.inputs = Inputs {
            current: 4,
            ready: 4,
            ..inputs
        };
        let decision = group.second(Some(50));
        assert_eq!(
            (decision.desired, decision.cause),
            (4, Cause::WithoutEffect)
        );
        assert!(decision.message.contains(words), "{}", decision.message);
    }
    let mut group = Follower::new(policy(0, 100), 20);
    group.inputs.idle = 1;
    assert_eq!(
        group.second(Some(50)).desired,
        50,
        "one straggler of twenty"
    );
}

#[test]
fn bounds_are_obeyed_at_once_and_the_maximum_wins() {
    let mut group = Follower::new(policy(3, 8), 1);
    let decision = group.second(Some(0));
    assert_eq!((decision.desired, decision.cause), (3, Cause::WithinBounds));
    group.seconds(2, 50);
    group.policy.maximum = 5;
    assert_eq!(group.second(Some(50)).desired, 5);
    group.policy.maximum = 2;
    assert_eq!(group.second(Some(50)).desired, 2);
    assert_eq!(Follower::new(policy(3, 8), 1).second(None).desired, 3);
}

#[test]
fn a_number_written_by_hand_does_not_count() {
    let mut group = Follower::new(policy(0, 8), 0);
    group.seconds(3, 4);
    group.inputs.current = 7;
    let decision = group.second(Some(4));
    assert_eq!((decision.desired, decision.overridden), (4, Some(7)));
    // What was decided but has not arrived yet is nobody's hand.
    let decision = group.second(Some(6));
    assert_eq!((decision.desired, decision.overridden), (6, None));
    group.inputs.current = 4;
    let decision = group.second(Some(6));
    assert_eq!((decision.desired, decision.overridden), (6, None));
}

proptest! {
    #[test]
    fn the_number_stays_within_the_bounds_and_never_falls_within_a_window(
        minimum in 0..6_u32,
        span in 0..10_u32,
        loads in prop::collection::vec((prop::option::weighted(0.9, 0..20_u64), 0..6_u8), 1..200),
    ) {
        let policy = policy(minimum, minimum + span);
        let mut group = Follower::new(policy, minimum);
        let mut recent: Vec<u64> = Vec::new();
        for (wanted, noise) in loads {
            group.inputs.stuck = u32::from(noise == 0);
            group.inputs.idle = u32::from(noise == 1);
            let before = group.inputs.current;
            let decision = group.second(wanted);
            recent.push(wanted.unwrap_or(u64::MAX));
            prop_assert!((minimum..=minimum + span).contains(&decision.desired));
            if decision.desired < before {
                let window = &recent[recent.len().saturating_sub(16)..];
                prop_assert!(window.len() == 16, "before a window was over");
                let most = window.iter().copied().max().unwrap();
                prop_assert!(u64::from(decision.desired) >= most.min(policy.maximum.into()));
            }
            prop_assert!(wanted.is_some() || decision.desired == before);
            prop_assert_eq!(group.memory.desired, Some(decision.desired));
        }
    }

    #[test]
    fn a_steady_load_comes_to_rest(wanted in 0..20_u64, start in 0..12_u32) {
        let mut group = Follower::new(policy(1, 10), start);
        group.seconds(40, wanted);
        let at_rest = group.inputs.current;
        prop_assert_eq!(u64::from(at_rest), wanted.clamp(1, 10));
        let memory = group.memory;
        group.seconds(40, wanted);
        prop_assert_eq!(group.memory, memory);
    }
}

//! What was acknowledged is recovered in order after any crash, and nothing else is.
#![allow(clippy::unwrap_used, reason = "these are tests")]
#![allow(clippy::cast_possible_truncation, reason = "payloads are any bytes")]

mod model;

use model::{Model, Step};
use proptest::prelude::*;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_usize..150).prop_map(Step::Append),
        8 => Just(Step::Commit),
        2 => Just(Step::BeginSnapshot),
        3 => (1_usize..8).prop_map(Step::Slice),
        2 => Just(Step::FinishSnapshot),
        1 => Just(Step::AbortSnapshot),
        2 => proptest::option::of(0_u64..300).prop_map(Step::Capacity),
        1 => (1_u32..4).prop_map(Step::FailSyncs),
        1 => (1_u64..12).prop_map(Step::CutPowerIn),
        1 => (1_u64..12).prop_map(Step::KillIn),
        1 => Just(Step::Kill),
        1 => Just(Step::LosePower),
        1 => Just(Step::Close),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn nothing_acknowledged_is_lost_and_nothing_is_invented(
        seed in any::<u64>(),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        Model::new(seed).run(&steps);
    }
}

/// Everything that a journal does, once.
fn script() -> Vec<Step> {
    let mut steps = Vec::new();
    let write = |count: usize, steps: &mut Vec<Step>| {
        for length in 0..count {
            steps.push(Step::Append(length * 13 % 120));
            if length % 3 == 2 {
                steps.push(Step::Commit);
            }
        }
    };
    write(20, &mut steps);
    steps.push(Step::BeginSnapshot);
    steps.push(Step::Slice(5));
    write(7, &mut steps);
    steps.push(Step::FinishSnapshot);
    write(10, &mut steps);
    steps.extend([Step::FailSyncs(1), Step::Append(9), Step::Commit]);
    steps.extend([Step::BeginSnapshot, Step::Append(50), Step::FinishSnapshot]);
    write(4, &mut steps);
    steps.push(Step::Close);
    write(4, &mut steps);
    steps
}

#[test]
fn the_power_may_go_off_in_every_operation() {
    let mut whole = Model::new(1);
    let before = whole.disk.operations();
    whole.run(&script());
    let operations = whole.disk.operations() - before;
    assert!(
        operations > 80,
        "the script has only {operations} operations"
    );
    for operation in 1..=operations {
        for seed in 0..10 {
            let mut steps = vec![Step::CutPowerIn(operation)];
            steps.extend(script());
            let mut model = Model::new(seed * 1_000_003 + operation);
            model.run(&steps);
            assert!(model.recoveries >= 3);
        }
    }
}

#[test]
fn the_process_may_be_killed_in_every_operation_and_the_power_fail_soon_after() {
    let mut whole = Model::new(1);
    let before = whole.disk.operations();
    whole.run(&script());
    let operations = whole.disk.operations() - before;
    for operation in 1..=operations {
        for seed in 0..10 {
            let mut model = Model::new(seed * 1_000_003 + operation);
            model.run_one(&Step::KillIn(operation));
            for step in script() {
                model.run_one(&step);
                if model.disk.is_off() {
                    break;
                }
            }
            // What was read and proven then must still be there after this.
            model.run(&[Step::Kill, Step::LosePower]);
        }
    }
}

#[test]
fn the_power_may_go_off_in_the_start_after_a_kill_in_a_creation() {
    for killed_at in 1..12 {
        for cut_at in 1..8 {
            for seed in 0..20 {
                let mut model = Model::new(seed * 1_009 + killed_at * 101 + cut_at);
                model.run_one(&Step::KillIn(killed_at));
                for _ in 0..6 {
                    if !model.disk.is_off() {
                        model.run_one(&Step::Append(100));
                        model.run_one(&Step::BeginSnapshot);
                    }
                }
                model.kill_and_cut_power_in(cut_at);
                model.run(&[]);
            }
        }
    }
}

#[test]
fn the_process_may_be_killed_after_every_step_and_the_power_fail_then() {
    let script = script();
    for at in 0..script.len() {
        for seed in 0..5 {
            let mut steps = script[..at].to_vec();
            steps.extend([Step::Kill, Step::LosePower]);
            steps.extend_from_slice(&script[at..]);
            Model::new(seed).run(&steps);
        }
    }
}

#[test]
fn a_failed_sync_then_a_kill_then_a_power_loss_lose_nothing_that_was_recovered() {
    for seed in 0..200 {
        let steps = [
            Step::Append(40),
            Step::Commit,
            Step::Append(60),
            // Both attempts of the commit fail, then the process reads its own unwritten pages.
            Step::FailSyncs(2),
            Step::Commit,
            Step::Kill,
            Step::LosePower,
        ];
        Model::new(seed).run(&steps);
    }
}

#[test]
fn a_full_disk_takes_no_more_until_there_is_room() {
    let mut model = Model::new(1);
    let mut steps = vec![Step::Append(100), Step::Commit, Step::Capacity(Some(30))];
    steps.extend((0..40).flat_map(|_| [Step::Append(90), Step::Commit]));
    for step in &steps {
        model.run_one(step);
    }
    assert_eq!(model.acknowledged, 1);
    let waiting = model.log.len();
    assert!((2..41).contains(&waiting), "{waiting} records are taken");
    model.run_one(&Step::Capacity(None));
    model.run_one(&Step::Commit);
    assert_eq!(model.acknowledged, waiting);
    model.run(&[]);
}

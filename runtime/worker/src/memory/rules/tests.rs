//! The rules with made-up figures.

use proptest::prelude::*;

use super::*;

const LIMIT: u64 = 1_000_000;

/// Nothing runs, and the system ends processes at the limit.
fn reading(now_millis: u64, permille: u64) -> Reading<'static> {
    Reading {
        now_millis,
        used_bytes: permille * 1_000,
        limit_bytes: LIMIT,
        is_enforced: true,
        programs: &[],
        runs: 0,
        run_bytes: 0,
        is_spilling: false,
    }
}

fn program(bytes: u64) -> Candidate {
    Candidate {
        bytes,
        is_ending: false,
    }
}

fn ending(bytes: u64) -> Candidate {
    Candidate {
        bytes,
        is_ending: true,
    }
}

fn step(rules: &mut Rules, reading: Reading<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    rules.step(&reading, &mut actions);
    actions
}

fn usual() -> Rules {
    Rules::new(MemoryThresholds::default())
}

fn only(spill: u64, pause: u64, terminate: u64) -> Rules {
    Rules::new(MemoryThresholds {
        spill,
        pause,
        terminate,
    })
}

#[test]
fn spilling_is_told_and_told_again_only_when_it_can_be_seen() {
    let mut rules = usual();
    assert_eq!(step(&mut rules, reading(0, 699)), []);
    assert_eq!(
        step(&mut rules, reading(100, 700)),
        [Action::Spill(100_000)]
    );
    assert_eq!(step(&mut rules, reading(1_500, 790)), []);
    assert_eq!(
        step(&mut rules, reading(1_600, 790)),
        [Action::Spill(190_000)]
    );
    assert_eq!(step(&mut rules, reading(9_000, 650)), []);
}

#[test]
fn pauses_and_resumes_with_a_distance() {
    let mut rules = usual();
    let mut is_paused = |permille| {
        step(&mut rules, reading(0, permille));
        rules.is_paused()
    };
    assert!(!is_paused(799));
    assert!(is_paused(800));
    assert!(is_paused(700));
    assert!(!is_paused(699));
    assert!(!is_paused(799));
    let mut rules = only(0, 800, 0);
    step(&mut rules, reading(0, 900));
    step(&mut rules, reading(1, 701));
    assert!(rules.is_paused());
    step(&mut rules, reading(2, 699));
    assert!(!rules.is_paused());
}

#[test]
fn nothing_happens_where_everything_is_off() {
    let mut rules = Rules::new(MemoryThresholds::OFF);
    let programs = [program(900_000)];
    for now in 0..100 {
        let reading = Reading {
            programs: &programs,
            ..reading(now * 100, 1_500)
        };
        assert_eq!(step(&mut rules, reading), []);
    }
    assert!(!rules.is_paused());
}

#[test]
fn a_pause_that_nothing_can_end_is_told() {
    let mut rules = only(0, 800, 0);
    for now in [0, 1_000, 4_999] {
        assert_eq!(step(&mut rules, reading(now, 850)), []);
    }
    assert!(!rules.is_stuck());
    assert_eq!(step(&mut rules, reading(5_000, 850)), [Action::SayStuck]);
    assert!(rules.is_stuck());
    // Told once a minute, and it stays so while one task after the other is tried.
    assert_eq!(step(&mut rules, reading(30_000, 850)), []);
    let running = Reading {
        runs: 1,
        ..reading(40_000, 850)
    };
    step(&mut rules, running);
    assert!(rules.is_stuck());
    assert_eq!(step(&mut rules, reading(65_000, 850)), [Action::SayStuck]);
    step(&mut rules, reading(66_000, 600));
    assert!(!rules.is_stuck());
}

#[test]
fn a_pause_in_which_something_changes_is_not() {
    for changing in [
        Reading {
            runs: 1,
            ..reading(0, 850)
        },
        Reading {
            is_spilling: true,
            ..reading(0, 850)
        },
        Reading {
            programs: &[Candidate {
                bytes: 5,
                is_ending: false,
            }],
            ..reading(0, 850)
        },
    ] {
        let mut rules = only(0, 800, 0);
        for now in 0..200 {
            let reading = Reading {
                now_millis: now * 100,
                ..changing
            };
            assert_eq!(step(&mut rules, reading), []);
        }
    }
    // Memory comes back, slowly.
    let mut rules = only(0, 800, 0);
    for now in 0..14 {
        assert_eq!(step(&mut rules, reading(now * 1_000, 990 - now * 10)), []);
    }
}

#[test]
fn programs_are_ended_one_by_one_the_largest_first() {
    let mut rules = only(0, 0, 950);
    let at = |now, permille, programs| Reading {
        programs,
        ..reading(now, permille)
    };
    let three = [program(100_000), program(300_000), program(200_000)];
    assert_eq!(step(&mut rules, at(0, 949, &three)), []);
    assert_eq!(
        step(&mut rules, at(20, 950, &three)),
        [Action::EndProgram(1)]
    );
    let one_ends = [program(100_000), ending(300_000), program(200_000)];
    assert_eq!(step(&mut rules, at(40, 951, &one_ends)), []);
    // It has had its time.
    assert_eq!(
        step(&mut rules, at(320, 951, &one_ends)),
        [Action::KillProgram(1)]
    );
    let two = [program(100_000), program(200_000)];
    assert_eq!(step(&mut rules, at(340, 960, &two)), []);
    assert_eq!(step(&mut rules, at(400, 960, &two)), []);
    assert_eq!(
        step(&mut rules, at(440, 960, &two)),
        [Action::EndProgram(1)]
    );
    let both = [program(100_000), ending(200_000)];
    // It grows so quickly that there is no time.
    assert_eq!(
        step(&mut rules, at(460, 975, &both)),
        [Action::KillProgram(1)]
    );
    let one = [program(100_000)];
    assert_eq!(step(&mut rules, at(480, 700, &one)), []);
    assert_eq!(step(&mut rules, at(5_000, 700, &one)), []);
}

#[test]
fn small_programs_are_left_alone() {
    let mut rules = only(0, 0, 950);
    let small = [program(9_999), program(0)];
    for now in 0..100 {
        let reading = Reading {
            programs: &small,
            is_enforced: false,
            ..reading(now * 100, 990)
        };
        assert_eq!(step(&mut rules, reading), []);
    }
}

#[test]
fn the_run_that_took_the_most_is_ended_if_that_helps() {
    let at = |now, run_bytes| Reading {
        runs: 2,
        run_bytes,
        ..reading(now, 960)
    };
    let mut rules = only(0, 0, 950);
    assert_eq!(step(&mut rules, at(0, 500_000)), []);
    assert_eq!(step(&mut rules, at(299, 500_000)), []);
    assert_eq!(step(&mut rules, at(300, 500_000)), [Action::EndRun]);
    // What it gave back is seen late.
    assert_eq!(step(&mut rules, at(1_700, 200_000)), []);
    assert_eq!(step(&mut rules, at(1_800, 200_000)), [Action::EndRun]);
    assert_eq!(step(&mut rules, at(4_000, 9_999)), [Action::SayHelpless]);
    assert_eq!(step(&mut rules, at(5_000, 9_999)), []);
    assert_eq!(step(&mut rules, at(64_000, 9_999)), [Action::SayHelpless]);
}

#[test]
fn no_run_is_ended_for_a_limit_that_nobody_enforces() {
    let mut rules = only(0, 0, 950);
    for now in 0..100 {
        let reading = Reading {
            is_enforced: false,
            runs: 1,
            run_bytes: 900_000,
            ..reading(now * 100, 1_200)
        };
        assert_eq!(step(&mut rules, reading), []);
    }
}

proptest! {
    #[test]
    fn nothing_is_ended_without_need_and_one_at_a_time(
        steps in proptest::collection::vec(
            (1_u64..400, 0_u64..1_300, 0_u64..3, 0_u64..500_000, any::<bool>()),
            1..200,
        ),
        sizes in proptest::collection::vec(0_u64..400_000, 0..5),
    ) {
        let mut rules = usual();
        let mut programs: Vec<_> = sizes.into_iter().map(program).collect();
        let mut now = 0;
        for (pause, permille, runs, run_bytes, ends) in steps {
            now += pause;
            if ends {
                programs.retain(|program| !program.is_ending);
            }
            let reading = Reading { programs: &programs, runs, run_bytes, ..reading(now, permille) };
            let actions = step(&mut rules, reading);
            prop_assert_eq!(permille >= 800 || rules.is_paused() && permille >= 700, rules.is_paused());
            for action in actions {
                match action {
                    Action::EndProgram(place) => {
                        prop_assert!(permille >= 950);
                        prop_assert!(programs.iter().all(|program| !program.is_ending));
                        let largest = programs.iter().map(|program| program.bytes).max();
                        prop_assert_eq!(Some(programs[place].bytes), largest);
                        programs[place].is_ending = true;
                    }
                    Action::KillProgram(place) => prop_assert!(programs[place].is_ending),
                    Action::EndRun => prop_assert!(permille >= 950 && runs + run_bytes > 0),
                    Action::Spill(bytes) => prop_assert!(permille >= 700 && bytes > 0),
                    Action::SayStuck => prop_assert!(rules.is_paused()),
                    Action::SayHelpless => prop_assert!(permille >= 950),
                }
            }
        }
    }
}

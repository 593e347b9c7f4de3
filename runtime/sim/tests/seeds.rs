//! Two hundred runs with everything that can go wrong, and what makes them worth something: they
//! repeat exactly, and things do go wrong in them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use oxidask_sim::{Config, makespans, run, run_with_log, square_wave};

#[test]
fn two_hundred_seeds_hold_every_rule() {
    let (mut again, mut tasks, mut results) = (0, 0, 0);
    let (mut restarts, mut repairs) = (0, 0);
    for seed in 0..200 {
        let summary = run(&Config::of_seed(seed)).unwrap_or_else(|failure| panic!("{failure}"));
        again += summary.again;
        tasks += summary.tasks;
        results += summary.results;
        restarts += summary.restarts;
        repairs += summary.repairs;
    }
    assert!(restarts > 100, "the scheduler died only {restarts} times");
    assert!(repairs > 10, "only {repairs} differences were found");
    assert!(again > 1_000, "only {again} of {tasks} results were lost");
    assert!(results > tasks / 2, "{results} results of {tasks} tasks");
}

#[test]
fn a_seed_is_one_run_exactly() {
    for seed in 0..20 {
        let config = Config::of_seed(seed);
        let first = run(&config).unwrap();
        assert_eq!(run(&config), Ok(first));
        assert_eq!(run_with_log(&config), Ok(first));
        let other = run(&Config::of_seed(seed + 1)).unwrap();
        assert_ne!(first.fingerprint, other.fingerprint);
    }
}

#[test]
fn without_faults_nothing_is_done_twice() {
    for seed in 0..50 {
        let config = Config {
            faults: 0,
            is_tight: false,
            is_fickle: false,
            is_open_ended: false,
            has_failures: false,
            ..Config::of_seed(seed)
        };
        let summary = run(&config).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!((summary.again, summary.results), (0, summary.tasks));
    }
}

#[test]
fn placement_stays_near_a_list_scheduler_that_knows_everything() {
    for graph in makespans(2).unwrap() {
        let permille = graph.micros * 1_000 / graph.list_micros;
        assert!(permille >= 1_000, "{graph:?}: the bound is no bound");
        assert!(
            permille <= 1_150,
            "{graph:?}: {permille} permille of the list scheduler"
        );
    }
}

#[test]
fn in_an_hour_of_load_that_comes_and_goes_no_task_runs_twice_and_none_starves() {
    for seed in 0..3 {
        let hour = square_wave(seed).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!((hour.again, hour.results), (0, hour.tasks), "{hour:?}");
        assert_eq!(
            hour.zeros, 6,
            "workers went to none after each wave: {hour:?}"
        );
        assert!(hour.workers_most > 2, "{hour:?}");
        assert!(hour.slowest_micros < 300_000_000, "{hour:?}");
    }
}

//! Runs that failed once, each as small as it could be made. The line is what
//! `cargo xtask sim` prints; `cargo xtask sim --replay 'LINE'` shows what happens in it. What a line
//! draws changes with the kinds of faults; what was wrong in the core has a scenario there besides.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use oxidask_sim::{Config, run};

fn holds(line: &str) {
    let config: Config = line.parse().unwrap();
    if let Err(failure) = run(&config) {
        panic!("{failure}");
    }
}

/// A lost result was to be computed again, but one of its inputs had failed: its other inputs ran
/// again for nobody. The rules allow some of that; a scenario of the core is exact about it.
#[test]
fn inputs_of_a_task_that_cannot_run_again_are_left_alone() {
    holds(
        "seed=415 graphs=2 tasks=38 workers=3 faults=5 without=0+1+2 failures=0 tight=1 fickle=0 \
         tells_gone=1 crash_limit=255 grace=60000 delay=2000",
    );
}

/// A worker had fetched a copy of a result that it was then asked to make again. The scheduler
/// heard of the copy late and released it; the release reached the worker after the new result.
#[test]
fn a_late_copy_does_not_cost_the_result_that_is_made_again() {
    holds(
        "seed=27992 graphs=4 tasks=20 workers=5 faults=14 without=2+3+5+6+7+8+9 failures=1 tight=0 \
         fickle=0 tells_gone=1 crash_limit=255 grace=500 delay=2000",
    );
}

/// A rule of the simulator was too strict here: one message said that the last reader of a result was done and that another one, which had been
/// done, was lost.
#[test]
fn a_result_that_is_released_and_needed_in_one_message_is_made_again() {
    holds(
        "seed=203102 graphs=4 tasks=40 workers=5 faults=22 without=4+6+10+11+13+16+17+19 failures=0 \
         tight=0 fickle=0 tells_gone=0 crash_limit=255 grace=500 delay=2000",
    );
}

/// Two schedulers died before anything was durable, and the third gave the numbers of the second to
/// other graphs, which a worker took for the same.
#[test]
fn a_graph_number_is_never_given_twice_however_short_the_lives() {
    holds(
        "seed=612 graphs=3 tasks=1 workers=2 faults=18 without=0+1+2+4+5+3+7+8+9+10+15+16 failures=0 \
         tight=0 fickle=0 tells_gone=1 crash_limit=255 grace=60000 suspect=1000 rerun=2000 \
         delay=10000",
    );
}

/// A rule of the simulator was too strict here: the closing of a graph was lost with its scheduler,
/// so the graph was there again, with what had failed in it.
#[test]
fn a_graph_whose_closing_was_not_durable_is_there_again() {
    holds(
        "seed=3950 graphs=2 tasks=4 workers=1 faults=5 without=0+1+3 failures=1 tight=0 fickle=1 \
         tells_gone=1 crash_limit=255 grace=500 suspect=10000 rerun=2000 delay=200",
    );
}

/// A worker died of two tasks. The first one failed, so nobody needed the second any more; when it
/// was needed again, its death had been forgotten.
#[test]
fn a_death_is_not_forgotten_by_a_task_that_nobody_needs_just_then() {
    holds(
        "seed=1004723 graphs=1 tasks=28 workers=1 faults=9 without=0+1+3+4+5+6+7 failures=0 tight=0 \
         fickle=1 tells_gone=1 crash_limit=0 grace=60000 suspect=10000 rerun=200 delay=60000 open=1",
    );
}

/// A rule of the simulator was too strict here: an order to stop was lost, so a worker that was told
/// to go still ran what had been begun elsewhere since.
#[test]
fn a_worker_may_go_although_it_runs_what_counts_elsewhere() {
    holds(
        "seed=1022846 graphs=3 tasks=14 workers=1 faults=23 without=0+4+6+7+8+10+11+13+15+16+18+20+21 \
         failures=1 tight=0 fickle=0 tells_gone=1 crash_limit=255 grace=500 suspect=1000 rerun=2000 \
         delay=2000 open=1",
    );
}

/// A rule of the simulator was too strict here: a suspect was given up long after everything had been
/// done, and a result that only it had held was being made again when all was expected to rest.
#[test]
fn a_result_that_is_lost_late_is_made_again_before_all_rests() {
    holds(
        "seed=1043817 graphs=1 tasks=40 workers=3 faults=6 without=1+3 failures=0 tight=0 fickle=0 \
         tells_gone=1 crash_limit=255 grace=500 suspect=10000 rerun=2000 delay=60000 open=0",
    );
}

/// A worker came back with one result and without another. The first made an input needless, which
/// went at once, although the second had to be made again from it.
#[test]
fn what_a_worker_has_and_what_it_misses_are_taken_as_one() {
    holds(
        "seed=1128168 graphs=1 tasks=34 workers=5 faults=17 without=1+2+4+6+7+11+13+14+15 failures=0 \
         tight=0 fickle=0 tells_gone=1 crash_limit=255 grace=60000 suspect=10000 rerun=2000 \
         delay=10000 open=1",
    );
}

/// A rule of the simulator was too strict here: what ran on a worker that was to go was moved at the
/// deadline, and its input, which nobody held any more, was made again in the same breath.
#[test]
fn what_is_moved_at_a_deadline_may_need_its_inputs_again() {
    holds(
        "seed=1756162 graphs=3 tasks=44 workers=4 faults=22 \
         without=0+1+2+3+4+5+6+7+8+9+10+12+13+15+16+17+18+19+20 failures=0 tight=0 fickle=1 \
         tells_gone=1 crash_limit=255 grace=60000 suspect=10000 rerun=2000 delay=200 open=1",
    );
}

/// A rule of the simulator was too strict here: a welcome, the first beat and a late message each way
/// took longer than the silence that makes a suspect.
#[test]
fn late_messages_alone_make_no_suspect() {
    holds(
        "seed=1518339 graphs=1 tasks=52 workers=2 faults=0 without= failures=0 tight=0 fickle=0 \
         tells_gone=1 crash_limit=255 grace=500 suspect=10000 rerun=200 delay=60000 open=0",
    );
}

/// A rule of the simulator was too strict here: a result that a crash lost needed, two tasks back, one
/// that had failed when it was made again; the task between them was needed by nobody else.
#[test]
fn a_lost_result_fails_by_what_has_failed_since() {
    holds(
        "seed=4027906 graphs=2 tasks=44 workers=5 faults=20 \
         without=0+1+2+3+4+5+6+7+8+10+12+13+14+15+16+18 failures=0 tight=1 fickle=0 tells_gone=1 \
         crash_limit=255 grace=60000 suspect=10000 rerun=2000 delay=60000 open=0",
    );
}

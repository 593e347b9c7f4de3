//! Semaphores, events and multi-locks.

use oxidask_futures::coordination::CoordinationError;
use serde_json::{Value, json};

use crate::driver::{SECOND, World, count, done, truth};

fn register(max_leases: u32) -> Value {
    json!({"op": "semaphore_register", "name": "s", "max_leases": max_leases, "lease_timeout_ms": 30_000})
}

fn acquire(lease: &str, timeout_ms: Option<u64>) -> Value {
    json!({"op": "semaphore_acquire", "name": "s", "lease": lease, "timeout_ms": timeout_ms})
}

fn release(lease: &str) -> Value {
    json!({"op": "semaphore_release", "name": "s", "lease": lease})
}

fn refresh(leases: &[&str]) -> Value {
    json!({"op": "semaphore_refresh", "name": "s", "leases": leases})
}

fn value() -> Value {
    json!({"op": "semaphore_value", "name": "s"})
}

fn lost(leases: &[&str]) -> Value {
    json!({"answer": "refreshed", "unknown": leases})
}

#[test]
fn a_lock_goes_to_those_who_wait_in_their_order() {
    let mut world = World::new();
    assert_eq!(world.at_once("a", &register(1)), done());
    assert_eq!(world.at_once("b", &register(1)), done());
    assert_eq!(world.at_once("a", &value()), count(0));
    assert_eq!(world.at_once("a", &acquire("1", None)), truth(true));
    // Asking for the same lease again, after trouble with the connection, takes no second one.
    assert_eq!(world.at_once("a", &acquire("1", Some(0))), truth(true));
    assert_eq!(world.at_once("b", &acquire("2", Some(0))), truth(false));
    let (second, third) = (
        world.ask("b", &acquire("2", None)),
        world.ask("c", &acquire("3", None)),
    );
    assert_eq!(world.at_once("a", &value()), count(1));
    assert_eq!(world.at_once("a", &release("1")), truth(true));
    assert_eq!(world.answer(second), truth(true));
    assert_eq!(world.answer(third), json!("none yet"));
    assert_eq!(world.at_once("a", &release("1")), truth(false));
    assert_eq!(world.at_once("b", &release("2")), truth(true));
    assert_eq!(world.answer(third), truth(true));
}

#[test]
fn a_wait_for_a_semaphore_ends_at_its_time() {
    let mut world = World::new();
    world.ask("a", &register(1));
    world.ask("a", &acquire("1", None));
    let wait = world.ask("b", &acquire("2", Some(300)));
    world.pass(299_999);
    assert_eq!(world.answer(wait), json!("none yet"));
    world.pass(1);
    assert_eq!(world.answer(wait), truth(false));
    assert_eq!(world.coordination.waiting(), 0);
    assert_eq!(world.at_once("a", &release("1")), truth(true));
    assert_eq!(world.at_once("a", &value()), count(0));
}

#[test]
fn a_lease_that_is_not_refreshed_goes_to_the_next() {
    let mut world = World::new();
    world.ask("a", &register(1));
    world.ask("a", &acquire("1", None));
    let next = world.ask("b", &acquire("2", None));
    world.pass(20 * SECOND);
    assert_eq!(world.at_once("a", &refresh(&["1"])), lost(&[]));
    world.pass(20 * SECOND);
    assert_eq!(world.answer(next), json!("none yet"));
    world.gone("a");
    world.pass(10 * SECOND);
    assert_eq!(world.answer(next), truth(true));
    // The former holder hears of it, and does not get between.
    assert_eq!(world.at_once("a", &refresh(&["1"])), lost(&["1"]));
    assert_eq!(world.at_once("a", &value()), count(1));
    assert_eq!(world.at_once("b", &release("2")), truth(true));
    // With room again it has its lease back, and hears of that loss still.
    assert_eq!(world.at_once("a", &refresh(&["1"])), lost(&["1"]));
    assert_eq!(world.at_once("a", &value()), count(1));
}

#[test]
fn a_refresh_that_comes_after_the_release_takes_no_lease() {
    let mut world = World::new();
    world.ask("a", &register(1));
    world.ask("a", &acquire("1", None));
    world.ask("a", &release("1"));
    assert_eq!(world.at_once("a", &refresh(&["1"])), lost(&[]));
    assert_eq!(world.at_once("a", &value()), count(0));
}

#[test]
fn a_lease_without_time_out_stays() {
    let mut world = World::new();
    let register =
        json!({"op": "semaphore_register", "name": "s", "max_leases": 1, "lease_timeout_ms": null});
    world.ask("a", &register);
    world.ask("a", &acquire("1", None));
    assert_eq!(world.coordination.next_deadline(), None);
    world.gone("a");
    world.pass(1000 * SECOND);
    assert_eq!(world.at_once("b", &value()), count(1));
}

#[test]
fn semaphores_say_what_does_not_fit() {
    let mut world = World::new();
    let answer = world.at_once("a", &acquire("1", None));
    assert_eq!(answer["message"], "Semaphore or Lock `s` not known.");
    assert_eq!(world.at_once("a", &release("1")), truth(false));
    assert_eq!(world.at_once("a", &refresh(&["1"])), lost(&[]));
    world.ask("a", &register(2));
    let answer = world.at_once("a", &register(3));
    assert_eq!(answer["reason"], "inconsistent");
    assert_eq!(answer["message"], "Inconsistent max leases: 3, expected: 2");
    world.ask("a", &acquire("3", None));
    world.ask("a", &acquire("4", None));
    let wait = world.ask("a", &acquire("5", None));
    let close = json!({"op": "semaphore_close", "name": "s"});
    assert_eq!(world.at_once("a", &close), done());
    assert_eq!(world.answer(wait)["reason"], "unknown");
    assert_eq!(world.coordination.next_deadline(), None);
    assert_eq!(world.at_once("a", &close), done());
    assert_eq!(world.at_once("a", &register(3)), done());
}

#[test]
fn a_wait_of_a_client_that_is_gone_takes_nothing() {
    let mut world = World::new();
    world.ask("a", &register(1));
    world.ask("a", &acquire("1", None));
    let (gone, withdrawn) = (
        world.ask("b", &acquire("2", None)),
        world.ask("c", &acquire("3", None)),
    );
    let last = world.ask("d", &acquire("4", None));
    world.gone("b");
    world.withdraw(withdrawn);
    world.ask("a", &release("1"));
    assert_eq!(world.answer(last), truth(true));
    assert_eq!(world.answer(gone), json!("none yet"));
    assert_eq!(world.answer(withdrawn), json!("none yet"));
}

#[test]
fn a_wait_without_end_asks_again_after_ten_minutes() {
    let mut world = World::new();
    let forever = world.ask(
        "a",
        &json!({"op": "event_wait", "name": "e", "timeout_ms": null}),
    );
    let day = world.ask(
        "a",
        &json!({"op": "event_wait", "name": "e", "timeout_ms": 86_400_000}),
    );
    world.pass(600 * SECOND);
    assert_eq!(world.answer(forever), json!({"answer": "again"}));
    assert_eq!(world.answer(day), json!({"answer": "again"}));
}

#[test]
fn an_event_ends_all_waits_for_it() {
    let mut world = World::new();
    let question = |op: &str| json!({"op": op, "name": "e"});
    let wait = |timeout_ms: u64| json!({"op": "event_wait", "name": "e", "timeout_ms": timeout_ms});
    assert_eq!(world.at_once("a", &question("event_is_set")), truth(false));
    assert_eq!(world.at_once("a", &wait(0)), truth(false));
    let (first, second) = (world.ask("a", &wait(100)), world.ask("b", &wait(1000)));
    world.pass(200_000);
    assert_eq!(world.answer(first), truth(false));
    assert_eq!(world.at_once("c", &question("event_clear")), done());
    assert_eq!(world.at_once("c", &question("event_set")), done());
    assert_eq!(world.answer(second), truth(true));
    assert_eq!(world.at_once("a", &wait(0)), truth(true));
    assert_eq!(world.at_once("a", &question("event_is_set")), truth(true));
    assert_eq!(world.at_once("a", &question("event_clear")), done());
    assert_eq!(world.at_once("a", &question("event_is_set")), truth(false));
}

fn lock_all(names: &[&str], id: &str, count: usize, timeout_ms: Option<u64>) -> Value {
    json!({"op": "multi_lock_acquire", "names": names, "id": id, "count": count, "timeout_ms": timeout_ms})
}

fn unlock(id: &str) -> Value {
    json!({"op": "multi_lock_release", "id": id})
}

#[test]
fn a_multi_lock_has_all_of_its_locks_or_waits() {
    let mut world = World::new();
    assert_eq!(
        world.at_once("a", &lock_all(&["x", "y"], "1", 2, None)),
        truth(true)
    );
    let second = world.ask("b", &lock_all(&["y", "z"], "2", 2, None));
    assert_eq!(
        world.at_once("c", &lock_all(&["x"], "3", 1, Some(0))),
        truth(false)
    );
    // The second request has `z` already.
    let third = world.ask("c", &lock_all(&["z"], "4", 1, Some(500)));
    assert_eq!(world.at_once("a", &unlock("1")), done());
    assert_eq!(world.answer(second), truth(true));
    world.pass(SECOND);
    assert_eq!(world.answer(third), truth(false));
    assert_eq!(world.at_once("b", &unlock("2")), done());
    assert_eq!(world.at_once("b", &unlock("2"))["reason"], "unknown");
    assert_eq!(
        world.at_once("c", &lock_all(&["x", "y", "z"], "5", 3, Some(0))),
        truth(true)
    );
}

#[test]
fn a_multi_lock_of_some_takes_free_ones_and_leaves_the_rest() {
    let mut world = World::new();
    assert_eq!(
        world.at_once("a", &lock_all(&["x"], "1", 1, None)),
        truth(true)
    );
    assert_eq!(
        world.at_once("b", &lock_all(&["x", "y", "z"], "2", 2, None)),
        truth(true)
    );
    let waits = world.ask("c", &lock_all(&["x", "y", "z"], "3", 1, None));
    assert_eq!(world.at_once("a", &unlock("1")), done());
    assert_eq!(world.answer(waits), truth(true));
    assert_eq!(world.at_once("b", &unlock("2")), done());
    // The third has `x` only, although it had stood in line for all.
    assert_eq!(
        world.at_once("d", &lock_all(&["y", "z"], "4", 2, Some(0))),
        truth(true)
    );
}

#[test]
fn multi_locks_of_a_client_that_is_gone_are_free() {
    let mut world = World::new();
    world.ask("a", &lock_all(&["x"], "1", 1, None));
    let waits = world.ask("b", &lock_all(&["x"], "2", 1, None));
    let next = world.ask("c", &lock_all(&["x"], "3", 1, None));
    world.gone("b");
    world.gone("a");
    assert_eq!(world.answer(next), truth(true));
    assert_eq!(world.answer(waits), json!("none yet"));
}

#[test]
fn multi_locks_say_what_cannot_be() {
    let mut world = World::new();
    for question in [
        lock_all(&[], "1", 0, None),
        lock_all(&["x", "x"], "1", 2, None),
    ] {
        assert_eq!(world.at_once("a", &question)["reason"], "invalid");
    }
    world.ask("a", &lock_all(&["x"], "1", 1, None));
    assert_eq!(
        world.at_once("a", &lock_all(&["y"], "1", 1, None))["reason"],
        "invalid"
    );
}

#[test]
fn a_name_may_not_be_endless() {
    let mut world = World::new();
    let question = json!({"op": "event_set", "name": "n".repeat(5000)});
    let ask = world.ask("a", &question);
    assert!(matches!(
        world.faults[&ask],
        CoordinationError::Full { limit: 4096, .. }
    ));
    let ask = world.ask_with("a", &json!({"op": "event_set", "name": "e"}), &[b"?"]);
    assert_eq!(
        world.faults[&ask],
        CoordinationError::Values {
            expected: 0,
            found: 1
        }
    );
}

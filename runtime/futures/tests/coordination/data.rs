//! Queues, variables, published data, metadata and topics.

use oxidask_futures::coordination::{CoordinationError, Question, bounds};
use serde_json::{Value, json};

use crate::driver::{SECOND, UNIX_MICROS, World, count, done};

fn create(maxsize: u32) -> Value {
    json!({"op": "queue_create", "name": "q", "maxsize": maxsize})
}

fn put(key: Option<&str>, timeout_ms: Option<u64>) -> Value {
    json!({"op": "queue_put", "name": "q", "key": key, "timeout_ms": timeout_ms})
}

fn get(batch: &Value, timeout_ms: Option<u64>) -> Value {
    json!({"op": "queue_get", "name": "q", "batch": batch, "timeout_ms": timeout_ms})
}

fn one(timeout_ms: Option<u64>) -> Value {
    get(&Value::Null, timeout_ms)
}

fn size() -> Value {
    json!({"op": "queue_size", "name": "q"})
}

fn items(keys: &[Option<&str>]) -> Value {
    json!({"answer": "items", "keys": keys, "is_all": true})
}

fn timed_out() -> Value {
    json!({"answer": "timed_out"})
}

#[test]
fn a_queue_gives_items_in_order_to_those_who_wait_in_order() {
    let mut world = World::new();
    assert_eq!(world.at_once("a", &create(0)), done());
    let (first, second) = (world.ask("b", &one(None)), world.ask("c", &one(None)));
    assert_eq!(world.at_once_with("a", &put(None, None), &[b"1"]), done());
    assert_eq!(world.values(first), [&b"1"[..]]);
    assert_eq!(world.answer(second), json!("none yet"));
    world.ask_with("a", &put(None, None), &[b"2"]);
    world.ask_with("a", &put(None, None), &[b"3"]);
    assert_eq!(world.values(second), [&b"2"[..]]);
    assert_eq!(world.at_once("a", &size()), count(1));
    assert_eq!(world.at_once("a", &one(Some(0))), items(&[None]));
    assert_eq!(world.at_once("a", &one(Some(0))), timed_out());
    let late = world.ask("a", &one(Some(200)));
    world.pass(SECOND);
    assert_eq!(world.answer(late), timed_out());
}

#[test]
fn a_full_queue_lets_puts_wait() {
    let mut world = World::new();
    world.ask("a", &create(1));
    assert_eq!(world.at_once_with("a", &put(None, None), &[b"1"]), done());
    assert_eq!(
        world.at_once_with("a", &put(None, Some(0)), &[b"x"]),
        timed_out()
    );
    let late = world.ask_with("a", &put(Some("late"), Some(100)), &[b"x"]);
    let waits = world.ask_with("a", &put(None, None), &[b"2"]);
    assert!(world.wanted.contains("late"));
    world.pass(6 * SECOND);
    assert_eq!(world.answer(late), timed_out());
    assert!(world.wanted.is_empty());
    assert_eq!(world.at_once("b", &size()), count(1));
    let taken = world.ask("b", &one(None));
    assert_eq!(world.values(taken), [&b"1"[..]]);
    assert_eq!(world.answer(waits), done());
    let taken = world.ask("b", &one(None));
    assert_eq!(world.values(taken), [&b"2"[..]]);
}

#[test]
fn a_batch_waits_for_each_of_its_items() {
    let mut world = World::new();
    world.ask("a", &create(1));
    let batch = world.ask("b", &get(&json!(3), None));
    for value in [b"1", b"2"] {
        assert_eq!(world.at_once_with("a", &put(None, None), &[value]), done());
    }
    assert_eq!(world.answer(batch), json!("none yet"));
    world.ask_with("a", &put(None, None), &[b"3"]);
    assert_eq!(world.values(batch), [&b"1"[..], b"2", b"3"]);
    assert_eq!(world.at_once("b", &get(&json!("all"), None)), items(&[]));
    world.ask_with("a", &put(None, None), &[b"4"]);
    world.ask_with("a", &put(None, None), &[b"5"]);
    let all = world.ask("b", &get(&json!("all"), None));
    assert_eq!(world.values(all), [&b"4"[..]]);
    assert_eq!(world.at_once("b", &size()), count(1));
}

#[test]
fn items_of_a_batch_that_is_given_up_go_back() {
    let mut world = World::new();
    world.ask("a", &create(0));
    world.ask_with("a", &put(None, None), &[b"1"]);
    world.ask_with("a", &put(None, None), &[b"2"]);
    let batch = world.ask("b", &get(&json!(3), None));
    let next = world.ask("c", &get(&json!(2), None));
    world.gone("b");
    assert_eq!(world.answer(batch), json!("none yet"));
    assert_eq!(world.values(next), [&b"1"[..], b"2"]);
}

#[test]
fn a_large_batch_comes_in_parts() {
    let mut world = World::new();
    world.ask("a", &create(0));
    let value = vec![0; 20 * 1024 * 1024];
    for _ in 0..3 {
        world.ask_with("a", &put(None, None), &[&value]);
    }
    let part = world.ask("b", &get(&json!("all"), None));
    assert_eq!(
        world.answer(part),
        json!({"answer": "items", "keys": [null, null], "is_all": false})
    );
    let rest = world.ask("b", &get(&json!("all"), None));
    assert_eq!(world.answer(rest), items(&[None]));
    let too_large = vec![0; bounds::VALUE_BYTES_MAX + 1];
    let ask = world.ask_with("a", &put(None, None), &[&too_large]);
    assert!(matches!(world.faults[&ask], CoordinationError::Full { .. }));
}

#[test]
fn queues_do_not_take_more_bytes_than_there_may_be() {
    let mut world = World::new();
    world.ask("a", &create(0));
    let value = vec![0; bounds::VALUE_BYTES_MAX];
    let fits = bounds::HELD_BYTES_MAX / bounds::VALUE_BYTES_MAX - 1;
    for _ in 0..fits {
        assert_eq!(world.at_once_with("a", &put(None, None), &[&value]), done());
    }
    let ask = world.ask_with("a", &put(Some("k"), None), &[&value]);
    assert!(matches!(world.faults[&ask], CoordinationError::Full { .. }));
    assert!(world.wanted.is_empty());
    world.ask("a", &one(None));
    assert_eq!(world.at_once_with("a", &put(None, None), &[&value]), done());
}

#[test]
fn the_future_in_a_queue_outlives_its_client_until_the_next_wants_it() {
    let mut world = World::new();
    world.ask("a", &create(0));
    world.ask("b", &create(0));
    assert_eq!(
        world.at_once_with("a", &put(Some("k"), None), &[b"key"]),
        done()
    );
    assert!(world.wanted.contains("k"));
    world.gone("a");
    world.pass(1000 * SECOND);
    let ask = world.ask("b", &one(None));
    assert_eq!(world.answer(ask), items(&[Some("k")]));
    world.pass(50 * SECOND);
    let confirm = json!({"op": "queue_future_release", "name": "q", "key": "k"});
    assert_eq!(world.at_once("b", &confirm), done());
    assert!(world.wanted.contains("k"));
    world.pass(5 * SECOND);
    assert!(world.wanted.is_empty());
    assert_eq!(world.at_once("b", &confirm), done());
}

#[test]
fn a_future_is_not_held_for_a_client_that_never_wants_it() {
    let mut world = World::new();
    world.ask("a", &create(0));
    for _ in 0..2 {
        world.ask_with("a", &put(Some("k"), None), &[b"key"]);
    }
    world.ask("b", &one(None));
    world.ask("c", &one(None));
    world.gone("b");
    world.pass(59 * SECOND);
    assert!(world.wanted.contains("k"));
    world.pass(6 * SECOND);
    assert!(world.wanted.is_empty());
    assert_eq!(world.coordination.next_deadline(), None);
}

#[test]
fn a_queue_without_users_goes_with_its_futures() {
    let mut world = World::new();
    world.ask("a", &create(1));
    world.ask("b", &create(1));
    world.ask_with("a", &put(Some("k"), None), &[b"key"]);
    let waits = world.ask_with("a", &put(Some("l"), None), &[b"key"]);
    let release = json!({"op": "queue_release", "name": "q"});
    world.ask("a", &release);
    assert_eq!(world.at_once("b", &size()), count(1));
    world.ask("b", &release);
    assert_eq!(world.answer(waits)["reason"], "unknown");
    assert_eq!(world.at_once("b", &size())["reason"], "unknown");
    assert_eq!(world.at_once("b", &one(None))["reason"], "unknown");
    assert_eq!(
        world.at_once_with("b", &put(None, None), &[b"1"])["reason"],
        "unknown"
    );
    assert_eq!(world.at_once("b", &release), done());
    world.pass(5 * SECOND);
    assert!(world.wanted.is_empty());
}

fn set(key: Option<&str>) -> Value {
    json!({"op": "variable_set", "name": "v", "key": key})
}

fn read(timeout_ms: Option<u64>) -> Value {
    json!({"op": "variable_get", "name": "v", "timeout_ms": timeout_ms})
}

#[test]
fn a_variable_is_waited_for_and_read_as_often_as_wanted() {
    let mut world = World::new();
    let (early, waits) = (
        world.ask("a", &read(Some(100))),
        world.ask("b", &read(None)),
    );
    world.pass(SECOND);
    assert_eq!(world.answer(early), timed_out());
    assert_eq!(world.at_once_with("c", &set(None), &[b"1"]), done());
    assert_eq!(world.values(waits), [&b"1"[..]]);
    for _ in 0..2 {
        let ask = world.ask("a", &read(Some(0)));
        assert_eq!(
            (world.answer(ask), world.values(ask)),
            (items(&[None]), vec![b"1"[..].into()])
        );
    }
    let delete = json!({"op": "variable_delete", "name": "v"});
    assert_eq!(world.at_once("a", &delete), done());
    assert_eq!(world.at_once("a", &delete), done());
    assert_eq!(world.at_once("a", &read(Some(0))), timed_out());
}

#[test]
fn the_future_in_a_variable_stays_until_it_is_replaced_and_received() {
    let mut world = World::new();
    world.ask_with("a", &set(Some("k")), &[b"key"]);
    world.gone("a");
    assert_eq!(world.at_once("b", &read(None)), items(&[Some("k")]));
    assert_eq!(world.at_once("c", &read(None)), items(&[Some("k")]));
    world.ask_with("b", &set(Some("l")), &[b"key"]);
    world.pass(30 * SECOND);
    assert!(world.wanted.contains("k") && world.wanted.contains("l"));
    let received = json!({"op": "variable_future_received", "name": "v", "key": "k"});
    world.ask("b", &received);
    world.pass(10 * SECOND);
    assert!(world.wanted.contains("k"));
    world.ask("c", &received);
    world.pass(5 * SECOND);
    assert_eq!(world.wanted.iter().collect::<Vec<_>>(), ["l"]);
    world.ask("b", &json!({"op": "variable_delete", "name": "v"}));
    world.pass(5 * SECOND);
    assert!(world.wanted.is_empty());
}

#[test]
fn published_data_keep_their_futures_until_they_are_deleted() {
    let mut world = World::new();
    let put = |name: &str, keys: &[&str], is_override: bool| json!({"op": "publish_put", "names": [name], "keys": [keys], "is_override": is_override});
    let names =
        |world: &mut World| world.at_once("b", &json!({"op": "publish_list"}))["names"].clone();
    assert_eq!(
        world.at_once_with("a", &put("x", &["k", "l"], false), &[b"1"]),
        done()
    );
    let answer = world.at_once_with("a", &put("x", &["m"], false), &[b"2"]);
    assert_eq!(
        (answer["reason"].as_str(), answer["message"].as_str()),
        (Some("exists"), Some("Dataset x already exists"))
    );
    assert!(!world.wanted.contains("m"));
    assert_eq!(
        world.at_once_with("a", &put("x", &["l"], true), &[b"3"]),
        done()
    );
    world.gone("a");
    world.pass(5 * SECOND);
    assert_eq!(world.wanted.iter().collect::<Vec<_>>(), ["l"]);
    world.ask_with("a", &put("w", &[], false), &[b"4"]);
    assert_eq!(names(&mut world), json!(["w", "x"]));
    let ask = world.ask(
        "b",
        &json!({"op": "publish_get", "names": ["x", "none", "w"]}),
    );
    assert_eq!(
        world.answer(ask),
        json!({"answer": "datasets", "are_found": [true, false, true], "is_all": true})
    );
    assert_eq!(world.values(ask), [&b"3"[..], b"4"]);
    assert_eq!(
        world.at_once(
            "b",
            &json!({"op": "publish_delete", "names": ["x", "none"]})
        ),
        done()
    );
    assert_eq!(names(&mut world), json!(["w"]));
    // Whoever got it a moment ago has time to want the futures.
    world.pass(4 * SECOND);
    assert!(world.wanted.contains("l"));
    world.pass(SECOND);
    assert!(world.wanted.is_empty());
    let ask = world.ask_with(
        "a",
        &json!({"op": "publish_put", "names": ["y"], "keys": [], "is_override": false}),
        &[b"1"],
    );
    assert!(matches!(
        world.faults[&ask],
        CoordinationError::Unreadable(_)
    ));
}

#[test]
fn metadata_are_a_tree() {
    let mut world = World::new();
    let set =
        |path: &[&str], node: Value| json!({"op": "metadata_set", "path": path, "node": node});
    let get = |path: &[&str]| json!({"op": "metadata_get", "path": path});
    let nothing = json!({"answer": "metadata", "node": null, "rest": []});
    assert_eq!(world.at_once("a", &get(&["x"])), nothing);
    world.ask_with("a", &set(&["x"], json!({"leaf": 0})), &[b"1"]);
    let ask = world.ask("a", &get(&["x", "y", "z"]));
    assert_eq!(
        world.answer(ask),
        json!({"answer": "metadata", "node": {"leaf": 0}, "rest": ["y", "z"]})
    );
    assert_eq!(world.values(ask), [&b"1"[..]]);
    world.ask_with("a", &set(&["x", "y"], json!({"leaf": 0})), &[b"2"]);
    world.ask_with(
        "a",
        &set(
            &["x", "w"],
            json!({"tree": {"z": {"leaf": 1}, "u": {"leaf": 0}}}),
        ),
        &[b"3", b"4"],
    );
    let ask = world.ask("a", &get(&["x"]));
    let tree =
        json!({"tree": {"w": {"tree": {"u": {"leaf": 0}, "z": {"leaf": 1}}}, "y": {"leaf": 2}}});
    assert_eq!(world.answer(ask)["node"], tree);
    assert_eq!(world.values(ask), [&b"3"[..], b"4", b"2"]);
    assert_eq!(world.at_once("a", &get(&["x", "v"])), nothing);
    assert_eq!(
        world.at_once("a", &set(&[], json!({"tree": {}})))["reason"],
        "invalid"
    );
    let ask = world.ask_with("a", &set(&["x"], json!({"leaf": 1})), &[b"1"]);
    assert_eq!(
        world.faults[&ask],
        CoordinationError::Values {
            expected: 2,
            found: 1
        }
    );
    let ask = world.ask_with("a", &set(&["x"; 33], json!({"leaf": 0})), &[b"1"]);
    assert!(matches!(world.faults[&ask], CoordinationError::Full { .. }));
}

#[test]
fn metadata_that_are_replaced_take_no_room() {
    let mut world = World::new();
    let value = vec![0; bounds::METADATA_BYTES_MAX / 3];
    for round in 0..10 {
        let question =
            json!({"op": "metadata_set", "path": ["x"], "node": {"tree": {"y": {"leaf": 0}}}});
        let ask = world.ask_with("a", &question, &[&value]);
        assert!(world.answers.contains_key(&ask), "round {round}");
    }
    let mut other = |path: &str| {
        let ask = world.ask_with(
            "a",
            &json!({"op": "metadata_set", "path": [path], "node": {"leaf": 0}}),
            &[&value],
        );
        world.faults.contains_key(&ask)
    };
    assert!(!other("b"));
    assert!(other("c"));
}

#[test]
fn topics_tell_those_who_listen_and_keep_a_log() {
    let mut world = World::new();
    let log = |topics: &[&str]| json!({"op": "topic_log", "topics": topics});
    let listen = |op: &str| json!({"op": op, "topic": "t"});
    world.ask("a", &listen("topic_subscribe"));
    world.ask("a", &listen("topic_subscribe"));
    world.ask("b", &listen("topic_subscribe"));
    world.pass(7);
    assert_eq!(world.at_once_with("c", &log(&["t", "u"]), &[b"1"]), done());
    let told = |client: &str| {
        (
            client.to_owned(),
            "t".to_owned(),
            UNIX_MICROS + 7,
            b"1"[..].into(),
        )
    };
    assert_eq!(world.topics, [told("a"), told("b")]);
    world.ask("a", &listen("topic_unsubscribe"));
    world.gone("b");
    world.ask_with("c", &log(&["t"]), &[b"2"]);
    assert_eq!(world.topics.len(), 2);
    let ask = world.ask("a", &json!({"op": "topic_events", "topic": "t"}));
    let times = [UNIX_MICROS + 7, UNIX_MICROS + 7];
    assert_eq!(
        world.answer(ask)["topics"],
        json!([{"topic": "t", "times_micros": times}])
    );
    assert_eq!(world.values(ask), [&b"1"[..], b"2"]);
    let ask = world.ask("a", &json!({"op": "topic_events", "topic": null}));
    assert_eq!(
        world.answer(ask)["topics"][1],
        json!({"topic": "u", "times_micros": [UNIX_MICROS + 7]})
    );
    assert_eq!(world.values(ask), [&b"1"[..], b"2", b"1"]);
    let answer = world.at_once("a", &json!({"op": "topic_events", "topic": "none"}));
    assert_eq!(answer, json!({"answer": "events", "topics": []}));
}

#[test]
fn logs_of_topics_forget_their_oldest_events() {
    let mut world = World::new();
    let number = |number: u32| number.to_le_bytes();
    for event in 0..10_005 {
        world.ask_with(
            "a",
            &json!({"op": "topic_log", "topics": ["t"]}),
            &[&number(event)],
        );
    }
    let ask = world.ask("a", &json!({"op": "topic_events", "topic": "t"}));
    assert_eq!(world.values(ask).len(), bounds::TOPIC_EVENTS_MAX);
    assert_eq!(world.values(ask)[0], number(5)[..]);
    let large = vec![0; bounds::EVENT_BYTES_MAX - 4];
    world.ask_with("a", &json!({"op": "topic_log", "topics": ["u"]}), &[&large]);
    let ask = world.ask("a", &json!({"op": "topic_events", "topic": "t"}));
    assert_eq!(world.values(ask), [&number(10_004)[..]]);
}

#[test]
fn what_is_no_question_is_said_to_be_none() {
    for content in [
        "",
        "[]",
        "{}",
        r#"{"op": 1}"#,
        r#"{"op": "queue_peek", "name": "q"}"#,
        r#"{"op": "identity"}"#,
        r#"{"op": "event_set"}"#,
        r#"{"op": "event_set", "name": "e", "more": 1}"#,
        r#"{"op": "queue_get", "name": "q", "batch": "some", "timeout_ms": null}"#,
        r#"{"op": "event_wait", "name": "e", "timeout_ms": -1}"#,
    ] {
        let read = Question::from_json(content.as_bytes());
        assert!(
            matches!(read, Err(CoordinationError::Unreadable(_))),
            "{content}: {read:?}"
        );
    }
    assert!(Question::is_ours("queue_peek") && !Question::is_ours("identity"));
}

/// The tests of the Python half send exactly these.
#[test]
fn questions_of_the_python_half_are_read() {
    let mut operations = std::collections::BTreeSet::new();
    for line in include_str!("questions.jsonl").lines() {
        let asked: Value = serde_json::from_str(line).unwrap();
        let op = asked["op"].as_str().unwrap().to_owned();
        assert!(Question::is_ours(&op), "{op}");
        let read = Question::from_json(line.as_bytes()).unwrap();
        let written: Value = serde_json::from_slice(&read.to_json()).unwrap();
        assert_eq!(written, asked);
        operations.insert(op);
    }
    assert_eq!(operations.len(), 32);
}

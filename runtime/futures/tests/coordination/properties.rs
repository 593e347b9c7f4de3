//! What holds whatever clients ask, and in whatever order.

use std::collections::BTreeMap;

use bytes::Bytes;
use oxidask_core::Timestamp;
use oxidask_futures::coordination::{AskId, Coordination, Node, Question};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::driver::World;

const LONGEST_WAIT_MICROS: u64 = 600_000_000;
const MAX_LEASES: u64 = 2;

#[derive(Debug, Clone)]
enum Step {
    Ask {
        client: u8,
        question: Value,
        value_count: usize,
    },
    Pass {
        micros: u64,
    },
    Gone {
        client: u8,
    },
    Withdraw {
        back: u64,
    },
}

fn timeout() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        Just(None),
        Just(Some(0)),
        (1..5000_u64).prop_map(Some),
        Just(Some(10_000_000))
    ]
}

fn question() -> impl Strategy<Value = (Value, usize)> {
    let name = || prop_oneof![Just("m"), Just("n")];
    let key = || proptest::option::of(prop_oneof![Just("k"), Just("l")]);
    let lease = || (0..6_u8).prop_map(|lease| lease.to_string());
    let plain = (
        name(),
        prop_oneof![
            Just("semaphore_value"),
            Just("semaphore_close"),
            Just("event_set"),
            Just("event_clear"),
            Just("event_is_set"),
            Just("queue_release"),
            Just("queue_size"),
            Just("variable_delete"),
        ],
    );
    prop_oneof![
        name().prop_map(|name| (json!({"op": "semaphore_register", "name": name, "max_leases": MAX_LEASES, "lease_timeout_ms": 3000}), 0)),
        (name(), lease(), timeout()).prop_map(|(name, lease, timeout)| (json!({"op": "semaphore_acquire", "name": name, "lease": lease, "timeout_ms": timeout}), 0)),
        (name(), lease()).prop_map(|(name, lease)| (json!({"op": "semaphore_release", "name": name, "lease": lease}), 0)),
        (name(), lease()).prop_map(|(name, lease)| (json!({"op": "semaphore_refresh", "name": name, "leases": [lease, "other"]}), 0)),
        (name(), timeout()).prop_map(|(name, timeout)| (json!({"op": "event_wait", "name": name, "timeout_ms": timeout}), 0)),
        (name(), 0..3_u8).prop_map(|(name, maxsize)| (json!({"op": "queue_create", "name": name, "maxsize": maxsize}), 0)),
        (name(), key(), timeout()).prop_map(|(name, key, timeout)| (json!({"op": "queue_put", "name": name, "key": key, "timeout_ms": timeout}), 1)),
        (name(), prop_oneof![Just(json!(null)), Just(json!(2)), Just(json!("all"))], timeout())
            .prop_map(|(name, batch, timeout)| (json!({"op": "queue_get", "name": name, "batch": batch, "timeout_ms": timeout}), 0)),
        (name(), key()).prop_map(|(name, key)| (json!({"op": "queue_future_release", "name": name, "key": key.unwrap_or("k")}), 0)),
        (name(), key()).prop_map(|(name, key)| (json!({"op": "variable_set", "name": name, "key": key}), 1)),
        (name(), timeout()).prop_map(|(name, timeout)| (json!({"op": "variable_get", "name": name, "timeout_ms": timeout}), 0)),
        (name(), key()).prop_map(|(name, key)| (json!({"op": "variable_future_received", "name": name, "key": key.unwrap_or("l")}), 0)),
        (1..4_u32, lease(), timeout()).prop_map(|(count, id, timeout)| (json!({"op": "multi_lock_acquire", "names": ["x", "y", "z"], "id": id, "count": count, "timeout_ms": timeout}), 0)),
        (lease(), timeout()).prop_map(|(id, timeout)| (json!({"op": "multi_lock_acquire", "names": ["z", "x"], "id": id, "count": 2, "timeout_ms": timeout}), 0)),
        lease().prop_map(|id| (json!({"op": "multi_lock_release", "id": id}), 0)),
        (name(), key(), any::<bool>()).prop_map(|(name, key, is_override)| (json!({"op": "publish_put", "names": [name], "keys": [[key.unwrap_or("k"), "l"]], "is_override": is_override}), 1)),
        name().prop_map(|name| (json!({"op": "publish_delete", "names": [name]}), 0)),
        plain.prop_map(|(name, op)| (json!({"op": op, "name": name}), 0)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..4_u8, question()).prop_map(|(client, (question, value_count))| Step::Ask { client, question, value_count }),
        3 => (0..8_000_000_u64).prop_map(|micros| Step::Pass { micros }),
        1 => (0..4_u8).prop_map(|client| Step::Gone { client }),
        1 => (0..10_u64).prop_map(|back| Step::Withdraw { back }),
    ]
}

/// Who asked, and when the answer is there at the latest.
type Open = BTreeMap<AskId, (u8, Timestamp)>;

fn check(world: &mut World, open: &mut Open) {
    open.retain(|ask, _| !world.answers.contains_key(ask) && !world.faults.contains_key(ask));
    for (ask, (client, latest)) in &*open {
        assert!(*latest > world.now, "{ask:?} of {client} is late");
    }
    assert_eq!(open.len(), world.coordination.waiting());
    for name in ["m", "n"] {
        let ask = world.ask("observer", &json!({"op": "semaphore_value", "name": name}));
        let leases = world.answer(ask)["count"].as_u64().unwrap();
        assert!(leases <= MAX_LEASES, "{leases} leases of {name}");
    }
}

fn run(steps: Vec<Step>) {
    let mut world = World::new();
    let mut open = Open::new();
    for step in steps {
        match step {
            Step::Ask {
                client,
                question,
                value_count,
            } => {
                let values = [&b"value"[..]];
                let ask = world.ask_with(
                    &client.to_string(),
                    &question,
                    values.get(..value_count).unwrap(),
                );
                let wait = question["timeout_ms"]
                    .as_u64()
                    .map_or(u64::MAX, |wait| wait * 1000);
                open.insert(
                    ask,
                    (client, world.now.plus_micros(wait.min(LONGEST_WAIT_MICROS))),
                );
            }
            Step::Pass { micros } => world.pass(micros),
            Step::Gone { client } => {
                world.gone(&client.to_string());
                open.retain(|_, (of, _)| *of != client);
            }
            Step::Withdraw { back } => {
                if let Some(ask) = open
                    .keys()
                    .rev()
                    .nth(usize::try_from(back).unwrap())
                    .copied()
                {
                    world.withdraw(ask);
                    open.remove(&ask);
                }
            }
        }
        check(&mut world, &mut open);
    }
    end_all(&mut world);
}

/// Gives everything back: nothing may stay wanted, and nothing may be left to do.
fn end_all(world: &mut World) {
    for client in 0..4_u8 {
        world.gone(&client.to_string());
    }
    for name in ["m", "n"] {
        while world.at_once("end", &json!({"op": "queue_size", "name": name}))["answer"] == "count"
        {
            world.at_once("end", &json!({"op": "queue_release", "name": name}));
        }
        world.ask("end", &json!({"op": "variable_delete", "name": name}));
        world.ask("end", &json!({"op": "publish_delete", "names": [name]}));
        world.ask("end", &json!({"op": "semaphore_close", "name": name}));
    }
    let all = json!({"op": "multi_lock_acquire", "names": ["x", "y", "z"], "id": "end", "count": 3, "timeout_ms": 0});
    assert_eq!(
        world.at_once("end", &all)["truth"],
        true,
        "a lock was left behind"
    );
    world.pass(LONGEST_WAIT_MICROS);
    assert!(world.wanted.is_empty(), "{:?} stay wanted", world.wanted);
    assert_eq!(world.coordination.next_deadline(), None);
    assert_eq!(world.coordination.waiting(), 0);
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = (0..4_u32).prop_map(Node::Leaf);
    leaf.prop_recursive(8, 64, 4, |inner| {
        proptest::collection::btree_map(".{0,3}", inner, 0..4).prop_map(Node::Tree)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn waits_end_leases_fit_and_wants_balance(steps in proptest::collection::vec(step(), 1..120)) {
        run(steps);
    }

    #[test]
    fn any_bytes_are_a_question_or_an_error(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Question::from_json(&content);
    }

    #[test]
    fn a_question_with_bytes_changed_does_no_harm(
        (question, value_count) in question(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..3),
    ) {
        let mut content = question.to_string().into_bytes();
        let read = Question::from_json(&content).unwrap();
        prop_assert_eq!(Question::from_json(&read.to_json()).unwrap(), read);
        for (place, byte) in changes {
            let place = place.index(content.len());
            content[place] = byte;
        }
        if let Ok(question) = Question::from_json(&content) {
            let (mut coordination, mut told) = (Coordination::new(0), Vec::new());
            let values = values.into_iter().map(Bytes::from).take(value_count + 2).collect();
            coordination.ask("a", question, values, Timestamp(0), &mut told);
            coordination.tick(Timestamp(LONGEST_WAIT_MICROS), &mut told);
            prop_assert_eq!(coordination.waiting(), 0);
        }
    }

    #[test]
    fn metadata_come_back_as_they_were_set(node in node()) {
        let question = json!({"op": "metadata_set", "path": ["x"], "node": serde_json::to_value(&node).unwrap()});
        let mut world = World::new();
        let values: [&[u8]; 4] = [b"0", b"1", b"2", b"3"];
        world.ask_with("a", &question, &values);
        let ask = world.ask("a", &json!({"op": "metadata_get", "path": ["x"]}));
        let answer = world.answer(ask);
        let got: Node = serde_json::from_value(answer["node"].clone()).unwrap();
        prop_assert_eq!(leaves(&got, &world.values(ask)), leaves(&node, &values.map(Bytes::from_static)));
    }
}

/// The values of a tree by their paths, and empty levels.
fn leaves(node: &Node, values: &[Bytes]) -> BTreeMap<Vec<String>, Option<Bytes>> {
    match node {
        Node::Leaf(index) => BTreeMap::from([(
            Vec::new(),
            values.get(usize::try_from(*index).unwrap()).cloned(),
        )]),
        Node::Tree(tree) if tree.is_empty() => BTreeMap::from([(Vec::new(), None)]),
        Node::Tree(tree) => {
            let nested = tree.iter().flat_map(|(key, node)| {
                let below = leaves(node, values).into_iter();
                below.map(|(path, value)| ([vec![key.clone()], path].concat(), value))
            });
            nested.collect()
        }
    }
}

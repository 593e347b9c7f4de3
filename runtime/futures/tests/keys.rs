//! Keys against a simple reference: whatever several clients say, a task is wanted in the core
//! exactly while some client wants its key, everybody hears how far its keys are, and nothing stays
//! when all have left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use oxidask_core::{GraphId, TaskIndex, TaskRef, Timestamp};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_futures::keys::{
    AWAITED_MICROS, CLIENT_GRACE_MICROS, Cancel, Command, Connection, Effect, Event, Futures,
    KeyEvent, Regrown, RegrownTask, Submission,
};
use proptest::prelude::*;

const CLIENTS: u32 = 3;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "ä", "f"];

/// What a core would know: which tasks it was told are wanted.
#[derive(Default)]
struct Core {
    keys: BTreeMap<TaskRef, String>,
    inputs: BTreeMap<TaskRef, Vec<TaskIndex>>,
    wanted: BTreeSet<TaskRef>,
    failed: BTreeSet<TaskRef>,
    chunks: u32,
    accepted: u32,
    graph: u32,
}

struct World {
    futures: Futures,
    core: Core,
    now: u64,
    connections: BTreeMap<u32, Connection>,
    last_connection: u32,
    numbers: BTreeMap<u32, u64>,
    acknowledged: BTreeMap<Connection, u64>,
    /// What each client was last told of each key.
    told: BTreeMap<(Connection, String), KeyEvent>,
    /// Who wants what, as a reader of the rules would say it.
    wants: BTreeMap<u32, BTreeSet<String>>,
}

impl World {
    fn new() -> Self {
        Self {
            futures: Futures::new(),
            core: Core::default(),
            now: 0,
            connections: BTreeMap::new(),
            last_connection: 0,
            numbers: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            told: BTreeMap::new(),
            wants: BTreeMap::new(),
        }
    }

    fn react(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.futures.react(event, Timestamp(self.now), &mut effects);
        for effect in effects {
            self.perform(effect);
        }
        self.futures.check().unwrap();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Chunk(new) => {
                assert_eq!(
                    (new.graph.0, new.number),
                    (self.core.graph, self.core.chunks)
                );
                self.core.chunks += 1;
                let mut rest = new.chunk.keys.as_str();
                let mut inputs = new.chunk.inputs.as_slice();
                for at in 0..new.chunk.len() {
                    let (key, others) = rest.split_at(new.chunk.key_lengths[at] as usize);
                    let count = new.chunk.input_counts.get(at).copied().unwrap_or(0);
                    let (own, further) = inputs.split_at(count as usize);
                    (rest, inputs) = (others, further);
                    let number = u32::try_from(self.core.keys.len()).unwrap();
                    assert!(own.iter().all(|input| input.0 < number));
                    let task = self.task(number);
                    self.core.keys.insert(task, key.to_owned());
                    self.core.inputs.insert(task, own.to_vec());
                }
                for task in &new.chunk.wanted {
                    assert!(self.core.wanted.insert(self.task(task.0)));
                }
            }
            Effect::Release { tasks } => {
                for task in tasks {
                    assert!(self.core.wanted.remove(&task), "released twice");
                }
            }
            Effect::CloseGraph { .. } => {
                let graph = self.core.graph;
                self.core = Core {
                    graph,
                    ..Core::default()
                };
            }
            Effect::Tell {
                connection,
                key,
                event,
            } => {
                self.told.insert((connection, key.to_string()), event);
            }
            Effect::Acknowledge { connection, number } => {
                self.acknowledged.insert(connection, number);
            }
            Effect::TellRestarted { .. } | Effect::ClientGone { .. } => {}
            Effect::HangUp { connection, .. } => {
                assert!(!self.connections.values().any(|open| *open == connection));
            }
        }
    }

    fn task(&self, number: u32) -> TaskRef {
        TaskRef {
            graph: GraphId(self.core.graph),
            task: TaskIndex(number),
        }
    }

    fn open(&mut self) {
        if self.futures.needs_graph() {
            self.core.graph += 1;
            let graph = GraphId(self.core.graph);
            let name = Arc::from(self.futures.next_graph_name());
            self.react(Event::GraphOpened { graph, name });
        }
    }

    fn join(&mut self, client: u32, is_back: bool) {
        self.last_connection += 1;
        let connection = Connection(self.last_connection);
        self.connections.insert(client, connection);
        let wants = self.wants.entry(client).or_default();
        if !is_back {
            wants.clear();
        }
        let wanted = wants.iter().cloned().collect();
        self.numbers.entry(client).or_insert(0);
        if !is_back {
            self.numbers.insert(client, 0);
        }
        self.react(Event::Joined {
            connection,
            name: format!("client-{client}"),
            is_back,
            wanted,
        });
        let wants = self.wants[&client].clone();
        let is_there = |key: &String| self.futures.task_of(key).is_some();
        let kept = wants.into_iter().filter(is_there).collect();
        self.wants.insert(client, kept);
    }

    fn say(&mut self, client: u32, command: Command) {
        let Some(connection) = self.connections.get(&client).copied() else {
            return;
        };
        let number = self.numbers[&client] + 1;
        self.numbers.insert(client, number);
        self.react(Event::Said {
            connection,
            number,
            command,
        });
    }

    fn check(&self) {
        let mut expected = BTreeSet::new();
        for keys in self.wants.values() {
            expected.extend(keys.iter().cloned());
        }
        let wanted = self
            .core
            .wanted
            .iter()
            .map(|task| self.core.keys[task].clone());
        let wanted: BTreeSet<String> = wanted.collect();
        assert_eq!(wanted, expected, "the core wants what some client wants");
        assert_eq!(self.futures.keys(), expected.len());
        assert_eq!(self.core.wanted.len(), expected.len(), "one task a key");
        for (client, keys) in &self.wants {
            let Some(connection) = self.connections.get(client) else {
                continue;
            };
            for key in keys {
                let task = self.futures.task_of(key).unwrap();
                let told = self.told.get(&(*connection, key.clone()));
                if self.core.failed.contains(&task) {
                    assert!(matches!(told, Some(KeyEvent::Failed(_))), "{told:?}");
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Join(u32, bool),
    Leave(u32, bool),
    Submit(u32, Vec<usize>),
    Want(u32, usize),
    Release(u32, Vec<usize>),
    Cancel(u32, usize, bool),
    Finish(usize, bool),
    Retry(u32, usize),
    Accept,
    Restart,
    Again(u32),
    GraceIsOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0..CLIENTS;
    let key = 0..KEYS.len();
    let keys = proptest::collection::vec(key.clone(), 1..4);
    let step = prop_oneof![
        3 => (client.clone(), any::<bool>()).prop_map(|(c, b)| Step::Join(c, b)),
        1 => (client.clone(), any::<bool>()).prop_map(|(c, b)| Step::Leave(c, b)),
        8 => (client.clone(), keys.clone()).prop_map(|(c, k)| Step::Submit(c, k)),
        3 => (client.clone(), key.clone()).prop_map(|(c, k)| Step::Want(c, k)),
        5 => (client.clone(), keys).prop_map(|(c, k)| Step::Release(c, k)),
        2 => (client.clone(), key.clone(), any::<bool>()).prop_map(|(c, k, f)| Step::Cancel(c, k, f)),
        6 => (key.clone(), any::<bool>()).prop_map(|(k, f)| Step::Finish(k, f)),
        2 => (client.clone(), key).prop_map(|(c, k)| Step::Retry(c, k)),
        3 => Just(Step::Accept),
        1 => Just(Step::Restart),
        2 => client.prop_map(Step::Again),
        1 => Just(Step::GraceIsOver),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A chain of the keys, of which the last is wanted, with one input from before.
fn chain(keys: &[usize], external: &str) -> Submission {
    let mut new = Submission {
        body: Bytes::from_static(b"body"),
        external: vec![external.to_owned()],
        wanted: vec![u32::try_from(keys.len() - 1).unwrap()],
        ..Submission::default()
    };
    for (at, key) in keys.iter().enumerate() {
        let at = u32::try_from(at).unwrap();
        new.keys.push_str(KEYS[*key]);
        new.key_lengths
            .push(u32::try_from(KEYS[*key].len()).unwrap());
        // The first has no input, the others the one before.
        new.input_counts.push(u32::from(at > 0));
        if at > 0 {
            new.inputs.push(at);
        }
    }
    new
}

fn step(world: &mut World, step: Step) {
    match step {
        Step::Join(client, is_back) => world.join(client, is_back),
        Step::Leave(client, is_clean) => {
            let Some(connection) = world.connections.remove(&client) else {
                return;
            };
            world.react(Event::Left {
                connection,
                is_clean,
            });
            if is_clean {
                world.wants.remove(&client);
                world.numbers.insert(client, 0);
            }
        }
        Step::Submit(client, keys) => {
            let connection = world.connections.get(&client).copied();
            world.open();
            world.say(client, Command::Submit(Box::new(chain(&keys, "unused"))));
            if connection.is_some() {
                let last = KEYS[*keys.last().unwrap()].to_owned();
                world.wants.entry(client).or_default().insert(last);
            }
        }
        Step::Want(client, key) => {
            let is_there = world.futures.task_of(KEYS[key]).is_some();
            if is_there && world.connections.contains_key(&client) {
                let wants = world.wants.entry(client).or_default();
                wants.insert(KEYS[key].to_owned());
                world.say(client, Command::Want(vec![KEYS[key].to_owned()]));
            }
        }
        Step::Release(client, keys) => {
            let keys: Vec<String> = keys.iter().map(|key| KEYS[*key].to_owned()).collect();
            if world.connections.contains_key(&client) {
                let wants = world.wants.entry(client).or_default();
                wants.retain(|key| !keys.contains(key));
            }
            world.say(client, Command::Release(keys));
        }
        Step::Cancel(client, key, is_forced) => cancel(world, client, KEYS[key], is_forced),
        Step::Finish(key, is_failed) => finish(world, KEYS[key], is_failed),
        Step::Retry(client, key) => retry(world, client, KEYS[key]),
        Step::Accept => {
            if world.core.accepted < world.core.chunks {
                let (graph, number) = (GraphId(world.core.graph), world.core.accepted);
                world.core.accepted += 1;
                world.react(Event::ChunkAccepted { graph, number });
            }
        }
        Step::Restart => {
            world.react(Event::Restarted);
            world.wants.clear();
        }
        Step::Again(client) => say_again(world, client),
        Step::GraceIsOver => end_grace(world),
    }
}

fn say_again(world: &mut World, client: u32) {
    let Some(connection) = world.connections.get(&client).copied() else {
        return;
    };
    let number = world.numbers[&client];
    if number > 0 {
        let command = Command::Want(KEYS.map(str::to_owned).to_vec());
        world.react(Event::Said {
            connection,
            number,
            command,
        });
    }
}

fn end_grace(world: &mut World) {
    world.now += CLIENT_GRACE_MICROS.max(AWAITED_MICROS);
    world.react(Event::Tick);
    let gone = |client: &u32| !world.connections.contains_key(client);
    let gone: Vec<u32> = world.numbers.keys().copied().filter(gone).collect();
    for client in gone {
        world.wants.remove(&client);
        world.numbers.insert(client, 0);
    }
}

fn cancel(world: &mut World, client: u32, key: &str, is_forced: bool) {
    if !world.connections.contains_key(&client) {
        return;
    }
    let clients: Vec<u32> = if is_forced {
        world.wants.keys().copied().collect()
    } else {
        vec![client]
    };
    for client in clients {
        world.wants.entry(client).or_default().remove(key);
    }
    let cancel = Cancel {
        keys: vec![key.to_owned()],
        is_forced,
        ..Cancel::default()
    };
    world.say(client, Command::Cancel(Box::new(cancel)));
}

fn finish(world: &mut World, key: &str, is_failed: bool) {
    let Some(task) = world.futures.task_of(key) else {
        return;
    };
    if world.core.failed.contains(&task) {
        return;
    }
    if is_failed {
        world.core.failed.insert(task);
        let error = Arc::new(Diagnostic::new(Code::TaskPanicked, "it failed"));
        world.react(Event::TaskFailed { task, error });
    } else {
        world.react(Event::TaskReady {
            task,
            bytes: 7,
            value: None,
        });
    }
}

fn retry(world: &mut World, client: u32, key: &str) {
    let Some(task) = world.futures.task_of(key) else {
        return;
    };
    if !world.core.failed.contains(&task) || !world.connections.contains_key(&client) {
        return;
    }
    let regrown = Regrown {
        graph: Some(task.graph),
        tasks: vec![RegrownTask {
            task: task.task,
            key: key.to_owned(),
            body: 0,
            group: 0,
            requirement: 0,
            priority: 0,
            inputs: world.core.inputs[&task].clone(),
            arguments: Bytes::new(),
        }],
    };
    world.say(client, Command::Retry(Box::new(regrown)));
    assert_ne!(world.futures.task_of(key), Some(task));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn what_clients_want_is_what_the_core_keeps(steps in steps()) {
        let mut world = World::new();
        for next in steps {
            step(&mut world, next);
            world.check();
        }
        // All chunks are accepted in the end: every command is acknowledged.
        while world.core.accepted < world.core.chunks {
            step(&mut world, Step::Accept);
        }
        for (client, connection) in &world.connections {
            let said = world.numbers[client];
            let acknowledged = world.acknowledged.get(connection).copied().unwrap_or(0);
            prop_assert!(said == 0 || acknowledged == said || acknowledged == 0);
        }
        for client in 0..CLIENTS {
            step(&mut world, Step::Leave(client, true));
        }
        step(&mut world, Step::GraceIsOver);
        prop_assert_eq!(world.futures.keys(), 0);
        prop_assert_eq!(world.futures.clients(), 0);
        prop_assert!(world.core.wanted.is_empty());
    }
}

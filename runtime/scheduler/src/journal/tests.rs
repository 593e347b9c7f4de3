//! Records of a core that lives through random events: what each prefix of them restores to, and
//! what a snapshot of it restores to.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxidask_core::{
    ClientId, Core, CoreConfig, Effect, Event, Explanation, GraphChunk, GraphId, PlaceFacts,
    TaskIndex, TaskRef, TaskReport, TaskState, Timestamp, WaitFacts, WorkerId, WorkerLoss,
};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_journal::{Incarnation, MemoryDisk, Recovered, Settings};
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::wire;
use proptest::prelude::*;
use prost::Message;

use super::columns::Malformed;
use super::compact::{Rewriter, Survey};
use super::keep::{Keeper, Kept};
use super::record::{self, Kind, SCHEMA};
use super::recover::Beginning;
use super::{JournalConfig, JournalPlace};
use crate::input::Inputs;
use crate::metrics::Metrics;

const CLIENT: ClientId = ClientId(1);

/// One thing that happens; the numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Open,
    Chunk(u8, u8),
    Join,
    Finish(u8),
    Fail(u8),
    Copy(u8, u8),
    Release(u8, u8),
    Cancel(u8),
    Close(u8),
    Lose(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Open),
        6 => (any::<u8>(), 1..6_u8).prop_map(|(graph, tasks)| Step::Chunk(graph, tasks)),
        3 => Just(Step::Join),
        20 => any::<u8>().prop_map(Step::Finish),
        1 => any::<u8>().prop_map(Step::Fail),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(worker, task)| Step::Copy(worker, task)),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(graph, task)| Step::Release(graph, task)),
        1 => any::<u8>().prop_map(Step::Cancel),
        1 => any::<u8>().prop_map(Step::Close),
        2 => any::<u8>().prop_map(Step::Lose),
    ]
}

type Log = Vec<(Kind, Vec<u8>)>;

/// A core with its journal on a disk in memory.
struct World {
    core: Core,
    keeper: Keeper,
    disk: MemoryDisk,
    hellos: HashMap<WorkerId, wire::WorkerHello>,
    graphs: Vec<(GraphId, u32, u32)>,
    assigned: Vec<(WorkerId, TaskRef, oxidask_core::Attempt)>,
    next_worker: u32,
    opened: u32,
    now: u64,
}

fn config(disk: &MemoryDisk) -> JournalConfig {
    JournalConfig {
        delay: Duration::ZERO,
        ..JournalConfig::new(JournalPlace::Memory(disk.clone()))
    }
}

impl World {
    fn new() -> Self {
        let disk = MemoryDisk::new(1);
        let (inputs, _) = Inputs::channel();
        let metrics = Arc::new(Metrics::new());
        let core = CoreConfig::default();
        let beginning = Beginning::recover(&config(&disk), core, 7, &inputs, &metrics).unwrap();
        Self {
            core: beginning.core,
            keeper: beginning.keeper.unwrap(),
            disk,
            hellos: HashMap::new(),
            graphs: Vec::new(),
            assigned: Vec::new(),
            next_worker: 0,
            opened: 0,
            now: 0,
        }
    }

    fn react(&mut self, event: Event, message: Option<(GraphId, Vec<u8>)>) {
        self.now += 1_000;
        let mut effects = Vec::new();
        self.core.react(event, Timestamp(self.now), &mut effects);
        let is_accepted = effects
            .iter()
            .any(|effect| matches!(effect, Effect::ChunkAccepted { .. }));
        if let Some((graph, message)) = message.filter(|_| is_accepted) {
            self.keeper.chunk(graph, &message);
        }
        self.note();
        while self.core.place(Timestamp(self.now), &mut effects) {}
        self.note();
        for effect in effects {
            match effect {
                Effect::Assign {
                    worker,
                    task,
                    attempt,
                    ..
                } => self.assigned.push((worker, task, attempt)),
                Effect::Cancel { worker, task, .. } | Effect::Retract { worker, task, .. } => {
                    self.assigned
                        .retain(|(at, of, _)| (*at, *of) != (worker, task));
                }
                Effect::GraphAttached { graph, .. } => self.graphs.push((graph, 0, 0)),
                Effect::GraphForgotten { graph } => self.graphs.retain(|known| known.0 != graph),
                _ => {}
            }
        }
        self.keeper.hand_over();
    }

    fn note(&mut self) {
        for note in self.core.notes().drain(..) {
            self.keeper.note(note, |worker| self.hellos.get(&worker));
        }
    }

    fn task(&self, graph: u8, task: u8) -> Option<TaskRef> {
        let (graph, _, tasks) = *pick(&self.graphs, graph)?;
        let task = TaskIndex(u32::from(task) % tasks.max(1));
        (tasks > 0).then_some(TaskRef { graph, task })
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Open => self.open(),
            Step::Chunk(graph, tasks) => self.send_chunk(graph, u32::from(tasks)),
            Step::Join => self.join(),
            Step::Finish(which) => self.report(which, |bytes| TaskReport::Finished {
                bytes,
                duration_micros: 9,
                rows: bytes / 2,
            }),
            Step::Fail(which) => self.report(which, |_| TaskReport::Failed {
                error: Arc::new(Diagnostic::new(Code::TaskFailed, "no")),
                is_retryable: false,
            }),
            Step::Copy(worker, task) => {
                let mut workers: Vec<WorkerId> = self.hellos.keys().copied().collect();
                workers.sort_unstable();
                if let (Some(worker), Some(task)) =
                    (pick(&workers, worker), self.task(worker, task))
                {
                    let (worker, tasks) = (*worker, vec![task]);
                    self.react(Event::CopiesAdded { worker, tasks }, None);
                }
            }
            Step::Release(graph, task) => {
                if let Some(task) = self.task(graph, task) {
                    let tasks = vec![task];
                    self.react(
                        Event::ResultsReleased {
                            client: CLIENT,
                            tasks,
                        },
                        None,
                    );
                }
            }
            Step::Cancel(graph) | Step::Close(graph) => {
                let Some((graph, ..)) = pick(&self.graphs, graph).copied() else {
                    return;
                };
                let client = CLIENT;
                self.react(
                    match step {
                        Step::Cancel(_) => Event::GraphCancelled { client, graph },
                        _ => Event::GraphClosed { client, graph },
                    },
                    None,
                );
            }
            Step::Lose(worker) => {
                let mut workers: Vec<WorkerId> = self.hellos.keys().copied().collect();
                workers.sort_unstable();
                let Some(worker) = pick(&workers, worker).copied() else {
                    return;
                };
                self.hellos.remove(&worker);
                self.assigned.retain(|(at, ..)| *at != worker);
                let loss = WorkerLoss::Died("killed".to_owned());
                self.react(Event::WorkerLost { worker, loss }, None);
            }
        }
    }

    /// Every second graph is open-ended.
    fn open(&mut self) {
        self.opened += 1;
        let opened = Event::GraphOpened {
            client: CLIENT,
            name: Arc::from(format!("g{}", self.opened)),
            is_open_ended: self.opened.is_multiple_of(2),
        };
        self.react(opened, None);
    }

    fn join(&mut self) {
        self.next_worker += 1;
        let worker = WorkerId(self.next_worker);
        let hello = wire::WorkerHello {
            name: format!("w{}", self.next_worker % 4),
            slots: 2,
            data_address: format!("here:{}", self.next_worker),
            ..wire::WorkerHello::default()
        };
        let info = (&hello).into();
        if self.hellos.values().all(|other| other.name != hello.name) {
            self.hellos.insert(worker, hello);
            self.react(Event::WorkerJoined { worker, info }, None);
        }
    }

    fn report(&mut self, which: u8, report: impl Fn(u64) -> TaskReport) {
        if self.assigned.is_empty() {
            return;
        }
        let at = usize::from(which) % self.assigned.len();
        let (worker, task, attempt) = self.assigned.swap_remove(at);
        let reports = vec![(task, attempt, report(u64::from(which)))];
        self.react(Event::TaskReported { worker, reports }, None);
    }

    /// Each task has the two before it as inputs; every third is wanted.
    fn send_chunk(&mut self, which: u8, tasks: u32) {
        if self.graphs.is_empty() {
            return;
        }
        let at = usize::from(which) % self.graphs.len();
        let (graph, number, before) = self.graphs[at];
        let mut chunk = GraphChunk {
            new_bodies_count: 1,
            is_last: tasks == 5,
            ..GraphChunk::default()
        };
        if number == 0 {
            chunk.new_groups.push("t".to_owned());
        }
        for task in before..before + tasks {
            let key = format!("t-{task}");
            chunk.key_lengths.push(u32::try_from(key.len()).unwrap());
            chunk.keys.push_str(&key);
            chunk.body.push(number);
            chunk.group.push(0);
            let inputs = (task.saturating_sub(2)..task).filter(|input| input % 2 == 0);
            let inputs: Vec<TaskIndex> = inputs.map(TaskIndex).collect();
            chunk
                .input_counts
                .push(u32::try_from(inputs.len()).unwrap());
            chunk.inputs.extend(inputs);
            if task % 3 == 0 {
                chunk.wanted.push(TaskIndex(task));
            }
        }
        let placed = PlacedChunk {
            graph,
            number,
            chunk: chunk.clone(),
            bodies: vec![Bytes::from_static(b"body")],
            part: Vec::new(),
            streamed_inputs: Vec::new(),
            arguments: Vec::new(),
        };
        let message = wire::GraphChunk::from(placed).encode_to_vec();
        let event = Event::ChunkArrived {
            client: CLIENT,
            graph,
            number,
            chunk: Box::new(chunk),
        };
        self.react(event, Some((graph, message)));
        if self
            .core
            .graphs()
            .iter()
            .any(|known| known.graph == graph && known.total == u64::from(before + tasks))
        {
            self.graphs[at] = (graph, number + 1, before + tasks);
        }
    }

    /// What is on the disk after the end.
    fn end(self) -> (Core, Log) {
        let Self {
            core, keeper, disk, ..
        } = self;
        drop(keeper);
        (core, read(&disk))
    }
}

fn pick<T>(all: &[T], which: u8) -> Option<&T> {
    all.get(usize::from(which) % all.len().max(1))
}

fn read(disk: &MemoryDisk) -> Log {
    let settings = Settings::new(SCHEMA);
    let mut recovered = Recovered::open(disk.clone(), settings, Incarnation(9), None).unwrap();
    let mut log = Vec::new();
    while let Some(record) = recovered.next_record().unwrap() {
        log.push((Kind::new(record.kind).unwrap(), record.payload.to_vec()));
    }
    log
}

fn restore(log: &[(Kind, Vec<u8>)]) -> (Beginning, HashMap<GraphId, Kept>) {
    let mut beginning = Beginning::new(CoreConfig::default(), 1);
    let mut kept = HashMap::new();
    for (kind, payload) in log {
        record::read(*kind, payload, &mut |said| {
            beginning.take(&mut kept, said).unwrap();
        })
        .unwrap();
    }
    let next = GraphId(beginning.next_graph.0 + 1);
    let mut effects = Vec::new();
    beginning
        .core
        .begin_restored(Timestamp(0), next, &mut effects);
    (beginning, kept)
}

fn compact(log: &[(Kind, Vec<u8>)]) -> Log {
    let mut survey = Survey::default();
    for (kind, payload) in log {
        survey.look(*kind, payload).unwrap();
    }
    let mut compacted = Vec::new();
    let mut push = |kind: Kind, parts: &[&[u8]]| {
        compacted.push((kind, parts.concat()));
        Ok::<(), Malformed>(())
    };
    let mut rewriter = Rewriter::new(&survey);
    rewriter.begin(&mut push).unwrap();
    for (kind, payload) in log {
        rewriter.take(*kind, payload, &mut push).unwrap();
    }
    rewriter.finish(&mut push).unwrap();
    compacted
}

/// Everything that can be seen of a core that does not change with how its journal is written.
fn facts(beginning: &Beginning) -> Vec<String> {
    let core = &beginning.core;
    let mut facts = Vec::new();
    for graph in core.graphs() {
        facts.push(format!("{graph:?}"));
        for task in 0..u32::try_from(graph.total).unwrap() {
            let task = TaskIndex(task);
            let task = TaskRef {
                graph: graph.graph,
                task,
            };
            let mut holders = core.holders(task).to_vec();
            holders.sort_unstable();
            let (state, key) = (core.state(task), core.key(task));
            let explained = core.explain(task).map(explained);
            facts.push(format!(
                "{task} {key:?} {state:?} {holders:?} {explained:?}"
            ));
        }
    }
    for worker in core.workers() {
        facts.push(format!(
            "{worker:?} {:?}",
            beginning.workers.get(&worker.worker)
        ));
    }
    facts
}

/// An explanation whose workers are in order: it does not matter who had a result first.
fn explained(mut explanation: Explanation) -> String {
    if let Some(PlaceFacts::Held { workers, .. }) = &mut explanation.place {
        workers.sort_unstable();
    }
    for wait in &mut explanation.waits {
        if let WaitFacts::Suspects { workers, .. } = wait {
            workers.sort_unstable();
        }
    }
    format!("{explanation:?}")
}

/// Whether a result is held for nothing but tasks that run again because their own results were
/// dropped. A core that is restored takes those for held, until their workers say otherwise.
fn is_spare(live: &Core, restored: &Core, task: TaskRef) -> bool {
    let graphs = live.graphs();
    let graph = graphs.iter().find(|graph| graph.graph == task.graph);
    let total = graph.map_or(0, |graph| graph.total);
    let mut readers = (0..u32::try_from(total).unwrap()).map(|reader| TaskRef {
        graph: task.graph,
        task: TaskIndex(reader),
    });
    let is_done_for = |reader: TaskRef| {
        !live.inputs(reader).contains(&task.task)
            || live.state(reader).is_some_and(|state| !state.is_pending())
            || restored.state(reader) == Some(TaskState::Finished)
    };
    !live.is_wanted(task) && readers.all(is_done_for)
}

/// What a core that is restored has forgotten of a live one. It may know more: the journal does not
/// say which results were dropped because nobody needed them, their workers do when they are back.
fn forgotten(live: &Core, restored: &Core) -> Vec<String> {
    let mut forgotten = Vec::new();
    for graph in live.graphs() {
        for task in 0..u32::try_from(graph.total).unwrap() {
            let task = TaskIndex(task);
            let task = TaskRef {
                graph: graph.graph,
                task,
            };
            let (was, is) = (live.state(task), restored.state(task));
            let holders = restored.holders(task);
            let is_known = match was {
                Some(TaskState::Finished) if is == was => live
                    .holders(task)
                    .iter()
                    .all(|holder| holders.contains(holder)),
                Some(TaskState::Finished) => {
                    is == Some(TaskState::Released) && is_spare(live, restored, task)
                }
                // One that had finished and was to run again is not needed by what has failed.
                Some(TaskState::Failed) => is == was || is == Some(TaskState::Released),
                Some(TaskState::Released) => is.is_some_and(|is| !is.is_pending()),
                _ => is.is_some(),
            };
            if !is_known {
                forgotten.push(format!("{task}: {was:?} is {is:?}"));
            }
        }
    }
    forgotten
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(48)
    })]

    #[test]
    fn each_prefix_of_the_records_is_a_core_and_so_is_its_snapshot(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        world.take(&Step::Open);
        world.take(&Step::Open);
        world.take(&Step::Join);
        for step in &steps {
            world.take(step);
        }
        let (core, log) = world.end();
        let (whole, kept) = restore(&log);
        // Of a graph that has ended, a result that was lost before is called failed while the core
        // lives, and released afterwards: it is not computed again either way.
        if !steps.iter().any(|step| matches!(step, Step::Cancel(_))) {
            prop_assert_eq!(forgotten(&core, &whole.core), Vec::<String>::new());
        }
        let names = |core: &Core| core.graphs().iter().map(|graph| graph.name.to_string()).collect::<Vec<_>>();
        prop_assert_eq!(names(&core).len(), kept.len());
        for end in 0..=log.len() {
            let prefix = &log[..end];
            let (restored, _) = restore(prefix);
            prop_assert_eq!(restored.core.invariants(), Ok(()));
            let compacted = compact(prefix);
            let (again, _) = restore(&compacted);
            prop_assert_eq!(again.core.invariants(), Ok(()));
            prop_assert_eq!(facts(&restored), facts(&again));
            prop_assert_eq!(restored.next_graph, again.next_graph);
            prop_assert_eq!(restored.next_worker, again.next_worker);
            // A snapshot of a snapshot, with what came after it.
            let mut later = compacted;
            later.extend_from_slice(&log[end..]);
            let (last, _) = restore(&compact(&later));
            prop_assert_eq!(facts(&whole), facts(&last));
        }
    }
}

#[test]
fn commands_that_stand_outlive_a_snapshot() {
    let command = |number: u64, name: &str| {
        let command = wire::WorkerCommand {
            command: number,
            executor: "python".to_owned(),
            content: Bytes::from_static(b"x"),
            is_standing: true,
        };
        let length = u32::try_from(name.len()).unwrap().to_le_bytes();
        let payload = [&length, name.as_bytes(), &command.encode_to_vec()].concat();
        (Kind::Command, payload)
    };
    let ended = |number: u64| {
        let payload = [&[0; 4][..], &number.to_le_bytes()].concat();
        (Kind::CommandEnded, payload)
    };
    let log = vec![
        command(1, "a"),
        command(2, ""),
        command(3, ""),
        command(4, "b"),
        command(5, "a"),
        ended(4),
        command(6, "b"),
    ];
    let numbers = |log: &[(Kind, Vec<u8>)]| -> Vec<u64> {
        let mut beginning = Beginning::new(CoreConfig::default(), 1);
        let mut kept = HashMap::new();
        for (kind, payload) in log {
            record::read(*kind, payload, &mut |said| {
                beginning.take(&mut kept, said).unwrap();
            })
            .unwrap();
        }
        beginning.commands.into_keys().collect()
    };
    assert_eq!(numbers(&log), [2, 3, 5, 6]);
    assert_eq!(numbers(&compact(&log)), [2, 3, 5, 6]);
    let count = compact(&log)
        .into_iter()
        .filter(|entry| entry.0 == Kind::Command);
    assert_eq!(count.count(), 4);
}

#[test]
fn a_result_that_is_made_again_for_others_may_be_forgotten() {
    // The results of t-0 and t-2 are dropped once nobody needs them; a later chunk has both made again.
    let mut world = World::new();
    let steps = [
        Step::Open,
        Step::Open,
        Step::Join,
        Step::Chunk(1, 4),
        Step::Release(1, 0),
        Step::Finish(0),
        Step::Finish(0),
        Step::Finish(0),
        Step::Chunk(1, 5),
        Step::Finish(0),
    ];
    for step in &steps {
        world.take(step);
    }
    let again = |task| TaskRef {
        graph: world.graphs[1].0,
        task: TaskIndex(task),
    };
    let (first, second) = (again(0), again(2));
    let (core, log) = world.end();
    let (restored, _) = restore(&log);
    assert_eq!(core.state(first), Some(TaskState::Finished));
    assert!(core.state(second).is_some_and(TaskState::is_pending));
    assert_eq!(restored.core.state(second), Some(TaskState::Finished));
    assert_eq!(restored.core.state(first), Some(TaskState::Released));
    assert_eq!(forgotten(&core, &restored.core), Vec::<String>::new());
}

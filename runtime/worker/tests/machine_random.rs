//! Random orders of events against a small model of the world around a worker: the machine keeps
//! its rules, answers every attempt, and comes to rest with nothing left over.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod driver;

use std::collections::{BTreeMap, BTreeSet};

use driver::{Describe, assignment, attempt, ended, failure, key};
use oxidask_core::{TaskReport, WorkerId};
use oxidask_store::ResultKey;
use oxidask_worker::machine::{Effect, Event, Machine, Refusal, RequestId, RunId, RunOutcome};
use proptest::prelude::*;

const TASKS: u32 = 8;
const PEERS: u32 = 3;

#[derive(Debug, Clone)]
enum Step {
    Assign {
        task: u32,
        priority: i32,
        slots: u32,
        inputs: Vec<(u32, u64, u32)>,
        alternate: u32,
        streamed: u32,
    },
    Retract {
        task: u32,
        back: u32,
    },
    Cancel {
        task: u32,
        back: u32,
    },
    Release {
        task: u32,
    },
    Forget,
    EndRun {
        pick: usize,
        fate: Fate,
    },
    Answer {
        pick: usize,
        fates: Vec<u8>,
    },
    FailFetch {
        pick: usize,
    },
    PeerGone {
        peer: u32,
    },
    Pressure(Tightness),
    /// The store drops something by itself.
    Vanish {
        task: u32,
    },
    Advance,
}

/// How a run ends.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Finished,
    Failed,
    InputsLost,
}

/// What the store says of its memory.
#[derive(Debug, Clone, Copy)]
struct Tightness {
    is_paused: bool,
    is_easing: bool,
    free_bytes: u64,
}

impl Tightness {
    const NONE: Self = Self {
        is_paused: false,
        is_easing: false,
        free_bytes: u64::MAX,
    };

    fn event(self) -> Event {
        let Self {
            is_paused,
            is_easing,
            free_bytes,
        } = self;
        Event::PressureChanged {
            is_paused,
            is_easing,
            free_bytes,
        }
    }
}

/// Inputs from here on are streamed, and others never are.
const STREAMED: u32 = 200;

fn any_step() -> impl Strategy<Value = Step> {
    // Inputs 100.. come from peers, 0..TASKS may also be made here.
    let input = (
        prop_oneof![0..TASKS, 100..106_u32],
        0..80_000_000_u64,
        0..=PEERS + 1,
    );
    let inputs = prop::collection::vec(input, 0..4);
    let assign = (0..TASKS, -2..3_i32, 0..4_u32, inputs, 0..=PEERS, 0..3_u32).prop_map(
        |(task, priority, slots, inputs, alternate, streamed)| {
            let inputs = inputs.into_iter().filter(|input| input.0 != task).collect();
            Step::Assign {
                task,
                priority,
                slots,
                inputs,
                alternate,
                streamed,
            }
        },
    );
    let fate = prop_oneof![
        3 => Just(Fate::Finished),
        2 => Just(Fate::Failed),
        1 => Just(Fate::InputsLost),
    ];
    let free_bytes = prop_oneof![Just(0), Just(u64::MAX), 0..200_000_000_u64];
    let pressure = (any::<bool>(), any::<bool>(), free_bytes).prop_map(
        |(is_paused, is_easing, free_bytes)| {
            Step::Pressure(Tightness {
                is_paused,
                is_easing,
                free_bytes,
            })
        },
    );
    prop_oneof![
        8 => assign,
        1 => (0..TASKS, 0..2_u32).prop_map(|(task, back)| Step::Retract { task, back }),
        1 => (0..TASKS, 0..2_u32).prop_map(|(task, back)| Step::Cancel { task, back }),
        2 => prop_oneof![0..TASKS, 100..106_u32].prop_map(|task| Step::Release { task }),
        1 => Just(Step::Forget),
        5 => (any::<usize>(), fate).prop_map(|(pick, fate)| Step::EndRun { pick, fate }),
        3 => pressure,
        2 => prop_oneof![0..TASKS, 100..106_u32].prop_map(|task| Step::Vanish { task }),
        5 => (any::<usize>(), prop::collection::vec(0..5_u8, 4))
            .prop_map(|(pick, fates)| Step::Answer { pick, fates }),
        1 => any::<usize>().prop_map(|pick| Step::FailFetch { pick }),
        1 => (1..=PEERS).prop_map(|peer| Step::PeerGone { peer }),
        6 => Just(Step::Advance),
    ]
}

/// What the shell around the machine would know.
struct World {
    machine: Machine,
    runs: BTreeMap<RunId, ResultKey>,
    requests: BTreeMap<RequestId, Vec<ResultKey>>,
    stored: BTreeSet<ResultKey>,
    /// The newest attempt of each task and whether the scheduler waits for its end.
    attempts: BTreeMap<ResultKey, (u32, bool)>,
    tightness: Tightness,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            machine: Machine::new(WorkerId(driver::OWN), 3),
            runs: BTreeMap::new(),
            requests: BTreeMap::new(),
            stored: BTreeSet::new(),
            attempts: BTreeMap::new(),
            tightness: Tightness::NONE,
        };
        for peer in 1..=PEERS {
            world.react(Event::PeerAdded {
                peer: WorkerId(peer),
            });
        }
        world
    }

    fn react(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.machine.react(event, &mut effects);
        self.carry_out(effects);
    }

    fn advance(&mut self) {
        let mut effects = Vec::new();
        self.machine.advance(&mut effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        assert_eq!(self.machine.invariants(), Ok(()));
        for effect in effects {
            match effect {
                Effect::Run(run) => {
                    let Tightness {
                        is_paused,
                        is_easing,
                        ..
                    } = self.tightness;
                    let may_start = !is_paused || (!is_easing && self.runs.is_empty());
                    assert!(may_start, "a run starts although memory is short");
                    let streamed = run.streamed.iter().map(|input| input.key.task());
                    assert!(streamed.into_iter().all(|task| task >= STREAMED));
                    for input in &run.inputs {
                        assert!(self.stored.contains(input), "{input} is not in the store");
                    }
                    let before = self.runs.insert(run.run, run.task);
                    assert_eq!(before, None, "a run starts once");
                }
                Effect::Fetch {
                    request,
                    keys,
                    peer,
                } => {
                    assert_ne!(peer, WorkerId(driver::OWN));
                    assert!(keys.iter().all(|key| key.task() < STREAMED));
                    let is_tight = self.tightness.free_bytes == 0;
                    assert!(
                        !is_tight || (self.requests.is_empty() && self.machine.running() == 0),
                        "something is fetched although there is no room"
                    );
                    let distinct: BTreeSet<_> = keys.iter().collect();
                    assert_eq!(distinct.len(), keys.len());
                    self.requests.insert(request, keys);
                }
                Effect::CancelRun { run } => assert!(self.runs.contains_key(&run)),
                Effect::Drop { key } => {
                    self.stored.remove(&key);
                }
                Effect::DropGraph { .. } => self.stored.clear(),
                Effect::Report {
                    task,
                    attempt,
                    report,
                } => self.check(task, attempt.number, &report),
                Effect::CopyAdded { key } => assert!(self.stored.contains(&key)),
                Effect::CopyMissing { .. } => {}
            }
        }
    }

    fn check(&mut self, task: ResultKey, number: u32, report: &TaskReport) {
        let (newest, is_open) = self
            .attempts
            .get_mut(&task)
            .expect("reports are about attempts");
        assert_eq!(*newest, number, "only the newest attempt is reported");
        assert!(*is_open, "{task} was reported after its end");
        if let TaskReport::InputsLost { lost } = report {
            assert!(!lost.is_empty());
        }
        *is_open = matches!(report, TaskReport::Started);
    }

    fn end_run(&mut self, run: RunId, fate: Fate) {
        let task = self.runs.remove(&run).expect("it runs");
        let outcome = match fate {
            Fate::Finished => {
                if self.machine.is_current(run) {
                    self.stored.insert(task);
                }
                return self.react(ended(run, 1));
            }
            Fate::Failed => RunOutcome::Failed(failure("no", false)),
            Fate::InputsLost => RunOutcome::InputsLost(vec![(key(STREAMED), WorkerId(1))]),
        };
        self.react(Event::RunEnded { run, outcome });
    }

    fn answer(&mut self, request: RequestId, fates: &[u8]) {
        let keys = self.requests.remove(&request).unwrap_or_default();
        let (mut kept, mut missing, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (position, key) in keys.into_iter().enumerate() {
            match fates
                .get(position % fates.len().max(1))
                .copied()
                .unwrap_or(0)
            {
                0 => missing.push(key),
                1 => refused.push(Refusal {
                    key,
                    failure: failure("full", true),
                }),
                2 => {}
                _ if self.machine.wants_copy(key) => {
                    self.stored.insert(key);
                    kept.push(key);
                }
                _ => {}
            }
        }
        self.react(Event::FetchDone {
            request,
            kept,
            missing,
            refused,
        });
    }

    fn pick_run(&self, pick: usize) -> Option<RunId> {
        (!self.runs.is_empty()).then(|| *self.runs.keys().nth(pick % self.runs.len()).unwrap())
    }

    fn pick_request(&self, pick: usize) -> Option<RequestId> {
        let count = self.requests.len();
        (count > 0).then(|| *self.requests.keys().nth(pick % count).unwrap())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Assign {
                task,
                priority,
                slots,
                inputs,
                alternate,
                streamed,
            } => {
                let number = self
                    .attempts
                    .get(&key(task))
                    .map_or(1, |(newest, _)| newest + 1);
                self.attempts.insert(key(task), (number, true));
                let mut order = assignment(task, number)
                    .priority(priority)
                    .slots(slots)
                    .sized_inputs(inputs);
                if !order.inputs.is_empty() {
                    order = order.alternate(0, alternate);
                }
                let streamed = (STREAMED..STREAMED + streamed).map(|task| (task, 50, alternate));
                order.streamed = assignment(task, number).sized_inputs(streamed).inputs;
                self.react(Event::Assigned(order));
            }
            Step::Retract { task, back } => {
                if let Some((newest, _)) = self.attempts.get(&key(task)).copied() {
                    let attempt = attempt(newest.saturating_sub(back));
                    self.react(Event::Retracted {
                        task: key(task),
                        attempt,
                    });
                }
            }
            Step::Cancel { task, back } => {
                if let Some((newest, _)) = self.attempts.get(&key(task)).copied() {
                    let attempt = attempt(newest.saturating_sub(back));
                    self.react(Event::Cancelled {
                        task: key(task),
                        attempt,
                    });
                    if back == 0 {
                        self.attempts.insert(key(task), (newest, false));
                    }
                }
            }
            Step::Release { task } => self.react(Event::Released { task: key(task) }),
            Step::Forget => {
                self.attempts
                    .values_mut()
                    .for_each(|attempt| attempt.1 = false);
                self.react(Event::GraphForgotten {
                    graph: driver::GRAPH,
                });
                assert!(self.stored.is_empty());
            }
            Step::EndRun { .. } | Step::Answer { .. } | Step::FailFetch { .. } => self.end(&step),
            Step::PeerGone { peer } => {
                let peer = WorkerId(peer);
                self.react(Event::PeerGone { peer });
            }
            Step::Pressure(tightness) => self.tighten(tightness),
            Step::Vanish { task } => {
                if self.stored.remove(&key(task)) {
                    self.react(Event::ObjectGone { key: key(task) });
                }
            }
            Step::Advance => self.advance(),
        }
    }

    fn tighten(&mut self, tightness: Tightness) {
        self.tightness = tightness;
        self.react(tightness.event());
    }

    /// Something that is under way ends.
    fn end(&mut self, step: &Step) {
        match step {
            Step::EndRun { pick, fate } => {
                if let Some(run) = self.pick_run(*pick) {
                    self.end_run(run, *fate);
                }
            }
            Step::Answer { pick, fates } => {
                if let Some(request) = self.pick_request(*pick) {
                    self.answer(request, fates);
                }
            }
            Step::FailFetch { pick } => {
                if let Some(request) = self.pick_request(*pick) {
                    self.requests.remove(&request);
                    self.react(Event::FetchFailed { request });
                }
            }
            _ => {}
        }
    }

    /// Everything that is under way ends; then every attempt must have been answered.
    ///
    /// The memory may stay as tight as it is: when the store has made all the room that it can, the
    /// machine must get on with that.
    fn settle(&mut self) {
        self.tightness.is_easing = false;
        self.react(self.tightness.event());
        for _ in 0..10_000 {
            self.advance();
            if let Some(run) = self.pick_run(0) {
                self.end_run(run, Fate::Finished);
            } else if let Some(request) = self.pick_request(0) {
                self.answer(request, &[4]);
            } else {
                break;
            }
        }
        assert!(self.machine.is_idle(), "{:?}", self.machine);
        for (task, (_, is_open)) in &self.attempts {
            assert!(!is_open, "{task} was never answered");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_order_of_events_keeps_the_rules(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
    }
}

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

use driver::{Describe, assignment, attempt, ended, failure, given_back, key};
use oxidask_core::{AttemptState, Digest, TaskReport, WorkerId};
use oxidask_store::ResultKey;
use oxidask_worker_machine::{
    Assignment, Effect, Event, Machine, Refusal, RequestId, RunId, RunOutcome,
};
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
        may_wait: bool,
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
    OrderCopy {
        task: u32,
        bytes: u64,
        from: u32,
    },
    /// The stream breaks and is there again: the scheduler believes the inventory, and sends what it
    /// has assigned once more.
    Reconnect,
    /// A run in line begins.
    Begin {
        pick: usize,
    },
    /// A run in line comes back.
    GiveBack {
        pick: usize,
    },
    /// A run gives its slots to others, or takes them again.
    Slots {
        pick: usize,
        is_given: bool,
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
    let may_wait = prop_oneof![2 => Just(false), 3 => Just(true)];
    let streamed = prop_oneof![3 => Just(0_u32), 2 => 1..3_u32];
    let assign = (
        0..TASKS,
        -2..3_i32,
        0..4_u32,
        inputs,
        0..=PEERS,
        streamed,
        may_wait,
    );
    let assign = assign.prop_map(
        |(task, priority, slots, inputs, alternate, streamed, may_wait)| {
            let inputs = inputs.into_iter().filter(|input| input.0 != task).collect();
            Step::Assign {
                task,
                priority,
                slots,
                inputs,
                alternate,
                streamed,
                may_wait,
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
        3 => any::<usize>().prop_map(|pick| Step::Begin { pick }),
        1 => any::<usize>().prop_map(|pick| Step::GiveBack { pick }),
        3 => any::<(usize, bool)>().prop_map(|(pick, is_given)| Step::Slots { pick, is_given }),
        2 => prop_oneof![0..TASKS, 100..106_u32].prop_map(|task| Step::Vanish { task }),
        5 => (any::<usize>(), prop::collection::vec(0..5_u8, 4))
            .prop_map(|(pick, fates)| Step::Answer { pick, fates }),
        1 => any::<usize>().prop_map(|pick| Step::FailFetch { pick }),
        1 => (1..=PEERS).prop_map(|peer| Step::PeerGone { peer }),
        3 => (prop_oneof![0..TASKS, 100..106_u32], 0..80_000_000_u64, 0..=PEERS + 1)
            .prop_map(|(task, bytes, from)| Step::OrderCopy { task, bytes, from }),
        2 => Just(Step::Reconnect),
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
    /// The orders behind them.
    assignments: BTreeMap<ResultKey, Assignment>,
    /// Runs without their slots.
    seceded: BTreeSet<RunId>,
    /// Runs that wait in line.
    in_line: BTreeSet<RunId>,
    /// Attempts that were said to run without their slots.
    gives: BTreeSet<ResultKey>,
    /// Attempts that were said to run.
    started: BTreeSet<ResultKey>,
    /// The attempt that made what is stored of a task.
    made: BTreeMap<ResultKey, u32>,
    /// Copies that were ordered and not answered.
    ordered: BTreeSet<ResultKey>,
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
            assignments: BTreeMap::new(),
            seceded: BTreeSet::new(),
            in_line: BTreeSet::new(),
            gives: BTreeSet::new(),
            started: BTreeSet::new(),
            made: BTreeMap::new(),
            ordered: BTreeSet::new(),
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
                    let at_work = self.runs.len() - self.in_line.len();
                    let is_alone = at_work == self.seceded.len() && !run.is_ahead;
                    let may_start = !is_paused || (!is_easing && is_alone);
                    if run.is_ahead {
                        assert!(self.assignments[&run.task].may_wait_in_line);
                        self.in_line.insert(run.run);
                    }
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
                        !is_tight
                            || (self.requests.is_empty()
                                && self.machine.running() as usize == self.seceded.len()),
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
                Effect::CopyAdded { key } => {
                    assert!(self.stored.contains(&key));
                    self.ordered.remove(&key);
                }
                Effect::CopyFailed { key } => {
                    assert!(self.ordered.remove(&key), "{key} was not ordered");
                }
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
        *is_open = matches!(
            report,
            TaskReport::Started | TaskReport::Seceded | TaskReport::Rejoined
        );
        let is_news = match report {
            TaskReport::Started => self.started.insert(task),
            TaskReport::Seceded => self.started.contains(&task) && self.gives.insert(task),
            TaskReport::Rejoined => self.gives.remove(&task),
            _ => {
                self.gives.remove(&task);
                true
            }
        };
        assert!(is_news, "{task}: {report:?} is no news");
        // The result of the task itself is better than a copy of an earlier one.
        if matches!(report, TaskReport::Finished { .. }) {
            self.ordered.remove(&task);
        }
    }

    fn end_run(&mut self, run: RunId, fate: Fate) {
        let task = self.runs.remove(&run).expect("it runs");
        self.seceded.remove(&run);
        self.in_line.remove(&run);
        let outcome = match fate {
            Fate::Finished => {
                if self.machine.is_current(run) {
                    self.stored.insert(task);
                    self.made.insert(task, self.attempts[&task].0);
                }
                return self.react(ended(run, 1));
            }
            Fate::Failed => RunOutcome::Failed(failure("no", false)),
            Fate::InputsLost => RunOutcome::InputsLost(vec![(key(STREAMED), WorkerId(1))]),
        };
        self.react(Event::RunEnded { run, outcome });
    }

    fn pick_in_line(&self, pick: usize) -> Option<RunId> {
        let count = self.in_line.len();
        (count > 0).then(|| *self.in_line.iter().nth(pick % count).unwrap())
    }

    fn begin(&mut self, pick: usize) {
        if let Some(run) = self.pick_in_line(pick) {
            self.in_line.remove(&run);
            self.react(Event::Begun { run });
        }
    }

    fn give_back(&mut self, pick: usize) {
        if let Some(run) = self.pick_in_line(pick) {
            self.in_line.remove(&run);
            self.runs.remove(&run);
            self.react(given_back(run));
        }
    }

    fn give_slots(&mut self, run: RunId, is_given: bool) {
        if is_given {
            self.seceded.insert(run);
            self.react(Event::Seceded { run });
        } else {
            self.seceded.remove(&run);
            self.react(Event::Rejoined { run });
        }
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
                    self.made.remove(&key);
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

    fn assign(&mut self, step: Step) {
        let Step::Assign {
            task,
            priority,
            slots,
            inputs,
            alternate,
            streamed,
            may_wait,
        } = step
        else {
            return;
        };
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
        order.may_wait_in_line = may_wait;
        order.streamed = assignment(task, number).sized_inputs(streamed).inputs;
        self.started.remove(&key(task));
        self.gives.remove(&key(task));
        self.assignments.insert(key(task), order.clone());
        self.react(Event::Assigned(order));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Assign { .. } => self.assign(step),
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
            Step::Release { task } => {
                self.ordered.remove(&key(task));
                self.react(Event::Released { task: key(task) });
            }
            Step::OrderCopy { task, bytes, from } => {
                self.ordered.insert(key(task));
                self.react(Event::CopyOrdered {
                    key: key(task),
                    bytes,
                    from: WorkerId(from),
                });
            }
            Step::Reconnect => self.reconnect(),
            Step::Forget => {
                self.ordered.clear();
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
            Step::Begin { pick } => self.begin(pick),
            Step::GiveBack { pick } => self.give_back(pick),
            Step::Slots { pick, is_given } => {
                // What has not begun has no slots to give.
                let run = self.pick_run(pick);
                if let Some(run) = run.filter(|run| !self.in_line.contains(run)) {
                    self.give_slots(run, is_given);
                }
            }
            Step::Advance => self.advance(),
        }
    }

    /// What the machine says must be what the scheduler knows from its reports, and orders that come
    /// twice change nothing.
    fn reconnect(&mut self) {
        let inventory = self.machine.inventory();
        let mut digest = Digest::default();
        let mut held = BTreeSet::new();
        for (task, _) in &inventory.held {
            digest.add_held(*task);
            held.insert(key(task.task.0));
        }
        assert_eq!(held, self.stored);
        let mut open = BTreeSet::new();
        for (attempts, is_running) in [(&inventory.running, true), (&inventory.queued, false)] {
            for (task, attempt) in attempts {
                let has_seceded = inventory.seceded.contains(&(*task, *attempt));
                let state = match (is_running, has_seceded) {
                    (false, _) => AttemptState::Queued,
                    (true, false) => AttemptState::Running,
                    (true, true) => AttemptState::Seceded,
                };
                digest.add_attempt(*task, *attempt, state);
                let task = key(task.task.0);
                assert_eq!(self.gives.contains(&task), has_seceded);
                assert_eq!(self.attempts[&task], (attempt.number, true));
                assert_eq!(self.started.contains(&task), is_running);
                open.insert(task);
            }
        }
        assert_eq!(digest, self.machine.digest());
        let is_open = |(task, (_, is_open)): (&ResultKey, &(u32, bool))| is_open.then_some(*task);
        let believed: BTreeSet<_> = self.attempts.iter().filter_map(is_open).collect();
        assert_eq!(open, believed);
        let again: Vec<_> = self
            .assignments
            .iter()
            .filter(|(task, _)| open.contains(task) || self.has_result_of_newest(**task))
            .map(|(_, assignment)| assignment.clone())
            .collect();
        for assignment in again {
            let mut effects = Vec::new();
            let event = Event::Assigned(assignment);
            self.machine.react(event, &mut effects);
            assert_eq!(effects, [], "an order that was sent again");
        }
        assert_eq!(digest, self.machine.digest());
    }

    /// Whether what is stored of a task was made by its newest attempt.
    fn has_result_of_newest(&self, task: ResultKey) -> bool {
        self.stored.contains(&task) && self.made.get(&task) == Some(&self.attempts[&task].0)
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
        assert_eq!(self.ordered, BTreeSet::new(), "orders without an answer");
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

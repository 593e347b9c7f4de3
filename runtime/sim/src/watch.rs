//! What must hold after every step of the scheduler, kept apart from how it does it.
//!
//! Owns a picture of each task made from what went in and what came out. Every step back of a task
//! needs a cause that really happened: a report of the attempt that counts, a worker that was lost,
//! a result that was. Invariant: never looks into the core except by its public questions.

use std::collections::{BTreeMap, BTreeSet};

use oxidask_core::{
    Attempt, Core, CoreConfig, Effect, Event, GraphId, TaskRef, TaskReport, TaskState, WorkerId,
    WorkerLoss,
};
use oxidask_diagnostic::Code;

use crate::config::Config;
use crate::graphs::{Failing, Plan};
use crate::world::World;

/// What is known of all graphs.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) graphs: BTreeMap<GraphId, GraphWatch>,
    started: BTreeSet<(WorkerId, TaskRef, Attempt)>,
    /// Workers that nobody hears of, and since when.
    pub(crate) suspects: BTreeMap<WorkerId, u64>,
    /// What ran on suspects and runs elsewhere since.
    pub(crate) reruns: BTreeMap<WorkerId, Vec<TaskRef>>,
    crash_limit: u32,
    fetch_limit: u32,
    rerun_micros: u64,
    is_calm: bool,
    pub(crate) results: u64,
    pub(crate) again: u64,
    violation: Option<String>,
}

/// What is known of one graph.
#[derive(Debug)]
pub(crate) struct GraphWatch {
    pub(crate) plan: usize,
    pub(crate) tasks: Vec<TaskWatch>,
    /// Runs that failed, by task.
    failures: BTreeMap<u32, u32>,
    pub(crate) is_cancelled: bool,
}

/// What is known of one task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskWatch {
    pub(crate) state: TaskState,
    pub(crate) is_told: bool,
    /// The scheduler that is there now knows it.
    pub(crate) is_there: bool,
    pub(crate) current: Option<(WorkerId, Attempt)>,
    /// The newest attempt that was handed out.
    pub(crate) newest: Option<Attempt>,
    /// Deaths of workers that ran it.
    pub(crate) deaths: u32,
    /// The same, and of those on which it ran when they were lost of sight.
    pub(crate) deaths_most: u32,
    pub(crate) has_excuse: bool,
    pub(crate) failed_reports: u32,
    pub(crate) lost_fetches: u32,
    pub(crate) results: u32,
    pub(crate) causes: u32,
}

impl TaskWatch {
    pub(crate) fn new(state: TaskState) -> Self {
        Self {
            state,
            is_told: false,
            is_there: true,
            current: None,
            newest: None,
            deaths: 0,
            deaths_most: 0,
            has_excuse: false,
            failed_reports: 0,
            lost_fetches: 0,
            results: 0,
            causes: 0,
        }
    }
}

/// What has to be known from before an event.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// Holders of finished results, if the event may lose some.
    pub(crate) holders: BTreeMap<TaskRef, Vec<WorkerId>>,
    /// Where placed tasks are, and their attempts.
    pub(crate) attempts: BTreeMap<TaskRef, (WorkerId, Attempt)>,
    /// Who is there.
    workers: BTreeSet<WorkerId>,
}

/// What an event says about tasks.
#[derive(Debug, Default)]
pub(crate) struct Causes {
    /// Attempts that count and ended without a result, or with one that may be lost at once.
    pub(crate) ended: BTreeSet<TaskRef>,
    /// Attempts that count, failed, and may not be tried again.
    hopeless: BTreeSet<TaskRef>,
    /// Results that somebody could not read.
    pub(crate) lost: BTreeSet<(TaskRef, WorkerId)>,
    gone: BTreeSet<WorkerId>,
    /// What waits on these workers may go elsewhere.
    moves_queued: Option<WorkerId>,
    /// What runs on these workers may run elsewhere too.
    moves_running: BTreeSet<WorkerId>,
    is_chunk: bool,
    /// Results that were released in the course of the event.
    released: BTreeSet<TaskRef>,
}

impl Watch {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            graphs: BTreeMap::new(),
            started: BTreeSet::new(),
            crash_limit: config.crash_limit,
            suspects: BTreeMap::new(),
            reruns: BTreeMap::new(),
            rerun_micros: u64::from(config.rerun_millis) * 1_000,
            fetch_limit: CoreConfig::default().fetch_limit,
            is_calm: config.is_calm() && !config.is_fickle && !config.is_open_ended,
            results: 0,
            again: 0,
            violation: None,
        }
    }

    /// A graph has this number.
    pub(crate) fn name(&mut self, graph: GraphId, plan: usize) {
        self.graphs.entry(graph).or_insert_with(|| GraphWatch {
            plan,
            tasks: Vec::new(),
            failures: BTreeMap::new(),
            is_cancelled: false,
        });
    }

    /// The plan of a graph, and how often runs of its tasks have failed.
    pub(crate) fn plan_of(&mut self, graph: GraphId) -> Option<(usize, &mut BTreeMap<u32, u32>)> {
        let graph = self.graphs.get_mut(&graph)?;
        Some((graph.plan, &mut graph.failures))
    }

    pub(crate) fn task(&mut self, task: TaskRef) -> Option<&mut TaskWatch> {
        self.graphs
            .get_mut(&task.graph)?
            .tasks
            .get_mut(task.task.0 as usize)
    }

    /// A worker really runs an attempt.
    pub(crate) fn started(&mut self, worker: WorkerId, task: TaskRef, attempt: Attempt) {
        self.started.insert((worker, task, attempt));
    }

    /// A worker has made a result that counts there.
    pub(crate) fn made(&mut self, task: TaskRef) {
        self.results += 1;
        let Some(known) = self.task(task) else { return };
        known.results += 1;
        if known.results > known.causes + 1 {
            let (results, causes) = (known.results, known.causes);
            self.violation = Some(format!(
                "{task} was made {results} times for {causes} causes"
            ));
        }
    }

    // ---- events ----

    pub(crate) fn before(&self, core: &Core, event: &Event) -> Before {
        let mut before = Before::default();
        let may_lose = matches!(
            event,
            Event::WorkerLost { .. }
                | Event::WorkerJoined { .. }
                | Event::WorkerReturned { .. }
                | Event::WorkerSuspected { .. }
                | Event::TaskReported { .. }
                | Event::CopiesMissing { .. }
                | Event::Tick
        );
        if matches!(event, Event::TaskReported { .. }) && self.is_calm {
            before.workers = core.workers().iter().map(|worker| worker.worker).collect();
        }
        for (graph, watch) in self.graphs.iter().filter(|_| may_lose) {
            for (index, task) in watch.tasks.iter().enumerate() {
                let reference = World::task_ref(*graph, index);
                if task.state == TaskState::Finished {
                    let holders = core.holders(reference).to_vec();
                    before.holders.insert(reference, holders);
                }
                if let Some(attempt) = core.attempt(reference) {
                    before.attempts.insert(reference, attempt);
                }
            }
        }
        before
    }

    pub(crate) fn after(
        &mut self,
        core: &Core,
        plans: &[Plan],
        before: &Before,
        (event, effects): (&Event, &[Effect]),
        now: u64,
    ) -> Result<(), String> {
        if let Some(violation) = self.violation.take() {
            return Err(violation);
        }
        let mut causes = self.causes_of(before, event, now)?;
        for effect in effects {
            match effect {
                Effect::Release { task, .. } => {
                    causes.released.insert(*task);
                }
                Effect::WorkerGivenUp { worker, .. } => {
                    causes.gone.insert(*worker);
                    self.blame(before, *worker)?;
                }
                _ => {}
            }
        }
        for graph in self.graphs.keys().copied().collect::<Vec<_>>() {
            let changes = self.changes(core, plans, graph);
            self.check_changes(plans, graph, &changes, &causes, before)?;
        }
        if let Event::WorkerReturned { worker, inventory } = event {
            Self::check_taken_back(core, before, *worker, inventory)?;
        }
        self.check_told(effects)?;
        self.check_limits()
    }

    /// What the event says, as far as it counts.
    fn causes_of(&mut self, before: &Before, event: &Event, now: u64) -> Result<Causes, String> {
        let mut causes = Causes::default();
        match event {
            Event::ChunkArrived { .. } => causes.is_chunk = true,
            Event::ResultsReleased { tasks, .. } => {
                for task in tasks {
                    if let Some(known) = self.task(*task) {
                        known.is_told = false;
                    }
                }
            }
            Event::GraphCancelled { graph, .. } => {
                if let Some(graph) = self.graphs.get_mut(graph) {
                    graph.is_cancelled = true;
                }
            }
            Event::CopiesMissing { worker, tasks } => {
                if self.is_calm {
                    return Err(format!(
                        "worker {worker} lost {tasks:?} though nothing is wrong"
                    ));
                }
                causes
                    .lost
                    .extend(tasks.iter().map(|task| (*task, *worker)));
            }
            Event::WorkerLost { worker, loss } => {
                causes.gone.insert(*worker);
                if *loss == WorkerLoss::Retired {
                    self.forget_worker(*worker);
                } else {
                    self.blame(before, *worker)?;
                }
            }
            Event::WorkerSuspected { worker } => {
                if self.is_calm {
                    return Err(format!(
                        "worker {worker} is suspect though nothing is wrong"
                    ));
                }
                causes.moves_queued = Some(*worker);
                self.suspects.entry(*worker).or_insert(now);
            }
            Event::WorkerReturned { worker, inventory } => {
                self.take_inventory(before, *worker, inventory, &mut causes);
            }
            Event::Tick => {
                let late = |since: u64| now.saturating_sub(since) >= self.rerun_micros;
                let suspects = self.suspects.iter().filter(|(_, since)| late(**since));
                causes.moves_running = suspects.map(|(worker, _)| *worker).collect();
            }
            Event::TaskReported { worker, reports } => {
                for (task, attempt, report) in reports {
                    let at = before.attempts.get(task);
                    if at == Some(&(*worker, *attempt)) {
                        self.take_report(before, *task, report, &mut causes)?;
                    }
                }
            }
            _ => {}
        }
        Ok(causes)
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        self.suspects.remove(&worker);
        self.reruns.remove(&worker);
    }

    fn take_report(
        &mut self,
        before: &Before,
        task: TaskRef,
        report: &TaskReport,
        causes: &mut Causes,
    ) -> Result<(), String> {
        let is_calm = self.is_calm;
        let Some(known) = self.task(task) else {
            return Ok(());
        };
        match report {
            TaskReport::Started | TaskReport::Seceded | TaskReport::Rejoined => return Ok(()),
            TaskReport::Failed {
                is_retryable,
                error,
            } => {
                known.failed_reports += 1;
                if !is_retryable || error.code == Code::ResultUnavailable {
                    causes.hopeless.insert(task);
                }
            }
            TaskReport::InputsLost { lost } => {
                known.lost_fetches += 1;
                // Who has gone as it was asked to has left copies elsewhere.
                if is_calm
                    && lost
                        .iter()
                        .any(|(_, holder)| before.workers.contains(holder))
                {
                    return Err(format!(
                        "{task} lost inputs {lost:?} though nothing is wrong"
                    ));
                }
                causes.lost.extend(lost.iter().copied());
            }
            _ => {}
        }
        causes.ended.insert(task);
        Ok(())
    }

    /// A worker that died takes the blame for what it ran, and only for that.
    fn blame(&mut self, before: &Before, worker: WorkerId) -> Result<(), String> {
        for (task, (at, attempt)) in &before.attempts {
            if *at != worker {
                continue;
            }
            let has_run = self.started.contains(&(worker, *task, *attempt));
            let Some(known) = self.task(*task) else {
                continue;
            };
            if known.state == TaskState::Running {
                if !has_run {
                    return Err(format!("{task} is blamed though it never ran"));
                }
                known.deaths += 1;
                known.deaths_most += 1;
            }
        }
        for task in self.reruns.remove(&worker).unwrap_or_default() {
            if let Some(known) = self.task(task) {
                known.deaths_most += 1;
            }
        }
        self.forget_worker(worker);
        Ok(())
    }

    /// Takes over the states of a graph; tasks with the states before, if there were any.
    pub(crate) fn changes(
        &mut self,
        core: &Core,
        plans: &[Plan],
        graph: GraphId,
    ) -> Vec<(usize, Option<TaskState>)> {
        let mut changes = Vec::new();
        let Some(watch) = self.graphs.get_mut(&graph) else {
            return changes;
        };
        if core.state(World::task_ref(graph, 0)).is_none() && core.progress(graph).is_none() {
            // It is closed.
            watch.tasks.clear();
        }
        for index in 0..plans[watch.plan].tasks.len() {
            let Some(state) = core.state(World::task_ref(graph, index)) else {
                break;
            };
            let there = watch.tasks.get(index).filter(|task| task.is_there);
            let before = there.map(|task| task.state);
            let current = core.attempt(World::task_ref(graph, index));
            if let Some(task) = watch.tasks.get_mut(index) {
                task.current = current.or(task.current);
            }
            if before == Some(state) {
                continue;
            }
            changes.push((index, before));
            match watch.tasks.get_mut(index) {
                Some(task) => (task.state, task.is_there) = (state, true),
                None => watch.tasks.push(TaskWatch {
                    current,
                    ..TaskWatch::new(state)
                }),
            }
        }
        changes
    }

    pub(crate) fn check_changes(
        &mut self,
        plans: &[Plan],
        graph: GraphId,
        changes: &[(usize, Option<TaskState>)],
        causes: &Causes,
        before: &Before,
    ) -> Result<(), String> {
        let changed: BTreeSet<usize> = changes.iter().map(|(index, _)| *index).collect();
        for (index, from) in changes {
            let task = World::task_ref(graph, *index);
            let Some(known) = self.task(task).copied() else {
                continue;
            };
            let to = known.state;
            let is_caused = match from {
                _ if to == TaskState::Failed => self.may_fail(plans, task, causes),
                Some(from) if from.is_placed() && to.is_pending() && !to.is_placed() => {
                    let at = before.attempts.get(&task).map(|(worker, _)| *worker);
                    self.went_back(task);
                    let is_running = *from == TaskState::Running;
                    let moves = at.is_some_and(|at| causes.moves_running.contains(&at));
                    if let Some(at) = at.filter(|_| moves) {
                        self.reruns.entry(at).or_default().push(task);
                    }
                    let is_moved = !is_running && at.is_some() && causes.moves_queued == at;
                    let is_orphan = at.is_some_and(|at| causes.gone.contains(&at));
                    is_orphan || moves || is_moved || causes.ended.contains(&task)
                }
                Some(TaskState::Finished) if to.is_pending() => {
                    self.went_back(task);
                    self.again += 1;
                    let holders = before.holders.get(&task).map_or(&[][..], Vec::as_slice);
                    // One event says several things: what was released by one of them may be needed
                    // again because of the next.
                    let is_released =
                        causes.released.contains(&task) && self.is_needed_by(plans, task, &changed);
                    is_released
                        || holders.iter().all(|holder| {
                            causes.gone.contains(holder) || causes.lost.contains(&(task, *holder))
                        })
                }
                Some(TaskState::Released) if to.is_pending() => {
                    self.went_back(task);
                    self.again += 1;
                    causes.is_chunk || self.is_needed_by(plans, task, &changed)
                }
                _ => true,
            };
            if to == TaskState::Failed
                && let Some(known) = self.task(task)
            {
                known.has_excuse = true;
            }
            if !is_caused {
                return Err(format!(
                    "{task} went from {from:?} to {to:?} without a cause"
                ));
            }
        }
        Ok(())
    }

    /// Whether one of these tasks waits for the result, or did until another input of it failed.
    fn is_needed_by(&self, plans: &[Plan], task: TaskRef, changed: &BTreeSet<usize>) -> bool {
        let watch = &self.graphs[&task.graph];
        let tasks = &plans[watch.plan].tasks;
        changed.iter().any(|other| {
            let state = watch.tasks[*other].state;
            let is_waiting = state.is_pending() || state == TaskState::Failed;
            is_waiting && tasks[*other].inputs.contains(&task.task.0)
        })
    }

    pub(crate) fn went_back(&mut self, task: TaskRef) {
        if let Some(known) = self.task(task) {
            known.causes += 1;
        }
    }

    fn may_fail(&self, plans: &[Plan], task: TaskRef, causes: &Causes) -> bool {
        let watch = &self.graphs[&task.graph];
        let planned = &plans[watch.plan].tasks[task.task.0 as usize];
        let known = &watch.tasks[task.task.0 as usize];
        let is_inherited = planned
            .inputs
            .iter()
            .any(|input| watch.tasks[*input as usize].state == TaskState::Failed);
        let has_ended = causes.ended.contains(&task);
        let is_out_of_tries =
            causes.hopeless.contains(&task) || known.failed_reports > planned.retries;
        is_inherited
            || watch.is_cancelled
            || (has_ended && is_out_of_tries && known.failed_reports > 0)
            || (has_ended && known.lost_fetches > self.fetch_limit)
            || (!causes.gone.is_empty() && known.deaths_most > self.crash_limit)
    }

    /// A result is told once each time it becomes ready, and to each client that attaches.
    fn check_told(&mut self, effects: &[Effect]) -> Result<(), String> {
        for effect in effects {
            match effect {
                Effect::GraphAttached { graph, .. } => {
                    let graph = self.graphs.get_mut(graph);
                    for task in graph.into_iter().flat_map(|graph| &mut graph.tasks) {
                        task.is_told = false;
                    }
                }
                Effect::ResultReady { task, .. } => {
                    let is_repeated = self
                        .task(*task)
                        .is_some_and(|t| std::mem::replace(&mut t.is_told, true));
                    if is_repeated {
                        return Err(format!("{task} is told to be ready twice"));
                    }
                }
                _ => {}
            }
        }
        for task in self.graphs.values_mut().flat_map(|graph| &mut graph.tasks) {
            task.is_told &= task.state == TaskState::Finished;
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), String> {
        for (graph, watch) in &self.graphs {
            for (index, task) in watch.tasks.iter().enumerate() {
                if task.deaths > self.crash_limit && task.state.is_pending() {
                    let task = World::task_ref(*graph, index);
                    return Err(format!("{task} goes on after too many deaths"));
                }
            }
        }
        Ok(())
    }

    /// Whether the failures of this task are its own doing or its plan's.
    pub(crate) fn is_excused(&self, plans: &[Plan], graph: GraphId, index: usize) -> bool {
        let watch = &self.graphs[&graph];
        let planned = &plans[watch.plan].tasks[index];
        let Some(known) = watch.tasks.get(index) else {
            return true;
        };
        matches!(planned.failing, Failing::Always { .. })
            || known.failed_reports > 0
            || known.has_excuse
            || known.deaths_most > self.crash_limit
            || known.lost_fetches > self.fetch_limit
            || planned
                .inputs
                .iter()
                .any(|input| self.is_excused(plans, graph, *input as usize))
    }
}

//! What must hold when everything is done, and when everything is closed.

use oxidask_core::{GraphId, TaskState};
use oxidask_store::{Held, ResultKey};

use crate::graphs::Plan;
use crate::process::task_ref;
use crate::world::World;

impl World {
    /// Whether every client has all that it wants and no task is left.
    pub(crate) fn is_all_done(&self) -> bool {
        let mut runs = self.runs.iter().zip(&self.plans);
        runs.all(|(run, plan)| run.is_complete(plan))
            && self
                .scheduler
                .core
                .graphs()
                .iter()
                .all(|graph| graph.done + graph.failed == graph.total)
    }

    pub(crate) fn is_all_gone(&self) -> bool {
        self.scheduler.core.graphs().is_empty()
            && self
                .processes
                .iter()
                .all(|process| process.store.held() == Held::default())
    }

    /// What a run waits for that takes too long.
    pub(crate) fn what_waits(&self) -> String {
        let core = &self.scheduler.core;
        let mut waiting = Vec::new();
        for (number, (run, plan)) in self.runs.iter().zip(&self.plans).enumerate() {
            if run.is_complete(plan) {
                continue;
            }
            let wanted = (0..plan.tasks.len()).find(|index| {
                plan.tasks[*index].is_wanted
                    && run.values[*index].is_none()
                    && !run.has_failed[*index]
            });
            waiting.push(format!(
                "graph {number} ({:?}, done: {}) for task {wanted:?}",
                run.id, run.is_done
            ));
        }
        let mut tasks = Vec::new();
        for (graph, watch) in &self.watch.graphs {
            for index in 0..watch.tasks.len() {
                let task = Self::task_ref(*graph, index);
                if let Some(state) = core.state(task).filter(|state| state.is_pending()) {
                    tasks.push(format!("{task} {state:?}"));
                }
            }
        }
        tasks.truncate(8);
        format!(
            "waits for ever: {waiting:?}, {tasks:?}, {:?}",
            core.cluster()
        )
    }

    /// All is done and nothing is on its way: everybody has the same picture.
    pub(crate) fn check_rest(&mut self) {
        if let Err(what) = self.rest().and_then(|()| self.outcome()) {
            self.violate(format!("at rest: {what}"));
        }
    }

    fn rest(&self) -> Result<(), String> {
        let core = &self.scheduler.core;
        for process in &self.processes {
            let Some(life) = process.life.as_ref().filter(|_| process.link.is_some()) else {
                continue;
            };
            let (worker, machine) = (life.own, &life.machine);
            if !machine.is_idle() {
                return Err(format!("worker {worker} is busy"));
            }
            if let Some(stray) = machine
                .held()
                .find(|key| !core.holders(task_ref(*key)).contains(&worker))
            {
                return Err(format!(
                    "worker {worker} keeps {stray}, which nobody counts"
                ));
            }
        }
        for (graph, watch) in &self.watch.graphs {
            for index in 0..watch.tasks.len() {
                let task = Self::task_ref(*graph, index);
                let key = ResultKey::new(graph.0, task.task.0);
                for holder in core.holders(task) {
                    let record = self.scheduler.workers.get(holder);
                    let process = record.map(|record| &self.processes[record.place]);
                    let is_held = process.is_some_and(|process| {
                        let own = process.life.as_ref().map(|life| life.own);
                        own == Some(*holder) && process.store.get(key).is_some()
                    });
                    if !is_held {
                        return Err(format!("{task} is counted at {holder}, which lacks it"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Every client has what running the tasks one after the other gives.
    fn outcome(&self) -> Result<(), String> {
        for (run, plan) in self.runs.iter().zip(&self.plans) {
            let Some(graph) = run.id.filter(|_| !run.is_closed && !run.is_cancelled) else {
                continue;
            };
            for index in (0..plan.tasks.len()).filter(|index| plan.tasks[*index].is_wanted) {
                let task = Self::task_ref(graph, index);
                let state = self.scheduler.core.state(task);
                let known = self
                    .watch
                    .graphs
                    .get(&graph)
                    .and_then(|watch| watch.tasks.get(index));
                if state == Some(TaskState::Failed) {
                    if !self.watch.is_excused(&self.plans, graph, index) {
                        return Err(format!("{task} failed without a reason"));
                    }
                    let is_given_back = plan.releases && run.values[index].is_some();
                    if !run.has_failed[index] && !is_given_back {
                        return Err(format!("nobody told the client that {task} failed"));
                    }
                } else if plan.values[index].is_none() {
                    return Err(format!("{task} should have failed and is {state:?}"));
                } else if !plan.releases && state != Some(TaskState::Finished) {
                    return Err(format!("{task} is wanted and {state:?}"));
                } else if !plan.releases && !known.is_some_and(|task| task.is_told) {
                    return Err(format!("nobody told the client that {task} is ready"));
                }
            }
            if plan.is_open_ended() {
                self.nothing_for_nobody(graph, plan)?;
            }
        }
        Ok(())
    }

    /// Of an open-ended graph only what is wanted is held, and everything else stands still.
    fn nothing_for_nobody(&self, graph: GraphId, plan: &Plan) -> Result<(), String> {
        for index in (0..plan.tasks.len()).filter(|index| !plan.tasks[*index].is_wanted) {
            let task = Self::task_ref(graph, index);
            let state = self.scheduler.core.state(task);
            if !matches!(state, Some(TaskState::Released | TaskState::Failed)) {
                return Err(format!("{task} is needed by nobody and {state:?}"));
            }
        }
        Ok(())
    }

    /// All is closed: nothing is left anywhere.
    pub(crate) fn check_end(&mut self) {
        if let Err(what) = self.nothing_left() {
            self.violate(format!("at the end: {what}"));
        }
    }

    fn nothing_left(&self) -> Result<(), String> {
        let cluster = self.scheduler.core.cluster();
        let graphs = self.scheduler.core.graphs();
        let rest = (
            cluster.held_bytes,
            cluster.running,
            cluster.ready,
            cluster.parked,
        );
        if !graphs.is_empty() || rest != (0, 0, 0, 0) {
            return Err(format!("the scheduler keeps {graphs:?}, {cluster:?}"));
        }
        for (place, process) in self.processes.iter().enumerate() {
            let held = process.store.held();
            if held != Held::default() {
                return Err(format!("process {place} keeps {held:?}"));
            }
            let machine = process.life.as_ref().map(|life| &life.machine);
            if machine.is_some_and(|machine| !machine.is_idle() || machine.held().next().is_some())
            {
                return Err(format!("the machine of process {place} keeps something"));
            }
        }
        Ok(())
    }
}

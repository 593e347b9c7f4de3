//! What placement may want: ready tasks handed out, queued ones asked back, retiring workers emptied.

use oxidask_core::{Attempt, Core, Effect, TaskRef, TaskState, WorkerId};

use crate::graphs::Plan;
use crate::watch::{Before, Causes, Watch};
use crate::world::World;

impl Watch {
    /// Placement hands out ready tasks, asks queued ones back, and empties retiring workers.
    pub(crate) fn placed(
        &mut self,
        core: &Core,
        plans: &[Plan],
        effects: &[Effect],
    ) -> Result<(), String> {
        let mut causes = Causes::default();
        for effect in effects {
            match effect {
                Effect::Assign {
                    worker,
                    task,
                    attempt,
                    ..
                } => self.assigned((*worker, *attempt), *task, &causes)?,
                Effect::Retract { task, .. } => {
                    let Some(known) = self.task(*task) else {
                        continue;
                    };
                    if known.state != TaskState::Assigned {
                        return Err(format!("{task} is asked back though it is not queued"));
                    }
                    known.state = TaskState::Retracting;
                }
                // It is moved at the deadline of its worker.
                Effect::Cancel { task, .. } => {
                    self.went_back(*task);
                    causes.ended.insert(*task);
                    if let Some(known) = self.task(*task) {
                        known.state = TaskState::Ready;
                    }
                }
                Effect::Copy { worker, task, from } => {
                    let holders = core.holders(*task);
                    if !holders.contains(from) || holders.contains(worker) {
                        return Err(format!("{worker} is to copy {task}, held by {holders:?}"));
                    }
                }
                Effect::WorkerEmpty { .. } | Effect::RetireRefused { .. } => {}
                _ => return Err(format!("placement wants {effect:?}")),
            }
        }
        if !causes.ended.is_empty() {
            let before = Before::default();
            for graph in self.graphs.keys().copied().collect::<Vec<_>>() {
                let changes = self.changes(core, plans, graph);
                self.check_changes(plans, graph, &changes, &causes, &before)?;
            }
        }
        for (graph, watch) in &self.graphs {
            for (index, task) in watch.tasks.iter().enumerate() {
                let reference = World::task_ref(*graph, index);
                let state = core.state(reference);
                if state.is_some_and(|state| state != task.state) {
                    return Err(format!("placement made {reference} {state:?}"));
                }
            }
        }
        Ok(())
    }

    fn assigned(
        &mut self,
        (worker, attempt): (WorkerId, Attempt),
        task: TaskRef,
        causes: &Causes,
    ) -> Result<(), String> {
        let may_be_back = !causes.ended.is_empty();
        if may_be_back
            && self
                .task(task)
                .is_some_and(|it| it.state == TaskState::Released)
        {
            self.went_back(task);
            self.again += 1;
        }
        let Some(known) = self.task(task) else {
            return Ok(());
        };
        let (state, newest) = (known.state, known.newest);
        let is_newer = newest.is_none_or(|before| before < attempt);
        // What is moved at a deadline may have to be made again from the beginning.
        let was_ready = match state {
            TaskState::Ready => true,
            TaskState::Waiting | TaskState::Released => may_be_back,
            _ => false,
        };
        known.current = Some((worker, attempt));
        known.newest = Some(attempt);
        known.state = TaskState::Assigned;
        if !is_newer || !was_ready {
            return Err(format!(
                "{task} is assigned as {attempt:?} without need: it was {state:?} after {newest:?}"
            ));
        }
        Ok(())
    }
}

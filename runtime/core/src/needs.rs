//! Who needs what: results and tasks that nobody needs go.
//!
//! A task is *needed* while the client wants its result or a pending task reads it. Owns the rule when
//! what is not needed goes: results and pending tasks, at the end of each reaction, as soon as nobody
//! can come who needs them: in an open-ended graph always, otherwise once the graph is sealed. In an
//! open-ended graph a released task, whether it ever ran or not, is computed when a later chunk needs
//! it. What has failed stays so.
//!
//! A task of a sealed graph that nobody ever read or wanted runs for what it does, not for its result:
//! it stays. One whose readers have all ended without it does not: they may have failed, or turned out
//! to be done when a worker came back with what an earlier scheduler did not live to write down.
//!
//! Invariants between events: no result is kept that may go, no task is pending that is moot, and
//! `Graph::doubtful` is empty. Cascades use that list, never recursion. Nothing goes before the end of
//! a reaction: the rest of the same message may need it.

use std::collections::BTreeSet;

use crate::effect::Effect;
use crate::graph::{Graph, NONE};
use crate::ids::GraphId;
use crate::machine::Core;
use crate::scope::Scope;
use crate::transitions::TaskState;

/// Entries of `Graph::doubtful` for which its memory is kept.
const DOUBTFUL_KEPT_MAX: usize = 65_536;

impl Graph {
    /// Whether nobody needs the task, and nobody may come who does without asking for it anew.
    pub(crate) fn is_unneeded(&self, task: u32) -> bool {
        let at = task as usize;
        let is_needed = self.consumers_left[at] > 0 || self.is_wanted[at];
        !is_needed && (self.is_sealed || self.is_open_ended)
    }

    /// Whether the task is not to run any more although it could: nobody needs it, and it was meant
    /// for somebody.
    pub(crate) fn is_moot(&self, task: u32) -> bool {
        self.is_unneeded(task) && (self.is_open_ended || self.first_consumer(task) != NONE)
    }

    /// Whether all wanted tasks are done or failed, and no task will follow.
    pub(crate) fn is_done(&self) -> bool {
        self.is_sealed && self.wanted_pending == 0
    }
}

/// Ends a reaction to what concerned several tasks of several graphs.
pub(crate) fn conclude_all(core: &mut Core, graphs: BTreeSet<GraphId>, effects: &mut Vec<Effect>) {
    for graph in graphs {
        if let Some(mut scope) = core.scope(graph, effects) {
            scope.conclude();
        }
    }
}

impl Scope<'_> {
    /// A task is no longer pending: its inputs have a consumer less.
    pub(crate) fn settle_inputs(&mut self, task: u32) {
        for edge in self.graph.input_edges(task) {
            let input = self.graph.input(edge);
            self.graph.consumers_left[input as usize] -= 1;
            if self.graph.consumers_left[input as usize] == 0 {
                self.release_if_unneeded(input);
            }
        }
    }

    /// A task may have become one that nobody needs: it is looked at again at the end of the reaction.
    pub(crate) fn release_if_unneeded(&mut self, task: u32) {
        let is_result = self.state(task) == TaskState::Finished;
        if self.graph.is_moot(task) || (is_result && self.graph.is_unneeded(task)) {
            self.graph.doubtful.push(task);
        }
    }

    /// Ends a reaction: what nobody needs any more goes, and the client hears once if the graph is
    /// done.
    pub(crate) fn conclude(&mut self) {
        while let Some(task) = self.graph.doubtful.pop() {
            if !self.graph.is_unneeded(task) {
                continue;
            }
            let state = self.state(task);
            if state == TaskState::Finished {
                self.release(task);
            } else if state.is_pending() && self.graph.is_moot(task) {
                self.drop_pending(task);
            }
        }
        if self.graph.doubtful.capacity() > DOUBTFUL_KEPT_MAX {
            self.graph.doubtful = Vec::new();
        }
        self.tell_done();
    }

    /// No task will follow: results that only a later chunk could have used may go.
    pub(crate) fn seal(&mut self) {
        self.graph.is_sealed = true;
        for task in 0..self.graph.len() {
            self.release_if_unneeded(task);
        }
    }

    /// A finished result goes.
    fn release(&mut self, task: u32) {
        let at = task as usize;
        let reference = self.graph.task_ref(task);
        for holder in self.graph.holders(task) {
            if let Some(worker) = self.fleet.get_mut(*holder) {
                worker.unhold(reference, self.graph.bytes[at]);
            }
            let worker = *holder;
            self.effects.push(Effect::Release {
                worker,
                task: reference,
            });
        }
        self.graph.clear_holders(task);
        self.drop_bytes(task);
        self.forget_whereabouts(task);
        self.transition(task, TaskState::Released);
    }

    /// A pending task stops, wherever it is; its inputs are looked at next.
    fn drop_pending(&mut self, task: u32) {
        if self.state(task).is_placed() {
            self.cancel(task);
            self.detach(task);
        }
        self.graph.unfinished.set(task as usize, 0);
        self.transition(task, TaskState::Released);
        self.settle_inputs(task);
    }

    /// Tells the client that the graph is done, once.
    fn tell_done(&mut self) {
        if self.graph.is_done() && !self.graph.is_done_told {
            self.graph.is_done_told = true;
            if let Some(client) = self.graph.client {
                self.effects.push(Effect::GraphDone {
                    client,
                    graph: self.graph.id,
                });
            }
        }
    }
}

//! Tasks that run on without their slots and resources, because they wait for other tasks.
//!
//! Owns what that changes: others are placed in their stead, though the task stays where it is. It
//! counts as running, dies with its worker and can be cancelled like any other. When it takes its
//! slots again, a worker may have more to do for a while than it has slots or resources.
//!
//! Invariant: a task that ends gives back only what it has at that moment. What a worker says when it
//! returns settles who has seceded.

use crate::ids::WorkerId;
use crate::scope::Scope;

impl Scope<'_> {
    /// The task on a worker runs on without its slots and resources, or has them again. Not news if
    /// it is so already.
    pub(crate) fn give_slots(&mut self, task: u32, is_given: bool) {
        let at = task as usize;
        let worker = WorkerId(self.graph.worker_or_failure[at]);
        let class = self.classes.get(self.graph.class_of(task));
        if let (Some(class), Some(worker)) = (class, self.fleet.get_mut(worker))
            && worker.give_slots(self.graph.entry[at], is_given)
        {
            worker.use_resources(&class.requirement.resources, !is_given);
        }
    }
}

//! Results on their way from workers to clients, through the scheduler.

use oxidask_core::{TaskRef, TaskState, WorkerId};

use crate::network::{Asker, Delivery, Happening, Link, Note};
use crate::process::read;
use crate::scheduler::{Input, key};
use crate::world::World;

/// Time between two looks for a result.
const RELAY_PAUSE: u64 = 40_000;

impl World {
    /// Looks for a result on behalf of a client.
    pub(crate) fn relay(&mut self, link: Link, task: TaskRef, unreachable: Option<WorkerId>) {
        if !self.scheduler.clients.contains_key(&link) {
            return;
        }
        let core = &self.scheduler.core;
        let mut holder = core.holders(task).iter().copied();
        let holder = holder.find(|holder| self.scheduler.workers.contains_key(holder));
        let is_pending = core.state(task).is_some_and(TaskState::is_pending);
        if let Some(holder) = holder {
            if unreachable == Some(holder) {
                self.scheduler_takes(Input::Missing(holder, task));
                self.at(self.now + RELAY_PAUSE, Happening::Relay(link, task, None));
                return;
            }
            let place = self.scheduler.workers[&holder].place;
            let at = self.now + self.delay();
            let asker = Asker::Relay(link, task, holder);
            self.at(at, Happening::Ask(asker, place, vec![key(task)]));
        } else if is_pending {
            self.at(self.now + RELAY_PAUSE, Happening::Relay(link, task, None));
        } else {
            self.send_down(link, |link| {
                Happening::ToClient(link, vec![Note::Value(task, None)])
            });
        }
    }

    pub(crate) fn relay_answered(
        &mut self,
        link: Link,
        task: TaskRef,
        holder: WorkerId,
        delivery: Option<Delivery>,
    ) {
        match delivery.and_then(|mut delivery| delivery.pop()) {
            Some((_, Some(payload))) => {
                let note = Note::Value(task, Some(read(&payload)));
                self.send_down(link, |link| Happening::ToClient(link, vec![note]));
            }
            Some((_, None)) => {
                self.scheduler_takes(Input::Missing(holder, task));
                self.at(self.now + RELAY_PAUSE, Happening::Relay(link, task, None));
            }
            None => self.at(
                self.now + RELAY_PAUSE,
                Happening::Relay(link, task, Some(holder)),
            ),
        }
    }
}

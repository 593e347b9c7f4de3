//! Events: a flag that clients wait for. One that is not set and that nobody waits for takes no room.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::answer::{Answer, AskId};
use super::bounds::NAMES_MAX;
use super::desk::{Desk, Place, check_bound, check_name, check_values};
use super::error::CoordinationError;
use super::question::EventQuestion;

#[derive(Debug, Default)]
struct Event {
    is_set: bool,
    waiters: BTreeSet<AskId>,
}

#[derive(Debug, Default)]
pub(super) struct Events {
    by_name: HashMap<String, Event>,
}

impl Events {
    pub(super) fn ask(
        &mut self,
        question: EventQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_values(values, 0)?;
        match question {
            EventQuestion::Wait { name, timeout_ms } => {
                if self.by_name.get(&name).is_some_and(|event| event.is_set) {
                    desk.answer(Answer::truth(true));
                    return Ok(());
                }
                self.check_new(&name)?;
                if desk.wait(Place::Event { name: name.clone() }, timeout_ms)? {
                    self.by_name
                        .entry(name)
                        .or_default()
                        .waiters
                        .insert(desk.ask);
                }
            }
            EventQuestion::Set { name } => {
                self.check_new(&name)?;
                let event = self.by_name.entry(name).or_default();
                event.is_set = true;
                for ask in std::mem::take(&mut event.waiters) {
                    desk.answer_wait(ask, Answer::truth(true));
                }
                desk.answer(Answer::Done);
            }
            EventQuestion::Clear { name } => {
                // Nobody waits for an event that is set.
                if self.by_name.get(&name).is_some_and(|event| event.is_set) {
                    self.by_name.remove(&name);
                }
                desk.answer(Answer::Done);
            }
            EventQuestion::IsSet { name } => {
                let is_set = self.by_name.get(&name).is_some_and(|event| event.is_set);
                desk.answer(Answer::truth(is_set));
            }
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, name: &str, ask: AskId) {
        let Some(event) = self.by_name.get_mut(name) else {
            return;
        };
        event.waiters.remove(&ask);
        if !event.is_set && event.waiters.is_empty() {
            self.by_name.remove(name);
        }
    }

    fn check_new(&self, name: &str) -> Result<(), CoordinationError> {
        check_name(name)?;
        let count = self.by_name.len() + usize::from(!self.by_name.contains_key(name));
        check_bound(count, NAMES_MAX, "events")
    }
}

//! Variables: one value or future by name. Getting one waits until it is set; a future that was got stays wanted here
//! until the client wants it itself.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::answer::{Answer, AskId, Told};
use super::bounds::NAMES_MAX;
use super::desk::{Desk, Place, check_bound, check_name, check_values, one_value};
use super::error::CoordinationError;
use super::question::VariableQuestion;
use super::queue::Item;

#[derive(Debug, Default)]
struct Variable {
    item: Option<Item>,
    waiters: BTreeSet<AskId>,
}

#[derive(Debug, Default)]
pub(super) struct Variables {
    by_name: HashMap<String, Variable>,
}

impl Variables {
    pub(super) fn ask(
        &mut self,
        question: VariableQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        if !matches!(question, VariableQuestion::Set { .. }) {
            check_values(values, 0)?;
        }
        match question {
            VariableQuestion::Set { name, key } => {
                let item = Item {
                    key,
                    value: one_value(values)?,
                };
                self.set(name, &item, desk)
            }
            VariableQuestion::Get { name, timeout_ms } => self.get(name, timeout_ms, desk),
            VariableQuestion::FutureReceived { key, .. } => {
                desk.confirm_handover(&key);
                desk.answer(Answer::Done);
                Ok(())
            }
            VariableQuestion::Delete { name } => {
                if let Some(item) = self
                    .by_name
                    .get_mut(&name)
                    .and_then(|variable| variable.item.take())
                {
                    item.drop_from(desk);
                }
                self.forget_empty(&name);
                desk.answer(Answer::Done);
                Ok(())
            }
        }
    }

    pub(super) fn leave(&mut self, name: &str, ask: AskId) {
        if let Some(variable) = self.by_name.get_mut(name) {
            variable.waiters.remove(&ask);
        }
        self.forget_empty(name);
    }

    fn set(
        &mut self,
        name: String,
        item: &Item,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        self.check_new(&name)?;
        item.keep(desk)?;
        let variable = self.by_name.entry(name).or_default();
        if let Some(earlier) = variable.item.replace(item.clone()) {
            earlier.drop_from(desk);
        }
        desk.answer(Answer::Done);
        for ask in std::mem::take(&mut variable.waiters) {
            if let Some(wait) = desk.shared.take_wait(ask)
                && let Err(error) = give(ask, &wait.client, item, desk)
            {
                desk.told.push(Told::Fault { ask, error });
            }
        }
        Ok(())
    }

    fn get(
        &mut self,
        name: String,
        timeout_ms: Option<u64>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        if let Some(item) = self
            .by_name
            .get(&name)
            .and_then(|variable| variable.item.as_ref())
        {
            let client = desk.client.to_owned();
            return give(desk.ask, &client, item, desk);
        }
        self.check_new(&name)?;
        if desk.wait(Place::Variable { name: name.clone() }, timeout_ms)? {
            self.by_name
                .entry(name)
                .or_default()
                .waiters
                .insert(desk.ask);
        }
        Ok(())
    }

    fn check_new(&self, name: &str) -> Result<(), CoordinationError> {
        check_name(name)?;
        let count = self.by_name.len() + usize::from(!self.by_name.contains_key(name));
        check_bound(count, NAMES_MAX, "variables")
    }

    fn forget_empty(&mut self, name: &str) {
        let is_empty = |variable: &Variable| variable.item.is_none() && variable.waiters.is_empty();
        if self.by_name.get(name).is_some_and(is_empty) {
            self.by_name.remove(name);
        }
    }
}

fn give(
    ask: AskId,
    client: &str,
    item: &Item,
    desk: &mut Desk<'_>,
) -> Result<(), CoordinationError> {
    if let Some(key) = &item.key {
        desk.name_key(key)?;
        desk.hand_over(client, key);
    }
    let answer = Answer::Items {
        keys: vec![item.key.clone()],
        is_all: true,
    };
    desk.told.push(Told::Answer {
        ask,
        answer,
        values: vec![item.value.clone()],
    });
    Ok(())
}

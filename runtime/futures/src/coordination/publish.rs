//! Published data: opaque values by name, whose futures stay wanted as long as they are published.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::answer::{Answer, Refusal};
use super::bounds::{ANSWER_BYTES_MAX, LIST_MAX, NAMES_MAX, PUBLISHED_NAME_BYTES_MAX};
use super::desk::{Desk, check_bound, check_name, check_values};
use super::error::CoordinationError;
use super::question::PublishQuestion;

#[derive(Debug)]
struct Dataset {
    keys: Vec<String>,
    value: Bytes,
}

impl Dataset {
    fn bytes(&self, name: &str) -> usize {
        name.len() + self.value.len() + self.keys.iter().map(String::len).sum::<usize>()
    }
}

#[derive(Debug, Default)]
pub(super) struct Published {
    by_name: BTreeMap<String, Dataset>,
    name_bytes: usize,
}

impl Published {
    pub(super) fn ask(
        &mut self,
        question: PublishQuestion,
        values: Vec<Bytes>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        let expected = if let PublishQuestion::Put { names, .. } = &question {
            names.len()
        } else {
            0
        };
        check_values(&values, expected)?;
        match question {
            PublishQuestion::Put {
                names,
                keys,
                is_override,
            } => {
                if names.len() != keys.len() {
                    let message = format!("{} names with keys for {}", names.len(), keys.len());
                    return Err(CoordinationError::Unreadable(message));
                }
                let datasets = keys
                    .into_iter()
                    .zip(values)
                    .map(|(keys, value)| Dataset { keys, value });
                for (name, dataset) in names.into_iter().zip(datasets) {
                    // Those before it stay published, as in Dask.
                    if !is_override && self.by_name.contains_key(&name) {
                        let message = format!("Dataset {name} already exists");
                        desk.answer(Answer::refused(Refusal::Exists, message));
                        return Ok(());
                    }
                    self.put(&name, dataset, desk)?;
                }
                desk.answer(Answer::Done);
            }
            PublishQuestion::Get { names } => self.get(&names, desk)?,
            PublishQuestion::Delete { names } => {
                for name in names {
                    if let Some(dataset) = self.by_name.remove(&name) {
                        self.name_bytes -= name.len();
                        desk.give_bytes(dataset.bytes(&name));
                        desk.unname_keys(&dataset.keys);
                    }
                }
                desk.answer(Answer::Done);
            }
            PublishQuestion::List {} => {
                desk.answer(Answer::Names {
                    names: self.by_name.keys().cloned().collect(),
                });
            }
        }
        Ok(())
    }

    fn put(
        &mut self,
        name: &str,
        dataset: Dataset,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_name(name)?;
        let is_new = !self.by_name.contains_key(name);
        let count = self.by_name.len() + usize::from(is_new);
        check_bound(count, NAMES_MAX, "published names")?;
        let name_bytes = self.name_bytes + if is_new { name.len() } else { 0 };
        check_bound(
            name_bytes,
            PUBLISHED_NAME_BYTES_MAX,
            "the bytes of all published names",
        )?;
        let bytes = dataset.bytes(name);
        desk.take_bytes(bytes)?;
        if let Err(error) = desk.name_keys(&dataset.keys) {
            desk.give_bytes(bytes);
            return Err(error);
        }
        self.name_bytes = name_bytes;
        if let Some(earlier) = self.by_name.insert(name.to_owned(), dataset) {
            desk.give_bytes(earlier.bytes(name));
            desk.unname_keys(&earlier.keys);
        }
        Ok(())
    }

    fn get(&self, names: &[String], desk: &mut Desk<'_>) -> Result<(), CoordinationError> {
        check_bound(names.len(), LIST_MAX, "names of one question")?;
        let (mut are_found, mut values, mut bytes) = (Vec::new(), Vec::new(), 0);
        for name in names {
            let dataset = self.by_name.get(name);
            if let Some(dataset) = dataset {
                bytes += dataset.value.len();
                if !values.is_empty() && bytes > ANSWER_BYTES_MAX {
                    break;
                }
                values.push(dataset.value.clone());
            }
            are_found.push(dataset.is_some());
        }
        let is_all = are_found.len() == names.len();
        desk.answer_with(Answer::Datasets { are_found, is_all }, values);
        Ok(())
    }
}

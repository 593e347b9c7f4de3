//! The inputs that a run is given: whether they fit, and what it means when they do not come.

use std::collections::HashSet;

use oxidask_core::WorkerId;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::TaskError;
use oxidask_store::{Part, Payload, ResultKey, Store, StoreError};

use crate::pieces::log_unreadable;

/// Why a run made nothing.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It failed.
    Failed(TaskError),
    /// Results that it needs are not here any more.
    Lost(Vec<(ResultKey, WorkerId)>),
}

/// Whether inputs, some of which lie on the disk, can be in memory at the same time.
pub(crate) fn check_room(store: &Store, keys: &[ResultKey], task: &str) -> Result<(), Trouble> {
    let distinct: HashSet<ResultKey> = keys.iter().copied().collect();
    let sizes = distinct.iter().filter_map(|key| store.find(*key));
    let needed = sizes.fold(0_u64, |sum, (_, bytes)| sum.saturating_add(bytes));
    let limit = store.limit_bytes();
    if needed <= limit {
        return Ok(());
    }
    Err(too_large(format!(
        "the inputs of task `{task}` do not fit: they need `{needed}` bytes, and the worker has \
         `{limit}`"
    )))
}

/// Inputs could not be brought into memory.
pub(crate) fn not_loaded(task: &str, error: &StoreError, own: WorkerId) -> Trouble {
    if let Some(key) = error.key().filter(|_| error.is_lost()) {
        log_unreadable(key, error);
        return Trouble::Lost(vec![(key, own)]);
    }
    let mut diagnostic = Diagnostic::from_error(error);
    let cause = std::mem::take(&mut diagnostic.message);
    diagnostic.message = format!("the inputs of task `{task}` cannot be loaded: {cause}");
    Trouble::Failed(TaskError::retryable(diagnostic))
}

/// Nobody hears of it.
pub(crate) fn cancelled(task: &str) -> Trouble {
    let message = format!("task `{task}` was cancelled");
    Trouble::Failed(TaskError::retryable(Diagnostic::new(
        Code::TaskFailed,
        message,
    )))
}

/// The buffers that a run was given.
pub(crate) struct InputSizes(Vec<Part>);

impl InputSizes {
    pub(crate) fn of(inputs: &[Payload]) -> Self {
        Self(inputs.iter().flat_map(Part::of_payload).collect())
    }

    /// Whether they and the result fit into memory together. Bytes that they share count once.
    pub(crate) fn check_fits(
        self,
        result: &Payload,
        task: &str,
        limit: u64,
    ) -> Result<(), Trouble> {
        let sum = |parts: &mut dyn Iterator<Item = &Part>| {
            parts.fold(0_u64, |sum, part| sum.saturating_add(part.bytes))
        };
        let at_most = sum(&mut self.0.iter()).saturating_add(result.len());
        if at_most <= limit {
            return Ok(());
        }
        let distinct: HashSet<Part> = self.0.into_iter().chain(Part::of_payload(result)).collect();
        let needed = sum(&mut distinct.iter());
        if needed <= limit {
            return Ok(());
        }
        let made = result.len();
        Err(too_large(format!(
            "the result of task `{task}` does not fit: it needs `{made}` bytes, with its inputs \
             `{needed}`, and the worker has `{limit}`"
        )))
    }
}

fn too_large(message: String) -> Trouble {
    Trouble::Failed(TaskError::permanent(Diagnostic::new(
        Code::MemoryExceeded,
        message,
    )))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use oxidask_store::PayloadKind;

    use super::*;

    fn payload(parts: &[&Bytes]) -> Payload {
        Payload {
            kind: PayloadKind::Bytes,
            parts: parts.iter().copied().cloned().collect(),
        }
    }

    #[test]
    fn what_result_and_inputs_share_is_counted_once() {
        let [a, b, c] = [1, 2, 3].map(|byte| Bytes::from(vec![byte; 100]));
        let inputs = [payload(&[&a]), payload(&[&b]), payload(&[&a])];
        let both = payload(&[&a, &b, &a]);
        assert!(InputSizes::of(&inputs).check_fits(&both, "t", 200).is_ok());
        let other = payload(&[&a, &c]);
        assert!(InputSizes::of(&inputs).check_fits(&other, "t", 300).is_ok());
        let refused = InputSizes::of(&inputs).check_fits(&other, "t", 299);
        let Err(Trouble::Failed(error)) = refused else {
            panic!("{refused:?}")
        };
        let message = error.diagnostic.message;
        assert!(
            message.contains("`t`") && message.contains("`300`"),
            "{message}"
        );
        assert!(!error.is_retryable);
    }

    #[test]
    fn inputs_that_never_fit_together_are_told_by_name() {
        let store = Store::new(1_000);
        let keys = [ResultKey::new(1, 1), ResultKey::new(1, 2)];
        for key in keys {
            let buffer = Bytes::from(vec![7; 400]);
            store.insert_result(key, payload(&[&buffer])).unwrap();
        }
        assert!(check_room(&store, &[keys[0], keys[1], keys[0]], "t").is_ok());
        let small = Store::new(0);
        small.insert_result(keys[0], payload(&[])).unwrap();
        assert!(check_room(&small, &keys, "t").is_ok());
    }
}

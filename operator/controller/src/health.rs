//! Whether the operator is ready, and if not, why.
//!
//! Ready once every watch has read its first list. A watch that fails later makes it unready only
//! if it cannot work without a person: missing rights or missing kinds. An API server that restarts
//! does not.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use oxidask_diagnostic::Coded as _;

use crate::error::{OneLine, OperatorError};

#[derive(Debug, Default)]
struct Watch {
    was_listed: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    text: String,
    needs_person: bool,
}

/// The state of every watch.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<BTreeMap<String, Watch>>);

impl Health {
    /// A watch is going to start.
    pub(crate) fn expect(&self, what: &str) {
        self.change(what, |_| ());
    }

    /// A watch works, and has read a whole list if `is_listed`. True if it did not work before.
    pub(crate) fn works(&self, what: &str, is_listed: bool) -> bool {
        self.change(what, |watch| {
            watch.was_listed |= is_listed;
            watch.failure.take().is_some()
        })
    }

    /// A watch failed. True if this reason is a new one.
    pub(crate) fn fails(&self, what: &str, error: &OperatorError) -> bool {
        let failure = Failure {
            text: format!(
                "{} {}; hint: {}",
                error.code(),
                OneLine(error),
                error.hint()
            ),
            needs_person: matches!(
                error,
                OperatorError::Refused { .. }
                    | OperatorError::KindMissing { .. }
                    | OperatorError::ForeignKinds { .. }
            ),
        };
        self.change(what, |watch| {
            let is_new = watch
                .failure
                .as_ref()
                .is_none_or(|old| old.text != failure.text);
            watch.failure = Some(failure);
            is_new
        })
    }

    /// The reasons for not being ready; empty when it is.
    pub(crate) fn obstacles(&self) -> Vec<String> {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if watches.is_empty() {
            return vec!["the watches have not started yet".to_owned()];
        }
        let blocked = watches
            .iter()
            .filter_map(|(what, watch)| match &watch.failure {
                Some(failure) if failure.needs_person || !watch.was_listed => {
                    Some(failure.text.clone())
                }
                None if !watch.was_listed => Some(format!("{what} are being listed")),
                _ => None,
            });
        blocked.collect()
    }

    fn change<T>(&self, what: &str, with: impl FnOnce(&mut Watch) -> T) -> T {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        with(watches.entry(what.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> OperatorError {
        OperatorError::Refused {
            what: "`pods` cannot be watched".to_owned(),
            message: "pods is forbidden".to_owned(),
        }
    }

    fn overloaded() -> OperatorError {
        OperatorError::Unavailable {
            what: "`pods` cannot be watched".to_owned(),
            message: "too many requests".to_owned(),
        }
    }

    #[test]
    fn ready_after_every_first_list() {
        let health = Health::default();
        assert_eq!(health.obstacles().len(), 1);
        health.expect("pods");
        health.expect("secrets");
        assert_eq!(health.obstacles().len(), 2);
        health.works("pods", true);
        health.works("secrets", false);
        assert_eq!(health.obstacles(), ["secrets are being listed"]);
        health.works("secrets", true);
        assert!(health.obstacles().is_empty());
    }

    #[test]
    fn missing_rights_are_an_obstacle_at_any_time_and_outages_only_at_first() {
        let health = Health::default();
        assert!(health.fails("pods", &overloaded()));
        assert!(
            !health.fails("pods", &overloaded()),
            "the same reason is said once"
        );
        assert!(health.obstacles()[0].starts_with("OX522"));
        assert!(health.works("pods", true));
        health.fails("pods", &overloaded());
        assert!(health.obstacles().is_empty());
        health.fails("pods", &refused());
        assert!(health.obstacles()[0].contains("pods is forbidden; hint: "));
        assert!(health.works("pods", false));
        assert!(health.obstacles().is_empty());
    }
}

//! What the worker believes it has: for the scheduler, which compares it with what it believes.
//!
//! The digest of what is held is kept up with every change; attempts are few and are looked at when
//! they are asked for. Runs that were cancelled and have not ended are no part of either.

use oxidask_core::{Attempt, AttemptState, Digest, Inventory, TaskRef};
use oxidask_store::ResultKey;

use crate::{Machine, Object, Record, RunId, State, task_ref};

impl Machine {
    /// All that is held, runs and waits.
    pub fn inventory(&self) -> Inventory {
        let held = self
            .objects
            .iter()
            .filter_map(|(key, object)| match object {
                Object::Held { bytes, .. } => Some((task_ref(key), *bytes)),
                Object::Wanted(_) => None,
            });
        Inventory {
            held: held.collect(),
            running: self.attempts_that(|record| record.state == State::Running),
            seceded: self
                .attempts_that(|record| record.state == State::Running && record.has_seceded),
            queued: self.attempts_that(|record| !has_started(record.state)),
        }
    }

    /// The sum of the same.
    pub fn digest(&self) -> Digest {
        let mut digest = self.held_digest;
        for record in self.attempts.values() {
            if record.state != State::Ending {
                let task = task_ref(record.task);
                let state = match (has_started(record.state), record.has_seceded) {
                    (false, _) => AttemptState::Queued,
                    (true, false) => AttemptState::Running,
                    (true, true) => AttemptState::Seceded,
                };
                digest.add_attempt(task, record.attempt, state);
            }
        }
        digest
    }

    /// Attempts in order of arrival.
    fn attempts_that(&self, is_meant: impl Fn(&Record) -> bool) -> Vec<(TaskRef, Attempt)> {
        let meant = |(_, record): &(&RunId, &Record)| is_meant(record);
        let mut found: Vec<_> = self.attempts.iter().filter(meant).collect();
        found.sort_unstable_by_key(|(run, _)| **run);
        let found = found.into_iter();
        found
            .map(|(_, record)| (task_ref(record.task), record.attempt))
            .collect()
    }

    /// Something is in the store now.
    pub(crate) fn note_held(
        &mut self,
        key: ResultKey,
        made_by: Option<Attempt>,
        bytes: u64,
    ) -> Option<Object> {
        let before = self.objects.insert(key, Object::Held { made_by, bytes });
        if !matches!(before, Some(Object::Held { .. })) {
            self.held_digest.add_held(task_ref(key));
        }
        before
    }

    /// Something that was held is not any more.
    pub(crate) fn note_gone(&mut self, key: ResultKey) {
        if let Some(Object::Held { .. }) = self.objects.remove(key) {
            self.held_digest.remove_held(task_ref(key));
        }
    }
}

fn has_started(state: State) -> bool {
    matches!(state, State::Running | State::Ending)
}

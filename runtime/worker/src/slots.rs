//! Runs beside the loop that begin in their turn, give their slots to others, and take them again.
//!
//! Owns the way from the thread of a run to the loop. What a run says last counts; whoever says it
//! never waits. Invariant: no more waits here than one entry for each run, whatever they say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use oxidask_exec::Slot;
use oxidask_worker_machine::{Event, RunId};
use tokio::sync::Notify;

/// What the loop has not taken in yet.
#[derive(Debug, Default)]
pub(crate) struct SlotChanges {
    changed: Mutex<BTreeMap<RunId, Change>>,
    news: Notify,
}

/// What a run has said.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    has_begun: bool,
    /// Whether it is without its slots.
    is_given: Option<bool>,
}

impl SlotChanges {
    fn note(&self, run: RunId, change: impl FnOnce(&mut Change)) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        change(changed.entry(run).or_default());
        drop(changed);
        self.news.notify_one();
    }

    /// Returns when there may be something to take in; never, if there never is.
    pub(crate) async fn changed(&self) {
        self.news.notified().await;
    }

    /// What the runs have said last. A run may have ended since.
    pub(crate) fn take(&self) -> Vec<Event> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = std::mem::take(&mut *changed);
        let events = changed.into_iter().flat_map(|(run, change)| {
            let begun = change.has_begun.then_some(Event::Begun { run });
            let slots = change.is_given.map(|is_given| {
                if is_given {
                    Event::Seceded { run }
                } else {
                    Event::Rejoined { run }
                }
            });
            begun.into_iter().chain(slots)
        });
        events.collect()
    }
}

/// The slots of one run.
#[derive(Debug)]
pub(crate) struct RunSlot {
    pub(crate) run: RunId,
    pub(crate) changes: Arc<SlotChanges>,
}

impl Slot for RunSlot {
    fn leave(&self) {
        self.changes
            .note(self.run, |change| change.is_given = Some(true));
    }

    fn take_back(&self) {
        self.changes
            .note(self.run, |change| change.is_given = Some(false));
    }

    fn begin(&self) {
        self.changes
            .note(self.run, |change| change.has_begun = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_run_says_last_is_heard_and_no_more_is_kept() {
        let changes = Arc::new(SlotChanges::default());
        let slot = |run| RunSlot {
            run: RunId(run),
            changes: Arc::clone(&changes),
        };
        for _ in 0..1_000 {
            slot(1).leave();
            slot(1).take_back();
        }
        slot(2).begin();
        slot(2).leave();
        slot(3).begin();
        changes.changed().await;
        let expected = [
            Event::Rejoined { run: RunId(1) },
            Event::Begun { run: RunId(2) },
            Event::Seceded { run: RunId(2) },
            Event::Begun { run: RunId(3) },
        ];
        assert_eq!(changes.take(), expected);
        assert_eq!(changes.take(), []);
    }
}

//! What happened that a journal has to keep, as the items that [`Core::restore`] takes.
//!
//! Off unless somebody asks for it. Invariant: restoring all notes of a core, with its chunks where
//! they were accepted, gives a core that knows the same of every task, except that it does not know
//! who runs what. Chunks are not noted: whoever keeps the journal has them as they came.

use crate::ids::{TaskRef, WorkerId};
use crate::machine::Core;
use crate::restore::Restored;

/// Notes that were not fetched yet.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    is_on: bool,
    all: Vec<Restored>,
}

impl Notes {
    /// Something happened.
    pub(crate) fn note(&mut self, what: impl FnOnce() -> Restored) {
        if self.is_on {
            self.all.push(what());
        }
    }

    /// A worker has a result that counts.
    pub(crate) fn finished(&mut self, own: WorkerId, task: TaskRef, bytes: u64, rows: u64) {
        if !self.is_on {
            return;
        }
        if let Some(Restored::Finished { worker, results }) = self.all.last_mut()
            && *worker == own
        {
            results.push((task, bytes, rows));
            return;
        }
        let results = vec![(task, bytes, rows)];
        self.all.push(Restored::Finished {
            worker: own,
            results,
        });
    }

    /// A worker keeps a copy.
    pub(crate) fn copied(&mut self, own: WorkerId, task: TaskRef) {
        if !self.is_on {
            return;
        }
        if let Some(Restored::CopiesAdded { worker, tasks }) = self.all.last_mut()
            && *worker == own
        {
            tasks.push(task);
            return;
        }
        let tasks = vec![task];
        self.all.push(Restored::CopiesAdded { worker: own, tasks });
    }

    /// The client does not want a result any more.
    pub(crate) fn released(&mut self, task: TaskRef) {
        if !self.is_on {
            return;
        }
        if let Some(Restored::Released { tasks }) = self.all.last_mut() {
            tasks.push(task);
        } else {
            self.all.push(Restored::Released { tasks: vec![task] });
        }
    }
}

impl Core {
    /// From now on notes what a journal has to keep.
    pub fn keep_notes(&mut self) {
        self.notes.is_on = true;
    }

    /// What was noted since this was last emptied, in order. Everything except chunks, which are to
    /// be kept when `ChunkAccepted` is said for the first time.
    pub fn notes(&mut self) -> &mut Vec<Restored> {
        &mut self.notes.all
    }
}

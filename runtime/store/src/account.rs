//! Shares of the memory for tasks that run, counted in the same sums as results.

use std::sync::Arc;

use crate::ledger::{Ledger, MemoryRefused};
use crate::shared::Shared;

/// The account of a store.
#[derive(Debug)]
pub struct Account {
    shared: Arc<Shared>,
}

impl Account {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The share of one run, empty at first. It counts as a run until it is dropped.
    pub fn reservation(&self) -> Reservation {
        Reservation {
            number: self.shared.change(Ledger::open_reservation),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Bytes that may be used in all.
    pub fn limit_bytes(&self) -> u64 {
        self.shared.limit_bytes()
    }
}

/// What one run has taken. All of it is given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    number: u64,
}

impl Reservation {
    /// Takes more, whatever is left: room is made elsewhere.
    pub fn grow(&self, bytes: u64) {
        self.shared.change(|ledger| ledger.grow(self.number, bytes));
    }

    /// Takes more if it can be spared. Waits for nothing; if refused, results are spilled, so that
    /// asking again later may do better.
    pub fn try_grow(&self, bytes: u64) -> Result<(), MemoryRefused> {
        self.shared
            .change(|ledger| ledger.try_grow(self.number, bytes))
    }

    /// Gives back.
    pub fn shrink(&self, bytes: u64) {
        self.shared
            .change(|ledger| ledger.shrink(self.number, bytes));
    }

    /// Bytes that this run has taken.
    pub fn taken_bytes(&self) -> u64 {
        self.shared.lock().reserved_bytes(self.number)
    }

    /// Bytes that may be used in all.
    pub fn limit_bytes(&self) -> u64 {
        self.shared.limit_bytes()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared
            .change(|ledger| ledger.close_reservation(self.number));
    }
}

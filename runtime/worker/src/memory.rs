//! Memory: of one run, as programs see it, and of the whole worker.
//!
//! The memory of a run is a share of the store's account. The whole worker, with what nobody
//! accounts for and the programs of `exec` tasks, is watched beside it ([`watch`]).
//!
//! Invariant: when the run has ended, everything that it took is given back, even if something of
//! it lives on and still holds this.

mod rules;
pub(crate) mod runs;
pub(crate) mod thresholds;
mod tree;
pub(crate) mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxidask_exec::{Memory, MemoryRefused};
use oxidask_store::{Account, Reservation};

/// The share of one run.
#[derive(Debug)]
pub(crate) struct RunMemory {
    account: Arc<Account>,
    share: Mutex<Share>,
}

#[derive(Debug)]
enum Share {
    /// The run has asked for nothing yet.
    Unopened,
    Open(Reservation),
    /// The run has ended.
    Closed,
}

impl RunMemory {
    /// A share that counts as a run only when something is taken: most tiny tasks take nothing.
    pub(crate) fn new(account: Arc<Account>) -> Self {
        Self {
            account,
            share: Mutex::new(Share::Unopened),
        }
    }

    /// From now on it counts as a run.
    pub(crate) fn open(&self) {
        let mut share = self.lock();
        self.opened(&mut share);
    }

    /// The run has ended.
    pub(crate) fn close(&self) {
        let before = std::mem::replace(&mut *self.lock(), Share::Closed);
        drop(before);
    }

    /// What there is to take from; nothing once the run has ended.
    fn opened<'a>(&self, share: &'a mut Share) -> Option<&'a Reservation> {
        if matches!(share, Share::Unopened) {
            *share = Share::Open(self.account.reservation());
        }
        match share {
            Share::Open(reservation) => Some(reservation),
            Share::Unopened | Share::Closed => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for RunMemory {
    fn grow(&self, bytes: u64) {
        let mut share = self.lock();
        if let Some(reservation) = self.opened(&mut share) {
            reservation.grow(bytes);
        }
    }

    fn try_grow(&self, bytes: u64) -> Result<(), MemoryRefused> {
        let mut share = self.lock();
        let Some(reservation) = self.opened(&mut share) else {
            let limit = self.account.limit_bytes();
            return Err(MemoryRefused {
                needed: bytes,
                taken: limit,
                limit,
            });
        };
        reservation
            .try_grow(bytes)
            .map_err(|refused| MemoryRefused {
                needed: refused.needed,
                taken: refused.taken,
                limit: refused.limit,
            })
    }

    fn shrink(&self, bytes: u64) {
        if let Share::Open(reservation) = &*self.lock() {
            reservation.shrink(bytes);
        }
    }

    fn taken_bytes(&self) -> u64 {
        match &*self.lock() {
            Share::Open(reservation) => reservation.taken_bytes(),
            Share::Unopened | Share::Closed => 0,
        }
    }

    fn limit_bytes(&self) -> u64 {
        self.account.limit_bytes()
    }
}

#[cfg(test)]
mod tests {
    use oxidask_store::Store;

    use super::*;

    #[test]
    fn what_a_run_took_is_given_back_whoever_still_holds_its_memory() {
        let store = Store::new(1_000);
        let memory = Arc::new(RunMemory::new(store.account()));
        assert_eq!(store.pressure().runs, 0);
        memory.grow(300);
        memory.try_grow(100).unwrap();
        memory.shrink(50);
        assert_eq!((memory.taken_bytes(), memory.limit_bytes()), (350, 1_000));
        assert_eq!(store.held().reserved_bytes, 350);
        let refused = memory.try_grow(5_000).unwrap_err();
        assert_eq!(refused.needed, 5_000);
        let kept = Arc::clone(&memory);
        memory.close();
        assert_eq!((store.held().reserved_bytes, store.pressure().runs), (0, 0));
        // Something of the run lives on.
        kept.grow(10);
        kept.shrink(500);
        kept.try_grow(1).unwrap_err();
        assert_eq!(kept.taken_bytes(), 0);
        assert_eq!(store.held().reserved_bytes, 0);
    }

    #[test]
    fn a_run_counts_once_it_is_open() {
        let store = Store::new(1_000);
        let memory = RunMemory::new(store.account());
        memory.open();
        memory.open();
        assert_eq!(store.pressure().runs, 1);
        drop(memory);
        assert_eq!(store.pressure().runs, 0);
    }
}

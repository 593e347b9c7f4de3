//! Where results live on a worker.
//!
//! Owns payloads and their exact accounting per key. Never fetches, never runs a task, never talks
//! to a peer: the worker adapts the [`Store`] to its data plane.
//!
//! Invariants: the bytes that are held are the sum over all entries and never pass the limit; what
//! would pass it is refused with [`StoreError::MemoryExceeded`], nothing is thrown out for it.

mod error;
mod key;
mod ledger;
mod payload;
mod store;

pub use error::StoreError;
pub use key::{IdHasher, IdMap, KeyMap, ResultKey};
pub use ledger::{Entry, Held, Ledger, Origin};
pub use payload::{Payload, PayloadKind};
pub use store::Store;

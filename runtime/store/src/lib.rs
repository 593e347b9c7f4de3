//! Where results live on a worker.
//!
//! Owns payloads, their exact accounting beside what running tasks take, and the files that they
//! are moved to when memory is short. Never fetches, never runs a task, never talks to a peer: the
//! worker adapts the [`Store`] to its data plane. What decides is the pure [`Ledger`].
//!
//! Invariants: the bytes that are held are the sum over all buffers, each counted once; memory is
//! given back only when a result can be had again; without a disk, or with a full one, what would
//! pass the limit is refused and nothing is thrown out for it.

mod account;
mod disk;
mod error;
mod key;
mod layout;
mod ledger;
mod parts;
mod payload;
mod pressure_watch;
mod reading;
mod settings;
mod shared;
mod spill_file;
mod spill_folder;
mod spilling;
mod store;

pub use account::{Account, Reservation};
pub use disk::{Disk, DiskFile, LocalDisk};
pub use error::{Absent, Damage, StoreError};
pub use key::{IdHasher, IdMap, KeyMap, ResultKey};
pub use layout::WHOLE;
pub use ledger::{
    Arrival, Entry, Held, Ledger, MemoryRefused, Origin, Place, Pressure, Refused, SpillStep,
};
pub use parts::Part;
pub use payload::{Payload, PayloadKind};
pub use pressure_watch::PressureWatch;
pub use reading::{Loaded, Pins};
pub use settings::{
    GRANT_PERMILLE, LedgerSettings, PAUSE_PERMILLE, SOON_FREE_PERMILLE, SPILL_PERMILLE,
    SPILL_TARGET_PERMILLE, StoreConfig,
};
pub use shared::{Gone, GoneReason, SpillFigures};
pub use spill_file::UNIT_BYTES_MAX;
pub use store::{Description, Store, StoredPiece};

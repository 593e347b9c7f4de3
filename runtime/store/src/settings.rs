//! Limits of a store and the shares of them at which something happens.

use std::path::PathBuf;

/// The whole of a share.
const WHOLE_PERMILLE: u64 = 1000;

/// Spilling goes on until this share of the limit is left.
pub const SPILL_TARGET_PERMILLE: u64 = 600;

/// Above this share of the limit, spilling begins; below it, paused runs start again.
pub const SPILL_PERMILLE: u64 = 700;

/// Above this share of the limit, no runs start.
pub const PAUSE_PERMILLE: u64 = 800;

/// Running tasks that ask get memory up to this share of the limit. The rest is for what nobody
/// accounts: buffers between operators, connections, the allocator.
pub const GRANT_PERMILLE: u64 = 900;

/// At most this share of the limit is granted on the ground that it will be free soon.
pub const SOON_FREE_PERMILLE: u64 = 100;

/// What a store may use.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Bytes of memory for results, copies and running tasks.
    pub limit_bytes: u64,
    /// Where spilled results go: each store makes a folder of its own below it.
    pub spill_dir: PathBuf,
    /// Bytes of the disk for spilled results.
    pub disk_limit_bytes: u64,
}

/// The limits and shares of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerSettings {
    /// Bytes of memory.
    pub limit_bytes: u64,
    /// Bytes of the disk; none means that nothing can be spilled.
    pub disk_limit_bytes: u64,
    /// Where spilling ends.
    pub spill_target_permille: u64,
    /// Where spilling begins.
    pub spill_permille: u64,
    /// Where no more runs start.
    pub pause_permille: u64,
    /// Up to where running tasks get more.
    pub grant_permille: u64,
    /// How much may be granted because it will be free soon.
    pub soon_free_permille: u64,
}

impl LedgerSettings {
    /// The usual shares of these limits.
    pub fn new(limit_bytes: u64, disk_limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            disk_limit_bytes,
            spill_target_permille: SPILL_TARGET_PERMILLE,
            spill_permille: SPILL_PERMILLE,
            pause_permille: PAUSE_PERMILLE,
            grant_permille: GRANT_PERMILLE,
            soon_free_permille: SOON_FREE_PERMILLE,
        }
    }

    /// Bytes that a share of the memory is.
    pub(crate) fn share(&self, permille: u64) -> u64 {
        let product = u128::from(self.limit_bytes) * u128::from(permille);
        u64::try_from(product / u128::from(WHOLE_PERMILLE)).unwrap_or(u64::MAX)
    }
}

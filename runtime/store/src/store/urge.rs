//! Room that somebody outside needs: memory that is used without standing in the accounts.

use super::Store;
use crate::settings::GRANT_PERMILLE;

/// The whole of a share.
const WHOLE_PERMILLE: u128 = 1_000;

impl Store {
    /// Has results go to the disk until so many bytes less are in memory, or nothing is left to be
    /// moved. Returns at once.
    pub fn spill_down(&self, bytes: u64) {
        self.shared.change(|ledger| {
            let held = ledger.held();
            // What is on its way counts as gone.
            let memory_bytes = held.memory_bytes().saturating_sub(held.writing_bytes);
            let target = u128::from(memory_bytes.saturating_sub(bytes));
            let granted = u128::from(ledger.limit_bytes()) * u128::from(GRANT_PERMILLE);
            let wanted = (granted / WHOLE_PERMILLE).saturating_sub(target);
            ledger.want(u64::try_from(wanted).unwrap_or(u64::MAX));
        });
    }
}

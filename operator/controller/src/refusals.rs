//! What the API server refused in an object's last round, for its next plan to speak of.
//!
//! Bounded: a few for each object, and only objects that still exist.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use oxidask_operator_plan::Refusal;

/// Refusals that are kept of one object; the others say the same.
pub(crate) const REFUSALS_MAX: usize = 16;

/// Refusals by the UID of the object whose plan asked.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<String, Vec<Refusal>>>);

impl Refusals {
    /// Replaces what is kept. True if that is something else.
    pub(crate) fn set(&self, uid: &str, mut refusals: Vec<Refusal>) -> bool {
        // In a steady order: statuses quote them.
        refusals.sort_by(|a, b| (&a.object, &a.message).cmp(&(&b.object, &b.message)));
        refusals.truncate(REFUSALS_MAX);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.is_empty() {
            return all.remove(uid).is_some();
        }
        let before = all.insert(uid.to_owned(), refusals.clone());
        before.is_none_or(|before| before != refusals)
    }

    /// What the object's planner is told.
    pub(crate) fn get(&self, uid: &str) -> Vec<Refusal> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(uid).cloned().unwrap_or_default()
    }

    /// The object is gone.
    pub(crate) fn forget(&self, uid: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(object: &str) -> Refusal {
        Refusal {
            object: object.to_owned(),
            message: "exceeded quota".to_owned(),
        }
    }

    #[test]
    fn a_few_are_kept_until_a_round_has_none() {
        let refusals = Refusals::default();
        let many: Vec<Refusal> = (0..100).map(|it| refusal(&format!("Pod {it}"))).collect();
        assert!(refusals.set("u", many.clone()));
        assert_eq!(refusals.get("u").len(), REFUSALS_MAX);
        let mut turned = many;
        turned.reverse();
        assert!(!refusals.set("u", turned), "the same in another order");
        assert!(refusals.get("v").is_empty());
        assert!(refusals.set("u", Vec::new()));
        assert!(refusals.get("u").is_empty());
        assert!(!refusals.set("u", Vec::new()));
    }
}

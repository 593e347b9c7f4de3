//! Conditions.
//!
//! Owns their form: the time of the last transition changes only with the status, texts are
//! bounded, and the generation that was looked at stands in each.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use oxidask_diagnostic::Coded;

use crate::{PlanError, PlannedEvent, Timestamp};

/// All is there and works.
pub(crate) const READY: &str = "Ready";
/// The operator is at work on it, or waits for pods.
pub(crate) const RECONCILING: &str = "Reconciling";
/// Only a new spec helps.
pub(crate) const STALLED: &str = "Stalled";
/// The scheduler answers.
pub(crate) const SCHEDULER_READY: &str = "SchedulerReady";
/// All wanted workers answer.
pub(crate) const WORKERS_READY: &str = "WorkersReady";
/// Every role has its certificate.
pub(crate) const TLS_READY: &str = "TLSReady";
/// The cluster has no pods, because its spec says so.
pub(crate) const SUSPENDED: &str = "Suspended";
/// The API server refused objects of the last plan; only while it does.
pub(crate) const OBJECTS_REFUSED: &str = "ObjectsRefused";
/// Somebody changes objects of ours faster than they are repaired; only while it is so.
pub(crate) const DRIFTED: &str = "Drifted";
/// The job's work is done.
pub(crate) const COMPLETE: &str = "Complete";
/// The job's work failed.
pub(crate) const FAILED: &str = "Failed";

/// Reason: the API server refuses pods.
pub(crate) const PODS_REFUSED: &str = "PodsRefused";

/// Bytes of a condition's message.
const MESSAGE_BYTES_MAX: usize = 2048;

/// The conditions of one object as they are to be.
pub(crate) struct Conditions<'a> {
    observed: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    desired: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    pub(crate) fn new(observed: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        let desired = Vec::new();
        Self {
            observed,
            generation,
            now,
            desired,
        }
    }

    /// The observed condition.
    pub(crate) fn observed(&self, kind: &str) -> Option<&'a Condition> {
        self.observed
            .iter()
            .find(|condition| condition.type_ == kind)
    }

    /// Whether the observed condition is true.
    pub(crate) fn was(&self, kind: &str) -> bool {
        self.observed(kind)
            .is_some_and(|condition| condition.status == "True")
    }

    /// Whether the observed message contains the text.
    pub(crate) fn said(&self, kind: &str, text: &str) -> bool {
        self.observed(kind)
            .is_some_and(|condition| condition.message.contains(text))
    }

    pub(crate) fn set(&mut self, kind: &str, is_true: bool, reason: &str, message: &str) {
        let status = if is_true { "True" } else { "False" };
        let unchanged = self
            .observed(kind)
            .filter(|condition| condition.status == status);
        let last_transition_time = unchanged.map_or_else(
            || Time(self.now),
            |condition| condition.last_transition_time.clone(),
        );
        self.desired.push(Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: cut(message, MESSAGE_BYTES_MAX),
            last_transition_time,
            observed_generation: self.generation,
        });
    }

    /// `Stalled`, and the event when it is new.
    pub(crate) fn set_stalled(&mut self, error: Option<&PlanError>) -> Option<PlannedEvent> {
        let Some(error) = error else {
            self.set(STALLED, false, "NotStalled", "the spec can be operated");
            return None;
        };
        let (code, line) = (
            error.code().to_string(),
            cut(&error.line(), MESSAGE_BYTES_MAX),
        );
        let is_new = !self.was(STALLED) || !self.said(STALLED, &line);
        self.set(STALLED, true, &code, &line);
        is_new.then(|| PlannedEvent::warning("Stalled", "Plan", &format!("{code}: {line}")))
    }

    /// `Reconciling`: neither ready nor stalled.
    pub(crate) fn set_reconciling(
        &mut self,
        is_ready: bool,
        is_stalled: bool,
        reason: &str,
        message: &str,
    ) {
        let reason = match (is_ready, is_stalled) {
            (_, true) => STALLED,
            (true, false) => "Reconciled",
            (false, false) => reason,
        };
        self.set(RECONCILING, !is_ready && !is_stalled, reason, message);
    }

    pub(crate) fn into_desired(self) -> Vec<Condition> {
        self.desired
    }
}

/// The text, at most that many bytes long; what is cut off is shown by an ellipsis.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max.saturating_sub(ELLIPSIS.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ELLIPSIS}", &text[..end])
}

/// The end of the text, at most that many bytes long.
pub(crate) fn cut_start(text: &str, bytes_max: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut start = text.len() - bytes_max.saturating_sub(ELLIPSIS.len());
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("{ELLIPSIS}{}", &text[start..])
}

/// `1 of 2 workers are ready`.
pub(crate) fn workers_ready(ready: usize, wanted: usize) -> String {
    let (workers, are) = if wanted == 1 {
        ("worker", "is")
    } else {
        ("workers", "are")
    };
    format!("{ready} of {wanted} {workers} {are} ready")
}

/// The first texts that are there, joined.
pub(crate) fn joined(parts: &[Option<String>]) -> String {
    let parts: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or_default()
    }

    #[test]
    fn the_time_changes_only_with_the_status() {
        let mut first = Conditions::new(&[], Some(1), at(10));
        first.set(READY, false, "A", "a");
        let first = first.into_desired();
        let mut second = Conditions::new(&first, Some(2), at(20));
        second.set(READY, false, "B", "b");
        let second = second.into_desired();
        assert_eq!(second[0].last_transition_time.0, at(10));
        assert_eq!(second[0].observed_generation, Some(2));
        assert_eq!(second[0].reason, "B");
        let mut third = Conditions::new(&second, Some(2), at(30));
        third.set(READY, true, "C", "c");
        assert_eq!(third.into_desired()[0].last_transition_time.0, at(30));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("ääää", 6), "ä…");
        assert_eq!(cut_start("ääää", 6), "…ä");
        assert!(cut(&"ä".repeat(600), 1024).len() <= 1024);
    }
}

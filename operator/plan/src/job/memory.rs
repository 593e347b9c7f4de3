//! What a job remembers of its runners.
//!
//! Owns the counts. Each pod carries them in its annotations, and the status keeps the newest ones,
//! so that they survive the pod. A job that has only fields of dask-kubernetes has no room in its
//! status: its own annotation keeps the number of its newest pod.
//!
//! Invariant: the counts follow from the newest pod that was seen; planning twice from the same
//! snapshot, or from an old one, counts nothing twice.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::kubernetes::{DaskJob, JobStatus};

use crate::Timestamp;
use crate::build::labels::{self, RUNNER_START};
use crate::runner::Count;

/// Pods of a job's runner that may be lost; the next one ends the job.
pub const LOST_RUNNERS_MAX: u32 = 3;

/// The pause before the second attempt; each further one is twice as long.
pub const BACKOFF_MIN: Duration = Duration::from_secs(10);

/// The longest pause between two attempts.
pub const BACKOFF_MAX: Duration = Duration::from_mins(6);

/// What is known of the runners so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Memory {
    /// Of the newest pod; all zero before the first one.
    pub(super) count: Count,
    /// The number of the newest pod whose end needs no other one in its place.
    pub(super) ended: u32,
    /// When failed work is started again.
    pub(super) next_attempt: Option<Timestamp>,
}

impl Memory {
    /// From the job's own record and the pod that is there.
    pub(super) fn of(job: &DaskJob, seen: Option<Count>) -> Self {
        let none = JobStatus::default();
        let status = job.status.as_ref().unwrap_or(&none);
        let recorded = if job.spec.is_stock() {
            let start = labels::annotation(job.metadata.annotations.as_ref(), RUNNER_START);
            Count::of_start(start.and_then(|start| start.parse().ok()).unwrap_or(0))
        } else {
            let start = status.runner_starts.unwrap_or(0);
            let plain = Count::of_start(start);
            Count {
                start,
                attempt: status.attempts.unwrap_or(plain.attempt),
                lost: match (status.lost_runners, status.attempts) {
                    (Some(lost), _) => lost,
                    (None, Some(_)) => 0,
                    (None, None) => plain.lost,
                },
            }
        };
        let mut memory = Self {
            count: recorded,
            ended: status.runners_ended.unwrap_or(0),
            next_attempt: status.next_attempt_time.as_ref().map(|time| time.0),
        };
        if let Some(seen) = seen.filter(|seen| seen.start > recorded.start) {
            memory.count = seen;
            // The new attempt is there.
            memory.next_attempt = None;
        }
        memory
    }

    /// Writes it down; only for jobs with fields of our own.
    pub(super) fn record(&self, status: &mut JobStatus) {
        let some = |number: u32| Some(number).filter(|number| *number > 0);
        status.runner_starts = some(self.count.start);
        status.attempts = some(self.count.attempt);
        status.lost_runners = some(self.count.lost);
        status.runners_ended = some(self.ended);
        status.next_attempt_time = self.next_attempt.map(Time);
    }

    /// Whether the newest pod is still wanted, or another one in its place.
    pub(super) fn is_current(&self) -> bool {
        self.count.start > self.ended
    }

    /// What the next pod will carry.
    pub(super) fn next(&self) -> Count {
        let is_new_attempt = self.count.start == 0 || self.next_attempt.is_some();
        Count {
            start: self.count.start.saturating_add(1),
            attempt: self.count.attempt.saturating_add(u32::from(is_new_attempt)),
            lost: self.count.lost.saturating_add(u32::from(self.is_current())),
        }
    }

    /// Whether one more lost pod is too many.
    pub(super) fn has_lost_too_many(&self) -> bool {
        self.next().lost > LOST_RUNNERS_MAX
    }

    /// When the next attempt starts, and how long that is from now. A pause that is longer than any
    /// is over: the clock went back.
    pub(super) fn pause(&self, now: Timestamp) -> Option<(Timestamp, Duration)> {
        let next = self.next_attempt?;
        let wait = Duration::try_from(next.duration_since(now)).ok()?;
        (!wait.is_zero() && wait <= BACKOFF_MAX).then_some((next, wait))
    }

    /// The newest pod needs no other one in its place.
    pub(super) fn end_current(&mut self) {
        self.ended = self.ended.max(self.count.start);
    }
}

/// The pause after this attempt failed.
pub(super) fn backoff(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_six_minutes() {
        let seconds: Vec<u64> = (1..9).map(|attempt| backoff(attempt).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 360, 360]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}

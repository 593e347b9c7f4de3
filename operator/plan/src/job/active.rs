//! How long a job has been active, and what its deadline says.
//!
//! Owns the sum over the spans between suspensions. It is written once for each of them.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::kubernetes::JobStatus;

use crate::Timestamp;

/// How much longer a running runner is left to kubelet, which ends it by the deadline as well and
/// keeps its log.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(30);

/// The time for which the job has been active.
pub(super) fn active(status: &JobStatus, now: Timestamp) -> Duration {
    let before = Duration::from_secs(status.active_seconds.unwrap_or(0));
    let since = status.active_since.as_ref();
    let span = since.map(|since| now.duration_since(since.0));
    // A clock that went back has counted nothing.
    let span = span.and_then(|span| Duration::try_from(span).ok());
    before.saturating_add(span.unwrap_or_default())
}

/// The job is active from now on, if it was not.
pub(super) fn resume(status: &mut JobStatus, now: Timestamp) {
    status.active_since.get_or_insert(Time(now));
}

/// The job is not active any more.
pub(super) fn pause(status: &mut JobStatus, now: Timestamp) {
    if status.active_since.is_some() {
        let seconds = active(status, now).as_secs();
        status.active_seconds = Some(seconds).filter(|seconds| *seconds > 0);
        status.active_since = None;
    }
}

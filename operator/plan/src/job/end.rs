//! The end of a job, and what is removed after it.
//!
//! Owns the final status and the cleaning. Invariant: what is deleted follows from the final status
//! that is written, so it is deleted as well if the operator ends in between.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::KeepCluster;
use oxidask_operator_api::kubernetes::{DaskJob, JobState, JobStatus};

use super::{Observed, wake};
use crate::{Deletion, DeletionReason, ObjectKind, Plan, PlannedEvent, Timestamp, owner, pods};

/// A job looks at the clock at least this often: clocks jump.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// What is left to do for a job that has its final status.
pub(super) fn plan_ended(job: &DaskJob, observed: &Observed, now: Timestamp) -> Plan<JobStatus> {
    let mut plan = Plan::default();
    let status = job.status.as_ref();
    let state = status.and_then(|status| status.job_status);
    clean(job, state.unwrap_or(JobState::Failed), observed, &mut plan);
    let end = status.and_then(|status| status.end_time.as_ref());
    expire(job, end.map_or(now, |end| end.0), now, &mut plan);
    plan
}

/// Removes what the end leaves behind.
pub(super) fn clean(
    job: &DaskJob,
    state: JobState,
    observed: &Observed,
    plan: &mut Plan<JobStatus>,
) {
    let reason = DeletionReason::JobFinished;
    let is_ours =
        |metadata| owner::owns(&job.metadata, metadata) && !owner::is_terminating(metadata);
    let cluster = observed.cluster.as_ref().map(|cluster| &cluster.metadata);
    if let Some(cluster) = cluster.filter(|metadata| is_ours(metadata) && !keeps(job, state)) {
        plan.delete
            .push(Deletion::new(ObjectKind::Cluster, cluster, reason));
    }
    // A runner that has ended stays for its log. One that runs on after success is an old snapshot.
    let runner = observed.runner.as_ref();
    let runner = runner.filter(|pod| is_ours(&pod.metadata) && !pods::has_ended(pod));
    if let Some(runner) = runner.filter(|_| state == JobState::Failed) {
        let runner = &runner.metadata;
        plan.delete
            .push(Deletion::new(ObjectKind::Pod, runner, reason));
    }
}

/// Whether the cluster stays.
pub(super) fn keeps(job: &DaskJob, state: JobState) -> bool {
    match job.spec.keep_cluster.unwrap_or_default() {
        KeepCluster::Never => false,
        KeepCluster::OnFailure => state == JobState::Failed,
        KeepCluster::Always => true,
    }
}

/// Deletes the job some time after its end.
fn expire(job: &DaskJob, end: Timestamp, now: Timestamp, plan: &mut Plan<JobStatus>) {
    let Some(seconds) = job.spec.ttl_seconds_after_finished else {
        return;
    };
    let age = Duration::try_from(now.duration_since(end)).unwrap_or_default();
    let left = Duration::from_secs(seconds).saturating_sub(age);
    if left.is_zero() {
        let reason = DeletionReason::Expired;
        plan.delete
            .push(Deletion::new(ObjectKind::Job, &job.metadata, reason));
    } else {
        wake(plan, left.min(LOOK_AGAIN));
    }
}

/// The event about the end.
pub(super) fn event(job: &DaskJob, state: JobState, reason: &str, message: &str) -> PlannedEvent {
    let cluster = if keeps(job, state) {
        "keeping"
    } else {
        "deleting"
    };
    if state == JobState::Successful {
        let note = format!("Job succeeded, {cluster} Dask cluster.");
        PlannedEvent::normal("Successful", "Finish", &note)
    } else {
        let note = format!("{reason}: {message}. Job failed, {cluster} Dask cluster.");
        PlannedEvent::warning("Failed", "Finish", &note)
    }
}

/// The final status.
pub(super) fn status(mut status: JobStatus, state: JobState, end: Timestamp) -> JobStatus {
    status.job_status = Some(state);
    status.end_time = Some(Time(end));
    status.next_attempt_time = None;
    status
}

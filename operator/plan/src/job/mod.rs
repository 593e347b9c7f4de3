//! The plan for a `DaskJob`: its runner, its cluster, its work, and its end.
//!
//! Owns the job's states. They only go forward. The runner comes first: a cluster is made only for a
//! runner that the API server has taken. Work that failed and runners that were lost are counted
//! apart, and both counts are bounded.
//!
//! Invariants: the final status is written before anything is deleted, so a crash in between loses
//! nothing; there is one pod of the runner at most, because all have one name; a job that has only
//! fields of dask-kubernetes has a status with its five keys only.

mod active;
mod end;
mod memory;
mod report;
mod run;
mod start;
mod work;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, JobState, JobStatus};

use crate::schedule::wake;
use crate::{Plan, Refusal, Settings, Timestamp, owner, schedule};

pub use active::DEADLINE_GRACE;
pub use memory::{BACKOFF_MAX, BACKOFF_MIN, LOST_RUNNERS_MAX};
pub use start::wants_warnings;
pub(crate) use work::check_work;

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The `DaskCluster` of the job's name, whoever owns it.
    pub cluster: Option<DaskCluster>,
    /// The Pod `{job}-runner`, whoever owns it.
    pub runner: Option<Pod>,
    /// The `ConfigMap` `{job}-work`, whoever owns it.
    pub work: Option<ConfigMap>,
    /// The jobs that the job owns: the runs of a scheduled one.
    pub runs: Vec<DaskJob>,
    /// What the API server refused in the last round.
    pub refusals: Vec<Refusal>,
    /// Warnings about the runner's pod, if [`wants_warnings`] asked for them.
    pub warnings: Vec<Warning>,
}

/// An event of type Warning about the runner's pod: volumes that cannot be mounted show nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Its reason, such as `FailedMount`.
    pub reason: String,
    /// Its text.
    pub message: String,
}

/// What has to be done for the job.
pub fn plan(
    job: &DaskJob,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<JobStatus> {
    if owner::is_terminating(&job.metadata) {
        return Plan::default();
    }
    let status = job.status.as_ref();
    let has_started = status.is_some_and(|status| status.cluster_name.is_some());
    if job.spec.schedule.is_some() && !has_started {
        return schedule::plan(job, observed, now);
    }
    let state = status.and_then(|status| status.job_status);
    if state.is_some_and(JobState::is_final) {
        return end::plan_ended(job, observed, now);
    }
    run::plan(job, observed, settings, now)
}

//! What a job says about itself.
//!
//! Owns its conditions and events. A job that has only fields of dask-kubernetes has no conditions:
//! an annotation says what keeps it from going on, and which runner is its newest.

use std::collections::BTreeMap;

use oxidask_operator_api::kubernetes::{DaskJob, JobState, JobStatus};

use crate::build::labels::{self, RUNNER_START, TROUBLE};
use crate::status::{COMPLETE, Conditions, FAILED, RECONCILING, STALLED, SUSPENDED, cut};
use crate::{MetadataChange, ObjectKind, Plan, PlanError, PlannedEvent, Timestamp};

/// Bytes of a trouble in an annotation.
const TROUBLE_BYTES_MAX: usize = 1024;

/// Where a job is that has not ended, for `Reconciling`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// What keeps the job from going on.
    pub(super) trouble: Option<String>,
}

impl Progress {
    pub(super) fn new(reason: &'static str, message: &str) -> Self {
        Self {
            reason,
            message: message.to_owned(),
            trouble: None,
        }
    }

    /// With what keeps the job from going on, as part of the message.
    pub(super) fn with_trouble(mut self, trouble: String) -> Self {
        self.message = format!("{}; {trouble}", self.message);
        self.trouble = Some(trouble);
        self
    }
}

/// What the conditions say.
pub(super) enum Said<'a> {
    /// The job goes on.
    Progress(&'a Progress),
    /// Only a new spec helps.
    Stalled(&'a PlanError),
    /// The job is suspended.
    Suspended,
    /// The job has ended: state, reason, message.
    Ended(JobState, &'a str, &'a str),
}

/// Writes conditions, status and annotations, each if it changes.
pub(super) fn report(
    job: &DaskJob,
    mut status: JobStatus,
    newest_start: u32,
    said: &Said<'_>,
    now: Timestamp,
    plan: &mut Plan<JobStatus>,
) {
    if job.spec.is_stock() {
        annotate(job, newest_start, said, plan);
        status = stock(status);
    } else {
        let generation = job.metadata.generation;
        let before = job.status.as_ref();
        let before = before.map(|status| status.conditions.as_slice());
        let mut conditions = Conditions::new(before.unwrap_or_default(), generation, now);
        plan.events.extend(set(&mut conditions, said));
        status.conditions = conditions.into_desired();
        status.observed_generation = generation;
    }
    let is_new = job.status.as_ref() != Some(&status);
    plan.status = is_new.then_some(status);
}

fn set(conditions: &mut Conditions<'_>, said: &Said<'_>) -> Option<PlannedEvent> {
    let is_suspended = matches!(said, Said::Suspended);
    let reason = if is_suspended {
        "Suspended"
    } else {
        "NotSuspended"
    };
    if let Said::Ended(state, reason, message) = said {
        let is_done = *state == JobState::Successful;
        let other = if is_done { "Complete" } else { "Failed" };
        let of = |is_true: bool| {
            if is_true {
                (*reason, *message)
            } else {
                (other, "")
            }
        };
        let (why, text) = of(is_done);
        conditions.set(COMPLETE, is_done, why, text);
        let (why, text) = of(!is_done);
        conditions.set(FAILED, !is_done, why, text);
        conditions.set(SUSPENDED, false, other, "");
        conditions.set(RECONCILING, false, other, "the job has ended");
        return conditions.set_stalled(None);
    }
    conditions.set(COMPLETE, false, "NotFinished", "");
    conditions.set(FAILED, false, "NotFinished", "");
    let text = if is_suspended {
        "the job waits to be resumed"
    } else {
        ""
    };
    conditions.set(SUSPENDED, is_suspended, reason, text);
    let error = match said {
        Said::Progress(progress) => {
            conditions.set(RECONCILING, true, progress.reason, &progress.message);
            None
        }
        Said::Stalled(error) => {
            conditions.set(RECONCILING, false, STALLED, "only a new spec helps");
            Some(*error)
        }
        Said::Suspended | Said::Ended(..) => {
            conditions.set(RECONCILING, false, reason, text);
            None
        }
    };
    conditions.set_stalled(error)
}

/// The five keys that dask-kubernetes has.
fn stock(status: JobStatus) -> JobStatus {
    JobStatus {
        job_status: status.job_status,
        cluster_name: status.cluster_name,
        job_runner_pod_name: status.job_runner_pod_name,
        start_time: status.start_time,
        end_time: status.end_time,
        ..JobStatus::default()
    }
}

fn annotate(job: &DaskJob, newest_start: u32, said: &Said<'_>, plan: &mut Plan<JobStatus>) {
    let trouble = match said {
        Said::Progress(progress) => progress.trouble.clone(),
        Said::Stalled(error) => Some(error.line()),
        Said::Ended(JobState::Failed, reason, message) => Some(format!("{reason}: {message}")),
        Said::Suspended | Said::Ended(..) => None,
    };
    let trouble = trouble.map(|trouble| cut(&trouble, TROUBLE_BYTES_MAX));
    if let (Said::Stalled(error), Some(line)) = (said, &trouble)
        && !told(job, line)
    {
        let code = oxidask_diagnostic::Coded::code(*error);
        let note = format!("{code}: {line}");
        plan.events
            .push(PlannedEvent::warning("Stalled", "Plan", &note));
    }
    let start = Some(newest_start.to_string()).filter(|_| newest_start > 0);
    let mut annotations = BTreeMap::new();
    for (key, wanted) in [(RUNNER_START, start), (TROUBLE, trouble)] {
        let present = labels::annotation(job.metadata.annotations.as_ref(), key);
        if present != wanted.as_deref() {
            annotations.insert(key.to_owned(), wanted);
        }
    }
    if annotations.is_empty() {
        return;
    }
    plan.metadata.push(MetadataChange {
        annotations,
        ..MetadataChange::new(ObjectKind::Job, &job.metadata)
    });
}

/// Whether the job has said this already.
pub(super) fn told(job: &DaskJob, text: &str) -> bool {
    if job.spec.is_stock() {
        let trouble = labels::annotation(job.metadata.annotations.as_ref(), TROUBLE);
        return trouble.is_some_and(|trouble| trouble.contains(text));
    }
    let conditions = job.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.into_iter();
    conditions.any(|condition| condition.type_ == RECONCILING && condition.message.contains(text))
}

/// Whether the condition `Suspended` is true.
pub(super) fn was_suspended(job: &DaskJob) -> bool {
    let conditions = job.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.into_iter();
    conditions.any(|condition| condition.type_ == SUSPENDED && condition.status == "True")
}

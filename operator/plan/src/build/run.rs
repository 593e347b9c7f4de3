//! One run of a scheduled job.
//!
//! Owns what of the schedule goes into it: everything but what only a schedule has.

use oxidask_operator_api::JobSpec;
use oxidask_operator_api::kubernetes::DaskJob;

use super::labels::{self, SCHEDULE, SCHEDULED_TIME};
use crate::{Timestamp, owner};

/// The run of this time.
pub(crate) fn run(job: &DaskJob, name: &str, time: Timestamp) -> DaskJob {
    let mut metadata = owner::metadata(name.to_owned(), "DaskJob", &job.metadata);
    let schedule = job.metadata.name.as_deref().unwrap_or_default();
    metadata.labels = Some(labels::labels(
        job.metadata.labels.as_ref(),
        None,
        &[(SCHEDULE, schedule)],
    ));
    let annotations = labels::annotations(job.metadata.annotations.as_ref(), None);
    let mut annotations = annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_TIME.to_owned(), time.to_string());
    metadata.annotations = Some(annotations);
    let spec = JobSpec {
        suspend: None,
        schedule: None,
        time_zone: None,
        concurrency_policy: None,
        starting_deadline_seconds: None,
        successful_jobs_history_limit: None,
        failed_jobs_history_limit: None,
        ..job.spec.clone()
    };
    DaskJob {
        metadata,
        spec,
        status: None,
    }
}

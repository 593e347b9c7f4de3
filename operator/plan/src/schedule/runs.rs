//! The runs of a schedule.
//!
//! Owns their names, which of them still run, and which of the ended ones are kept. A run is known
//! by its owner and its name: `{job}-{minute}`, where the minute is counted from 1970.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::JobSpec;
use oxidask_operator_api::kubernetes::{DaskJob, JobState, JobStatus};

use crate::{Deletion, DeletionReason, ObjectKind, Timestamp, owner};

/// Ended runs that are kept if the spec does not say so, as a `CronJob` has it.
const SUCCESSFUL_KEPT: u32 = 3;
const FAILED_KEPT: u32 = 1;

/// The name of the run of this time.
pub fn run_name(job: &str, time: Timestamp) -> String {
    format!("{job}-{}", time.as_second().div_euclid(60))
}

/// The runs that belong to a schedule, in the order of their times.
pub(super) struct Runs<'a> {
    runs: Vec<(Timestamp, &'a DaskJob)>,
}

impl<'a> Runs<'a> {
    pub(super) fn of(job: &DaskJob, observed: &'a [DaskJob]) -> Self {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let ours = observed
            .iter()
            .filter(|run| owner::owns(&job.metadata, &run.metadata));
        let timed = ours.filter_map(|run| {
            let own = run.metadata.name.as_deref()?;
            let minute = own.strip_prefix(name)?.strip_prefix('-')?;
            let minute: i64 = minute.parse().ok()?;
            let time = Timestamp::from_second(minute.checked_mul(60)?).ok()?;
            Some((time, run))
        });
        let mut runs: Vec<_> = timed.collect();
        runs.sort_by_key(|(time, _)| *time);
        Self { runs }
    }

    /// The time of the newest run.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.runs.last().map(|(time, _)| *time)
    }

    /// Runs that have not ended; those that are being deleted are there until they are gone.
    pub(super) fn has_active(&self) -> bool {
        self.runs.iter().any(|(_, run)| !has_ended(run))
    }

    /// Runs that have not ended and are not being deleted.
    pub(super) fn active(&self) -> impl Iterator<Item = &'a DaskJob> + '_ {
        let runs = self.runs.iter().map(|(_, run)| *run);
        runs.filter(|run| !has_ended(run) && !owner::is_terminating(&run.metadata))
    }

    /// What the schedule's own status says about them.
    pub(super) fn report(&self, status: &mut JobStatus, names_max: usize) {
        let names = self.active().filter_map(|run| run.metadata.name.clone());
        status.active = names.take(names_max).collect();
        let ends = self.ended(JobState::Successful);
        let ends = ends.filter_map(|run| run.status.as_ref()?.end_time.as_ref());
        if let Some(&Time(newest)) = ends.max() {
            let before = status.last_successful_time.as_ref();
            if before.is_none_or(|before| before.0 < newest) {
                status.last_successful_time = Some(Time(newest));
            }
        }
    }

    /// Ended runs beyond those that are kept, the oldest first.
    pub(super) fn surplus(&self, spec: &JobSpec) -> Vec<Deletion> {
        let successful = spec.successful_jobs_history_limit;
        let failed = spec.failed_jobs_history_limit;
        let limits = [
            (JobState::Successful, successful.unwrap_or(SUCCESSFUL_KEPT)),
            (JobState::Failed, failed.unwrap_or(FAILED_KEPT)),
        ];
        let mut surplus = Vec::new();
        for (state, limit) in limits {
            let ended: Vec<&DaskJob> = self.ended(state).collect();
            let kept = usize::try_from(limit).unwrap_or(usize::MAX);
            let count = ended.len().saturating_sub(kept);
            surplus.extend(ended[..count].iter().map(|run| {
                let reason = DeletionReason::HistoryLimit;
                Deletion::new(ObjectKind::Job, &run.metadata, reason)
            }));
        }
        surplus
    }

    fn ended(&self, state: JobState) -> impl Iterator<Item = &'a DaskJob> + '_ {
        let runs = self.runs.iter().map(|(_, run)| *run);
        runs.filter(move |run| {
            let status = run.status.as_ref();
            let is_state = status.and_then(|status| status.job_status) == Some(state);
            is_state && !owner::is_terminating(&run.metadata)
        })
    }
}

fn has_ended(run: &DaskJob) -> bool {
    let status = run.status.as_ref();
    let state = status.and_then(|status| status.job_status);
    state.is_some_and(JobState::is_final)
}

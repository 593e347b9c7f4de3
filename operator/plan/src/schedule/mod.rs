//! The plan for a `DaskJob` with a `schedule`: a job of its own for each run.
//!
//! Owns when a run starts, which runs are deleted, and the status of the schedule. It makes no
//! cluster and no runner; its runs do.
//!
//! Invariants: a time of the schedule has at most one run, because the run's name is the time; after
//! a pause of whatever length at most one run starts; a clock that goes back starts nothing; runs of
//! others are never touched.

mod calendar;
mod cron;
mod runs;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_operator_api::ConcurrencyPolicy;
use oxidask_operator_api::kubernetes::{DaskJob, JobState, JobStatus};

use crate::job::Observed;
use crate::status::{COMPLETE, Conditions, FAILED, RECONCILING, STALLED, SUSPENDED, cut};
use crate::{
    Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, PlannedEvent, Timestamp, build,
    hash, names,
};
use calendar::Calendar;
use runs::Runs;

pub use runs::run_name;

/// Clocks jump: a schedule looks at its clock at least this often.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// Time after which a run that was refused is worth another try.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);

/// Runs that a status names.
const ACTIVE_MAX: usize = 100;

/// Bytes of a refusal in a message.
const REFUSAL_BYTES_MAX: usize = 512;

/// What has to be done for the schedule.
pub(crate) fn plan(job: &DaskJob, observed: &Observed, now: Timestamp) -> Plan<JobStatus> {
    let mut plan = Plan::default();
    let before = job.status.clone().unwrap_or_default();
    let mut schedule = Schedule {
        job,
        name: job.metadata.name.as_deref().unwrap_or_default(),
        observed,
        now,
        status: before,
        runs: Runs::of(job, &observed.runs),
    };
    schedule.run(&mut plan);
    plan
}

/// One planning of a schedule.
struct Schedule<'a> {
    job: &'a DaskJob,
    name: &'a str,
    observed: &'a Observed,
    now: Timestamp,
    status: JobStatus,
    runs: Runs<'a>,
}

/// What is due.
enum Due {
    /// Nothing before the next time.
    Nothing,
    /// The run of this time.
    Run(Timestamp),
    /// The run of this time waits for an earlier one.
    Waits(Timestamp),
    /// The run of this time is too late.
    TooLate(Timestamp),
}

impl Schedule<'_> {
    fn run(&mut self, plan: &mut Plan<JobStatus>) {
        self.status.job_status.get_or_insert(JobState::JobCreated);
        self.runs.report(&mut self.status, ACTIVE_MAX);
        plan.delete.extend(self.runs.surplus(&self.job.spec));
        match self.check() {
            Ok(calendar) => self.follow(&calendar, plan),
            Err(error) => self.report(plan, "", Some(&error)),
        }
    }

    fn check(&self) -> Result<Calendar, PlanError> {
        names::check_schedule(self.name)?;
        let spec = &self.job.spec;
        crate::job::check_work(spec)?;
        let line = spec.schedule.as_deref().unwrap_or_default();
        Calendar::new(line, spec.time_zone.as_deref())
    }

    fn follow(&mut self, calendar: &Calendar, plan: &mut Plan<JobStatus>) {
        let was_suspended = self.was_suspended();
        if self.job.spec.suspend == Some(true) {
            if !was_suspended {
                let note = "no run starts until the schedule is resumed";
                plan.events
                    .push(PlannedEvent::normal("Suspended", "Wait", note));
            }
            self.report(plan, "the schedule is suspended", None);
            return;
        }
        if was_suspended {
            // What came due meanwhile was not wanted.
            let last = calendar.last(self.since(), self.now);
            if let Some(last) = last {
                self.status.last_schedule_time = Some(Time(last));
            }
            let note = "the next run starts at its time";
            plan.events
                .push(PlannedEvent::normal("Resumed", "Wait", note));
        }
        let mut parts = Vec::new();
        match self.due(calendar) {
            Due::Nothing => {}
            Due::Run(time) => self.start(time, plan),
            Due::Waits(time) => {
                self.wake_at_deadline(time, plan);
                parts.push(format!("the run of {time} waits for an earlier one"));
            }
            Due::TooLate(time) => {
                self.status.last_schedule_time = Some(Time(time));
                let note = format!("the run of {time} could not start before its deadline");
                plan.events
                    .push(PlannedEvent::warning("RunMissed", "Skip", &note));
            }
        }
        if let Some(refusal) = self.observed.refusals.first() {
            wake(plan, REFUSED_AGAIN);
            let text = cut(&refusal.message, REFUSAL_BYTES_MAX);
            parts.push(format!("{} was refused: {text}", refusal.object));
        }
        self.announce(calendar, parts, plan);
    }

    /// Says when the next run is due.
    fn announce(
        &mut self,
        calendar: &Calendar,
        mut parts: Vec<String>,
        plan: &mut Plan<JobStatus>,
    ) {
        let Some(next) = calendar.next(self.now) else {
            let error = PlanError::Schedule {
                field: "schedule",
                problem: "names a day that never comes".to_owned(),
            };
            self.report(plan, "", Some(&error));
            return;
        };
        let wait = Duration::try_from(next.duration_since(self.now)).unwrap_or_default();
        wake(plan, wait.min(LOOK_AGAIN));
        parts.push(format!("the next run is due at {next}"));
        self.report(plan, &parts.join("; "), None);
    }

    /// The time up to which all is done.
    fn since(&self) -> Timestamp {
        let created = self.job.metadata.creation_timestamp.as_ref();
        let last = self.status.last_schedule_time.as_ref();
        let since = last.max(created).map_or(self.now, |time| time.0);
        // A run that is there was started, whatever the status says yet.
        self.runs.newest().map_or(since, |newest| newest.max(since))
    }

    fn due(&mut self, calendar: &Calendar) -> Due {
        if let Some(newest) = self.runs.newest() {
            let last = self.status.last_schedule_time.as_ref();
            if last.is_none_or(|last| last.0 < newest) {
                self.status.last_schedule_time = Some(Time(newest));
            }
        }
        let Some(time) = calendar.last(self.since(), self.now) else {
            return Due::Nothing;
        };
        let late = Duration::try_from(self.now.duration_since(time)).unwrap_or_default();
        let deadline = self.job.spec.starting_deadline_seconds;
        if deadline.is_some_and(|deadline| late.as_secs() > deadline) {
            return Due::TooLate(time);
        }
        let policy = self.job.spec.concurrency_policy.unwrap_or_default();
        if policy == ConcurrencyPolicy::Forbid && self.runs.has_active() {
            return Due::Waits(time);
        }
        Due::Run(time)
    }

    /// Starts the run. That it was started is remembered once it is there, so that nothing is lost if
    /// it cannot be made.
    fn start(&self, time: Timestamp, plan: &mut Plan<JobStatus>) {
        let policy = self.job.spec.concurrency_policy.unwrap_or_default();
        if policy == ConcurrencyPolicy::Replace {
            let active = self.runs.active();
            plan.delete.extend(active.map(|run| {
                Deletion::new(ObjectKind::Job, &run.metadata, DeletionReason::Replaced)
            }));
        }
        let name = run_name(self.name, time);
        let run = build::run::run(self.job, &name, time);
        let run = Object::Job(Box::new(run));
        plan.apply.extend(hash::unless_applied(run, None));
        let note = format!("the run `{name}` is started");
        plan.events
            .push(PlannedEvent::normal("RunStarted", "Apply", &note));
    }

    fn wake_at_deadline(&self, time: Timestamp, plan: &mut Plan<JobStatus>) {
        let Some(deadline) = self.job.spec.starting_deadline_seconds else {
            return;
        };
        let late = Duration::try_from(self.now.duration_since(time)).unwrap_or_default();
        let left = Duration::from_secs(deadline.saturating_add(1)).saturating_sub(late);
        wake(plan, left.min(LOOK_AGAIN));
    }

    fn was_suspended(&self) -> bool {
        let conditions = self.job.status.iter().flat_map(|status| &status.conditions);
        let mut conditions = conditions.into_iter();
        conditions.any(|condition| condition.type_ == SUSPENDED && condition.status == "True")
    }

    fn report(&mut self, plan: &mut Plan<JobStatus>, message: &str, error: Option<&PlanError>) {
        let generation = self.job.metadata.generation;
        let before = self.job.status.as_ref();
        let before = before.map(|status| status.conditions.as_slice());
        let mut conditions = Conditions::new(before.unwrap_or_default(), generation, self.now);
        let is_suspended = self.job.spec.suspend == Some(true);
        let reason = match (error, is_suspended) {
            (Some(_), _) => STALLED,
            (None, true) => "Suspended",
            (None, false) => "Scheduled",
        };
        let message = if error.is_some() {
            "only a new spec helps"
        } else {
            message
        };
        conditions.set(COMPLETE, false, "NotFinished", "");
        conditions.set(FAILED, false, "NotFinished", "");
        conditions.set(SUSPENDED, is_suspended, reason, "");
        conditions.set(RECONCILING, false, reason, message);
        plan.events.extend(conditions.set_stalled(error));
        self.status.conditions = conditions.into_desired();
        self.status.observed_generation = generation;
        let is_new = self.job.status.as_ref() != Some(&self.status);
        plan.status = is_new.then(|| self.status.clone());
    }
}

/// Plans again no later than this.
pub(crate) fn wake<S>(plan: &mut Plan<S>, after: Duration) {
    plan.wake(after.max(Duration::from_secs(1)));
}

//! A job on its way from its first sight to its end.
//!
//! Owns the order: work, runner, cluster; what becomes of each state of the runner; attempts,
//! suspension and the deadline.

use std::cmp::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_diagnostic::Code;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, JobState, JobStatus, Phase};

use super::memory::{Memory, backoff};
use super::report::{self, Progress, Said};
use super::{DEADLINE_GRACE, Observed, active, end, start, wake, work};
use crate::runner::{Failure, Runner, State};
use crate::status::{READY, STALLED};
use crate::{
    Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, PlannedEvent, Settings,
    Timestamp, build, hash, names, owner, pods,
};

/// A running job looks at the clock at least this often: clocks jump.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// What has to be done for a job that has not ended.
pub(super) fn plan(
    job: &DaskJob,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<JobStatus> {
    let mut plan = Plan::default();
    let pod = observed.runner.as_ref();
    let pod = pod.filter(|pod| owner::owns(&job.metadata, &pod.metadata));
    let runner = Runner::of(pod, now);
    let mut step = Step {
        job,
        name: job.metadata.name.as_deref().unwrap_or_default(),
        observed,
        settings,
        now,
        status: job.status.clone().unwrap_or_default(),
        memory: Memory::of(job, runner.count),
        pod,
        runner,
    };
    step.run(&mut plan);
    plan
}

/// One planning.
struct Step<'a> {
    job: &'a DaskJob,
    name: &'a str,
    observed: &'a Observed,
    settings: &'a Settings,
    now: Timestamp,
    status: JobStatus,
    memory: Memory,
    /// The runner's pod, if it is ours.
    pod: Option<&'a Pod>,
    runner: Runner,
}

/// Whether the cluster is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Make it if it is missing.
    Yes,
    /// Not before there is a runner.
    NotYet,
}

impl Step<'_> {
    fn run(&mut self, plan: &mut Plan<JobStatus>) {
        let is_suspended = self.job.spec.suspend == Some(true);
        if !is_suspended {
            active::resume(&mut self.status, self.now);
        }
        if let Some(started) = self.runner.started {
            self.status.start_time.get_or_insert(Time(started));
        }
        // Whatever became of the spec meanwhile, work that has ended has ended.
        if self.has_ended(plan) {
            return;
        }
        let checked = self.check();
        if checked.is_ok() && is_suspended {
            self.suspend(plan);
            return;
        }
        if self.has_passed_deadline(is_suspended, plan) {
            return;
        }
        match checked.and_then(|()| self.advance(plan)) {
            Ok(progress) => {
                let refusals = &self.observed.refusals;
                let progress = start::with_refusals(self.job, refusals, progress, plan);
                self.report(&Said::Progress(&progress), plan);
            }
            Err(error) => self.report(&Said::Stalled(&error), plan),
        }
    }

    /// Faults that no cluster helps.
    fn check(&self) -> Result<(), PlanError> {
        names::check("job", self.name)?;
        if self.job.spec.schedule.is_some() {
            return Err(PlanError::NotOperated {
                what: "a schedule for a job that has started without one",
                instead: "make a new job with the schedule",
            });
        }
        work::check_work(&self.job.spec)?;
        let observed = self.observed;
        let cluster = observed.cluster.as_ref().map(|object| &object.metadata);
        let work = observed.work.as_ref().map(|object| &object.metadata);
        let work = work.filter(|_| self.job.spec.job.is_none());
        let runner = observed.runner.as_ref().map(|object| &object.metadata);
        let present = [
            (ObjectKind::Cluster, cluster),
            (ObjectKind::ConfigMap, work),
            (ObjectKind::Pod, runner),
        ];
        let mut present = present.into_iter();
        present.try_for_each(|(kind, metadata)| {
            owner::refuse_foreign(&self.job.metadata, kind, metadata)
        })
    }

    /// Ends the job if its work has ended for good.
    fn has_ended(&mut self, plan: &mut Plan<JobStatus>) -> bool {
        let finished = self.runner.finished.unwrap_or(self.now);
        match self.runner.state.clone() {
            State::Succeeded => {
                let said = ("Complete", "the work is done");
                self.end(JobState::Successful, finished, said, plan);
                true
            }
            State::Failed(failure) if self.memory.is_current() => {
                self.attempt_failed(&failure, finished, plan)
            }
            State::Absent | State::Lost if self.memory.has_lost_too_many() => {
                let lost = self.memory.next().lost;
                let message = format!("the runner was lost {lost} times");
                let reason = Code::RunnerLost.to_string();
                self.end(JobState::Failed, finished, (&reason, &message), plan);
                true
            }
            _ => false,
        }
    }

    /// The work failed: the job ends, or the work is tried again after a pause.
    fn attempt_failed(
        &mut self,
        failure: &Failure,
        finished: Timestamp,
        plan: &mut Plan<JobStatus>,
    ) -> bool {
        let deadline = self.job.spec.active_deadline_seconds;
        let (reason, mut message) = failure.explain(deadline);
        if failure.has_passed_deadline() {
            message.push_str(&self.cluster_health());
        }
        let attempt = self.memory.count.attempt;
        let retries = self.job.spec.backoff_limit.unwrap_or(0);
        let is_too_late = failure.has_passed_deadline() && deadline.is_some();
        if attempt > retries || is_too_late {
            let message = match attempt {
                0 | 1 => message,
                _ => format!("attempt {attempt} of {attempt}: {message}"),
            };
            self.end(JobState::Failed, finished, (&reason, &message), plan);
            return true;
        }
        let pause = backoff(attempt);
        // A time far off in a pod's status must not hold the job up.
        let from = finished.min(self.now);
        let next = from.checked_add(pause).unwrap_or(self.now);
        self.memory.end_current();
        self.memory.next_attempt = Some(next);
        let note = format!(
            "attempt {attempt} of {} failed and is made again after {} seconds: {reason}: {message}",
            retries.saturating_add(1),
            pause.as_secs()
        );
        plan.events
            .push(PlannedEvent::warning("AttemptFailed", "Retry", &note));
        false
    }

    /// Ends the job if it has been active for too long.
    fn has_passed_deadline(&mut self, is_suspended: bool, plan: &mut Plan<JobStatus>) -> bool {
        let Some(seconds) = self.job.spec.active_deadline_seconds else {
            return false;
        };
        if is_suspended {
            return false;
        }
        let deadline = Duration::from_secs(seconds);
        let active = active::active(&self.status, self.now);
        if active < deadline {
            wake(plan, deadline.saturating_sub(active).min(LOOK_AGAIN));
            return false;
        }
        let late = active.saturating_sub(deadline);
        if self.runner.state == State::Running && late < DEADLINE_GRACE {
            wake(plan, DEADLINE_GRACE.saturating_sub(late));
            return false;
        }
        let mut message = format!("the job took longer than its deadline of {seconds} seconds");
        if let Some(trouble) = self.pod.and_then(pods::trouble) {
            message = format!("{message}; {}", trouble.line());
        } else if let Some(refusal) = self.observed.refusals.first() {
            message = format!(
                "{message}; {} was refused: {}",
                refusal.object, refusal.message
            );
        }
        self.end(
            JobState::Failed,
            self.now,
            ("DeadlineExceeded", &message),
            plan,
        );
        true
    }

    /// What kept the cluster from being ready, if it was not.
    fn cluster_health(&self) -> String {
        let cluster = self.observed.cluster.as_ref();
        cluster.map(health).unwrap_or_default()
    }

    /// Removes the pods. The cluster and the runner are made afresh when the job goes on.
    fn suspend(&mut self, plan: &mut Plan<JobStatus>) {
        active::pause(&mut self.status, self.now);
        self.memory.end_current();
        self.reach(JobState::JobCreated, plan);
        if !report::was_suspended(self.job) {
            let note = "the job is suspended; its pods are removed";
            plan.events
                .push(PlannedEvent::normal("Suspended", "Delete", note));
        }
        self.report(&Said::Suspended, plan);
        self.delete_runner(DeletionReason::Suspended, plan);
        let cluster = self
            .observed
            .cluster
            .as_ref()
            .map(|cluster| &cluster.metadata);
        let cluster = cluster.filter(|metadata| !owner::is_terminating(metadata));
        plan.delete.extend(cluster.map(|metadata| {
            Deletion::new(ObjectKind::Cluster, metadata, DeletionReason::Suspended)
        }));
    }

    fn delete_runner(&self, reason: DeletionReason, plan: &mut Plan<JobStatus>) {
        let pod = self.pod.filter(|pod| !pods::is_terminating(pod));
        let pod = pod.map(|pod| Deletion::new(ObjectKind::Pod, &pod.metadata, reason));
        plan.delete.extend(pod);
    }

    /// Makes what is missing, and says where the job is.
    fn advance(&mut self, plan: &mut Plan<JobStatus>) -> Result<Progress, PlanError> {
        if report::was_suspended(self.job) {
            let note = "the job goes on, with a new runner and a new cluster";
            plan.events
                .push(PlannedEvent::normal("Resumed", "Apply", note));
        }
        if self.job.spec.job.is_none() {
            let work = build::work::config_map(self.job, self.name)?;
            let work = Object::ConfigMap(Box::new(work));
            let metadata = self.observed.work.as_ref().map(|work| &work.metadata);
            plan.apply.extend(hash::unless_applied(work, metadata));
        }
        self.reach(JobState::JobCreated, plan);
        self.status.cluster_name = Some(self.name.to_owned());
        self.status.job_runner_pod_name = Some(names::runner(self.name));
        let cluster = self.observed.cluster.as_ref();
        if let Some(cluster) = cluster.filter(|cluster| owner::is_terminating(&cluster.metadata)) {
            let message = format!("the cluster is being deleted{}", health(cluster));
            return Ok(Progress::new("ClusterDeleted", &message));
        }
        let (wanted, progress) = self.attend(cluster, plan)?;
        let Some(cluster) = cluster else {
            if wanted == Wanted::Yes {
                plan.events.extend(self.cluster_gone());
                self.reach(JobState::ClusterCreated, plan);
                self.apply_cluster(None, plan);
            }
            return Ok(progress);
        };
        self.apply_cluster(Some(cluster), plan);
        self.reach(JobState::ClusterCreated, plan);
        if self.runner.state == State::Running {
            self.reach(JobState::Running, plan);
        }
        stalled_cluster(cluster)?;
        Ok(Progress {
            message: format!("{}{}", progress.message, health(cluster)),
            ..progress
        })
    }

    fn apply_cluster(&self, present: Option<&DaskCluster>, plan: &mut Plan<JobStatus>) {
        let wanted = build::cluster::cluster(self.job, self.name);
        let wanted = Object::Cluster(Box::new(wanted));
        let metadata = present.map(|cluster| &cluster.metadata);
        plan.apply.extend(hash::unless_applied(wanted, metadata));
    }

    /// What becomes of the runner, and whether the cluster may be made.
    fn attend(
        &mut self,
        cluster: Option<&DaskCluster>,
        plan: &mut Plan<JobStatus>,
    ) -> Result<(Wanted, Progress), PlanError> {
        let state = &self.runner.state;
        if *state == State::Leaving {
            return Ok((Wanted::NotYet, self.leaving(plan)));
        }
        if let Some((next, wait)) = self.memory.pause(self.now) {
            wake(plan, wait);
            let attempt = self.memory.count.attempt;
            let message = format!("attempt {attempt} failed; the next one starts at {next}");
            return Ok((Wanted::NotYet, Progress::new("AttemptFailed", &message)));
        }
        Ok(match state {
            State::Absent => {
                self.make_runner(plan)?;
                let progress = Progress::new("RunnerMissing", "the runner is being made");
                (Wanted::NotYet, progress)
            }
            State::Lost if self.memory.is_current() => {
                self.delete_runner(DeletionReason::RunnerLost, plan);
                (Wanted::NotYet, self.lost(plan))
            }
            // The pod of an earlier attempt, or of the time before a suspension.
            _ if !self.memory.is_current() => {
                let reason = if self.memory.next_attempt.is_some() {
                    DeletionReason::AttemptFailed
                } else {
                    DeletionReason::Suspended
                };
                self.delete_runner(reason, plan);
                let message = "the runner of the attempt before is being removed";
                (Wanted::NotYet, Progress::new("RunnerMissing", message))
            }
            State::Running => {
                let progress = match cluster {
                    Some(_) => Progress::new("Running", "the work is running"),
                    None => Progress::new("ClusterMissing", "the cluster is being made"),
                };
                let progress = match self.pod {
                    Some(pod) => start::with_pod_trouble(self.job, pod, progress, plan),
                    None => progress,
                };
                (Wanted::Yes, progress)
            }
            _ => {
                let has_certificates = cluster.is_some_and(has_parts);
                let (job, observed) = (self.job, self.observed);
                let progress = start::await_start(job, observed, has_certificates, self.now, plan);
                (Wanted::Yes, progress)
            }
        })
    }

    /// Says why the runner's pod has ended, once.
    fn lost(&self, plan: &mut Plan<JobStatus>) -> Progress {
        let why = self.pod.and_then(pods::end_words).unwrap_or_default();
        let message = format!("the runner's pod was ended from outside{why}");
        if !report::told(self.job, &message) {
            let event = PlannedEvent::warning("RunnerEnded", "Delete", &message);
            plan.events.push(event);
        }
        Progress::new("RunnerLost", &message)
    }

    fn make_runner(&self, plan: &mut Plan<JobStatus>) -> Result<(), PlanError> {
        let next = self.memory.next();
        let deadline = self.job.spec.active_deadline_seconds.map(|seconds| {
            let active = active::active(&self.status, self.now).as_secs();
            seconds.saturating_sub(active).max(1)
        });
        let pod = if self.job.spec.job.is_some() {
            build::driver::pod(self.job, self.name, next, deadline, self.settings)?
        } else {
            build::runner::pod(self.job, self.name, next, deadline, self.settings)?
        };
        if next.lost > self.memory.count.lost {
            let most = super::LOST_RUNNERS_MAX;
            let note = format!(
                "the runner was lost and is made again: {} of {most} times",
                next.lost
            );
            plan.events
                .push(PlannedEvent::warning("RunnerLost", "Apply", &note));
        }
        plan.apply
            .extend(hash::unless_applied(Object::Pod(Box::new(pod)), None));
        Ok(())
    }

    /// A pod on a node that does not answer stays until the node is back or gone.
    fn leaving(&self, plan: &mut Plan<JobStatus>) -> Progress {
        let progress = Progress::new("RunnerLost", "the runner's pod is going away");
        let deleted = self
            .pod
            .and_then(|pod| pod.metadata.deletion_timestamp.as_ref());
        let late = deleted.map(|deleted| self.now.duration_since(deleted.0));
        let late = late.and_then(|late| Duration::try_from(late).ok());
        if late.unwrap_or_default() < DEADLINE_GRACE {
            wake(plan, DEADLINE_GRACE);
            return progress;
        }
        let spec = self.pod.and_then(|pod| pod.spec.as_ref());
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        let node = node.unwrap_or("its node");
        progress.with_trouble(format!(
            "it should be gone by now: does node `{node}` answer? If it is lost, delete the node"
        ))
    }

    /// Goes forward to the state, with an event; never back.
    fn reach(&mut self, state: JobState, plan: &mut Plan<JobStatus>) {
        let is_further = match self.status.job_status {
            Some(before) => rank(before).cmp(&rank(state)) == Ordering::Less,
            None => true,
        };
        if !is_further {
            return;
        }
        self.status.job_status = Some(state);
        let (reason, note) = match state {
            JobState::JobCreated => ("JobCreated", "A DaskJob has been created"),
            JobState::ClusterCreated => ("ClusterCreated", "the cluster is made"),
            JobState::Running => ("Running", "the runner runs the work"),
            JobState::Successful | JobState::Failed => return,
        };
        plan.events
            .push(PlannedEvent::normal(reason, "Reconcile", note));
    }

    fn cluster_gone(&self) -> Option<PlannedEvent> {
        let state = self.status.job_status?;
        let note = "the cluster was deleted while the job was running, and is made again; results \
                    that it held are lost";
        let was_there = rank(state) >= rank(JobState::Running);
        // After a suspension a new one is what was announced.
        let is_expected =
            self.memory.count.start == self.memory.ended.saturating_add(1) && self.memory.ended > 0;
        (was_there && !is_expected).then(|| PlannedEvent::warning("ClusterDeleted", "Apply", note))
    }

    fn end(
        &mut self,
        state: JobState,
        end_time: Timestamp,
        (reason, message): (&str, &str),
        plan: &mut Plan<JobStatus>,
    ) {
        let status = &mut self.status;
        status
            .cluster_name
            .get_or_insert_with(|| self.name.to_owned());
        status
            .job_runner_pod_name
            .get_or_insert_with(|| names::runner(self.name));
        active::pause(status, self.now);
        self.memory.next_attempt = None;
        self.status = end::status(std::mem::take(status), state, end_time);
        self.report(&Said::Ended(state, reason, message), plan);
        plan.events
            .push(end::event(self.job, state, reason, message));
        end::clean(self.job, state, self.observed, plan);
        if let Some(seconds) = self.job.spec.ttl_seconds_after_finished {
            wake(plan, Duration::from_secs(seconds).min(LOOK_AGAIN));
        }
    }

    fn report(&mut self, said: &Said<'_>, plan: &mut Plan<JobStatus>) {
        let mut status = std::mem::take(&mut self.status);
        self.memory.record(&mut status);
        let start = self.memory.count.start;
        report::report(self.job, status, start, said, self.now, plan);
    }
}

fn rank(state: JobState) -> u8 {
    match state {
        JobState::JobCreated => 0,
        JobState::ClusterCreated => 1,
        JobState::Running => 2,
        JobState::Successful | JobState::Failed => 3,
    }
}

/// Whether the cluster's Secrets and its Service are there, without which a runner only waits.
fn has_parts(cluster: &DaskCluster) -> bool {
    let phase = cluster.status.as_ref().and_then(|status| status.phase);
    matches!(phase, Some(Phase::Pending | Phase::Running))
}

/// What keeps the cluster from being ready, for the job's own message.
fn health(cluster: &DaskCluster) -> String {
    let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.into_iter();
    let ready = conditions.find(|condition| condition.type_ == READY);
    match ready.filter(|ready| ready.status != "True") {
        Some(ready) => format!("; the cluster: {}", ready.message),
        None => String::new(),
    }
}

fn stalled_cluster(cluster: &DaskCluster) -> Result<(), PlanError> {
    let conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    let mut conditions = conditions.into_iter();
    let stalled =
        conditions.find(|condition| condition.type_ == STALLED && condition.status == "True");
    match stalled {
        Some(stalled) => Err(PlanError::ClusterStalled {
            code: stalled.reason.parse().unwrap_or(Code::NotOperated),
            message: stalled.message.clone(),
        }),
        None => Ok(()),
    }
}

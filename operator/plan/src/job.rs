//! The plan for a `DaskJob`: its cluster, its work, its runner, and its end.
//!
//! Owns the job's states. They only go forward. Invariant: the final status is written before the
//! cluster is deleted, so a crash in between loses nothing: the next plan deletes the cluster. The
//! job and its runner stay.

use std::cmp::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use oxidask_diagnostic::Code;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskJob, JobState, JobStatus, Phase};
use oxidask_operator_api::{JobSpec, KeyReference, Runtime};

use crate::build::{self, labels};
use crate::runner::{Runner, State};
use crate::status::{COMPLETE, Conditions, FAILED, READY, RECONCILING, STALLED, joined};
use crate::{
    Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, PlannedEvent, Settings,
    Timestamp, cluster, hash, names, owner, pods,
};

/// Pods that a job's runner may have: the first one, and three more if pods are lost.
pub const RUNNER_STARTS_MAX: u32 = 4;

/// Time that a runner's pod may take before the job says that it takes long.
const SLOW_START: Duration = Duration::from_secs(30);

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The `DaskCluster` of the job's name, whoever owns it.
    pub cluster: Option<DaskCluster>,
    /// The Pod `{job}-runner`, whoever owns it.
    pub runner: Option<Pod>,
    /// The `ConfigMap` `{job}-work`, whoever owns it.
    pub work: Option<ConfigMap>,
}

/// What has to be done for the job.
pub fn plan(
    job: &DaskJob,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<JobStatus> {
    let mut plan = Plan::default();
    if owner::is_terminating(&job.metadata) {
        return plan;
    }
    let before = job.status.clone().unwrap_or_default();
    if before.job_status.is_some_and(JobState::is_final) {
        plan.delete.extend(cluster_deletion(job, observed));
        return plan;
    }
    let mut step = Step {
        job,
        name: job.metadata.name.as_deref().unwrap_or_default(),
        observed,
        settings,
        now,
        status: before,
    };
    step.run(&mut plan);
    plan
}

/// One planning of a job that has not ended.
struct Step<'a> {
    job: &'a DaskJob,
    name: &'a str,
    observed: &'a Observed,
    settings: &'a Settings,
    now: Timestamp,
    status: JobStatus,
}

/// Where a job is that has not ended, for `Reconciling`.
struct Progress {
    reason: &'static str,
    message: String,
}

impl Progress {
    fn new(reason: &'static str, message: &str) -> Self {
        let message = message.to_owned();
        Self { reason, message }
    }
}

impl Step<'_> {
    fn run(&mut self, plan: &mut Plan<JobStatus>) {
        let owner = &self.job.metadata;
        let pod = self
            .observed
            .runner
            .as_ref()
            .filter(|pod| owner::owns(owner, &pod.metadata));
        let runner = Runner::of(pod, self.now);
        let starts = self
            .status
            .runner_starts
            .unwrap_or_default()
            .max(runner.start);
        self.status.runner_starts = Some(starts).filter(|starts| *starts > 0);
        if let Some(started) = runner.started {
            self.status.start_time.get_or_insert(Time(started));
        }
        let end_time = Time(runner.finished.unwrap_or(self.now));
        match &runner.state {
            State::Succeeded => {
                self.end(
                    JobState::Successful,
                    end_time,
                    ("Complete", "the work is done"),
                    plan,
                );
            }
            State::Failed(failure) => {
                let deadline = self.job.spec.active_deadline_seconds;
                let (reason, message) = failure.explain(deadline);
                self.end(JobState::Failed, end_time, (&reason, &message), plan);
            }
            State::Absent if starts >= RUNNER_STARTS_MAX => {
                let message = format!("the runner was lost {starts} times");
                let reason = Code::RunnerLost.to_string();
                self.end(JobState::Failed, end_time, (&reason, &message), plan);
            }
            // Whatever became of the spec meanwhile, work that has ended has ended.
            state => match self
                .check()
                .and_then(|()| self.advance(state, starts, plan))
            {
                Ok(progress) => self.progress(&progress, plan),
                Err(error) => self.stall(&error, plan),
            },
        }
    }

    /// Faults that no cluster helps.
    fn check(&self) -> Result<(), PlanError> {
        names::check("job", self.name)?;
        check_work(&self.job.spec)?;
        let observed = self.observed;
        let present = [
            (
                ObjectKind::Cluster,
                observed.cluster.as_ref().map(|object| &object.metadata),
            ),
            (
                ObjectKind::ConfigMap,
                observed.work.as_ref().map(|object| &object.metadata),
            ),
            (
                ObjectKind::Pod,
                observed.runner.as_ref().map(|object| &object.metadata),
            ),
        ];
        let mut present = present.into_iter();
        present.try_for_each(|(kind, metadata)| {
            owner::refuse_foreign(&self.job.metadata, kind, metadata)
        })
    }

    /// Makes what is missing, and says where the job is.
    fn advance(
        &mut self,
        runner: &State,
        starts: u32,
        plan: &mut Plan<JobStatus>,
    ) -> Result<Progress, PlanError> {
        let cluster = self.observed.cluster.as_ref();
        let is_suspended = self.job.spec.suspend == Some(true);
        if is_suspended && cluster.is_none() && *runner == State::Absent && starts == 0 {
            self.reach(JobState::JobCreated, plan);
            return Ok(Progress::new("Suspended", "the job is suspended"));
        }
        let work = build::work::config_map(self.job, self.name)?;
        let pod = build::runner::pod(self.job, self.name, starts + 1, self.settings)?;
        self.status.cluster_name = Some(self.name.to_owned());
        self.status.job_runner_pod_name = Some(names::runner(self.name));
        let work = Object::ConfigMap(Box::new(work));
        let metadata = self.observed.work.as_ref().map(|work| &work.metadata);
        plan.apply.extend(hash::unless_applied(work, metadata));
        if let Some(cluster) = cluster.filter(|cluster| owner::is_terminating(&cluster.metadata)) {
            let message = format!("the cluster is being deleted{}", health(cluster));
            return Ok(Progress::new("ClusterDeleted", &message));
        }
        let wanted = Object::Cluster(Box::new(build::cluster::cluster(self.job, self.name)));
        plan.apply.extend(hash::unless_applied(
            wanted,
            cluster.map(|cluster| &cluster.metadata),
        ));
        let Some(cluster) = cluster else {
            plan.events.extend(self.cluster_gone());
            self.reach(JobState::JobCreated, plan);
            return Ok(Progress::new("ClusterMissing", "the cluster is being made"));
        };
        self.reach(JobState::ClusterCreated, plan);
        stalled_cluster(cluster)?;
        let progress = self.attend(runner, cluster, pod, plan);
        Ok(Progress {
            message: format!("{}{}", progress.message, health(cluster)),
            ..progress
        })
    }

    /// What becomes of the runner.
    fn attend(
        &mut self,
        runner: &State,
        cluster: &DaskCluster,
        pod: Pod,
        plan: &mut Plan<JobStatus>,
    ) -> Progress {
        match runner {
            State::Absent if !has_parts(cluster) => {
                Progress::new("ClusterStarting", "the cluster is being set up")
            }
            State::Absent => {
                let start =
                    labels::annotation(pod.metadata.annotations.as_ref(), labels::RUNNER_START);
                if let Some(start) = start.filter(|start| *start != "1") {
                    let note = format!(
                        "the runner was lost and is made again: pod {start} of {RUNNER_STARTS_MAX}"
                    );
                    plan.events
                        .push(PlannedEvent::warning("RunnerLost", "Apply", &note));
                }
                plan.apply
                    .extend(hash::unless_applied(Object::Pod(Box::new(pod)), None));
                Progress::new("RunnerMissing", "the runner is being made")
            }
            State::Leaving => Progress::new("RunnerLost", "the runner's pod is going away"),
            State::Lost => {
                let lost = self.observed.runner.iter().map(|pod| &pod.metadata);
                let reason = DeletionReason::RunnerLost;
                plan.delete
                    .extend(lost.map(|pod| Deletion::new(ObjectKind::Pod, pod, reason)));
                Progress::new("RunnerLost", "the runner's pod was ended from outside")
            }
            State::Running => {
                self.reach(JobState::Running, plan);
                Progress::new("Running", "the work is running")
            }
            State::Starting | State::Succeeded | State::Failed(_) => self.await_start(plan),
        }
    }

    /// The runner's pod is there, its program does not run yet.
    fn await_start(&self, plan: &mut Plan<JobStatus>) -> Progress {
        let troubles = pods::troubles(&self.observed.runner);
        let before = self
            .job
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice());
        let conditions = Conditions::new(before.unwrap_or_default(), None, self.now);
        plan.events
            .extend(pods::new_trouble(&troubles, &conditions, RECONCILING));
        let slow = if troubles.is_empty() {
            self.slow_start(plan)
        } else {
            None
        };
        let text = Some("the runner is starting".to_owned());
        Progress::new(
            "RunnerStarting",
            &joined(&[text, pods::summary(&troubles), slow]),
        )
    }

    /// Kubernetes says in a pod's status nothing about volumes that it cannot mount.
    fn slow_start(&self, plan: &mut Plan<JobStatus>) -> Option<String> {
        let created = self
            .observed
            .runner
            .as_ref()?
            .metadata
            .creation_timestamp
            .as_ref()?;
        let age = Duration::try_from(self.now.duration_since(created.0)).unwrap_or_default();
        if age < SLOW_START {
            plan.wake_after = Some(SLOW_START.saturating_sub(age));
            return None;
        }
        let text = format!(
            "its pod has not started within {} seconds",
            SLOW_START.as_secs()
        );
        Some(match build::work::reference(&self.job.spec) {
            Some(KeyReference { name, key }) => {
                format!("{text}: is there a ConfigMap `{name}` with the key `{key}`?")
            }
            None => text,
        })
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
        let event = match state {
            JobState::ClusterCreated => Some(("ClusterCreated", "the cluster is there")),
            JobState::Running => Some(("Running", "the runner runs the work")),
            _ => None,
        };
        plan.events
            .extend(event.map(|(reason, note)| PlannedEvent::normal(reason, "Reconcile", note)));
    }

    fn cluster_gone(&self) -> Option<PlannedEvent> {
        let state = self.status.job_status?;
        let note = "the cluster was deleted while the job was running, and is made again; results \
                    that it held are lost";
        (rank(state) >= rank(JobState::ClusterCreated))
            .then(|| PlannedEvent::warning("ClusterDeleted", "Apply", note))
    }

    fn end(
        &mut self,
        state: JobState,
        end_time: Time,
        (reason, message): (&str, &str),
        plan: &mut Plan<JobStatus>,
    ) {
        self.status.job_status = Some(state);
        self.status
            .cluster_name
            .get_or_insert_with(|| self.name.to_owned());
        self.status
            .job_runner_pod_name
            .get_or_insert_with(|| names::runner(self.name));
        self.status.end_time = Some(end_time);
        let is_done = state == JobState::Successful;
        self.report(plan, |conditions| {
            let other = if is_done { "Complete" } else { "Failed" };
            let said = |is_true: bool| {
                if is_true {
                    (reason, message)
                } else {
                    (other, "")
                }
            };
            let (why, text) = said(is_done);
            conditions.set(COMPLETE, is_done, why, text);
            let (why, text) = said(!is_done);
            conditions.set(FAILED, !is_done, why, text);
            conditions.set(RECONCILING, false, other, "the job has ended");
            conditions.set_stalled(None)
        });
        let event = match state {
            JobState::Successful => PlannedEvent::normal("Successful", "Finish", message),
            _ => PlannedEvent::warning("Failed", "Finish", &format!("{reason}: {message}")),
        };
        plan.events.push(event);
        plan.delete
            .extend(cluster_deletion(self.job, self.observed));
    }

    fn progress(&mut self, progress: &Progress, plan: &mut Plan<JobStatus>) {
        plan.events.extend(ignored_event(self.job));
        let is_reconciling = progress.reason != "Suspended";
        self.report(plan, |conditions| {
            conditions.set(COMPLETE, false, "NotFinished", "");
            conditions.set(FAILED, false, "NotFinished", "");
            conditions.set(
                RECONCILING,
                is_reconciling,
                progress.reason,
                &progress.message,
            );
            conditions.set_stalled(None)
        });
    }

    fn stall(&mut self, error: &PlanError, plan: &mut Plan<JobStatus>) {
        self.report(plan, |conditions| {
            conditions.set(COMPLETE, false, "NotFinished", "");
            conditions.set(FAILED, false, "NotFinished", "");
            conditions.set(RECONCILING, false, STALLED, "only a new spec helps");
            conditions.set_stalled(Some(error))
        });
    }

    fn report(
        &mut self,
        plan: &mut Plan<JobStatus>,
        set: impl FnOnce(&mut Conditions<'_>) -> Option<PlannedEvent>,
    ) {
        let generation = self.job.metadata.generation;
        let before = self
            .job
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice());
        let mut conditions = Conditions::new(before.unwrap_or_default(), generation, self.now);
        plan.events.extend(set(&mut conditions));
        self.status.conditions = conditions.into_desired();
        self.status.observed_generation = generation;
        let is_new = self.job.status.as_ref() != Some(&self.status);
        plan.status = is_new.then(|| self.status.clone());
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

/// Whether the cluster's Secrets and its Service are there, without which a runner would only
/// wait, and kubelet would try its volumes again after a pause.
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

/// Exactly one kind of work, and one that is operated.
fn check_work(spec: &JobSpec) -> Result<(), PlanError> {
    const INSTEAD: &str = "use work of kind `sql` or `graph`";
    let kinds = [
        ("sql", spec.sql.is_some()),
        ("graph", spec.graph.is_some()),
        ("script", spec.script.is_some()),
        ("job", spec.job.is_some()),
    ];
    let given: Vec<&str> = kinds
        .iter()
        .filter(|(_, is)| *is)
        .map(|(kind, _)| *kind)
        .collect();
    let not_operated = |what| PlanError::NotOperated {
        what,
        instead: INSTEAD,
    };
    let (work, file) = match given.as_slice() {
        ["sql"] => ("sql", spec.sql.as_ref().and_then(|sql| sql.file.as_ref())),
        ["graph"] => (
            "graph",
            spec.graph.as_ref().and_then(|graph| graph.file.as_ref()),
        ),
        ["script"] => return Err(not_operated("work of kind `script`")),
        ["job"] => return Err(not_operated("work of kind `job`")),
        kinds => return Err(PlanError::Work { count: kinds.len() }),
    };
    if file.is_some() {
        return Err(PlanError::WorkFile { work });
    }
    if spec.cluster.spec.runtime == Some(Runtime::Dask) {
        return Err(PlanError::RuntimeOfWork { work });
    }
    if spec.schedule.is_some() {
        return Err(PlanError::NotOperated {
            what: "`spec.schedule`",
            instead: "leave it out; the job then runs once",
        });
    }
    Ok(())
}

fn cluster_deletion(job: &DaskJob, observed: &Observed) -> Option<Deletion> {
    let metadata = &observed.cluster.as_ref()?.metadata;
    let is_ours = owner::owns(&job.metadata, metadata) && !owner::is_terminating(metadata);
    let reason = DeletionReason::JobFinished;
    is_ours.then(|| Deletion::new(ObjectKind::Cluster, metadata, reason))
}

/// Fields that are left out of account, named once for each generation.
fn ignored_event(job: &DaskJob) -> Option<PlannedEvent> {
    let seen = job
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    if seen.is_some() && seen == job.metadata.generation {
        return None;
    }
    cluster::ignored(&[
        (
            "ttlSecondsAfterFinished",
            job.spec.ttl_seconds_after_finished.is_some(),
        ),
        ("backoffLimit", job.spec.backoff_limit.is_some()),
    ])
}

//! The statuses of Dask clusters and their groups.
//!
//! Owns their conditions and events. `phase` keeps the meaning that clients of dask-kubernetes
//! wait for: `Running` as soon as the Service has an address. How things are stands in the
//! conditions; `SchedulerAnswers` says whether the operator hears the scheduler.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use oxidask_diagnostic::{Code, Coded as _};
use oxidask_operator_api::kubernetes::{
    ClusterStatus, DaskCluster, DaskWorkerGroup, Phase, ScalingStatus, WorkerGroupStatus,
};

use super::drain::Worker;
use super::objects;
use crate::status::{
    Conditions, READY, RECONCILING, SCHEDULER_READY, STALLED, WORKERS_READY, joined, workers_ready,
};
use crate::{
    Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, PlannedEvent, Timestamp, build,
    cluster, group, names, owner, pods,
};

/// The operator hears the scheduler.
const SCHEDULER_ANSWERS: &str = "SchedulerAnswers";

/// Names in a note; the rest is counted.
const NAMES_MAX: usize = 8;

/// What is known of a group's workers.
#[derive(Debug)]
pub(super) struct GroupFacts {
    wanted: usize,
    existing: usize,
    ready: usize,
    /// Workers whose pods are old.
    pub(super) outdated: usize,
    /// A new worker does not come up, so the old ones stay.
    pub(super) is_roll_stopped: bool,
    /// Workers that are to go and still hold something.
    pub(super) draining: usize,
    /// Workers that were deleted without having been drained.
    pub(super) given_up: Vec<String>,
    /// What was decided about their number.
    pub(super) scaling: Option<ScalingStatus>,
}

impl GroupFacts {
    pub(super) fn new(group: &DaskWorkerGroup, workers: &[Worker<'_>]) -> Self {
        let stay = workers.iter().filter(|worker| !worker.is_committed());
        let (mut existing, mut ready) = (0, 0);
        for worker in stay {
            existing += 1;
            ready += usize::from(worker.is_ready);
        }
        Self {
            wanted: build::group::replicas(&group.spec.worker) as usize,
            existing,
            ready,
            outdated: 0,
            is_roll_stopped: false,
            draining: 0,
            given_up: Vec::new(),
            scaling: None,
        }
    }

    fn words(&self, is_heard: bool) -> Vec<Option<String>> {
        let counts = Some(workers_ready(self.ready.min(self.wanted), self.wanted));
        let rolled = (self.outdated > 0).then(|| {
            let stopped = if self.is_roll_stopped {
                ", after a new one is ready"
            } else {
                ""
            };
            format!("{} with older pods are replaced{stopped}", self.outdated)
        });
        let draining = (self.draining > 0).then(|| {
            let count = self.draining;
            if is_heard {
                return format!("{count} are drained");
            }
            format!(
                "{count} are to go, but the scheduler does not answer, so nothing is deleted that \
                 may hold results"
            )
        });
        vec![counts, rolled, draining]
    }
}

/// Writes the group's status and events into the plan, whose other parts are complete.
pub(super) fn group(
    group: &DaskWorkerGroup,
    observed: &group::Observed,
    facts: &GroupFacts,
    error: Option<&PlanError>,
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) {
    let before = group.status.clone().unwrap_or_default();
    let generation = group.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);
    plan.events.extend(conditions.set_stalled(error));
    let live = observed.pods.iter();
    let troubles = pods::troubles(live.filter(|pod| !pods::has_ended(pod)).map(Arc::as_ref));
    plan.events
        .extend(pods::new_trouble(&troubles, &conditions, RECONCILING));
    let waiting_for = match &observed.cluster {
        None => Some("the cluster does not exist"),
        Some(cluster) if owner::is_terminating(&cluster.metadata) => {
            Some("the cluster is being deleted")
        }
        Some(_) => None,
    };
    let mut parts = facts.words(observed.signal.is_some());
    parts.extend([waiting_for.map(str::to_owned), pods::summary(&troubles)]);
    let message = joined(&parts);
    let has_all = facts.existing == facts.wanted && facts.ready == facts.wanted;
    let is_calm = facts.draining == 0 && facts.outdated == 0 && waiting_for.is_none();
    let is_ready = error.is_none() && has_all && is_calm;
    let (reason, message) = match error {
        Some(error) => (error.code().to_string(), error.line()),
        None if is_ready => ("AllReady".to_owned(), message),
        None if waiting_for.is_some() => ("WaitingForCluster".to_owned(), message),
        None if facts.outdated > 0 => ("ReplacingWorkers".to_owned(), message),
        None if facts.draining > 0 => ("ScalingDown".to_owned(), message),
        None => ("NotAllReady".to_owned(), message),
    };
    conditions.set(READY, is_ready, &reason, &message);
    conditions.set_reconciling(is_ready, error.is_some(), &reason, &message);
    plan.events.extend(change_events(plan, facts));
    let amount = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let mut status = before.clone();
    status.replicas = amount(facts.existing);
    status.ready_replicas = amount(facts.ready);
    status.scaling.clone_from(&facts.scaling);
    status.selector = Some(super::group::selector(group));
    status.observed_generation = generation;
    status.conditions = kept(&before.conditions, conditions.into_desired());
    plan.status = (group.status.as_ref() != Some(&status)).then_some(status);
}

type Condition = k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// The conditions of this module, and behind them those that others have written.
fn kept(before: &[Condition], desired: Vec<Condition>) -> Vec<Condition> {
    let mut all = desired;
    let others = before
        .iter()
        .filter(|old| !all.iter().any(|new| new.type_ == old.type_));
    let others: Vec<Condition> = others.cloned().collect();
    all.extend(others);
    all
}

fn change_events(plan: &Plan<WorkerGroupStatus>, facts: &GroupFacts) -> Vec<PlannedEvent> {
    let mut events = Vec::new();
    let made: Vec<&str> = plan.apply.iter().map(Object::name).collect();
    if !made.is_empty() {
        let note = format!("makes {}", listed(&made));
        events.push(PlannedEvent::normal("CreatingWorkers", "Apply", &note));
    }
    let retired: Vec<&str> = plan.retire.iter().map(|it| it.worker.as_str()).collect();
    if !retired.is_empty() {
        let note = format!("has the scheduler retire {}", listed(&retired));
        events.push(PlannedEvent::normal("RetiringWorkers", "Retire", &note));
    }
    let given_up = |name: &str| facts.given_up.iter().any(|it| it == name);
    let deleted = plan.delete.iter().map(|it| it.object.name.as_str());
    let (lost, drained): (Vec<&str>, Vec<&str>) = deleted.partition(|name| given_up(name));
    if !drained.is_empty() {
        let note = format!("deletes {}, which hold nothing any more", listed(&drained));
        let reason = DeletionReason::ScaledDown.name();
        events.push(PlannedEvent::normal(reason, "Delete", &note));
    }
    if !lost.is_empty() {
        let code = Code::DaskNotDrained;
        let note = format!("{code}: deletes {}, not drained in time", listed(&lost));
        events.push(PlannedEvent::warning("DrainDeadline", "Delete", &note));
    }
    events
}

fn listed(names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    let shown: Vec<&str> = names.iter().copied().take(NAMES_MAX).collect();
    let more = names.len() - shown.len();
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{} worker{plural}: {}{rest}", names.len(), shown.join(", "))
}

/// Writes the cluster's status and events into the plan, whose other parts are complete.
pub(super) fn cluster(
    cluster: &DaskCluster,
    observed: &cluster::Observed,
    error: Option<&PlanError>,
    now: Timestamp,
    plan: &mut Plan<ClusterStatus>,
) {
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let before = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);
    plan.events.extend(conditions.set_stalled(error));
    let is_operated = error.is_none();
    let scheduler = scheduler(observed, is_operated, &mut conditions, plan);
    let workers = workers(observed, is_operated, &mut conditions, plan);
    answers(observed, scheduler.is_ok(), &mut conditions);
    let is_applied = plan.apply.is_empty() && plan.delete.is_empty() && plan.metadata.is_empty();
    let (is_ready, reason, message) = match (error, scheduler, workers) {
        (Some(error), ..) => (false, error.code().to_string(), error.line()),
        (None, Err(message), _) => (false, "SchedulerNotReady".to_owned(), message),
        (None, _, Err(message)) => (false, "WorkersNotReady".to_owned(), message),
        (None, ..) if !is_applied => (
            false,
            "Applying".to_owned(),
            "objects are being applied".to_owned(),
        ),
        (None, _, Ok(message)) => (true, "Ready".to_owned(), message),
    };
    if is_ready && !conditions.was(READY) {
        let note = format!("the scheduler is available, {message}");
        plan.events
            .push(PlannedEvent::normal("Ready", "Reconcile", &note));
    } else if !is_ready && conditions.was(READY) {
        plan.events
            .push(PlannedEvent::normal("NotReady", "Reconcile", &message));
    }
    conditions.set(READY, is_ready, &reason, &message);
    conditions.set_reconciling(is_ready, !is_operated, &reason, &message);
    plan.events.extend(deletion_events(&plan.delete));
    plan.events.extend(ignored(cluster, &before, is_operated));
    let mut status = before.clone();
    status.phase = Some(phase(before.phase, name, observed, is_operated));
    counts(&mut status, name, observed, is_operated);
    status.scheduler_address = is_operated.then(|| objects::scheduler_address(cluster));
    status.observed_generation = generation;
    status.conditions = kept(&before.conditions, conditions.into_desired());
    plan.status = (cluster.status.as_ref() != Some(&status)).then_some(status);
}

fn counts(status: &mut ClusterStatus, name: &str, observed: &cluster::Observed, is_operated: bool) {
    let group = names::group(name, names::DEFAULT_GROUP);
    let default = find_group(observed, &group).and_then(|group| group.status.as_ref());
    let or_none = |count: Option<i32>| is_operated.then(|| count.unwrap_or_default());
    status.replicas = or_none(default.and_then(|group| group.replicas));
    status.ready_replicas = or_none(default.and_then(|group| group.ready_replicas));
    let selecting = objects::selecting_labels(name, &group);
    status.selector = is_operated.then(|| build::labels::selector(&selecting));
}

fn scheduler(
    observed: &cluster::Observed,
    is_operated: bool,
    conditions: &mut Conditions<'_>,
    plan: &mut Plan<ClusterStatus>,
) -> Result<(), String> {
    let is_ready = is_operated && observed.scheduler.as_ref().is_some_and(is_available);
    let troubles = pods::troubles(observed.scheduler_pods.iter().map(Arc::as_ref));
    plan.events
        .extend(pods::new_trouble(&troubles, conditions, SCHEDULER_READY));
    let (reason, message) = if is_ready {
        ("Available", "the scheduler is available".to_owned())
    } else {
        let text = Some("the scheduler is not available yet".to_owned());
        ("NotAvailable", joined(&[text, pods::summary(&troubles)]))
    };
    conditions.set(SCHEDULER_READY, is_ready, reason, &message);
    if is_ready { Ok(()) } else { Err(message) }
}

fn is_available(scheduler: &Deployment) -> bool {
    let Some(status) = &scheduler.status else {
        return false;
    };
    let is_current = status.observed_generation >= scheduler.metadata.generation;
    is_current && status.available_replicas.unwrap_or_default() > 0
}

/// Each group's own planner has counted.
fn workers(
    observed: &cluster::Observed,
    is_operated: bool,
    conditions: &mut Conditions<'_>,
    plan: &mut Plan<ClusterStatus>,
) -> Result<String, String> {
    let (mut wanted, mut ready, mut are_ready) = (0, 0, is_operated);
    let mut stalled = None;
    let groups = observed.groups.iter();
    for group in groups.filter(|group| !owner::is_terminating(&group.metadata)) {
        let own = build::group::replicas(&group.spec.worker) as usize;
        let status = group.status.clone().unwrap_or_default();
        let count = usize::try_from(status.ready_replicas.unwrap_or_default()).unwrap_or_default();
        wanted += own;
        ready += count.min(own);
        are_ready &= count >= own && status.observed_generation == group.metadata.generation;
        let mut conditions = status.conditions.iter();
        let found = conditions.find(|it| it.type_ == STALLED && it.status == "True");
        let name = group.metadata.name.as_deref().unwrap_or_default();
        stalled = stalled.or_else(|| found.map(|it| format!("group `{name}`: {}", it.message)));
    }
    let troubles = pods::troubles(observed.worker_pods.iter().map(Arc::as_ref));
    let message = joined(&[
        Some(workers_ready(ready, wanted)),
        stalled,
        pods::summary(&troubles),
    ]);
    plan.events
        .extend(pods::new_trouble(&troubles, conditions, WORKERS_READY));
    let reason = if are_ready { "AllReady" } else { "NotAllReady" };
    conditions.set(WORKERS_READY, are_ready, reason, &message);
    if are_ready { Ok(message) } else { Err(message) }
}

fn answers(observed: &cluster::Observed, is_available: bool, conditions: &mut Conditions<'_>) {
    let code = Code::TelemetryMissing;
    let silent = || {
        format!(
            "{code}: the operator does not hear the scheduler, so it neither scales by load nor \
             removes workers that may hold results; hint: check that the operator's pod reaches \
             the ports `tcp-comm` or `http-dashboard` of the scheduler's Service"
        )
    };
    let (is_heard, reason, message) = match (&observed.signal, is_available) {
        (Some(_), _) => (true, "Heard", "the operator hears the scheduler".to_owned()),
        (None, true) => (false, "Silent", silent()),
        (None, false) => (
            false,
            "NotAvailable",
            "the scheduler is not available".to_owned(),
        ),
    };
    conditions.set(SCHEDULER_ANSWERS, is_heard, reason, &message);
}

/// `Running` says that the Service has an address, not that anybody answers there. It never goes
/// back to `Created`.
fn phase(
    before: Option<Phase>,
    name: &str,
    observed: &cluster::Observed,
    is_operated: bool,
) -> Phase {
    if !is_operated {
        return Phase::Error;
    }
    let group = names::group(name, names::DEFAULT_GROUP);
    let is_complete = observed.scheduler.is_some() && find_group(observed, &group).is_some();
    match &observed.service {
        Some(service) if is_complete && has_address(service) => Phase::Running,
        Some(_) if is_complete => Phase::Pending,
        _ if matches!(before, Some(Phase::Pending | Phase::Running)) => Phase::Pending,
        _ => Phase::Created,
    }
}

fn has_address(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    let balancer = service
        .status
        .as_ref()
        .and_then(|it| it.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    kind != Some("LoadBalancer") || ingress.is_some_and(|list| !list.is_empty())
}

pub(super) fn find_group<'a>(
    observed: &'a cluster::Observed,
    name: &str,
) -> Option<&'a DaskWorkerGroup> {
    let mut groups = observed.groups.iter();
    groups.find(|group| group.metadata.name.as_deref() == Some(name))
}

fn deletion_events(deletions: &[Deletion]) -> Vec<PlannedEvent> {
    let events = deletions.iter().map(|deletion| {
        let name = &deletion.object.name;
        let note = match deletion.object.kind {
            ObjectKind::Cluster => format!("deletes the cluster `{name}`: nothing to do for long"),
            _ => format!("deletes the group `{name}`, which the spec no longer has"),
        };
        PlannedEvent::normal(deletion.reason.name(), "Delete", &note)
    });
    events.collect()
}

/// Fields without effect for this runtime, named once for each generation.
fn ignored(
    cluster: &DaskCluster,
    before: &ClusterStatus,
    is_operated: bool,
) -> Option<PlannedEvent> {
    if !is_operated || before.observed_generation == cluster.metadata.generation {
        return None;
    }
    let spec = &cluster.spec;
    let further = spec.worker_groups.iter().map(|it| it.spill.is_some());
    let given = [
        ("tls", spec.tls.is_some()),
        ("suspend", spec.suspend == Some(true)),
        ("updateStrategy", spec.update_strategy.is_some()),
        (
            "spill",
            spec.worker.spill.is_some() || further.into_iter().any(|it| it),
        ),
    ];
    let given = given.iter().filter(|(_, is_given)| *is_given);
    let names: Vec<String> = given.map(|(name, _)| format!("`{name}`")).collect();
    let code = Code::NotOperated;
    let note = format!(
        "{code}: with the runtime `Dask` these have no effect: {}",
        names.join(", ")
    );
    (!names.is_empty()).then(|| PlannedEvent::warning("FieldIgnored", "Plan", &note))
}

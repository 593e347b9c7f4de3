//! The plan for a `DaskWorkerGroup`: one pod for each wanted worker.
//!
//! Owns which pods are made and which are deleted. Pods that exist are never applied again, so a
//! new template is taken up by new pods only. Invariant: a group never gets more pods than are
//! wanted, whatever the snapshot.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use oxidask_diagnostic::Coded;
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup, WorkerGroupStatus};

use crate::build::{self, labels};
use crate::status::{Conditions, READY, RECONCILING, joined, workers_ready};
use crate::{
    Deletion, DeletionReason, Object, ObjectKind, Plan, PlanError, PlannedEvent, Settings,
    Timestamp, hash, names, owner, pods,
};

/// Pods that one plan makes or deletes; the rest follows in the next ones.
pub const PODS_PER_PLAN_MAX: usize = 256;

/// When the next plan is due while there is more to do.
const NEXT_BATCH: Duration = Duration::from_secs(1);

/// Age that a pod which has ended for good must have before another one takes its place. A node
/// that refuses each pod at once must not keep everybody busy.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The cluster that the group names, whoever made it.
    pub cluster: Option<DaskCluster>,
    /// The pods that the group owns, terminating ones included.
    pub pods: Vec<Pod>,
    /// Whether the cluster's Secret with the workers' certificate is there and whole. A pod that
    /// comes before it would wait for kubelet's next try.
    pub has_certificates: bool,
}

/// What has to be done for the group.
pub fn plan(
    group: &DaskWorkerGroup,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
) -> Plan<WorkerGroupStatus> {
    let mut plan = Plan::default();
    if owner::is_terminating(&group.metadata) {
        return plan;
    }
    let workers = Workers::new(group, observed, now);
    let template = template(group, observed, settings);
    let waiting_for = waiting_for(observed);
    if let Ok(template) = &template
        && waiting_for.is_none()
    {
        workers.change(group, template, &mut plan);
    }
    report(
        group,
        &workers,
        template.as_ref().err(),
        waiting_for,
        now,
        &mut plan,
    );
    plan
}

fn template(
    group: &DaskWorkerGroup,
    observed: &Observed,
    settings: &Settings,
) -> Result<build::worker::WorkerPods, PlanError> {
    names::check_group(group.metadata.name.as_deref().unwrap_or_default())?;
    names::check("cluster", &group.spec.cluster)?;
    let cluster = observed.cluster.as_ref();
    if cluster.is_some_and(|cluster| cluster.spec.runtime() == Runtime::Dask) {
        return Err(PlanError::NotOperated {
            what: "runtime `Dask` of the cluster",
            instead: "use `runtime: Rust`",
        });
    }
    build::worker::WorkerPods::new(group, settings)
}

fn waiting_for(observed: &Observed) -> Option<&'static str> {
    match &observed.cluster {
        None => Some("the cluster does not exist"),
        Some(cluster) if owner::is_terminating(&cluster.metadata) => {
            Some("the cluster is being deleted")
        }
        Some(_) if !observed.has_certificates => Some("the cluster has no certificates yet"),
        Some(_) => None,
    }
}

/// The pods of the group, by what becomes of them.
struct Workers<'a> {
    wanted: usize,
    live: Vec<&'a Pod>,
    ended: Vec<&'a Pod>,
    /// Pods that ended right after they were made, and how long their place stays empty.
    paused: usize,
    pause: Duration,
    names: HashSet<&'a str>,
    ready: usize,
}

impl<'a> Workers<'a> {
    fn new(group: &DaskWorkerGroup, observed: &'a Observed, now: Timestamp) -> Self {
        let mut workers = Self {
            wanted: build::group::replicas(&group.spec.worker) as usize,
            live: Vec::new(),
            ended: Vec::new(),
            paused: 0,
            pause: Duration::ZERO,
            names: HashSet::new(),
            ready: 0,
        };
        for pod in &observed.pods {
            // A name is taken whoever owns the pod, and until the pod has gone completely.
            workers.names.extend(pod.metadata.name.as_deref());
            if !owner::owns(&group.metadata, &pod.metadata) || pods::is_terminating(pod) {
                continue;
            }
            if pods::has_ended(pod) {
                let pause = REPLACE_AFTER.saturating_sub(age(pod, now));
                if pause.is_zero() {
                    workers.ended.push(pod);
                } else {
                    workers.paused += 1;
                    workers.pause = workers.pause.max(pause);
                }
            } else {
                workers.live.push(pod);
                workers.ready += usize::from(pods::is_ready(pod));
            }
        }
        workers
    }

    /// Deletes what has ended and what is too much, and makes what is missing.
    fn change(
        &self,
        group: &DaskWorkerGroup,
        template: &build::worker::WorkerPods,
        plan: &mut Plan<WorkerGroupStatus>,
    ) {
        let deletion = |pod: &&Pod, reason| Deletion::new(ObjectKind::Pod, &pod.metadata, reason);
        let ended = self
            .ended
            .iter()
            .map(|pod| deletion(pod, DeletionReason::WorkerEnded));
        plan.delete.extend(ended.take(PODS_PER_PLAN_MAX));
        let mut surplus = self.live.clone();
        surplus.sort_by_key(|pod| removal_order(pod));
        let too_many = self.live.len().saturating_sub(self.wanted);
        let room = PODS_PER_PLAN_MAX.saturating_sub(plan.delete.len());
        let surplus = surplus.iter().take(too_many.min(room));
        plan.delete
            .extend(surplus.map(|pod| deletion(pod, DeletionReason::ScaledDown)));
        let missing = self.wanted.saturating_sub(self.live.len() + self.paused);
        let made = missing.min(PODS_PER_PLAN_MAX);
        for name in self.free_names(&group.metadata).take(made) {
            let pod = Object::Pod(Box::new(template.named(&name)));
            plan.apply.extend(hash::unless_applied(pod, None));
        }
        if too_many > room || missing > made || self.ended.len() > PODS_PER_PLAN_MAX {
            plan.wake_after = Some(NEXT_BATCH);
        } else if self.paused > 0 {
            plan.wake_after = Some(self.pause);
        }
    }

    /// Names that no pod has, in an order that depends on nothing but the group.
    fn free_names<'b>(&'b self, group: &'b ObjectMeta) -> impl Iterator<Item = String> + 'b {
        let name = group.name.as_deref().unwrap_or_default();
        let uid = group.uid.as_deref().unwrap_or_default();
        let candidates = (0..).map(move |index| names::worker_pod(name, uid, index));
        candidates.filter(|name| !self.names.contains(name.as_str()))
    }
}

fn age(pod: &Pod, now: Timestamp) -> Duration {
    let created = pod.metadata.creation_timestamp.as_ref();
    let age = created.map(|created| now.duration_since(created.0));
    age.map_or(Duration::MAX, |age| {
        Duration::try_from(age).unwrap_or(Duration::ZERO)
    })
}

/// First those that do not answer yet, then the youngest: they hold the least.
fn removal_order(pod: &Pod) -> (bool, Reverse<Timestamp>, Option<String>) {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (
        pods::is_ready(pod),
        Reverse(created.unwrap_or(Timestamp::MAX)),
        pod.metadata.name.clone(),
    )
}

fn report(
    group: &DaskWorkerGroup,
    workers: &Workers<'_>,
    error: Option<&PlanError>,
    waiting_for: Option<&str>,
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) {
    let none = WorkerGroupStatus::default();
    let before = group.status.as_ref().unwrap_or(&none);
    let mut conditions = Conditions::new(&before.conditions, group.metadata.generation, now);
    plan.events.extend(conditions.set_stalled(error));
    let troubles = pods::troubles(workers.live.iter().copied());
    plan.events
        .extend(pods::new_trouble(&troubles, &conditions, RECONCILING));
    let counts = workers_ready(workers.ready.min(workers.wanted), workers.wanted);
    let waiting = waiting_for.map(str::to_owned);
    let message = joined(&[Some(counts), waiting, pods::summary(&troubles)]);
    let has_all = workers.live.len() == workers.wanted && workers.ready == workers.wanted;
    let is_ready = error.is_none() && has_all && waiting_for.is_none();
    let (reason, message) = match error {
        Some(error) => (error.code().to_string(), error.line()),
        None if is_ready => ("AllReady".to_owned(), message),
        None if waiting_for.is_some() => ("WaitingForCluster".to_owned(), message),
        None if workers.live.len() > workers.wanted => ("ScalingDown".to_owned(), message),
        None => ("NotAllReady".to_owned(), message),
    };
    conditions.set(READY, is_ready, &reason, &message);
    conditions.set_reconciling(is_ready, error.is_some(), &reason, &message);
    plan.events.extend(change_events(plan));
    let amount = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let selecting = build::worker::selecting_labels(&group.spec.cluster, name);
    let status = WorkerGroupStatus {
        replicas: amount(workers.live.len()),
        ready_replicas: amount(workers.ready),
        selector: Some(labels::selector(&selecting)),
        observed_generation: group.metadata.generation,
        conditions: conditions.into_desired(),
    };
    plan.status = (group.status.as_ref() != Some(&status)).then_some(status);
}

fn change_events(plan: &Plan<WorkerGroupStatus>) -> Vec<PlannedEvent> {
    let mut events = Vec::new();
    if !plan.apply.is_empty() {
        let names = plan.apply.iter().map(Object::name);
        let note = format!("makes {}", listed("worker", names));
        events.push(PlannedEvent::normal("CreatingWorkers", "Apply", &note));
    }
    for reason in [DeletionReason::WorkerEnded, DeletionReason::ScaledDown] {
        let deletions = plan
            .delete
            .iter()
            .filter(|deletion| deletion.reason == reason);
        let names: Vec<&str> = deletions
            .map(|deletion| deletion.object.name.as_str())
            .collect();
        if names.is_empty() {
            continue;
        }
        let why = match reason {
            DeletionReason::WorkerEnded => "whose pods have ended for good",
            _ => "more than are wanted",
        };
        let note = format!("deletes {}, {why}", listed("worker", names.into_iter()));
        let event = match reason {
            DeletionReason::WorkerEnded => PlannedEvent::warning(reason.name(), "Delete", &note),
            _ => PlannedEvent::normal(reason.name(), "Delete", &note),
        };
        events.push(event);
    }
    events
}

/// `2 workers: a, b`.
fn listed<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{} {what}{plural}: {}", names.len(), names.join(", "))
}

//! The plan for a `DaskWorkerGroup` of a Dask cluster: one Deployment for each wanted worker.
//!
//! Owns which Deployments are made, replaced and deleted. Which worker goes, and when it may, is
//! decided in `drain`. Invariants: the group never has fewer workers than are wanted because of
//! something that the operator did; workers with old pods are replaced one after the other, and
//! not before the new one answers; a group that is deleted is drained first, but not for long.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use oxidask_operator_api::Runtime;
use oxidask_operator_api::kubernetes::{DaskWorkerGroup, WorkerGroupStatus};

use super::drain::{self, Limits, Step, Worker};
use super::objects::{self, Workers, template_mark};
use super::report::{self, GroupFacts};
use super::{DRAIN_FINALIZER, DRAINING_SINCE, RETIRED, repair, takeover};
use crate::build;
use crate::group::{Counts, Observed, PODS_PER_PLAN_MAX, decide_by};
use crate::scaling::{IDLE_AFTER, STUCK_AFTER, start_time};
use crate::{
    Deletion, DeletionReason, MetadataChange, Object, ObjectKind, Plan, PlanError, Retirement,
    Timestamp, names, owner,
};

/// Workers more than are wanted while old ones are replaced.
const SURGE: usize = 1;

/// How long a group that is deleted may be drained.
const FAREWELL: Duration = Duration::from_mins(1);

/// When to look again while workers are drained or more is to be made.
const SOON: Duration = Duration::from_secs(1);

/// What has to be done for the group.
pub(crate) fn plan(
    group: &DaskWorkerGroup,
    observed: &Observed,
    now: Timestamp,
) -> Plan<WorkerGroupStatus> {
    let mut plan = Plan::default();
    let metadata = &group.metadata;
    let signal = observed.signal.as_ref();
    let workers = drain::workers(metadata, &observed.deployments, &observed.pods, signal);
    if owner::is_terminating(metadata) {
        farewell(group, observed, &workers, now, &mut plan);
        return plan;
    }
    let mut change = takeover::strip(ObjectKind::WorkerGroup, metadata);
    let cluster = observed.cluster.as_ref();
    let cluster = cluster.filter(|cluster| !owner::is_terminating(&cluster.metadata));
    if cluster.is_some() && !owner::has_finalizer(metadata, DRAIN_FINALIZER) {
        let change =
            change.get_or_insert_with(|| MetadataChange::new(ObjectKind::WorkerGroup, metadata));
        let finalizers = change
            .finalizers
            .take()
            .or_else(|| metadata.finalizers.clone());
        let mut finalizers = finalizers.unwrap_or_default();
        finalizers.push(DRAIN_FINALIZER.to_owned());
        change.finalizers = Some(finalizers);
    }
    plan.metadata.extend(change);
    let template = cluster.map(|cluster| Workers::new(group, cluster));
    let error = match &template {
        Some(Err(error)) => Some(error),
        _ => None,
    };
    let mut facts = GroupFacts::new(group, &workers);
    let counts = counts(&workers, &observed.pods, now);
    if let (Some(Ok(template)), Some(cluster)) = (&template, cluster) {
        let limits = Limits::new(metadata, Some(&cluster.metadata));
        let mut scene = Scene::new(group, observed, template, workers, limits, now);
        if let Err(error) = scene.change(&mut facts, &mut plan) {
            report::group(group, observed, &facts, Some(&error), now, &mut plan);
            return plan;
        }
    }
    let is_operated = error.is_none() && cluster.is_some();
    facts.scaling = decide_by(group, observed, counts, is_operated, now, &mut plan);
    report::group(group, observed, &facts, error, now, &mut plan);
    plan
}

/// What a decision about the number of workers is made from.
fn counts(workers: &[Worker<'_>], pods: &[Arc<Pod>], now: Timestamp) -> Counts {
    let age = |worker: &&Worker<'_>| {
        let created = worker.metadata().creation_timestamp.as_ref();
        let age = created.map(|created| now.duration_since(created.0));
        age.and_then(|age| Duration::try_from(age).ok())
            .unwrap_or_default()
    };
    let stay = || workers.iter().filter(|worker| !worker.is_committed());
    Counts {
        ready: stay().filter(|worker| worker.is_ready).count(),
        idle: stay()
            .filter(|worker| worker.is_idle_for(IDLE_AFTER))
            .count(),
        stuck: stay()
            .filter(|worker| !worker.is_ready && age(worker) >= STUCK_AFTER)
            .count(),
        start: start_time(pods.iter().map(Arc::as_ref)),
    }
}

/// Drains a group that is being deleted, and lets it go.
fn farewell(
    group: &DaskWorkerGroup,
    observed: &Observed,
    workers: &[Worker<'_>],
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) {
    let metadata = &group.metadata;
    let stripped = takeover::strip(ObjectKind::WorkerGroup, metadata);
    if !owner::has_finalizer(metadata, DRAIN_FINALIZER) {
        plan.metadata.extend(stripped);
        return;
    }
    let has_cluster = observed
        .cluster
        .as_ref()
        .is_some_and(|cluster| !owner::is_terminating(&cluster.metadata));
    let since = metadata
        .deletion_timestamp
        .as_ref()
        .map_or(now, |time| time.0);
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if !has_cluster || workers.is_empty() || passed >= FAREWELL {
        let mut change =
            stripped.unwrap_or_else(|| MetadataChange::new(ObjectKind::WorkerGroup, metadata));
        let finalizers = change
            .finalizers
            .take()
            .or_else(|| metadata.finalizers.clone());
        let mut finalizers = finalizers.unwrap_or_default();
        finalizers.retain(|it| it != DRAIN_FINALIZER);
        change.finalizers = Some(finalizers);
        plan.metadata.push(change);
        return;
    }
    plan.metadata.extend(stripped);
    let limits = Limits::of(FAREWELL);
    let mut drained = Drained::default();
    for worker in workers {
        drained.go(worker, group, observed, limits, now, plan);
    }
    plan.wake_after = Some(SOON);
}

/// What became of the workers that are to go.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) given_up: Vec<String>,
    pub(super) waits: usize,
}

impl Drained {
    fn go(
        &mut self,
        worker: &Worker<'_>,
        group: &DaskWorkerGroup,
        observed: &Observed,
        limits: Limits,
        now: Timestamp,
        plan: &mut Plan<WorkerGroupStatus>,
    ) {
        let step = drain::step(worker, observed.signal.as_ref(), limits, now);
        match step {
            Step::Wait => self.waits += 1,
            Step::Choose => {
                self.waits += 1;
                plan.metadata.push(chosen(worker, now, false));
            }
            Step::Retire(names) => {
                self.waits += 1;
                if !worker.is_committed() {
                    plan.metadata.push(chosen(worker, now, true));
                }
                plan.retire.extend(names.into_iter().map(|name| Retirement {
                    namespace: group.metadata.namespace.clone().unwrap_or_default(),
                    cluster: group.spec.cluster.clone(),
                    worker: name,
                    deadline: Duration::ZERO,
                    is_cancelled: false,
                }));
            }
            Step::Delete | Step::GiveUp => {
                if step == Step::GiveUp {
                    self.given_up.push(worker.name.to_owned());
                }
                let reason = DeletionReason::ScaledDown;
                let kind = ObjectKind::Deployment;
                plan.delete
                    .push(Deletion::new(kind, worker.metadata(), reason));
            }
        }
    }
}

fn chosen(worker: &Worker<'_>, now: Timestamp, is_retired: bool) -> MetadataChange {
    let mut change = MetadataChange::new(ObjectKind::Deployment, worker.metadata());
    if worker.since.is_none() {
        let since = Some(now.as_second().to_string());
        change.annotations.insert(DRAINING_SINCE.to_owned(), since);
    }
    if is_retired {
        let yes = Some("true".to_owned());
        change.annotations.insert(RETIRED.to_owned(), yes);
    }
    change
}

/// The workers of the group, and what becomes of each.
struct Scene<'a> {
    group: &'a DaskWorkerGroup,
    observed: &'a Observed,
    template: &'a Workers<'a>,
    limits: Limits,
    now: Timestamp,
    wanted: usize,
    /// They are as they should be, or nearly.
    current: Vec<Worker<'a>>,
    /// Their pods are not what the spec asks for any more.
    outdated: Vec<Worker<'a>>,
    /// The scheduler was told that they go.
    committed: Vec<Worker<'a>>,
}

impl<'a> Scene<'a> {
    fn new(
        group: &'a DaskWorkerGroup,
        observed: &'a Observed,
        template: &'a Workers<'a>,
        workers: Vec<Worker<'a>>,
        limits: Limits,
        now: Timestamp,
    ) -> Self {
        let mut scene = Self {
            group,
            observed,
            template,
            limits,
            now,
            wanted: build::group::replicas(&group.spec.worker) as usize,
            current: Vec::new(),
            outdated: Vec::new(),
            committed: Vec::new(),
        };
        for worker in workers {
            let mark = template_mark(worker.metadata());
            if worker.is_committed() {
                scene.committed.push(worker);
            } else if mark.is_some_and(|mark| mark != template.hash) {
                scene.outdated.push(worker);
            } else {
                scene.current.push(worker);
            }
        }
        scene
    }

    fn change(
        &mut self,
        facts: &mut GroupFacts,
        plan: &mut Plan<WorkerGroupStatus>,
    ) -> Result<(), PlanError> {
        self.keep(plan)?;
        facts.outdated = self.outdated.len();
        let kept_back = !self.outdated.is_empty() && !self.current.iter().all(|it| it.is_ready);
        facts.is_roll_stopped = kept_back;
        let victims = self.victims();
        let mut drained = Drained::default();
        for worker in victims.iter().chain(&self.committed) {
            let (group, observed) = (self.group, self.observed);
            drained.go(worker, group, observed, self.limits, self.now, plan);
        }
        self.release(plan);
        let made = self.make(victims.is_empty(), plan)?;
        facts.draining = drained.waits;
        facts.given_up = drained.given_up;
        if drained.waits > 0 || !made {
            plan.wake_after = Some(SOON);
        }
        Ok(())
    }

    /// Adopts what dask-kubernetes made, and repairs what somebody has changed.
    fn keep(&self, plan: &mut Plan<WorkerGroupStatus>) -> Result<(), PlanError> {
        for worker in self.current.iter().take(PODS_PER_PLAN_MAX) {
            let there = worker.deployment;
            let wanted = self.template.named(worker.name, Some(there))?;
            let object = Object::Deployment(Box::new(wanted));
            if let Some(adopted) = takeover::adopt(&object, &there.metadata) {
                plan.metadata.push(adopted);
                continue;
            }
            let due = repair::due(object, Some(&there.metadata), there.spec.as_ref());
            plan.apply.extend(due);
        }
        Ok(())
    }

    /// The workers that are to go. They leave the other lists.
    fn victims(&mut self) -> Vec<Worker<'a>> {
        self.current.sort_by_key(Worker::order);
        self.outdated.sort_by_key(Worker::order);
        let active = self.current.len() + self.outdated.len();
        let surplus = active.saturating_sub(self.wanted);
        let mut victims = Vec::new();
        if self.outdated.is_empty() || self.wanted == 0 {
            let mut all: Vec<Worker<'a>> = self.outdated.drain(..).collect();
            all.append(&mut self.current);
            all.sort_by_key(Worker::order);
            let kept = all.split_off(surplus.min(all.len()));
            self.current = kept;
            return all;
        }
        // A new worker that does not come up keeps the old ones.
        let are_ready = self.current.iter().all(|worker| worker.is_ready);
        let room = if are_ready { 0 } else { SURGE };
        let budget = surplus.saturating_sub(room);
        let idle_places = self
            .outdated
            .iter()
            .take_while(|it| it.holds_nothing())
            .count();
        let old = budget.max(idle_places).min(self.outdated.len());
        victims.extend(self.outdated.drain(..old));
        let rest = budget.saturating_sub(victims.len()).min(self.current.len());
        victims.extend(self.current.drain(..rest));
        victims
    }

    /// Workers that were chosen and stay after all.
    fn release(&self, plan: &mut Plan<WorkerGroupStatus>) {
        let stay = self.current.iter().chain(&self.outdated);
        for worker in stay.filter(|worker| worker.since.is_some()) {
            let mut change = MetadataChange::new(ObjectKind::Deployment, worker.metadata());
            change.annotations.insert(DRAINING_SINCE.to_owned(), None);
            plan.metadata.push(change);
        }
    }

    /// Makes what is missing, and one more while old workers are replaced. False if more is to be
    /// made than one plan holds.
    fn make(&self, is_steady: bool, plan: &mut Plan<WorkerGroupStatus>) -> Result<bool, PlanError> {
        let stay = self.current.len() + self.outdated.len();
        let missing = self.wanted.saturating_sub(stay);
        let is_steady = is_steady && self.committed.is_empty() && stay == self.wanted;
        let surge = if is_steady && !self.outdated.is_empty() {
            SURGE
        } else {
            0
        };
        let made = (missing + surge).min(PODS_PER_PLAN_MAX);
        for name in self.free_names().take(made) {
            let deployment = self.template.named(&name, None)?;
            let object = Object::Deployment(Box::new(deployment));
            plan.apply.extend(crate::hash::unless_applied(object, None));
        }
        Ok(missing <= PODS_PER_PLAN_MAX)
    }

    /// Names that no Deployment, no pod and no worker has. A scheduler refuses a second worker of
    /// a name as long as it has not forgotten the first one.
    fn free_names(&self) -> impl Iterator<Item = String> + '_ {
        let metadata = &self.group.metadata;
        let mut taken: HashSet<&str> = HashSet::new();
        let deployments = self.observed.deployments.iter();
        taken.extend(deployments.filter_map(|it| it.metadata.name.as_deref()));
        taken.extend(
            self.observed
                .pods
                .iter()
                .filter_map(|pod| super::load::deployment_of(pod)),
        );
        let known = self
            .observed
            .signal
            .iter()
            .flat_map(|signal| signal.workers.keys());
        taken.extend(known.map(String::as_str));
        let name = metadata.name.as_deref().unwrap_or_default();
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let candidates = (0..).map(move |index| names::worker_pod(name, uid, index));
        candidates.filter(move |name| !taken.contains(name.as_str()))
    }
}

/// Whether the workers of a group are Dask's. A cluster that is gone has left Deployments behind.
pub(crate) fn is_dask(observed: &Observed) -> bool {
    let runtime = observed
        .cluster
        .as_ref()
        .map(|cluster| cluster.spec.runtime());
    runtime.map_or(!observed.deployments.is_empty(), |runtime| {
        runtime == Runtime::Dask
    })
}

/// The pods that a group's `status.selector` names.
pub(super) fn selector(group: &DaskWorkerGroup) -> String {
    let name = group.metadata.name.as_deref().unwrap_or_default();
    build::labels::selector(&objects::selecting_labels(&group.spec.cluster, name))
}

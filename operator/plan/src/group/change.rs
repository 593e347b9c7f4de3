//! What happens to the pods of a group in one round.
//!
//! Owns the order: what holds nothing goes first; workers that are to go are marked, drained and
//! deleted when they are empty; new pods of a changed template become ready before old ones are
//! drained. What was chosen once stays chosen: the mark is on the pod, so that a restart of the
//! operator, or another one, goes on with the same workers.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup, WorkerGroupStatus};
use oxidask_operator_api::{PodAmount, UpdateStrategy};

use super::workers::{Hold, Mark, STAYS, Worker, Workers};
use super::{Observed, PODS_PER_PLAN_MAX};
use crate::build::labels::{self, DRAIN, DRAIN_DEADLINE};
use crate::build::worker::WorkerPods;
use crate::signal::Standing;
use crate::{
    Deletion, DeletionReason, MetadataChange, ObjectKind, Plan, Retirement, Settings, Timestamp,
    hash, names, pods,
};

/// When the next plan is due while there is more to do.
const NEXT_BATCH: Duration = Duration::from_secs(1);

/// When the scheduler is asked again to drain a worker that it has not begun to drain.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Pods above the wanted number while a template rolls, in percent, unless a manifest says more.
const SURGE_PERCENTAGE_DEFAULT: u32 = 25;

/// Pods that are tried while the API server refuses some.
const PODS_WHILE_REFUSED: usize = 1;

/// How pods are replaced and how long they may take to go.
#[derive(Debug, Clone)]
pub(super) struct Roll {
    surge: PodAmount,
    unavailable: PodAmount,
    /// Zero: as long as it takes.
    drain_timeout: Duration,
    gate: Gate,
    is_refused: bool,
}

/// The scheduler comes first when an image changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// It comes up; workers may be made but not replaced.
    Starts,
    /// It still has the earlier image; workers are not even made.
    IsBehind,
}

impl Roll {
    pub(super) fn new(group: &DaskWorkerGroup, observed: &Observed, settings: &Settings) -> Self {
        let cluster = observed.cluster.as_ref();
        let strategy = cluster.and_then(|cluster| cluster.spec.update_strategy.as_ref());
        let amount = |field: fn(&UpdateStrategy) -> Option<&serde_json::Value>| {
            strategy.and_then(field).and_then(PodAmount::read)
        };
        let surge = amount(|strategy| strategy.max_surge.as_ref());
        let unavailable = amount(|strategy| strategy.max_unavailable.as_ref());
        let gate = cluster.map_or(Gate::Open, |cluster| {
            gate(cluster, observed.scheduler.as_ref(), settings)
        });
        let annotated = |annotations: Option<&labels::Pairs>| {
            labels::annotation(annotations, DRAIN_DEADLINE)?
                .parse()
                .ok()
        };
        let seconds: Option<u32> = annotated(group.metadata.annotations.as_ref())
            .or_else(|| annotated(cluster?.metadata.annotations.as_ref()))
            .or_else(|| strategy?.drain_timeout_seconds);
        Self {
            surge: surge.unwrap_or(PodAmount::Percentage(SURGE_PERCENTAGE_DEFAULT)),
            unavailable: unavailable.unwrap_or(PodAmount::Number(0)),
            drain_timeout: Duration::from_secs(seconds.unwrap_or_default().into()),
            gate,
            is_refused: !observed.refusals.is_empty(),
        }
    }

    /// Whether pods of an earlier template are replaced.
    pub(super) fn may_roll(&self) -> bool {
        self.gate == Gate::Open
    }

    /// Pods above the wanted number, and pods that may be missing. A roll that could do neither
    /// adds a pod.
    fn amounts(&self, wanted: usize) -> (usize, usize) {
        let all = u32::try_from(wanted).unwrap_or(u32::MAX);
        let surge = self.surge.of(all, true) as usize;
        let unavailable = self.unavailable.of(all, false) as usize;
        let surge = if surge + unavailable == 0 { 1 } else { surge };
        (surge, unavailable)
    }

    /// What is left of the time that a worker has to go; `None` without a limit.
    fn time_left(&self, since: Timestamp, now: Timestamp) -> Option<Duration> {
        if self.drain_timeout.is_zero() {
            return None;
        }
        let elapsed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        Some(self.drain_timeout.saturating_sub(elapsed))
    }

    /// Why pods are not made or replaced yet.
    pub(super) fn waits_for(&self) -> Option<&'static str> {
        match self.gate {
            Gate::IsBehind => Some("workers wait until the scheduler has its new image"),
            Gate::Open | Gate::Starts => None,
        }
    }
}

fn gate(cluster: &DaskCluster, scheduler: Option<&Deployment>, settings: &Settings) -> Gate {
    let Some(scheduler) = scheduler else {
        return Gate::Starts;
    };
    if image(scheduler) != Some(wanted_image(cluster, settings)) {
        return Gate::IsBehind;
    }
    let status = scheduler.status.as_ref();
    let is_available = status.is_some_and(|status| {
        status.observed_generation >= scheduler.metadata.generation
            && status.updated_replicas.unwrap_or_default() > 0
            && status.available_replicas.unwrap_or_default() > 0
    });
    if is_available {
        Gate::Open
    } else {
        Gate::Starts
    }
}

fn image(scheduler: &Deployment) -> Option<&str> {
    let pod = scheduler.spec.as_ref()?.template.spec.as_ref()?;
    let mut containers = pod.containers.iter();
    let named = containers.find(|container| container.name == labels::SCHEDULER);
    named.or_else(|| pod.containers.first())?.image.as_deref()
}

fn wanted_image<'a>(cluster: &'a DaskCluster, settings: &'a Settings) -> &'a str {
    let scheduler = cluster.spec.scheduler.as_ref();
    let given = scheduler.and_then(|scheduler| scheduler.image.as_deref());
    let in_template = || {
        let containers = scheduler?.spec.as_ref()?.get("containers")?.as_array()?;
        let is_named = |it: &&serde_json::Value| it["name"].as_str() == Some(labels::SCHEDULER);
        let container = containers
            .iter()
            .find(is_named)
            .or_else(|| containers.first());
        container?["image"].as_str()
    };
    given
        .or_else(in_template)
        .unwrap_or(&settings.runtime_image)
}

/// What the report has to say.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Workers that are drained, or are to be.
    pub(super) draining: usize,
    /// Workers that are to go, of which the scheduler says nothing.
    pub(super) unheard: usize,
    /// Pods of an earlier template that are there.
    pub(super) outdated: usize,
    /// Why the roll does not go on.
    pub(super) stopped: Option<pods::Trouble>,
}

struct Step<'a> {
    group: &'a DaskWorkerGroup,
    roll: &'a Roll,
    is_heard: bool,
    now: Timestamp,
    plan: &'a mut Plan<WorkerGroupStatus>,
    outcome: Outcome,
}

/// Drains, deletes and makes pods.
pub(super) fn change(
    group: &DaskWorkerGroup,
    workers: &Workers<'_>,
    template: &WorkerPods,
    roll: &Roll,
    (is_heard, now): (bool, Timestamp),
    plan: &mut Plan<WorkerGroupStatus>,
) -> Outcome {
    let mut step = Step {
        group,
        roll,
        is_heard,
        now,
        plan,
        outcome: Outcome::default(),
    };
    for pod in &workers.ended {
        step.delete(pod, DeletionReason::WorkerEnded);
    }
    let live = workers.live.iter();
    let (mut going, staying): (Vec<&Worker<'_>>, Vec<&Worker<'_>>) =
        live.partition(|worker| worker.is_going());
    let (current, outdated): (Vec<&Worker<'_>>, Vec<&Worker<'_>>) =
        staying.into_iter().partition(|worker| worker.is_current);
    let lack = workers.wanted.saturating_sub(current.len());
    let back = step.bring_back(&mut going, lack);
    let current = [current, back].concat();
    let is_rolling = !outdated.is_empty() || going.iter().any(|worker| !worker.is_current);
    step.outcome.outdated = outdated.len();
    let kept = step.remove_surplus(current, workers.wanted);
    let outdated = step.remove_outdated(&kept, outdated, workers.wanted);
    for worker in &going {
        step.go_on(worker);
    }
    let missing = workers.wanted.saturating_sub(kept.len() + workers.paused);
    for worker in kept.iter().chain(&outdated) {
        step.keep(worker);
    }
    let mut room = missing;
    if is_rolling {
        let mut kept = kept.iter();
        step.outcome.stopped = kept.find_map(|worker| pods::trouble(worker.pod));
        let (surge, _) = roll.amounts(workers.wanted);
        let there = workers.live.len() + workers.ended.len();
        let alive = there.saturating_sub(step.plan.delete.len());
        room = room.min((workers.wanted + surge).saturating_sub(alive));
    }
    if roll.gate == Gate::IsBehind || step.outcome.stopped.is_some() {
        room = 0;
    }
    if roll.is_refused {
        room = room.min(PODS_WHILE_REFUSED);
    }
    step.make(workers, template, room);
    if workers.paused > 0 {
        step.plan.wake(workers.pause);
    }
    step.outcome
}

/// Deletes every pod: the cluster is to have none.
pub(super) fn suspend(workers: &Workers<'_>, plan: &mut Plan<WorkerGroupStatus>) {
    let live = workers.live.iter().map(|worker| worker.pod);
    let pods = live.chain(workers.ended.iter().copied());
    let reason = DeletionReason::Suspended;
    let deletions = pods.map(|pod| Deletion::new(ObjectKind::Pod, &pod.metadata, reason));
    plan.delete.extend(deletions.take(PODS_PER_PLAN_MAX));
    if workers.live.len() + workers.ended.len() > PODS_PER_PLAN_MAX {
        plan.wake(NEXT_BATCH);
    }
}

impl Step<'_> {
    fn delete(&mut self, pod: &k8s_openapi::api::core::v1::Pod, reason: DeletionReason) {
        if self.plan.delete.len() >= PODS_PER_PLAN_MAX {
            self.plan.wake(NEXT_BATCH);
            return;
        }
        let deletion = Deletion::as_seen(ObjectKind::Pod, &pod.metadata, reason);
        self.plan.delete.push(deletion);
    }

    /// Writes what becomes of a worker onto its pod. False if that has to wait.
    fn mark(&mut self, worker: &Worker<'_>, value: Option<String>) -> bool {
        if self.plan.metadata.len() >= PODS_PER_PLAN_MAX {
            self.plan.wake(NEXT_BATCH);
            return false;
        }
        self.plan.metadata.push(MetadataChange {
            annotations: BTreeMap::from([(DRAIN.to_owned(), value)]),
            ..MetadataChange::new(ObjectKind::Pod, &worker.pod.metadata)
        });
        true
    }

    fn ask(&mut self, name: &str, deadline: Duration, is_cancelled: bool) {
        self.plan.retire.push(Retirement {
            namespace: self.group.metadata.namespace.clone().unwrap_or_default(),
            cluster: self.group.spec.cluster.clone(),
            worker: name.to_owned(),
            deadline,
            is_cancelled,
        });
        self.plan.wake(ASK_AGAIN);
    }

    /// Workers that are to go stay after all, those first that have not given away much yet.
    fn bring_back<'a>(
        &mut self,
        going: &mut Vec<&'a Worker<'a>>,
        lack: usize,
    ) -> Vec<&'a Worker<'a>> {
        let (mut current, mut others): (Vec<&Worker<'_>>, Vec<&Worker<'_>>) =
            going.drain(..).partition(|worker| worker.is_current);
        current.sort_by_key(|worker| worker.removal_order());
        let first = current.len().saturating_sub(lack);
        let mut back = Vec::new();
        for worker in current.split_off(first) {
            // The mark comes before the request: what decided from the earlier one fails.
            if self.mark(worker, Some(STAYS.to_owned())) {
                back.push(worker);
            } else {
                others.push(worker);
            }
        }
        others.extend(current);
        *going = others;
        back
    }

    /// Removes what is too much; what is left.
    fn remove_surplus<'a>(
        &mut self,
        mut current: Vec<&'a Worker<'a>>,
        wanted: usize,
    ) -> Vec<&'a Worker<'a>> {
        let surplus = current.len().saturating_sub(wanted);
        current.sort_by_key(|worker| worker.removal_order());
        let kept = current.split_off(surplus);
        for worker in current {
            self.remove(worker, DeletionReason::ScaledDown);
        }
        kept
    }

    /// Removes as many pods of an earlier template as newer ones have taken their place; what is
    /// left.
    fn remove_outdated<'a>(
        &mut self,
        current: &[&'a Worker<'a>],
        mut outdated: Vec<&'a Worker<'a>>,
        wanted: usize,
    ) -> Vec<&'a Worker<'a>> {
        let (_, unavailable) = self.roll.amounts(wanted);
        let ready = |workers: &[&Worker<'_>]| workers.iter().filter(|it| it.is_ready).count();
        let available = ready(current) + ready(&outdated);
        let mut room = available.saturating_sub(wanted.saturating_sub(unavailable));
        outdated.sort_by_key(|worker| worker.removal_order());
        let mut left = Vec::new();
        for worker in outdated {
            let may_go = !worker.is_ready || room > 0;
            if may_go && self.remove(worker, DeletionReason::TemplateChanged) {
                room -= usize::from(worker.is_ready && room > 0);
            } else {
                left.push(worker);
            }
        }
        left
    }

    /// Removes a worker, at once if it holds nothing, or has it drained. False if neither is
    /// possible now.
    fn remove(&mut self, worker: &Worker<'_>, reason: DeletionReason) -> bool {
        if worker.holds_nothing() || worker.standing() == Some(Standing::Empty) {
            self.delete(worker.pod, reason);
            return true;
        }
        let Hold::Known(name, _) = worker.hold else {
            self.outcome.unheard += 1;
            return false;
        };
        if !worker.can_drain() {
            self.outcome.unheard += 1;
            return false;
        }
        if self.mark(worker, Some(self.now.to_string())) {
            self.outcome.draining += 1;
            self.ask(name, self.roll.drain_timeout, false);
        }
        true
    }

    /// A worker that is to go comes one step further.
    fn go_on(&mut self, worker: &Worker<'_>) {
        let reason = if worker.is_current {
            DeletionReason::ScaledDown
        } else {
            DeletionReason::TemplateChanged
        };
        if worker.holds_nothing() || worker.standing() == Some(Standing::Empty) {
            return self.delete(worker.pod, reason);
        }
        self.outcome.draining += 1;
        let Mark::Goes(since) = worker.mark else {
            return;
        };
        let left = self
            .roll
            .time_left(since, self.now)
            .filter(|_| self.is_heard);
        match left {
            Some(Duration::ZERO) => return self.delete(worker.pod, DeletionReason::DrainTimeout),
            Some(left) => self.plan.wake(left),
            None => {}
        }
        match worker.hold {
            Hold::Known(_, heard) if heard.standing == Standing::Retiring => {}
            Hold::Known(name, heard) if heard.standing != Standing::Suspect => {
                self.ask(name, left.unwrap_or_default(), false);
            }
            _ => self.outcome.unheard += 1,
        }
    }

    /// A worker stays: a request to drain it is taken back; one that somebody else has had drained
    /// makes room for another.
    fn keep(&mut self, worker: &Worker<'_>) {
        let is_draining = matches!(
            worker.standing(),
            Some(Standing::Retiring | Standing::Empty)
        );
        match (worker.mark, worker.hold) {
            (Mark::None, _) if worker.standing() == Some(Standing::Empty) => {
                self.delete(worker.pod, DeletionReason::Drained);
            }
            (Mark::Stays, Hold::Known(name, _)) if is_draining => {
                self.ask(name, Duration::ZERO, true);
            }
            (Mark::Stays, Hold::Known(..) | Hold::Nothing)
                if worker.standing() != Some(Standing::Suspect) =>
            {
                self.mark(worker, None);
            }
            _ => {}
        }
    }

    /// Makes pods under names that nobody has, in an order that depends on nothing but the group.
    fn make(&mut self, workers: &Workers<'_>, template: &WorkerPods, room: usize) {
        let metadata = &self.group.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let candidates = (0..).map(|index| names::worker_pod(name, uid, index));
        let free = candidates.filter(|name| !workers.names.contains(name.as_str()));
        for name in free.take(room.min(PODS_PER_PLAN_MAX)) {
            let pod = template.object(&name);
            self.plan.apply.extend(hash::unless_applied(pod, None));
        }
        if room > PODS_PER_PLAN_MAX {
            self.plan.wake(NEXT_BATCH);
        }
    }
}

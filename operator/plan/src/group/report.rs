//! The status of a group.
//!
//! Owns its conditions and the events about pods. What is said stays the same as long as nothing
//! happens.

use oxidask_diagnostic::{Code, Coded};
use oxidask_operator_api::kubernetes::{DaskWorkerGroup, ScalingStatus, WorkerGroupStatus};

use super::change::{Outcome, Roll};
use super::workers::Workers;
use super::{Hold, ends};
use crate::build::{self, labels};
use crate::scaling::{plural, start_time};
use crate::status::{Conditions, PODS_REFUSED, READY, RECONCILING, cut, joined, workers_ready};
use crate::{Deletion, DeletionReason, Plan, PlanError, PlannedEvent, Refusal, Timestamp, pods};

/// Bytes of what the API server says about a pod.
const REFUSAL_BYTES_MAX: usize = 512;

/// What the report is made from.
pub(super) struct Parts<'a> {
    pub(super) workers: &'a Workers<'a>,
    pub(super) outcome: Outcome,
    pub(super) roll: &'a Roll,
    pub(super) hold: Option<Hold>,
    pub(super) scaling: Option<ScalingStatus>,
    pub(super) is_heard: bool,
    pub(super) refusals: &'a [Refusal],
}

/// Writes status and events into the plan, whose other parts are complete.
pub(super) fn report(
    group: &DaskWorkerGroup,
    parts: &Parts<'_>,
    error: Option<&PlanError>,
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) {
    let none = WorkerGroupStatus::default();
    let before = group.status.as_ref().unwrap_or(&none);
    let mut conditions = Conditions::new(&before.conditions, group.metadata.generation, now);
    plan.events.extend(conditions.set_stalled(error));
    let workers = parts.workers;
    let troubles = pods::troubles(workers.live.iter().map(|worker| worker.pod));
    plan.events
        .extend(pods::new_trouble(&troubles, &conditions, RECONCILING));
    if let Some(next) = workers.next_stuck {
        plan.wake(next);
    }
    let said = Said::new(parts);
    plan.events.extend(said.events(&conditions));
    let serving = workers.live.iter().filter(|worker| !worker.is_going());
    let ready = serving.clone().filter(|worker| worker.is_ready).count();
    let has_all = ready >= workers.wanted && serving.clone().all(|worker| worker.is_current);
    let is_ready = error.is_none() && parts.hold.is_none() && has_all;
    let counts = workers_ready(ready.min(workers.wanted), workers.wanted);
    let waiting = match parts.hold {
        Some(Hold::Waits(what)) => Some(what.to_owned()),
        Some(Hold::Suspended) => Some("the cluster is suspended and has no pods".to_owned()),
        None => None,
    };
    let texts = [Some(counts), waiting, said.refused, said.roll, said.drain];
    let message = joined(&[Some(joined(&texts)), pods::summary(&troubles)]);
    let (reason, message) = match error {
        Some(error) => (error.code().to_string(), error.line()),
        None => (reason(parts, is_ready).to_owned(), message),
    };
    conditions.set(READY, is_ready, &reason, &message);
    if parts.hold == Some(Hold::Suspended) && error.is_none() {
        conditions.set(RECONCILING, false, &reason, &message);
    } else {
        conditions.set_reconciling(is_ready, error.is_some(), &reason, &message);
    }
    plan.events.extend(change_events(plan, workers));
    let status = status(group, parts, before, conditions);
    plan.status = (group.status.as_ref() != Some(&status)).then_some(status);
}

/// Why the group is ready or not, in one word.
fn reason(parts: &Parts<'_>, is_ready: bool) -> &'static str {
    match parts.hold {
        Some(Hold::Suspended) => "Suspended",
        Some(Hold::Waits(_)) => "WaitingForCluster",
        None if is_ready => "AllReady",
        None if !parts.refusals.is_empty() => PODS_REFUSED,
        None if parts.outcome.stopped.is_some() => "RollStopped",
        None if parts.outcome.outdated > 0 => "Rolling",
        None => "NotAllReady",
    }
}

/// What is said besides the numbers.
struct Said {
    refused: Option<String>,
    roll: Option<String>,
    is_stopped: bool,
    drain: Option<String>,
    is_unheard: bool,
}

impl Said {
    fn new(parts: &Parts<'_>) -> Self {
        let outcome = &parts.outcome;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let refused = parts.refusals.first().map(|refusal| {
            let words = cut(refusal.message.trim(), REFUSAL_BYTES_MAX);
            format!(
                "{}: the API server refuses pods: {words}",
                Code::ObjectRejected
            )
        });
        let updated = parts.workers.updated();
        let of = format!("{updated} of {} workers updated", parts.workers.wanted);
        let roll = match &outcome.stopped {
            Some(trouble) => {
                let code = Code::RollStopped;
                let line = trouble.headline();
                Some(format!(
                    "{code}: the change of template has stopped with {of}: {line}"
                ))
            }
            None if outcome.outdated > 0 => Some(format!("the change of template goes on: {of}")),
            None => parts.roll.waits_for().map(str::to_owned),
        };
        let unheard = plural(number(outcome.unheard), "worker");
        let is_unheard = outcome.unheard > 0;
        let drain = if is_unheard && !parts.is_heard {
            let code = Code::SchedulerSilent;
            Some(format!(
                "{code}: the scheduler is silent: {unheard} too many stay until it answers"
            ))
        } else if is_unheard {
            Some(format!(
                "{unheard} too many stay until the scheduler hears of them"
            ))
        } else if outcome.draining > 0 {
            let workers = plural(number(outcome.draining), "worker");
            Some(format!("{workers} being drained"))
        } else {
            None
        };
        Self {
            refused,
            roll,
            is_stopped: outcome.stopped.is_some(),
            drain,
            is_unheard: is_unheard && !parts.is_heard,
        }
    }

    /// What is new of it.
    fn events(&self, conditions: &Conditions<'_>) -> Vec<PlannedEvent> {
        let mut events = Vec::new();
        let mut tell = |is_told: bool, text: Option<&String>, code: Code, reason| {
            let Some(text) = text.filter(|_| is_told) else {
                return;
            };
            if !conditions.said(RECONCILING, &code.to_string()) {
                events.push(PlannedEvent::warning(reason, "Wait", text));
            }
        };
        let refused = self.refused.as_ref();
        tell(true, refused, Code::ObjectRejected, PODS_REFUSED);
        let (stopped, roll) = (self.is_stopped, self.roll.as_ref());
        tell(stopped, roll, Code::RollStopped, "RollStopped");
        let (unheard, drain) = (self.is_unheard, self.drain.as_ref());
        tell(unheard, drain, Code::SchedulerSilent, "SchedulerSilent");
        events
    }
}

fn status(
    group: &DaskWorkerGroup,
    parts: &Parts<'_>,
    before: &WorkerGroupStatus,
    conditions: Conditions<'_>,
) -> WorkerGroupStatus {
    let workers = parts.workers;
    let amount = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let some = |count: usize| amount(count).filter(|count| *count > 0);
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let selecting = build::worker::selecting_labels(&group.spec.cluster, name);
    let start = start_time(workers.live.iter().map(|worker| worker.pod));
    let start = start.map(|time| i32::try_from(time.as_secs()).unwrap_or(i32::MAX));
    WorkerGroupStatus {
        replicas: amount(workers.live.len()),
        ready_replicas: amount(workers.ready()),
        updated_replicas: amount(workers.updated()),
        draining_replicas: some(workers.going()),
        stuck_replicas: some(workers.stuck),
        start_seconds: start.or(before.start_seconds),
        scaling: parts.scaling.clone(),
        selector: Some(labels::selector(&selecting)),
        observed_generation: group.metadata.generation,
        conditions: conditions.into_desired(),
    }
}

/// Why workers are deleted, for people.
fn why(reason: DeletionReason) -> &'static str {
    match reason {
        DeletionReason::WorkerEnded => "whose pods have ended for good",
        DeletionReason::TemplateChanged => "made from an earlier template",
        DeletionReason::Drained => "which somebody has had drained, to make new ones",
        DeletionReason::DrainTimeout => "which took longer to go than the manifest allows",
        DeletionReason::Suspended => "because the cluster is suspended",
        _ => "more than are wanted",
    }
}

/// Reasons in the order in which events tell of them.
const REASONS: [DeletionReason; 6] = [
    DeletionReason::WorkerEnded,
    DeletionReason::ScaledDown,
    DeletionReason::TemplateChanged,
    DeletionReason::Drained,
    DeletionReason::DrainTimeout,
    DeletionReason::Suspended,
];

fn change_events(plan: &Plan<WorkerGroupStatus>, workers: &Workers<'_>) -> Vec<PlannedEvent> {
    let mut events = Vec::new();
    if !plan.apply.is_empty() {
        let names = plan.apply.iter().map(|object| object.name().to_owned());
        let note = format!("makes {}", listed(names));
        events.push(PlannedEvent::normal("CreatingWorkers", "Apply", &note));
    }
    let drained = plan.retire.iter().filter(|it| !it.is_cancelled);
    let marked = drained.filter(|it| {
        let mut changes = plan.metadata.iter();
        changes.any(|change| change.object.name == it.worker)
    });
    let marked: Vec<String> = marked.map(|it| it.worker.clone()).collect();
    if !marked.is_empty() {
        let note = format!("drains {}", listed(marked.into_iter()));
        events.push(PlannedEvent::normal("DrainingWorkers", "Retire", &note));
    }
    for end in &plan.ended {
        let note = format!("worker {} has ended: {}", end.worker, end.reason);
        events.push(PlannedEvent::warning("WorkerLost", "Tell", &note));
    }
    for reason in REASONS {
        let deleted = plan.delete.iter().filter(|it| it.reason == reason);
        let names = deleted.map(|deletion| named(deletion, workers));
        let names: Vec<String> = names.collect();
        if names.is_empty() {
            continue;
        }
        let note = format!("deletes {}, {}", listed(names.into_iter()), why(reason));
        let is_warning = matches!(
            reason,
            DeletionReason::WorkerEnded | DeletionReason::DrainTimeout
        );
        let event = if is_warning {
            PlannedEvent::warning(reason.name(), "Delete", &note)
        } else {
            PlannedEvent::normal(reason.name(), "Delete", &note)
        };
        events.push(event);
    }
    events
}

/// The name of a deleted worker and, if it ended by itself, why.
fn named(deletion: &Deletion, workers: &Workers<'_>) -> String {
    let name = &deletion.object.name;
    let mut ended = workers.ended.iter();
    match ended.find(|pod| pod.metadata.name.as_ref() == Some(name)) {
        Some(pod) => format!("{name} ({})", ends::reason(pod)),
        None => name.clone(),
    }
}

/// `2 workers: a, b`.
fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{} worker{plural}: {}", names.len(), names.join(", "))
}

//! The number of workers of a group with bounds of its own.
//!
//! Owns what the decision is made from, and how it is told. The number is written to the group's
//! own `replicas`; the pods follow in the next round.

use std::time::Duration;

use oxidask_diagnostic::Code;
use oxidask_operator_api::kubernetes::{DaskWorkerGroup, ScalingStatus, WorkerGroupStatus};

use super::Observed;
use super::workers::Workers;
use crate::scaling::{self, Cause, Decision, Inputs, Policy, start_time};
use crate::{ObjectKey, ObjectKind, Plan, PlannedEvent, Scaling, Timestamp, build, unplaced};

/// What is known of a group's workers, whatever they are made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) ready: usize,
    pub(crate) idle: usize,
    pub(crate) stuck: usize,
    /// How long pods took to start.
    pub(crate) start: Option<Duration>,
}

/// Decides, if the group has bounds; what is to be remembered.
pub(super) fn decide(
    group: &DaskWorkerGroup,
    observed: &Observed,
    workers: &Workers<'_>,
    is_operated: bool,
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) -> Option<ScalingStatus> {
    let counts = Counts {
        ready: workers.ready(),
        idle: workers.idle,
        stuck: workers.stuck,
        start: start_time(workers.live.iter().map(|worker| worker.pod)),
    };
    decide_by(group, observed, counts, is_operated, now, plan)
}

/// The same by counts.
pub(crate) fn decide_by(
    group: &DaskWorkerGroup,
    observed: &Observed,
    counts: Counts,
    is_operated: bool,
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) -> Option<ScalingStatus> {
    let policy = Policy::of_group(group.spec.worker.autoscale?);
    let before = group.status.as_ref().and_then(|it| it.scaling.as_ref());
    if !is_operated {
        return before.cloned();
    }
    let inputs = inputs(group, observed, counts);
    let memory = scaling::memory(before, &policy);
    let decision = scaling::decide(&policy, &inputs, &memory, now);
    let status = scaling::remembered(&decision, &policy, before, now);
    if let Some(after) = decision.wake_after {
        plan.wake(after);
    }
    if !policy.is_recommendation {
        plan.scale
            .extend(scaling_of(group, inputs.current, &decision));
        plan.events
            .extend(events(&decision, memory.desired, inputs.current, before));
    }
    Some(status)
}

fn inputs(group: &DaskWorkerGroup, observed: &Observed, counts: Counts) -> Inputs {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let wanted = observed.signal.as_ref().map(|signal| {
        // Groups without bounds of their own do not grow.
        unplaced::wanted(signal, observed.cluster.as_ref(), group, |worker| {
            worker.autoscale.is_some()
        })
    });
    let status = group.status.as_ref();
    let remembered = status.and_then(|status| status.start_seconds);
    let remembered = remembered.and_then(|seconds| u64::try_from(seconds).ok());
    Inputs {
        current: build::group::given_replicas(&group.spec.worker),
        wanted,
        ready: count(counts.ready),
        idle: count(counts.idle),
        stuck: count(counts.stuck),
        refusal: observed.refusals.first().map(|it| it.message.clone()),
        start: counts.start.or_else(|| remembered.map(Duration::from_secs)),
    }
}

/// The new number of a group, if it has another one.
pub(crate) fn scaling_of(
    group: &DaskWorkerGroup,
    current: u32,
    decision: &Decision,
) -> Option<Scaling> {
    (decision.desired != current).then(|| Scaling {
        object: ObjectKey::new(ObjectKind::WorkerGroup, &group.metadata),
        resource_version: group.metadata.resource_version.clone(),
        from: current,
        to: decision.desired,
        reason: decision.message.clone(),
    })
}

/// What a decision is told by; once, when it is new.
pub(crate) fn events(
    decision: &Decision,
    desired_before: Option<u32>,
    current: u32,
    before: Option<&ScalingStatus>,
) -> Vec<PlannedEvent> {
    let mut events = Vec::new();
    let from = desired_before.unwrap_or(current);
    let to = decision.desired;
    if from != to {
        let reason = if to > from {
            "ScalingUp"
        } else {
            "ScalingDown"
        };
        let note = format!("from {from} to {}", decision.message);
        events.push(PlannedEvent::normal(reason, "Scale", &note));
    }
    if let Some(written) = decision.overridden {
        let note = format!(
            "somebody has written {written} workers; the number follows the load, so it is {to} \
             again: change the bounds, or remove `autoscale` or the DaskAutoscaler"
        );
        events.push(PlannedEvent::warning("ScalingOverridden", "Scale", &note));
    }
    let said = before.and_then(|before| before.reason.as_deref());
    if decision.cause == Cause::WithoutEffect && said != Some(decision.cause.name()) {
        let note = format!("{}: {}", Code::ScalingWithoutEffect, decision.message);
        events.push(PlannedEvent::warning("ScalingWithoutEffect", "Wait", &note));
    }
    events
}

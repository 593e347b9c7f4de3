//! How many workers a group should have.
//!
//! Owns the decision: from bounds, what the scheduler wants, what the pods do and what was decided
//! before, to a number and its reason. Knows nothing about how it is carried out.
//!
//! Invariants: the number lies within the bounds whatever anybody says; more come at once and in
//! one step; fewer come only when fewer were enough for a whole window, and never fewer than the
//! most that was needed in it; a silent scheduler changes nothing; what is remembered changes with
//! the decision, not with the load.

mod start;
mod status;

use std::time::Duration;

use oxidask_operator_api::kubernetes::{AutoscalerSpec, DaskAutoscaler, DaskWorkerGroup};
use oxidask_operator_api::{Autoscale, REPLICAS_MAX};

use crate::Timestamp;

pub(crate) use start::start_time;
pub(crate) use status::{memory, remembered};

/// For how long fewer workers must be enough, unless a manifest or slow pods say more.
pub const WINDOW_DEFAULT: Duration = Duration::from_secs(15);

/// How long a pod may be unable to start before it counts as one that does not help.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How long a worker has nothing to do before it counts as one that does not help.
pub const IDLE_AFTER: Duration = Duration::from_secs(10);

/// The part of the ready workers, one in so many, that may be idle while more are asked for.
const IDLE_PART: u32 = 4;

/// What a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Never fewer.
    pub minimum: u32,
    /// Never more; wins over `minimum`.
    pub maximum: u32,
    /// For how long fewer must be enough.
    pub window: Duration,
    /// Nothing is written.
    pub is_recommendation: bool,
}

impl Policy {
    /// Of a group's own `autoscale`.
    pub fn of_group(autoscale: Autoscale) -> Self {
        Self {
            minimum: autoscale.minimum,
            maximum: autoscale.maximum.min(REPLICAS_MAX),
            window: window(autoscale.scale_down_window_seconds),
            is_recommendation: autoscale.recommend_only == Some(true),
        }
    }

    /// Of an autoscaler; its bounds are for all its groups together.
    pub fn of_autoscaler(spec: &AutoscalerSpec) -> Self {
        Self {
            minimum: spec.minimum.unwrap_or(0),
            maximum: spec.maximum.unwrap_or(REPLICAS_MAX).min(REPLICAS_MAX),
            window: window(spec.scale_down_window_seconds),
            is_recommendation: spec.recommend_only == Some(true),
        }
    }

    /// The number within the bounds.
    pub fn bounded(&self, workers: u64) -> u32 {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        workers.max(self.minimum).min(self.maximum)
    }
}

fn window(seconds: Option<u32>) -> Duration {
    seconds.map_or(WINDOW_DEFAULT, |seconds| {
        Duration::from_secs(seconds.into())
    })
}

/// Seconds of work that a worker of the cluster should have at most: the smallest one that its
/// groups or autoscalers name. A scheduler's telemetry has one for all groups.
pub fn target_seconds<'a>(
    groups: impl IntoIterator<Item = &'a DaskWorkerGroup>,
    autoscalers: impl IntoIterator<Item = &'a DaskAutoscaler>,
) -> Option<u32> {
    let groups = groups
        .into_iter()
        .filter_map(|group| group.spec.worker.autoscale?.target_seconds);
    let autoscalers = autoscalers
        .into_iter()
        .filter_map(|autoscaler| autoscaler.spec.target_seconds);
    groups.chain(autoscalers).min()
}

/// What is known now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Workers that the spec asks for: pods that are still to come count.
    pub current: u32,
    /// What the scheduler wants; `None` while it is silent.
    pub wanted: Option<Wanted>,
    /// Workers that are ready.
    pub ready: u32,
    /// Of them, those that have had nothing to do for [`IDLE_AFTER`].
    pub idle: u32,
    /// Pods that have not been able to start for [`STUCK_AFTER`].
    pub stuck: u32,
    /// What the API server said when it refused a pod.
    pub refusal: Option<String>,
    /// How long pods took to become ready.
    pub start: Option<Duration>,
}

/// What the scheduler wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// So many workers.
    pub workers: u64,
    /// Why, in its words.
    pub reason: String,
}

/// What was decided before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The number; `None` before the first decision.
    pub desired: Option<u32>,
    /// The number before it.
    pub previous: Option<u32>,
    /// Fewer would be enough.
    pub fewer: Option<Fewer>,
}

/// Since when fewer workers would be enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fewer {
    /// Since then.
    pub since: Timestamp,
    /// The most that was needed in that time.
    pub most: u32,
}

/// Why the number is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The work asks for more.
    ScaledUp,
    /// Less was enough for the whole window.
    ScaledDown,
    /// The bounds ask for another number.
    WithinBounds,
    /// It fits.
    Fits,
    /// Fewer would be enough, but not for long enough.
    FewerForNow,
    /// More would not help.
    WithoutEffect,
    /// Nobody knows.
    SchedulerSilent,
}

impl Cause {
    /// In `CamelCase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScaledUp => "ScaledUp",
            Self::ScaledDown => "ScaledDown",
            Self::WithinBounds => "WithinBounds",
            Self::Fits => "Fits",
            Self::FewerForNow => "FewerForNow",
            Self::WithoutEffect => "WithoutEffect",
            Self::SchedulerSilent => "SchedulerSilent",
        }
    }
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// So many workers.
    pub desired: u32,
    /// Why.
    pub cause: Cause,
    /// Why, in words, with what it was decided from.
    pub message: String,
    /// What has to be remembered.
    pub memory: Memory,
    /// The number that somebody else has written meanwhile, which does not count.
    pub overridden: Option<u32>,
    /// When to decide again although nothing has changed.
    pub wake_after: Option<Duration>,
}

/// Decides.
pub fn decide(policy: &Policy, inputs: &Inputs, before: &Memory, now: Timestamp) -> Decision {
    let base = before.desired.unwrap_or(inputs.current);
    let kept = policy.bounded(base.into());
    let is_foreign = inputs.current != base && Some(inputs.current) != before.previous;
    let overridden = (is_foreign && !policy.is_recommendation).then_some(inputs.current);
    let mut decision = match &inputs.wanted {
        None => silent(kept),
        Some(wanted) => follow(policy, inputs, before, kept, wanted, now),
    };
    if decision.desired == kept && kept != base {
        decision.cause = Cause::WithinBounds;
    }
    decision.message = message(policy, inputs, &decision);
    decision.overridden = overridden;
    decision.memory.desired = Some(decision.desired);
    decision.memory.previous = if decision.desired == base && before.desired.is_some() {
        // What was written before may not have arrived yet.
        before.previous
    } else {
        Some(base)
    };
    decision
}

fn silent(kept: u32) -> Decision {
    Decision {
        desired: kept,
        cause: Cause::SchedulerSilent,
        message: String::new(),
        memory: Memory::default(),
        overridden: None,
        wake_after: None,
    }
}

/// The decision while the scheduler speaks.
fn follow(
    policy: &Policy,
    inputs: &Inputs,
    before: &Memory,
    kept: u32,
    wanted: &Wanted,
    now: Timestamp,
) -> Decision {
    let bounded = policy.bounded(wanted.workers);
    let decision = |desired, cause, fewer| Decision {
        desired,
        cause,
        memory: Memory {
            fewer,
            ..Memory::default()
        },
        ..silent(desired)
    };
    if bounded > kept {
        return match without_effect(inputs) {
            Some(_) => decision(kept, Cause::WithoutEffect, None),
            None => decision(bounded, Cause::ScaledUp, None),
        };
    }
    if bounded == kept {
        return decision(kept, Cause::Fits, None);
    }
    let starts = Fewer {
        since: now,
        most: bounded,
    };
    // A clock that was set back starts the window anew.
    let fewer = before.fewer.filter(|fewer| fewer.since <= now);
    let fewer = fewer.map_or(starts, |fewer| Fewer {
        most: fewer.most.max(bounded).min(kept),
        ..fewer
    });
    let window = policy.window.max(inputs.start.unwrap_or_default());
    let elapsed = Duration::try_from(now.duration_since(fewer.since)).unwrap_or_default();
    if elapsed < window {
        let mut decision = decision(kept, Cause::FewerForNow, Some(fewer));
        decision.wake_after = Some(window.saturating_sub(elapsed));
        return decision;
    }
    // What was needed in the window may be needed again; the rest gets a window of its own.
    let rest = (bounded < fewer.most).then_some(starts);
    let cause = if fewer.most < kept {
        Cause::ScaledDown
    } else {
        Cause::FewerForNow
    };
    let mut decision = decision(fewer.most, cause, rest);
    decision.wake_after = rest.map(|_| window);
    decision
}

/// Why more workers would not help, if anything says so.
fn without_effect(inputs: &Inputs) -> Option<String> {
    if let Some(refusal) = &inputs.refusal {
        return Some(format!("the API server refuses pods: {refusal}"));
    }
    if inputs.stuck > 0 {
        let (pods, seconds) = (plural(inputs.stuck, "pod"), STUCK_AFTER.as_secs());
        return Some(format!("{pods} could not start for {seconds} s"));
    }
    if inputs.idle > 0 && inputs.idle.saturating_mul(IDLE_PART) >= inputs.ready {
        let (workers, seconds) = (plural(inputs.idle, "worker"), IDLE_AFTER.as_secs());
        return Some(format!(
            "{workers} of {} had nothing to do for {seconds} s while work waits",
            inputs.ready
        ));
    }
    None
}

/// `1 worker`, `2 workers`.
pub(crate) fn plural(count: u32, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn message(policy: &Policy, inputs: &Inputs, decision: &Decision) -> String {
    let workers = plural(decision.desired, "worker");
    let bounds = format!("bounds {} to {}", policy.minimum, policy.maximum);
    let wanted = inputs.wanted.as_ref();
    let wants = wanted.map(|wanted| format!("the scheduler wants {}", wanted.workers));
    let wants = wants.unwrap_or_default();
    let words = wanted.map(|wanted| wanted.reason.as_str());
    let words = words.filter(|words| !words.is_empty());
    let words = words.map(|words| format!(": {words}")).unwrap_or_default();
    match decision.cause {
        Cause::SchedulerSilent => {
            format!("{workers}: the scheduler is silent, so nothing changes; {bounds}")
        }
        Cause::WithinBounds => format!("{workers}: as the bounds ask for; {bounds}"),
        Cause::ScaledUp | Cause::Fits => format!("{workers}: {wants}{words}; {bounds}"),
        Cause::ScaledDown => {
            format!("{workers}: no more were needed for a while; {wants}{words}; {bounds}")
        }
        Cause::FewerForNow => {
            let most = decision.memory.fewer.map_or(decision.desired, |it| it.most);
            format!(
                "{workers}: {most} would be enough, and there will be fewer if that lasts; {bounds}"
            )
        }
        Cause::WithoutEffect => {
            let why = without_effect(inputs).unwrap_or_default();
            format!("{workers}: {wants}, but more would not help: {why}; {bounds}")
        }
    }
}

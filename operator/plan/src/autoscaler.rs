//! The plan for a `DaskAutoscaler`: the numbers of workers of the groups of a cluster.
//!
//! Owns how a number for a whole cluster is shared among its groups. It decides about groups that
//! the operator made and that have no bounds of their own; a group's `autoscale` comes before it,
//! and it comes before numbers written by hand.
//!
//! Invariants: the sum stays within the bounds, also while one group shrinks for another to grow;
//! the minimum is kept in the group `default`; of two autoscalers of a cluster only the older one
//! decides.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use oxidask_diagnostic::{Code, Coded};
use oxidask_operator_api::kubernetes::{
    AutoscalerStatus, DaskAutoscaler, DaskCluster, DaskWorkerGroup, GroupScaling, ScalingStatus,
};

use crate::group::{number_events, scaling_of};
use crate::scaling::{self, Cause, Decision, IDLE_AFTER, Inputs, Memory, Policy, plural};
use crate::signal::{Signal, Standing};
use crate::status::{Conditions, READY, cut};
use crate::{
    Adoption, Object, ObjectKind, Plan, PlanError, Refusal, Settings, Timestamp, build, dask, hash,
    names, owner, unplaced,
};

/// Bytes of the reason in the status.
const REASON_BYTES_MAX: usize = 1024;

/// What is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The cluster that the autoscaler names.
    pub cluster: Option<DaskCluster>,
    /// The groups of the cluster, whoever made them.
    pub groups: Vec<DaskWorkerGroup>,
    /// The autoscalers of the namespace that name the same cluster, this one included.
    pub autoscalers: Vec<DaskAutoscaler>,
    /// What the cluster's scheduler says; `None` while it is silent.
    pub signal: Option<Signal>,
    /// What the API server refused in the last round.
    pub refusals: Vec<Refusal>,
}

/// What has to be done for the autoscaler.
pub fn plan(
    autoscaler: &DaskAutoscaler,
    observed: &Observed,
    _settings: &Settings,
    now: Timestamp,
) -> Plan<AutoscalerStatus> {
    let mut plan = Plan::default();
    let kind = ObjectKind::Autoscaler;
    plan.metadata
        .extend(dask::strip(kind, &autoscaler.metadata));
    if owner::is_terminating(&autoscaler.metadata) {
        return plan;
    }
    let none = AutoscalerStatus::default();
    let before = autoscaler.status.as_ref().unwrap_or(&none);
    let error = older(autoscaler, observed);
    let cluster = observed.cluster.as_ref();
    let cluster = cluster.filter(|cluster| !owner::is_terminating(&cluster.metadata));
    if let Some(cluster) = cluster {
        plan.apply.extend(adoption(autoscaler, cluster));
    }
    let waits_for = match cluster {
        _ if error.is_some() => Some("another autoscaler decides"),
        None => Some("the cluster does not exist"),
        Some(cluster) if cluster.spec.suspend == Some(true) => Some("the cluster is suspended"),
        Some(_) => None,
    };
    let policy = Policy::of_autoscaler(&autoscaler.spec);
    let shares = match waits_for {
        None => decide(&policy, before, observed, now),
        Some(_) => Vec::new(),
    };
    for share in &shares {
        share.carry_out(&policy, before, &mut plan);
    }
    report(
        autoscaler,
        &policy,
        &shares,
        (error.as_ref(), waits_for, observed),
        now,
        &mut plan,
    );
    plan
}

/// The autoscaler that decides in place of this one.
fn older(autoscaler: &DaskAutoscaler, observed: &Observed) -> Option<PlanError> {
    let rank = |metadata: &ObjectMeta| {
        let created = metadata.creation_timestamp.as_ref();
        (created.map(|created| created.0), metadata.name.clone())
    };
    let own = rank(&autoscaler.metadata);
    let others = observed.autoscalers.iter().map(|other| &other.metadata);
    let mut others = others.filter(|other| {
        other.uid != autoscaler.metadata.uid && !owner::is_terminating(other) && rank(other) < own
    });
    others.next().map(|other| PlanError::AutoscalerConflict {
        older: other.name.clone().unwrap_or_default(),
        cluster: autoscaler.spec.cluster.clone(),
    })
}

/// The autoscaler goes with its cluster.
fn adoption(autoscaler: &DaskAutoscaler, cluster: &DaskCluster) -> Option<Object> {
    let metadata = &autoscaler.metadata;
    if owner::owns(&cluster.metadata, metadata) || owner::has_controller(metadata) {
        return None;
    }
    let name = metadata.name.clone().unwrap_or_default();
    let metadata = owner::metadata(name, "DaskCluster", &cluster.metadata);
    let kind = ObjectKind::Autoscaler;
    Some(Object::Adoption(Box::new(Adoption { kind, metadata })))
}

/// The part of a group.
struct Share<'a> {
    group: &'a DaskWorkerGroup,
    name: String,
    current: u32,
    memory: Memory,
    decision: Decision,
    status: ScalingStatus,
}

impl Share<'_> {
    fn carry_out(
        &self,
        policy: &Policy,
        before: &AutoscalerStatus,
        plan: &mut Plan<AutoscalerStatus>,
    ) {
        if let Some(after) = self.decision.wake_after {
            plan.wake(after);
        }
        if policy.is_recommendation {
            return;
        }
        plan.scale
            .extend(scaling_of(self.group, self.current, &self.decision));
        let told = status_of(before, &self.name);
        let mut events = number_events(&self.decision, self.memory.desired, self.current, told);
        for event in &mut events {
            event.note = format!("group `{}`: {}", self.name, event.note);
        }
        plan.events.extend(events);
    }
}

fn status_of<'a>(status: &'a AutoscalerStatus, name: &str) -> Option<&'a ScalingStatus> {
    let mut groups = status.groups.iter();
    groups
        .find(|group| group.name == name)
        .map(|it| &it.scaling)
}

/// Groups that the operator made and that have no bounds of their own, `default` first.
fn scaled(observed: &Observed) -> Vec<&DaskWorkerGroup> {
    let groups = observed.groups.iter().filter(|group| {
        let metadata = &group.metadata;
        let is_made = hash::applied_mark(metadata).is_some();
        is_made && group.spec.worker.autoscale.is_none() && !owner::is_terminating(metadata)
    });
    let mut groups: Vec<&DaskWorkerGroup> = groups.collect();
    groups.sort_by_key(|group| (!is_default(group), group.metadata.name.clone()));
    groups
}

fn is_default(group: &DaskWorkerGroup) -> bool {
    let default = names::group(&group.spec.cluster, names::DEFAULT_GROUP);
    group.metadata.name.as_deref() == Some(&default)
}

/// Decides about each group, and then that they fit together.
fn decide<'a>(
    policy: &Policy,
    before: &AutoscalerStatus,
    observed: &'a Observed,
    now: Timestamp,
) -> Vec<Share<'a>> {
    let groups = scaled(observed);
    let inputs: Vec<Inputs> = groups.iter().map(|it| inputs(it, observed)).collect();
    let wants = inputs.iter().map(|inputs| {
        let wanted = inputs.wanted.as_ref();
        wanted.map_or(inputs.current, |it| {
            u32::try_from(it.workers).unwrap_or(u32::MAX)
        })
    });
    let parts = parts(policy, &wants.collect::<Vec<_>>());
    let mut shares = Vec::new();
    for ((group, mut inputs), part) in groups.into_iter().zip(inputs).zip(&parts) {
        let name = group.metadata.name.clone().unwrap_or_default();
        let memory = scaling::memory(status_of(before, &name), policy);
        if let Some(wanted) = &mut inputs.wanted {
            wanted.workers = (*part).into();
        }
        let own = Policy {
            minimum: if is_default(group) { policy.minimum } else { 0 },
            ..*policy
        };
        let decision = scaling::decide(&own, &inputs, &memory, now);
        shares.push(Share {
            group,
            name,
            current: inputs.current,
            memory,
            decision,
            status: ScalingStatus::default(),
        });
    }
    fit(policy, &parts, &mut shares);
    for share in &mut shares {
        let told = status_of(before, &share.name);
        share.status = scaling::remembered(&share.decision, policy, told, now);
    }
    shares
}

fn inputs(group: &DaskWorkerGroup, observed: &Observed) -> Inputs {
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let short = names::short_group(&group.spec.cluster, name);
    let status = group.status.as_ref();
    let number = |number: Option<i32>| number.and_then(|it| u32::try_from(it).ok());
    let signal = observed.signal.as_ref();
    let idle = signal.map_or(0, |signal| {
        let workers = signal.workers.values().filter(|worker| {
            let has_nothing = worker.standing == Standing::Active && worker.idle >= IDLE_AFTER;
            worker.group == short && has_nothing
        });
        u32::try_from(workers.count()).unwrap_or(u32::MAX)
    });
    let start = number(status.and_then(|it| it.start_seconds));
    Inputs {
        current: build::group::given_replicas(&group.spec.worker),
        wanted: signal
            .map(|signal| unplaced::wanted(signal, observed.cluster.as_ref(), group, |_| true)),
        ready: number(status.and_then(|it| it.ready_replicas)).unwrap_or_default(),
        idle,
        stuck: number(status.and_then(|it| it.stuck_replicas)).unwrap_or_default(),
        refusal: None,
        start: start.map(|seconds| Duration::from_secs(seconds.into())),
    }
}

/// What each group gets of the number for all: the first one the minimum, and beyond that each in
/// proportion to what it wants.
fn parts(policy: &Policy, wants: &[u32]) -> Vec<u32> {
    let minimum = policy.minimum.min(policy.maximum);
    let base = |index: usize| if index == 0 { minimum } else { 0 };
    let beyond = wants.iter().enumerate();
    let beyond = beyond.map(|(index, want)| want.saturating_sub(base(index)));
    let beyond: Vec<u64> = beyond.map(u64::from).collect();
    let room = u64::from(policy.maximum - minimum);
    let all: u64 = beyond.iter().sum();
    let share = |want: u64| if all <= room { want } else { want * room / all };
    let mut parts: Vec<u64> = beyond.iter().map(|want| share(*want)).collect();
    let mut left = room.min(all) - parts.iter().sum::<u64>();
    for (part, want) in parts.iter_mut().zip(&beyond) {
        let more = (want - *part).min(left).min(1);
        *part += more;
        left -= more;
    }
    let parts = parts.into_iter().enumerate();
    let parts = parts.map(|(index, part)| u64::from(base(index)) + part);
    parts
        .map(|part| u32::try_from(part).unwrap_or(u32::MAX))
        .collect()
}

/// Keeps the sum within the bounds: growth waits until others have shrunk, and what the bounds no
/// longer allow goes at once.
fn fit(policy: &Policy, parts: &[u32], shares: &mut [Share<'_>]) {
    let sum = |shares: &[Share<'_>]| -> u64 {
        shares.iter().map(|it| u64::from(it.decision.desired)).sum()
    };
    for is_growth in [true, false] {
        for index in (0..shares.len()).rev() {
            let over = sum(shares).saturating_sub(policy.maximum.into());
            let over = u32::try_from(over).unwrap_or(u32::MAX);
            let share = &mut shares[index];
            let stands = share.memory.desired.unwrap_or(share.current);
            // First growth waits; only then does anybody lose what it has.
            let least = if is_growth { stands } else { parts[index] };
            let decision = &mut share.decision;
            let to = decision.desired.saturating_sub(over).max(least);
            if over == 0 || to >= decision.desired {
                continue;
            }
            decision.desired = to;
            decision.cause = Cause::WithinBounds;
            decision.message = format!(
                "{}: all groups together may have {}",
                plural(to, "worker"),
                plural(policy.maximum, "worker")
            );
            decision.memory.desired = Some(to);
            // What was written before may not have arrived yet.
            decision.memory.previous = if to == stands {
                share.memory.previous
            } else {
                Some(stands)
            };
        }
    }
}

fn report(
    autoscaler: &DaskAutoscaler,
    policy: &Policy,
    shares: &[Share<'_>],
    (error, waits_for, observed): (Option<&PlanError>, Option<&str>, &Observed),
    now: Timestamp,
    plan: &mut Plan<AutoscalerStatus>,
) {
    let none = AutoscalerStatus::default();
    let before = autoscaler.status.as_ref().unwrap_or(&none);
    let generation = autoscaler.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);
    plan.events.extend(conditions.set_stalled(error));
    let (reason, message) = state(policy, error, waits_for, observed);
    let is_heard = observed.signal.is_some() && observed.refusals.is_empty();
    let is_ready = error.is_none() && waits_for.is_none() && is_heard;
    conditions.set(READY, is_ready, &reason, &message);
    conditions.set_reconciling(is_ready, error.is_some(), &reason, &message);
    let sum = |number: fn(&ScalingStatus) -> Option<i32>| {
        let numbers = shares.iter().filter_map(|share| number(&share.status));
        numbers.fold(0_i32, i32::saturating_add)
    };
    let (desired, recommendation) = if shares.is_empty() {
        (None, None)
    } else if policy.is_recommendation {
        (None, Some(sum(|status| status.recommendation)))
    } else {
        (Some(sum(|status| status.desired)), None)
    };
    let is_same = before.desired == desired && before.recommendation == recommendation;
    let since = before.since.clone().filter(|_| is_same);
    let is_decided = desired.is_some() || recommendation.is_some();
    let status = AutoscalerStatus {
        desired,
        current: is_decided.then(|| current(shares)),
        recommendation,
        reason: Some(in_words(shares)).filter(|words| !words.is_empty()),
        since: since.or(Some(Time(now))).filter(|_| is_decided),
        groups: shares
            .iter()
            .map(|share| GroupScaling {
                name: share.name.clone(),
                scaling: share.status.clone(),
            })
            .collect(),
        observed_generation: generation,
        conditions: conditions.into_desired(),
    };
    plan.status = (autoscaler.status.as_ref() != Some(&status)).then_some(status);
}

fn current(shares: &[Share<'_>]) -> i32 {
    let currents = shares.iter().map(|share| u64::from(share.current));
    i32::try_from(currents.sum::<u64>()).unwrap_or(i32::MAX)
}

/// The reasons of all groups; that of the only one without its name.
fn in_words(shares: &[Share<'_>]) -> String {
    let message = |share: &Share<'_>| share.status.message.clone().unwrap_or_default();
    if let [only] = shares {
        return message(only);
    }
    let named = shares
        .iter()
        .map(|share| format!("`{}`: {}", share.name, message(share)));
    cut(&named.collect::<Vec<_>>().join("; "), REASON_BYTES_MAX)
}

/// How things are: a reason in one word, and a message.
fn state(
    policy: &Policy,
    error: Option<&PlanError>,
    waits_for: Option<&str>,
    observed: &Observed,
) -> (String, String) {
    match (error, waits_for) {
        (Some(error), _) => (error.code().to_string(), error.line()),
        (None, Some(what)) => ("WaitingForCluster".to_owned(), what.to_owned()),
        (None, None) if observed.signal.is_none() => (
            "SchedulerSilent".to_owned(),
            format!(
                "{}: the scheduler is silent, so the numbers of workers stay as they are",
                Code::SchedulerSilent
            ),
        ),
        (None, None) if !observed.refusals.is_empty() => (
            Code::ObjectRejected.to_string(),
            format!(
                "the API server refused a change: {}",
                observed.refusals[0].message
            ),
        ),
        (None, None) if policy.is_recommendation => (
            "RecommendOnly".to_owned(),
            "the status says how many workers there should be; nothing is changed".to_owned(),
        ),
        (None, None) => (
            "Scaling".to_owned(),
            "the numbers of workers follow the load".to_owned(),
        ),
    }
}

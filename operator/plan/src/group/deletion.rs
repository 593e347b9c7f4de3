//! A group that is being deleted hands over what its workers hold before it goes.
//!
//! Owns the finalizer's end. Invariant: it is taken away after a bounded time whatever the workers
//! do, and at once when the cluster goes as well or nobody is left who could take anything.

use std::time::Duration;

use oxidask_operator_api::kubernetes::{DaskWorkerGroup, WorkerGroupStatus};

use super::Observed;
use super::workers::{Hold, Workers};
use crate::build::labels::DRAIN_FINALIZER;
use crate::signal::Standing;
use crate::{
    Deletion, DeletionReason, MetadataChange, ObjectKind, Plan, PlannedEvent, Retirement,
    Timestamp, names, owner,
};

/// How long the workers of a group that is being deleted have.
pub const DRAIN_ON_DELETION_MAX: Duration = Duration::from_mins(1);

/// The part of it that is kept for copying, after what runs was stopped.
const COPYING: Duration = Duration::from_secs(20);

/// When to look again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Drains the workers, or lets the group go.
pub(super) fn plan(
    group: &DaskWorkerGroup,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan<WorkerGroupStatus>,
) {
    if !owner::has_finalizer(&group.metadata, DRAIN_FINALIZER) {
        return;
    }
    let workers = Workers::new(group, observed, None, now);
    let left = time_left(group, now);
    let may_drain = !left.is_zero() && is_cluster_there(observed) && can_take(group, observed);
    let holds_something = workers.live.iter().any(|worker| !worker.holds_nothing());
    if !may_drain || !holds_something {
        let finalizers = group.metadata.finalizers.iter().flatten();
        let others = finalizers.filter(|it| *it != DRAIN_FINALIZER).cloned();
        plan.metadata.push(MetadataChange {
            finalizers: Some(others.collect()),
            ..MetadataChange::new(ObjectKind::WorkerGroup, &group.metadata)
        });
        return;
    }
    plan.wake(left.min(LOOK_AGAIN));
    let mut names = Vec::new();
    for worker in &workers.live {
        if worker.holds_nothing() || worker.standing() == Some(Standing::Empty) {
            let (kind, reason) = (ObjectKind::Pod, DeletionReason::GroupDeleted);
            let deletion = Deletion::as_seen(kind, &worker.pod.metadata, reason);
            plan.delete.push(deletion);
            continue;
        }
        let Hold::Known(name, heard) = worker.hold else {
            continue;
        };
        if matches!(heard.standing, Standing::Active | Standing::Paused) {
            names.push(name);
            plan.retire.push(Retirement {
                namespace: group.metadata.namespace.clone().unwrap_or_default(),
                cluster: group.spec.cluster.clone(),
                worker: name.to_owned(),
                deadline: left.saturating_sub(COPYING).max(Duration::from_secs(1)),
                is_cancelled: false,
            });
        }
    }
    if !names.is_empty() {
        let note = format!(
            "the group is being deleted: {} hand over what only they hold, within {} s",
            names.join(", "),
            left.as_secs()
        );
        plan.events
            .push(PlannedEvent::normal("Draining", "Retire", &note));
    }
}

fn time_left(group: &DaskWorkerGroup, now: Timestamp) -> Duration {
    let deleted = group.metadata.deletion_timestamp.as_ref();
    let elapsed = deleted.map(|deleted| now.duration_since(deleted.0));
    let elapsed = elapsed.and_then(|elapsed| Duration::try_from(elapsed).ok());
    DRAIN_ON_DELETION_MAX.saturating_sub(elapsed.unwrap_or_default())
}

/// Whether the cluster stays and has pods.
fn is_cluster_there(observed: &Observed) -> bool {
    observed.cluster.as_ref().is_some_and(|cluster| {
        !owner::is_terminating(&cluster.metadata) && cluster.spec.suspend != Some(true)
    })
}

/// Whether a worker of another group could take something. A scheduler that is silent may say so
/// later.
fn can_take(group: &DaskWorkerGroup, observed: &Observed) -> bool {
    let Some(signal) = &observed.signal else {
        return true;
    };
    let name = group.metadata.name.as_deref().unwrap_or_default();
    let short = names::short_group(&group.spec.cluster, name);
    signal.workers.values().any(|worker| {
        worker.group != short && matches!(worker.standing, Standing::Active | Standing::Paused)
    })
}

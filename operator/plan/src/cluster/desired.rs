//! The objects that a cluster's spec asks for, and which of them are to be applied or deleted.
//!
//! Owns the order: Service, claim, policies, scheduler, groups. Everything is built completely before
//! anything of it is applied. Objects that others changed are repaired as `drift` says.

use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::{DaskCluster, DaskWorkerGroup, WorkerGroupSpec};
use oxidask_operator_api::tls_problem;
use serde_json::Value;

use super::certificates::Certificates;
use super::{Observed, find_group, restart};
use crate::build::labels::RESTART_REASON;
use crate::build::{self};
use crate::drift::{self, Notice, Outcome};
use crate::{
    Adoption, Deletion, DeletionReason, Object, ObjectKind, PlanError, Settings, Timestamp, hash,
    names, owner,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::time::Duration;

/// What is to be done about a cluster's objects.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) apply: Vec<Object>,
    pub(super) delete: Vec<Deletion>,
    /// Changes by others that are undone.
    pub(super) repaired: Vec<Notice>,
    /// Changes by others that are left for now, and for how long.
    pub(super) kept: Vec<(Notice, Duration)>,
    /// Why the scheduler is replaced by this plan.
    pub(super) restart: Option<String>,
    /// Groups whose spec cannot be operated are not applied, so this counts what is new only.
    pub(super) is_new: bool,
}

impl Desired {
    fn take(&mut self, outcome: Outcome) {
        self.is_new |= outcome.apply.is_some() && outcome.repaired.is_none();
        self.apply.extend(outcome.apply);
        self.repaired.extend(outcome.repaired);
        self.kept.extend(outcome.kept);
    }

    fn push(&mut self, object: Object) {
        self.is_new = true;
        self.apply.push(object);
    }
}

/// What the spec asks for.
pub(super) fn desired(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    settings: &Settings,
    certificates: &Certificates,
    now: Timestamp,
) -> Result<Desired, PlanError> {
    check(cluster, name)?;
    let owner = &cluster.metadata;
    let mut desired = Desired::default();
    let present = observed.service.as_ref();
    let present = present.map(|service| (&service.metadata, service));
    refuse(owner, ObjectKind::Service, present)?;
    let service = build::service::service(cluster, name)?;
    desired.take(drift::reconciled(service, present, now));
    if let Some(claim) = journal_claim(cluster, name, observed)? {
        desired.push(claim);
    }
    policies(cluster, name, observed, settings, now, &mut desired)?;
    let present = observed.scheduler.as_ref();
    let metadata = present.map(|scheduler| (&scheduler.metadata, scheduler));
    refuse(owner, ObjectKind::Deployment, metadata)?;
    let scheduler = build::scheduler::deployment(cluster, name, settings)?;
    let reason = present.and_then(|present| restart::reason(&scheduler, present));
    let mut outcome = drift::reconciled(scheduler, metadata, now);
    if let (Some(reason), Some(object)) = (&reason, outcome.apply.as_mut()) {
        let annotations = object.metadata_mut().annotations.get_or_insert_default();
        annotations.insert(RESTART_REASON.to_owned(), reason.clone());
    }
    desired.restart = reason.filter(|_| outcome.apply.is_some());
    // A pod that comes before its Secrets would wait for kubelet's next try.
    if present.is_some() || certificates.has(observed, Role::Scheduler) {
        desired.take(outcome);
    }
    groups(cluster, name, observed, settings, now, &mut desired)?;
    for adoption in adoptions(cluster, name, observed) {
        desired.push(adoption);
    }
    Ok(desired)
}

fn check(cluster: &DaskCluster, name: &str) -> Result<(), PlanError> {
    names::check("cluster", name)?;
    let fault = cluster.spec.tls.as_ref().and_then(tls_problem);
    fault.map_or(Ok(()), |(field, problem)| {
        let path = format!("spec.tls{field}");
        Err(PlanError::Field { path, problem })
    })
}

fn refuse<T>(
    owner: &ObjectMeta,
    kind: ObjectKind,
    present: Option<(&ObjectMeta, &T)>,
) -> Result<(), PlanError> {
    owner::refuse_foreign(owner, kind, present.map(|(metadata, _)| metadata))
}

/// The groups of the spec.
fn groups(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
    desired: &mut Desired,
) -> Result<(), PlanError> {
    let groups = build::group::groups(cluster, name)?;
    for group in &groups {
        let present = find_group(observed, &group.name);
        let metadata = present.map(|group| &group.metadata);
        owner::refuse_foreign(&cluster.metadata, ObjectKind::WorkerGroup, metadata)?;
        check_template(cluster, name, group, settings)?;
        if metadata.is_some_and(owner::is_terminating) {
            continue;
        }
        match build::group::object(cluster, name, group, present) {
            Some(object) => desired.push(object),
            None => desired.take(repaired_group(cluster, name, group, present, now)),
        }
    }
    desired.delete.extend(removals(cluster, &groups, observed));
    Ok(())
}

/// A group whose spec somebody changed; its number of workers is anybody's to change.
fn repaired_group(
    cluster: &DaskCluster,
    name: &str,
    group: &build::group::Group,
    present: Option<&DaskWorkerGroup>,
    now: Timestamp,
) -> Outcome {
    let Some(present) = present else {
        return Outcome::default();
    };
    let wanted = build::group::unscaled(cluster, name, group);
    let mut outcome =
        drift::reconciled_without(wanted, Some((&present.metadata, present)), now, |value| {
            let worker = value
                .pointer_mut("/spec/worker")
                .and_then(Value::as_object_mut);
            worker.map(|worker| worker.remove("replicas"));
        });
    let given = build::group::given_replicas(&group.worker);
    outcome.apply = outcome
        .apply
        .map(|object| build::group::keeping_scale(object, given, Some(present)));
    outcome
}

/// The disruption budgets of the groups, and the network policy where the operator makes them.
fn policies(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
    settings: &Settings,
    now: Timestamp,
    desired: &mut Desired,
) -> Result<(), PlanError> {
    let owner = &cluster.metadata;
    let wanted = build::group::groups(cluster, name)?;
    let made = observed
        .groups
        .iter()
        .filter(|group| group.spec.cluster == name && !owner::is_terminating(&group.metadata));
    let made = made.filter_map(|group| group.metadata.name.clone());
    let mut groups: Vec<String> = wanted.into_iter().map(|group| group.name).collect();
    let further: Vec<String> = made.filter(|name| !groups.contains(name)).collect();
    let removed = removals(cluster, &build::group::groups(cluster, name)?, observed);
    let stays = |group: &String| removed.iter().all(|gone| gone.object.name != *group);
    groups.extend(further.into_iter().filter(stays));
    for group in &groups {
        let present = named(&observed.disruption_budgets, group, |budget| {
            &budget.metadata
        });
        refuse(owner, ObjectKind::DisruptionBudget, present)?;
        let budget = build::budget::workers(cluster, name, group);
        let budget = Object::DisruptionBudget(Box::new(budget));
        desired.take(drift::reconciled(budget, present, now));
    }
    let budgets = observed.disruption_budgets.iter();
    let budgets = budgets.map(|budget| &budget.metadata);
    let unwanted = budgets.filter(|metadata| {
        let is_wanted = groups
            .iter()
            .any(|group| metadata.name.as_ref() == Some(group));
        !is_wanted
    });
    desired
        .delete
        .extend(unmade(owner, ObjectKind::DisruptionBudget, unwanted));
    let policy = names::network_policy(name);
    let present = named(&observed.network_policies, &policy, |policy| {
        &policy.metadata
    });
    if settings.network_policies {
        refuse(owner, ObjectKind::NetworkPolicy, present)?;
        let policy = build::network::policy(cluster, name, settings);
        let policy = Object::NetworkPolicy(Box::new(policy));
        desired.take(drift::reconciled(policy, present, now));
    } else {
        let present = present.map(|(metadata, _)| metadata);
        desired.delete.extend(unmade(
            owner,
            ObjectKind::NetworkPolicy,
            present.into_iter(),
        ));
    }
    Ok(())
}

fn named<'a, T>(
    objects: &'a [T],
    name: &str,
    metadata: fn(&T) -> &ObjectMeta,
) -> Option<(&'a ObjectMeta, &'a T)> {
    let mut objects = objects.iter();
    let found = objects.find(|object| metadata(object).name.as_deref() == Some(name))?;
    Some((metadata(found), found))
}

/// Objects that the operator made and that nothing asks for any more.
fn unmade<'a>(
    owner: &ObjectMeta,
    kind: ObjectKind,
    objects: impl Iterator<Item = &'a ObjectMeta>,
) -> Vec<Deletion> {
    let ours = objects.filter(|metadata| {
        let is_made = hash::applied_mark(metadata).is_some();
        owner::owns(owner, metadata) && is_made && !owner::is_terminating(metadata)
    });
    ours.map(|metadata| Deletion::new(kind, metadata, DeletionReason::NotWanted))
        .collect()
}

/// The claim of the journal's volume, if it is wanted and not there. One that is there stays as it
/// is: little of a claim can be changed, and one that is no longer wanted may hold a journal.
fn journal_claim(
    cluster: &DaskCluster,
    name: &str,
    observed: &Observed,
) -> Result<Option<Object>, PlanError> {
    let Some(claim) = build::journal::claim(cluster, name)? else {
        return Ok(None);
    };
    let present = observed.journal_claim.as_ref();
    owner::refuse_foreign(&cluster.metadata, ObjectKind::VolumeClaim, present)?;
    if present.is_some() {
        return Ok(None);
    }
    let claim = Object::VolumeClaim(Box::new(claim));
    Ok(hash::unless_applied(claim, None))
}

/// Finds a template that cannot be used before anything is applied.
fn check_template(
    cluster: &DaskCluster,
    name: &str,
    group: &build::group::Group,
    settings: &Settings,
) -> Result<(), PlanError> {
    let object = DaskWorkerGroup {
        metadata: owner::metadata(group.name.clone(), "DaskCluster", &cluster.metadata),
        spec: WorkerGroupSpec {
            cluster: name.to_owned(),
            worker: group.worker.clone(),
        },
        status: None,
    };
    build::worker::WorkerPods::new(&object, settings).map(|_| ())
}

/// Groups that the operator made and the spec no longer has. Only they carry its mark.
fn removals(
    cluster: &DaskCluster,
    wanted: &[build::group::Group],
    observed: &Observed,
) -> Vec<Deletion> {
    let metadata = observed.groups.iter().map(|group| &group.metadata);
    let unwanted = metadata.filter(|metadata| {
        let is_wanted = wanted
            .iter()
            .any(|group| metadata.name.as_ref() == Some(&group.name));
        let is_ours = owner::owns(&cluster.metadata, metadata);
        let is_made = hash::applied_mark(metadata).is_some();
        is_ours && is_made && !is_wanted && !owner::is_terminating(metadata)
    });
    let reason = DeletionReason::GroupRemoved;
    unwanted
        .map(|metadata| Deletion::new(ObjectKind::WorkerGroup, metadata, reason))
        .collect()
}

/// Groups that a user made for this cluster and that nobody owns yet.
fn adoptions(cluster: &DaskCluster, name: &str, observed: &Observed) -> Vec<Object> {
    let groups = observed.groups.iter().filter(|group| {
        let metadata = &group.metadata;
        let is_owned = owner::owns(&cluster.metadata, metadata) || owner::has_controller(metadata);
        group.spec.cluster == name && !is_owned && !owner::is_terminating(metadata)
    });
    groups.map(|group| adoption(cluster, group)).collect()
}

fn adoption(cluster: &DaskCluster, group: &DaskWorkerGroup) -> Object {
    let name = group.metadata.name.clone().unwrap_or_default();
    let metadata = owner::metadata(name, "DaskCluster", &cluster.metadata);
    let kind = ObjectKind::WorkerGroup;
    Object::Adoption(Box::new(Adoption { kind, metadata }))
}

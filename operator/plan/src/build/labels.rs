//! Labels and annotations.
//!
//! Owns the reserved keys, what is handed down from an object to those made for it, and what is
//! never handed down. Invariant: a reserved label wins over everything that a user gives.

use std::collections::BTreeMap;

use oxidask_operator_api::Metadata;

/// Label: the cluster that an object belongs to.
pub const CLUSTER_NAME: &str = "dask.org/cluster-name";
/// Label: the group that a worker belongs to, by the name of the `DaskWorkerGroup`.
pub const WORKER_GROUP_NAME: &str = "dask.org/workergroup-name";
/// Label: the part that an object plays.
pub const COMPONENT: &str = "dask.org/component";
/// Label: keeps Istio's proxy out, which cannot carry our own TLS; a user may say otherwise.
pub(crate) const ISTIO_INJECT: &str = "sidecar.istio.io/inject";

/// Annotation: the hash of the desired form that was applied last.
pub const APPLIED_HASH: &str = "kubernetes.dask.org/applied-hash";
/// Annotation of a group: the number of workers in the cluster's spec when it was applied last.
pub const CLUSTER_REPLICAS: &str = "kubernetes.dask.org/cluster-replicas";
/// Annotation: how often others' changes were undone, and since when that is counted.
pub const REPAIRS: &str = "kubernetes.dask.org/repairs";
/// Annotation of a scheduler's Deployment: why its pod was replaced last, in words.
pub const RESTART_REASON: &str = "kubernetes.dask.org/restart-reason";
/// Label of pods anywhere that may speak to the scheduler of the cluster that is its value.
pub const CLIENT_OF: &str = "kubernetes.dask.org/client-of";
/// Annotation of a runner: the how manieth pod of its job it is, from 1.
pub const RUNNER_START: &str = "kubernetes.dask.org/runner-start";

/// Annotation of a runner: the attempt at the work that it makes, from 1.
pub const RUNNER_ATTEMPT: &str = "kubernetes.dask.org/runner-attempt";
/// Annotation of a runner: pods of its job that were lost before it.
pub const RUNNERS_LOST: &str = "kubernetes.dask.org/runners-lost";
/// Annotation of a job that has only fields of dask-kubernetes: what keeps it from going on, or why
/// it failed.
pub const TROUBLE: &str = "kubernetes.dask.org/trouble";
/// Label of a job: the schedule that it is a run of.
pub const SCHEDULE: &str = "kubernetes.dask.org/schedule";
/// Annotation of a run of a schedule: its time.
pub const SCHEDULED_TIME: &str = "kubernetes.dask.org/scheduled-time";
/// Label of a worker's pod, or annotation of its Deployment: the hash of the template that it was
/// made from.
pub const TEMPLATE_HASH: &str = "kubernetes.dask.org/template-hash";
/// Annotation of a worker's pod: since when it is to go, or that it stays after all.
pub const DRAIN: &str = "kubernetes.dask.org/drain";
/// Annotation of a group or a cluster: seconds that a worker gets to hand over its work.
pub const DRAIN_DEADLINE: &str = "kubernetes.dask.org/drain-deadline-seconds";
/// Finalizer of a group: its workers hand over their work before it goes.
pub const DRAIN_FINALIZER: &str = "kubernetes.dask.org/drain";

/// Values of [`COMPONENT`].
pub(crate) const SCHEDULER: &str = "scheduler";
pub(crate) const WORKER: &str = "worker";
pub(crate) const WORKER_GROUP: &str = "workergroup";
pub(crate) const JOB_RUNNER: &str = "job-runner";

/// Keys that other tools use to find their own objects: with them on an object of ours, Argo CD or
/// Helm would take it for theirs. Our own annotations speak about one object only.
const NEVER_HANDED_DOWN: [&str; 6] = [
    "argocd.argoproj.io/",
    "app.kubernetes.io/instance",
    "kubectl.kubernetes.io/",
    "kopf.zalando.org/",
    "kubernetes.dask.org/",
    "dask.org/",
];

/// A map of labels or annotations.
pub(crate) type Pairs = BTreeMap<String, String>;

/// What objects made for this one get of it.
pub(crate) fn handed_down(pairs: Option<&Pairs>) -> Pairs {
    let pairs = pairs.into_iter().flatten();
    pairs
        .filter(|(key, _)| !NEVER_HANDED_DOWN.iter().any(|start| key.starts_with(start)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The labels of an object: those of its owner, then those of the template, then the reserved ones.
pub(crate) fn labels(
    owner: Option<&Pairs>,
    own: Option<&Metadata>,
    reserved: &[(&str, &str)],
) -> Pairs {
    let mut labels = handed_down(owner);
    labels.extend(handed_down(own.map(|metadata| &metadata.labels)));
    labels.extend(
        reserved
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
    );
    labels
}

/// The labels of a pod: the same, and Istio stays out unless a user says otherwise.
pub(crate) fn pod_labels(
    owner: Option<&Pairs>,
    own: Option<&Metadata>,
    reserved: &[(&str, &str)],
) -> Pairs {
    let mut labels = labels(owner, own, reserved);
    labels
        .entry(ISTIO_INJECT.to_owned())
        .or_insert_with(|| "false".to_owned());
    labels
}

/// The annotations of an object; none is reserved.
pub(crate) fn annotations(owner: Option<&Pairs>, own: Option<&Metadata>) -> Option<Pairs> {
    let mut annotations = handed_down(owner);
    annotations.extend(handed_down(own.map(|metadata| &metadata.annotations)));
    Some(annotations).filter(|annotations| !annotations.is_empty())
}

/// A selector as a text, for the scale subresource.
pub(crate) fn selector(pairs: &[(&str, &str)]) -> String {
    let terms: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    terms.join(",")
}

/// The value of an annotation.
pub(crate) fn annotation<'a>(annotations: Option<&'a Pairs>, key: &str) -> Option<&'a str> {
    annotations?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Pairs {
        list.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn reserved_labels_win_and_foreign_ones_stay_behind() {
        let owner = pairs(&[
            ("team", "a"),
            ("cost", "1"),
            ("argocd.argoproj.io/instance", "x"),
            ("app.kubernetes.io/instance", "x"),
            ("app.kubernetes.io/name", "kept"),
            ("dask.org/workergroup-name", "another"),
        ]);
        let own = Metadata {
            labels: pairs(&[
                ("team", "b"),
                ("dask.org/component", "mine"),
                (ISTIO_INJECT, "true"),
            ]),
            ..Metadata::default()
        };
        let labels = pod_labels(Some(&owner), Some(&own), &[(COMPONENT, "worker")]);
        assert_eq!(
            labels,
            pairs(&[
                ("team", "b"),
                ("cost", "1"),
                ("app.kubernetes.io/name", "kept"),
                (COMPONENT, "worker"),
                (ISTIO_INJECT, "true"),
            ])
        );
    }

    #[test]
    fn annotations_of_tools_and_our_own_stay_behind() {
        let owner = pairs(&[
            ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
            ("kopf.zalando.org/last-handled-configuration", "{}"),
            (APPLIED_HASH, "0"),
        ]);
        assert_eq!(annotations(Some(&owner), None), None);
        let mut owner = owner;
        owner.insert("note".to_owned(), "x".to_owned());
        assert_eq!(
            annotations(Some(&owner), None),
            Some(pairs(&[("note", "x")]))
        );
    }
}

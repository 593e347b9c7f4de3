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
/// Annotation of a runner: the how manieth pod of its job it is, from 1.
pub const RUNNER_START: &str = "kubernetes.dask.org/runner-start";

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

//! The kinds that are served.

/// A kind.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) name: &'static str,
    pub(crate) is_namespaced: bool,
    pub(crate) has_status: bool,
    /// Where the number of replicas stands in the spec, if there is a scale.
    pub(crate) scale: Option<&'static [&'static str]>,
}

const DASK: &str = "kubernetes.dask.org";
const WORKERS: &[&str] = &["worker", "replicas"];

/// All of them; a kind is known by its place.
pub(crate) static KINDS: &[Kind] = &[
    kind("", "v1", "pods", "Pod", true),
    kind("", "v1", "services", "Service", true),
    kind("", "v1", "configmaps", "ConfigMap", false),
    kind("", "v1", "secrets", "Secret", false),
    kind("", "v1", "serviceaccounts", "ServiceAccount", false),
    kind(
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        true,
    ),
    kind("", "v1", "events", "Event", false),
    global("", "v1", "namespaces", "Namespace"),
    global("", "v1", "nodes", "Node"),
    scaled("apps", "v1", "deployments", "Deployment", &["replicas"]),
    kind(
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        true,
    ),
    kind(
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        false,
    ),
    kind("coordination.k8s.io", "v1", "leases", "Lease", false),
    kind("events.k8s.io", "v1", "events", "Event", false),
    scaled(DASK, "v1", "daskclusters", "DaskCluster", WORKERS),
    scaled(DASK, "v1", "daskworkergroups", "DaskWorkerGroup", WORKERS),
    kind(DASK, "v1", "daskjobs", "DaskJob", true),
    kind(DASK, "v1", "daskautoscalers", "DaskAutoscaler", true),
    kind("cert-manager.io", "v1", "certificates", "Certificate", true),
];

/// The places of kinds that have a life of their own.
pub(crate) const PODS: usize = 0;
pub(crate) const DEPLOYMENTS: usize = 9;

const fn kind(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    name: &'static str,
    has_status: bool,
) -> Kind {
    Kind {
        group,
        version,
        plural,
        name,
        is_namespaced: true,
        has_status,
        scale: None,
    }
}

const fn global(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    name: &'static str,
) -> Kind {
    let mut kind = kind(group, version, plural, name, true);
    kind.is_namespaced = false;
    kind
}

const fn scaled(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    name: &'static str,
    scale: &'static [&'static str],
) -> Kind {
    let mut kind = kind(group, version, plural, name, true);
    kind.scale = Some(scale);
    kind
}

impl Kind {
    /// `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Whether a definition of ours describes it, with lists that are replaced as a whole.
    pub(crate) fn is_custom(&self) -> bool {
        self.group == DASK || self.group == "cert-manager.io"
    }

    /// Whether the generation counts changes of the spec.
    pub(crate) fn has_generation(&self) -> bool {
        !self.group.is_empty()
            && self.group != "events.k8s.io"
            && self.group != "coordination.k8s.io"
    }
}

/// The place of a kind by its path.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<usize> {
    KINDS
        .iter()
        .position(|it| it.group == group && it.version == version && it.plural == plural)
}

/// The place of a kind by its name; `events.k8s.io` has the second `Event`.
pub(crate) fn named(name: &str) -> Option<usize> {
    KINDS
        .iter()
        .rposition(|it| it.name == name || it.plural == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_at_their_places() {
        assert_eq!(KINDS[PODS].name, "Pod");
        assert_eq!(KINDS[DEPLOYMENTS].name, "Deployment");
        assert_eq!(named("Event"), find("events.k8s.io", "v1", "events"));
        assert_eq!(find("", "v1", "daskjobs"), None);
    }
}

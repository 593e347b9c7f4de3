//! Who a process is: the one URI in its certificate.
//!
//! Owns the form `spiffe://oxidask/ns/NAMESPACE/cluster/NAME/role/ROLE` and nothing else; reading
//! it from certificates is up to `oxidask-comm`.

use std::fmt;
use std::str::FromStr;

use crate::error::{IdentityError, excerpt};

/// The form of an identity's URI, for messages.
pub const FORM: &str = "spiffe://oxidask/ns/NAMESPACE/cluster/NAME/role/ROLE";

/// Bytes of a namespace or of a cluster's name.
pub const NAME_BYTES_MAX: usize = 253;

/// What a process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The scheduler of a cluster.
    Scheduler,
    /// A worker of a cluster.
    Worker,
    /// Whoever submits work.
    Client,
    /// Whoever scales and upgrades the cluster.
    Operator,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 4] = [Role::Scheduler, Role::Worker, Role::Client, Role::Operator];

    /// The role's name in URIs, in names of Secrets and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Worker => "worker",
            Self::Client => "client",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| IdentityError::Role {
            role: excerpt(text),
        })
    }
}

/// A process of a cluster. `Display` and `FromStr` are its URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The Kubernetes namespace; `local` in a local run.
    pub namespace: String,
    /// The cluster's name.
    pub cluster: String,
    /// What the process may do.
    pub role: Role,
}

impl Identity {
    /// An identity whose names are checked.
    pub fn new(namespace: &str, cluster: &str, role: Role) -> Result<Self, IdentityError> {
        for (what, name) in [("namespace", namespace), ("cluster", cluster)] {
            if !is_name(name) {
                return Err(IdentityError::Name {
                    what,
                    name: excerpt(name),
                });
            }
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
            role,
        })
    }

    /// The same cluster in another role.
    #[must_use]
    pub fn with_role(&self, role: Role) -> Self {
        Self {
            role,
            ..self.clone()
        }
    }

    /// Whether both belong to the same cluster of the same namespace.
    pub fn is_same_cluster(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.cluster == other.cluster
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            cluster,
            role,
        } = self;
        write!(
            f,
            "spiffe://oxidask/ns/{namespace}/cluster/{cluster}/role/{role}"
        )
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let refused = || IdentityError::Form { uri: excerpt(uri) };
        let path = uri.strip_prefix("spiffe://oxidask/").ok_or_else(refused)?;
        let parts: Vec<&str> = path.splitn(7, '/').collect();
        let ["ns", namespace, "cluster", cluster, "role", role] = parts[..] else {
            return Err(refused());
        };
        let role = role.parse().map_err(|_| refused())?;
        Self::new(namespace, cluster, role).map_err(|_| refused())
    }
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(is_allowed)
        && name.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_its_uri() {
        for role in Role::ALL {
            let identity = Identity::new("local", "flights-1.a", role).unwrap();
            let uri = format!("spiffe://oxidask/ns/local/cluster/flights-1.a/role/{role}");
            assert_eq!(identity.to_string(), uri);
            assert_eq!(uri.parse(), Ok(identity));
        }
    }

    #[test]
    fn refuses_everything_else() {
        for uri in [
            "",
            "spiffe://oxidask",
            "spiffe://other/ns/a/cluster/b/role/worker",
            "https://oxidask/ns/a/cluster/b/role/worker",
            "spiffe://oxidask/ns/a/cluster/b/role/admin",
            "spiffe://oxidask/ns/a/cluster/b/role/Worker",
            "spiffe://oxidask/ns/a/cluster/b/role/worker/",
            "spiffe://oxidask/ns/a/cluster/b/role/worker/x",
            "spiffe://oxidask/ns/a/cluster/b/role/worker?x",
            "spiffe://oxidask/ns//cluster/b/role/worker",
            "spiffe://oxidask/ns/../cluster/b/role/worker",
            "spiffe://oxidask/ns/a/cluster/b c/role/worker",
            "spiffe://oxidask/cluster/b/ns/a/role/worker",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
        assert!(Identity::new("a/b", "c", Role::Client).is_err());
        assert!(Identity::new("a", &"c".repeat(NAME_BYTES_MAX + 1), Role::Client).is_err());
    }

    #[test]
    fn knows_its_cluster() {
        let worker = Identity::new("a", "b", Role::Worker).unwrap();
        assert!(worker.is_same_cluster(&worker.with_role(Role::Client)));
        assert!(!worker.is_same_cluster(&Identity::new("a", "c", Role::Worker).unwrap()));
        assert!(!worker.is_same_cluster(&Identity::new("c", "b", Role::Worker).unwrap()));
    }
}

//! What a planner has to know of the Secrets of a cluster; never what is in them.
//!
//! Owns the keys of the Secrets and the annotations by which the operator knows again what it wrote.
//! The controller fills these values: digests, dates and what its checks found.

use oxidask_operator_api::kubernetes::RotationPhase;

use crate::Timestamp;

/// Key of `{cluster}-http-token`: the token of those who may read.
pub const HTTP_TOKEN_KEY: &str = "token";
/// Key of `{cluster}-http-token`: the token of those who may also change state.
pub const HTTP_OPERATOR_TOKEN_KEY: &str = "operator-token";

/// Annotation of a cluster: a new text asks for a new authority.
pub const ROTATE_AUTHORITY: &str = "kubernetes.dask.org/rotate-authority";
/// Annotation of the authority's Secret: the phase of its rotation.
pub const ROTATION_PHASE: &str = "kubernetes.dask.org/rotation-phase";
/// Annotation of the authority's Secret: the digest of the authority that the operator put there.
pub const AUTHORITY_DIGEST: &str = "kubernetes.dask.org/authority-digest";
/// Annotation of the authority's Secret: where the authority comes from.
pub const AUTHORITY_ORIGIN: &str = "kubernetes.dask.org/authority-origin";
/// Annotation of the authority's Secret: the text of [`ROTATE_AUTHORITY`] that was served last.
pub const ROTATED_FOR: &str = "kubernetes.dask.org/rotated-for";
/// Annotation of a role's Secret: when the operator wrote it last.
pub const WRITTEN_AT: &str = "kubernetes.dask.org/written-at";

/// A Secret that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretState {
    /// Whether its keys are there: `ca.crt`, `tls.crt` and `tls.key`; of an authority that a user
    /// brings the last two; of the HTTP tokens both.
    pub has_all_keys: bool,
    /// When the certificate ends; `None` if nobody knows. A role's is then issued anew.
    pub not_after: Option<Timestamp>,
    /// The digest of the bundle in `ca.crt`.
    pub bundle: Option<String>,
    /// The digest of the first certificate in `tls.crt`.
    pub certificate: Option<String>,
    /// The digest of the authority in `ca.crt` that signed the certificate in `tls.crt`.
    pub issuer: Option<String>,
    /// When the operator wrote the Secret last.
    pub written_at: Option<Timestamp>,
    /// The Secret's version.
    pub version: Option<String>,
    /// What is known of an authority besides; only of `{cluster}-ca`.
    pub authority: Option<AuthorityState>,
    /// Why its content cannot be used, in words.
    pub problem: Option<String>,
    /// What cert-manager does about it, where an issuer is given.
    pub issued: Option<IssuedState>,
}

/// An authority in its Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityState {
    /// How far its rotation has come.
    pub phase: RotationPhase,
    /// Whether it is the one that the operator put there.
    pub is_recorded: bool,
    /// The digest of the authority that it replaces, while its key is there as well.
    pub previous: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// The text of the annotation that was served last.
    pub rotated_for: Option<String>,
}

/// Where an authority comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// The operator made it.
    #[default]
    Operator,
    /// It was taken from the Secret that the manifest names.
    Secret,
    /// Somebody put it into the operator's Secret.
    Hand,
}

impl Origin {
    /// The word in the annotation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Secret => "secret",
            Self::Hand => "hand",
        }
    }

    /// From the word in the annotation.
    pub fn from_name(name: &str) -> Self {
        match name {
            "secret" => Self::Secret,
            "hand" => Self::Hand,
            _ => Self::Operator,
        }
    }
}

/// The `Certificate` object of cert-manager behind a role's Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IssuedState {
    /// Whether the API server does not know the kind.
    pub is_kind_missing: bool,
    /// The mark of the form that was applied last; `None` if the object is not there.
    pub mark: Option<String>,
    /// Why it is not ready, in cert-manager's words.
    pub message: Option<String>,
}

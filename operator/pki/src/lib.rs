//! A certificate authority per cluster and leaf certificates per role.
//!
//! Owns what is in a certificate of a cluster, how its files are written, and bundles of several
//! authorities while one replaces another. Never checks a peer (that is `oxidask-comm`), never opens
//! a socket, keeps nothing between calls but the authority.
//!
//! Invariants: a leaf names exactly one identity in exactly one URI; it may be used by both ends
//! of a connection; all keys are ECDSA P-256; a key's file is readable by its owner only.

mod bundle;
mod files;
mod foreign;
mod lifetime;
mod reading;
mod stored;

use std::fmt;
use std::time::SystemTime;

use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::{Identity, IdentityError};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

pub use bundle::{
    bundle_digest, certificate_digest, issuer_digest, joined_bundle, without_certificate,
};
pub use files::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE};
pub use lifetime::{AUTHORITY_LIFETIME, BACKDATING, LEAF_LIFETIME, Lifetime};
use oxidask_identity::Role;
pub use reading::not_after;

/// What can go wrong when certificates are made or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The cluster's namespace or name cannot be part of an identity.
    #[error("no certificates can be made for this cluster")]
    Identity(#[source] IdentityError),
    /// A key or a certificate could not be made.
    #[error("the {what} could not be made")]
    Generate {
        /// What was being made.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// A kept key or certificate could not be read.
    #[error("the {what} cannot be read")]
    Read {
        /// What was being read.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// A kept certificate is not of the kept key, or not of this cluster.
    #[error("the authority's certificate is not of its key and of this cluster")]
    Mismatch,
    /// A certificate that somebody gave cannot issue others.
    #[error("the certificate in `tls.crt` cannot issue certificates: {problem}")]
    NoAuthority {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A file could not be written.
    #[error("`{path}` cannot be written")]
    Write {
        /// The file or folder.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl Coded for PkiError {
    fn code(&self) -> Code {
        match self {
            Self::Identity(_) => Code::IdentityRejected,
            Self::Generate { .. }
            | Self::Read { .. }
            | Self::Unreadable
            | Self::Mismatch
            | Self::NoAuthority { .. }
            | Self::Write { .. } => Code::CertificateFiles,
        }
    }
}

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS #8.
    pub key_pem: String,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

/// The authority of one cluster. Its key leaves the process only as [`Authority::key_pem`].
pub struct Authority {
    identity: Identity,
    ca_pem: String,
    /// When it ends, if somebody else has made it: what it issues then ends with it at the latest.
    not_after: Option<SystemTime>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity {
            namespace, cluster, ..
        } = &self.identity;
        f.debug_struct("Authority")
            .field("namespace", namespace)
            .field("cluster", cluster)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority, valid for [`AUTHORITY_LIFETIME`].
    pub fn new(namespace: &str, cluster: &str) -> Result<Self, PkiError> {
        let identity =
            Identity::new(namespace, cluster, Role::Scheduler).map_err(PkiError::Identity)?;
        let failed = |source| PkiError::Generate {
            what: "certificate authority",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let params = authority_params(namespace, cluster);
        let certificate = params.self_signed(&key).map_err(failed)?;
        let ca_pem = certificate.pem();
        Ok(Self {
            identity,
            not_after: None,
            ca_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority's own certificate: the bundle that every process of the cluster trusts.
    pub fn ca_pem(&self) -> String {
        self.ca_pem.clone()
    }

    /// A certificate for a role of this cluster.
    pub fn issue(&self, role: Role, lifetime: impl Into<Lifetime>) -> Result<Leaf, PkiError> {
        self.issue_with_names(role, lifetime, &[])
    }

    /// The same with DNS names, which foreign tools look at and we do not.
    pub fn issue_with_names(
        &self,
        role: Role,
        lifetime: impl Into<Lifetime>,
        dns_names: &[&str],
    ) -> Result<Leaf, PkiError> {
        let failed = |source| PkiError::Generate {
            what: "certificate",
            source,
        };
        let identity = self.identity.with_role(role);
        let mut names = vec![SanType::URI(ascii(&identity.to_string()).map_err(failed)?)];
        for name in dns_names {
            names.push(SanType::DnsName(ascii(name).map_err(failed)?));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&format!("oxidask {role}"));
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let mut lifetime = lifetime.into();
        if let Some(end) = self.not_after {
            lifetime.not_after = lifetime.not_after.min(end);
        }
        lifetime.apply(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Leaf {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn authority_params(namespace: &str, cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&stored::subject(namespace, cluster));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Lifetime::from(AUTHORITY_LIFETIME).apply(&mut params);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, shortened(name));
    distinguished_name
}

/// What fits into a common name.
fn shortened(name: &str) -> String {
    const CHARACTERS_MAX: usize = 64;
    name.chars().take(CHARACTERS_MAX).collect()
}

fn ascii(text: &str) -> Result<Ia5String, rcgen::Error> {
    Ia5String::try_from(text)
}

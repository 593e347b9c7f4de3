//! An authority that a user brings: any certificate that may issue others, with its key.
//!
//! Owns the checks. The proof is a certificate issued on trial that has to verify, so that a fault
//! shows here and not in the first connection. What is trusted is this certificate alone, not the one
//! above it: other authorities under the same root say nothing about this cluster.

use std::time::{Duration, SystemTime};

use oxidask_identity::{Identity, Role};
use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::{Authority, PkiError, issuer_digest, joined_bundle};

/// How long the certificate on trial is valid.
const TRIAL: Duration = Duration::from_mins(5);

impl Authority {
    /// The authority of a certificate and its key, both PEM. The first certificate of the text counts.
    pub fn from_user(
        namespace: &str,
        cluster: &str,
        cert_pem: &str,
        key_pem: &str,
    ) -> Result<Self, PkiError> {
        let identity =
            Identity::new(namespace, cluster, Role::Scheduler).map_err(PkiError::Identity)?;
        let ca_pem = first(cert_pem).ok_or(PkiError::Unreadable)?;
        let key = KeyPair::from_pem(key_pem).map_err(|source| PkiError::Read {
            what: "authority's private key (PKCS #8, PEM)",
            source,
        })?;
        if !holds(&ca_pem, key.der_bytes()) {
            return Err(PkiError::NoAuthority {
                problem: "`tls.key` is not its key",
            });
        }
        let not_after = crate::not_after(&ca_pem)?;
        if not_after <= SystemTime::now() {
            return Err(PkiError::NoAuthority {
                problem: "it has ended",
            });
        }
        if !is_authority(&ca_pem) {
            return Err(PkiError::NoAuthority {
                problem: "it is of an end entity; its basic constraints have to say `CA:TRUE`",
            });
        }
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|source| PkiError::Read {
            what: "authority's certificate",
            source,
        })?;
        let authority = Self {
            identity,
            ca_pem,
            not_after: Some(not_after),
            issuer,
        };
        let leaf = authority.issue(Role::Operator, TRIAL)?;
        if issuer_digest(&leaf.cert_pem, &authority.ca_pem).is_none() {
            return Err(PkiError::NoAuthority {
                problem: "what it issues on trial does not verify",
            });
        }
        Ok(authority)
    }
}

fn first(pem: &str) -> Option<String> {
    let bundle = joined_bundle(&[pem]);
    let end = bundle.find("-----END CERTIFICATE-----\n")?;
    Some(bundle[..end + "-----END CERTIFICATE-----\n".len()].to_owned())
}

/// Whether the certificate says of itself that it may issue others: as one end of a connection it
/// is refused for just that.
fn is_authority(ca_pem: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(ca_pem.as_bytes()) else {
        return false;
    };
    let (Ok(certificate), Ok(anchor)) = (
        EndEntityCert::try_from(&der),
        anchor_from_trusted_cert(&der),
    ) else {
        return false;
    };
    let anchors = [anchor];
    let verified = certificate.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &[],
        UnixTime::now(),
        KeyUsage::server_auth(),
        None,
        None,
    );
    matches!(verified, Err(webpki::Error::CaUsedAsEndEntity))
}

/// Whether the certificate is of this public key.
fn holds(ca_pem: &str, key: &[u8]) -> bool {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes());
    der.is_ok_and(|der| der.windows(key.len()).any(|part| part == key))
}

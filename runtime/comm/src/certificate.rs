//! What we read from a certificate beyond its chain: the one identity and the last valid moment.
//!
//! Whoever calls this has verified the chain, or is looking at its own certificate.

use std::time::SystemTime;

use oxidask_identity::{Identity, IdentityError, not_after};
use rustls_pki_types::CertificateDer;

/// What is wrong with a certificate whose chain is good.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateFault {
    /// It cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Parse,
    /// It must have one URI.
    #[error("the certificate has `{0}` URIs instead of exactly one")]
    UriCount(usize),
    /// Its URI is not an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Who a certificate speaks for, and until when.
#[derive(Debug, Clone)]
pub(crate) struct Inspected {
    pub(crate) identity: Identity,
    pub(crate) not_after: SystemTime,
}

/// Reads identity and end of validity.
pub(crate) fn inspect(der: &CertificateDer<'_>) -> Result<Inspected, CertificateFault> {
    let certificate = webpki::EndEntityCert::try_from(der).map_err(|_| CertificateFault::Parse)?;
    let uris: Vec<&str> = certificate.valid_uri_names().take(2).collect();
    let [uri] = uris[..] else {
        return Err(CertificateFault::UriCount(
            certificate.valid_uri_names().count(),
        ));
    };
    let identity = uri.parse()?;
    let not_after = not_after(der).ok_or(CertificateFault::Parse)?;
    Ok(Inspected {
        identity,
        not_after,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use oxidask_identity::Role;
    use oxidask_pki::{Authority, Lifetime};
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn reads_what_the_authority_writes() {
        let authority = Authority::new("local", "flights").unwrap();
        for years in [0, 1, 30, 100] {
            let end = UNIX_EPOCH + Duration::from_secs(1_800_000_000 + years * 31_556_952);
            let lifetime = Lifetime {
                not_before: UNIX_EPOCH,
                not_after: end,
            };
            let leaf = authority.issue(Role::Worker, lifetime).unwrap();
            let der = CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap();
            let found = inspect(&der).unwrap();
            assert_eq!(found.not_after, end);
            assert_eq!(
                found.identity,
                Identity::new("local", "flights", Role::Worker).unwrap()
            );
        }
        let der = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
        assert!(matches!(
            inspect(&der),
            Err(CertificateFault::Parse | CertificateFault::UriCount(0))
        ));
    }
}

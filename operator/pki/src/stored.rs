//! An authority that is kept between calls, as two PEM texts.
//!
//! The certificate is not decoded: subject and key usages of an authority follow from the cluster's
//! name, so only the key has to be read. What is checked is that both texts belong together.

use oxidask_identity::{Identity, Role};
use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::{Authority, PkiError, authority_params};

impl Authority {
    /// The authority's private key, PKCS #8, to be kept where nobody else reads it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The authority that was kept as `ca_pem` (a bundle is fine) and `key_pem`.
    pub fn from_pem(
        namespace: &str,
        cluster: &str,
        ca_pem: &str,
        key_pem: &str,
    ) -> Result<Self, PkiError> {
        let identity =
            Identity::new(namespace, cluster, Role::Scheduler).map_err(PkiError::Identity)?;
        let key = KeyPair::from_pem(key_pem).map_err(|source| PkiError::Read {
            what: "authority's private key",
            source,
        })?;
        let params = authority_params(namespace, cluster);
        if !certifies(ca_pem, key.public_key_raw(), &subject(namespace, cluster)) {
            return Err(PkiError::Mismatch);
        }
        Ok(Self {
            identity,
            not_after: Some(crate::not_after(ca_pem)?),
            ca_pem: ca_pem.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }
}

/// The common name of a cluster's authority, as it stands in its certificate.
pub(crate) fn subject(namespace: &str, cluster: &str) -> String {
    format!("oxidask {namespace}/{cluster}")
}

/// Whether a certificate of the bundle holds this key and this name.
fn certifies(bundle: &str, key: &[u8], subject: &str) -> bool {
    let name = crate::shortened(subject);
    CertificateDer::pem_slice_iter(bundle.as_bytes())
        .filter_map(Result::ok)
        .any(|der| contains(&der, key) && contains(&der, name.as_bytes()))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && haystack.windows(needle.len()).any(|part| part == needle)
}

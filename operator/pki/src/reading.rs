//! What is read from a certificate that was made here once.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::PkiError;

/// The last moment at which the first certificate of the text is valid.
pub fn not_after(cert_pem: &str) -> Result<SystemTime, PkiError> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes());
    let der = der.map_err(|_| PkiError::Unreadable)?;
    oxidask_identity::not_after(&der).ok_or(PkiError::Unreadable)
}

//! Bundles: several authorities in one PEM text, and the digests by which texts are known again.
//!
//! Owns joining and taking apart. A digest speaks of the certificates, never of the text around
//! them: order, blank lines and comments do not change that of a bundle.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Certificates that are kept of one text; a longer bundle is cut.
const CERTIFICATES_MAX: usize = 64;

/// The digest of a bundle, as processes report it. None without any certificate.
pub fn bundle_digest(pem: &str) -> Option<String> {
    let certificates: Vec<CertificateDer<'_>> = blocks(pem).into_iter().filter_map(der).collect();
    let digest = || oxidask_identity::bundle_digest(certificates.iter().map(AsRef::as_ref));
    (!certificates.is_empty()).then(digest)
}

/// The digest of the first certificate of a text, as processes report it.
pub fn certificate_digest(pem: &str) -> Option<String> {
    blocks(pem)
        .first()
        .copied()
        .and_then(der)
        .map(|it| digest(&it))
}

/// All certificates of the texts, each once, in the order in which they come.
pub fn joined_bundle(texts: &[&str]) -> String {
    let mut seen: Vec<CertificateDer<'_>> = Vec::new();
    let mut joined = String::new();
    for block in texts.iter().flat_map(|text| blocks(text)) {
        let Some(certificate) = der(block) else {
            continue;
        };
        if seen.len() < CERTIFICATES_MAX && !seen.contains(&certificate) {
            joined.push_str(block);
            joined.push('\n');
            seen.push(certificate);
        }
    }
    joined
}

/// The bundle without the certificate of that digest.
pub fn without_certificate(bundle: &str, unwanted: &str) -> String {
    let kept: Vec<&str> = blocks(bundle)
        .into_iter()
        .filter(|block| der(block).is_some_and(|it| digest(&it) != unwanted))
        .collect();
    joined_bundle(&kept)
}

/// The digest of the certificate of the bundle that signed the first one of `leaf`.
pub fn issuer_digest(leaf: &str, bundle: &str) -> Option<String> {
    let leaf = blocks(leaf).first().copied().and_then(der)?;
    let certificate = EndEntityCert::try_from(&leaf).ok()?;
    // Who signed it does not depend on the date: the last moment of the leaf is looked at.
    let end = oxidask_identity::not_after(&leaf)?;
    let moment = time(end.checked_sub(Duration::from_secs(1))?);
    blocks(bundle)
        .into_iter()
        .filter_map(der)
        .find_map(|issuer| {
            let anchors = [anchor_from_trusted_cert(&issuer).ok()?];
            let verified = certificate.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &[],
                moment,
                KeyUsage::server_auth(),
                None,
                None,
            );
            verified.is_ok().then(|| digest(&issuer))
        })
}

fn time(moment: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(moment.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The certificates of a text, each with its first and last line.
fn blocks(pem: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(start) = rest.find(BEGIN) {
        let Some(length) = rest[start..].find(END) else {
            break;
        };
        let end = start + length + END.len();
        found.push(&rest[start..end]);
        rest = &rest[end..];
    }
    found
}

fn der(block: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(block.as_bytes()).ok()
}

fn digest(certificate: &CertificateDer<'_>) -> String {
    oxidask_identity::certificate_digest(certificate)
}

//! What the authority makes is what the checking side asks for.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use oxidask_pki::{Authority, Lifetime, PkiError};
use oxidask_proto::Role;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

const HOUR: Duration = Duration::from_hours(1);

fn verify(authority: &Authority, cert_pem: &str, usage: KeyUsage) -> Result<(), webpki::Error> {
    let ca = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
    let anchors = [anchor_from_trusted_cert(&ca).unwrap()];
    let leaf = CertificateDer::from_pem_slice(cert_pem.as_bytes()).unwrap();
    let leaf = EndEntityCert::try_from(&leaf).unwrap();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let verified = leaf.verify_for_usage(
        algorithms,
        &anchors,
        &[],
        UnixTime::now(),
        usage,
        None,
        None,
    );
    verified.map(|_| ())
}

#[test]
fn a_leaf_has_one_identity_and_serves_both_ends() {
    let authority = Authority::new("local", "flights").unwrap();
    for role in Role::ALL {
        let leaf = authority
            .issue_with_names(role, HOUR, &["a.b.svc"])
            .unwrap();
        verify(&authority, &leaf.cert_pem, KeyUsage::server_auth()).unwrap();
        verify(&authority, &leaf.cert_pem, KeyUsage::client_auth()).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap();
        let certificate = EndEntityCert::try_from(&der).unwrap();
        let uris: Vec<&str> = certificate.valid_uri_names().collect();
        assert_eq!(
            uris,
            [format!(
                "spiffe://oxidask/ns/local/cluster/flights/role/{role}"
            )]
        );
        assert_eq!(
            certificate.valid_dns_names().collect::<Vec<_>>(),
            ["a.b.svc"]
        );
        assert!(PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).is_ok());
        assert!(!format!("{leaf:?}").contains("PRIVATE"));
    }
}

#[test]
fn others_and_expired_ones_do_not_verify() {
    let authority = Authority::new("local", "a").unwrap();
    let other = Authority::new("local", "a").unwrap();
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    assert!(verify(&other, &leaf.cert_pem, KeyUsage::server_auth()).is_err());
    let leaf = authority.issue(Role::Worker, Lifetime::expired()).unwrap();
    let error = verify(&authority, &leaf.cert_pem, KeyUsage::server_auth()).unwrap_err();
    assert!(
        matches!(error, webpki::Error::CertExpired { .. }),
        "{error}"
    );
}

#[test]
fn names_that_break_the_uri_are_refused() {
    assert!(matches!(
        Authority::new("a/b", "c"),
        Err(PkiError::Identity(_))
    ));
    assert!(matches!(
        Authority::new("a", ""),
        Err(PkiError::Identity(_))
    ));
}

#[test]
fn files_are_written_and_replaced_and_the_key_is_private() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("deep/worker");
    let authority = Authority::new("local", "a").unwrap();
    authority.write_dir(&dir, Role::Worker, HOUR).unwrap();
    let first = std::fs::read_to_string(dir.join("tls.crt")).unwrap();
    authority.write_dir(&dir, Role::Worker, HOUR).unwrap();
    assert_ne!(std::fs::read_to_string(dir.join("tls.crt")).unwrap(), first);
    assert_eq!(
        std::fs::read_to_string(dir.join("ca.crt")).unwrap(),
        authority.ca_pem()
    );
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.join("tls.key")), 0o600);
    assert_eq!(mode(dir), 0o700);
}

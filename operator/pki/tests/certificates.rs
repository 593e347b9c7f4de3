//! What the authority makes is what the checking side asks for.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use oxidask_identity::Role;
use oxidask_pki::{
    AUTHORITY_LIFETIME, Authority, LEAF_LIFETIME, Lifetime, PkiError, bundle_digest,
    certificate_digest, issuer_digest, joined_bundle, not_after, without_certificate,
};
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

#[test]
fn a_kept_authority_goes_on_issuing() {
    let authority = Authority::new("science", "flights").unwrap();
    let (ca, key) = (authority.ca_pem(), authority.key_pem());
    let kept = Authority::from_pem("science", "flights", &ca, &key).unwrap();
    assert_eq!(kept.ca_pem(), ca);
    let leaf = kept.issue(Role::Worker, HOUR).unwrap();
    verify(&authority, &leaf.cert_pem, KeyUsage::server_auth()).unwrap();

    let other = Authority::new("science", "flights").unwrap();
    for (cluster, ca, key) in [
        ("flights", other.ca_pem(), key.clone()),
        ("trains", ca.clone(), key.clone()),
        ("flights", String::new(), key),
    ] {
        assert!(matches!(
            Authority::from_pem("science", cluster, &ca, &key),
            Err(PkiError::Mismatch)
        ));
    }
    assert!(matches!(
        Authority::from_pem("science", "flights", &ca, "no key"),
        Err(PkiError::Read { .. })
    ));
}

#[test]
fn the_end_of_a_certificate_can_be_read() {
    let authority = Authority::new("science", "flights").unwrap();
    let leaf = authority.issue(Role::Worker, LEAF_LIFETIME).unwrap();
    for (pem, lifetime) in [
        (leaf.cert_pem.clone(), LEAF_LIFETIME),
        (authority.ca_pem(), AUTHORITY_LIFETIME),
        // After 2049 dates have four digits of the year.
        (
            authority
                .issue(Role::Worker, 4 * AUTHORITY_LIFETIME)
                .unwrap()
                .cert_pem,
            4 * AUTHORITY_LIFETIME,
        ),
    ] {
        let wanted = SystemTime::now() + lifetime;
        let found = not_after(&pem).unwrap();
        let difference = wanted.duration_since(found).unwrap();
        assert!(difference < Duration::from_mins(1), "{difference:?}");
    }
    for text in ["", "nonsense", &leaf.cert_pem[..200], &leaf.key_pem] {
        assert!(matches!(not_after(text), Err(PkiError::Unreadable)));
    }
}

#[test]
fn a_damaged_certificate_is_unreadable_and_nothing_worse() {
    let authority = Authority::new("science", "flights").unwrap();
    let ca = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
    for cut in 0..120 {
        let pem = pem(&ca[..cut]);
        assert!(not_after(&pem).is_err(), "{cut}");
    }
}

fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for chunk in der.chunks(3) {
        let bytes = [0, 1, 2].map(|index| u32::from(chunk.get(index).copied().unwrap_or(0)));
        let bits = bytes[0] << 16 | bytes[1] << 8 | bytes[2];
        for index in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * index) & 63).unwrap();
            let is_there = index <= chunk.len();
            text.push(if is_there {
                char::from(DIGITS[digit])
            } else {
                '='
            });
        }
    }
    text + "\n-----END CERTIFICATE-----\n"
}

#[test]
fn keys_are_not_shown() {
    let authority = Authority::new("science", "flights").unwrap();
    let key = authority.key_pem();
    let secret = key.lines().nth(1).unwrap();
    assert!(secret.len() > 20);
    let leaf = authority.issue(Role::Client, HOUR).unwrap();
    let shown = format!("{authority:?} {leaf:?}");
    assert!(
        !shown.contains(secret) && !shown.contains("PRIVATE KEY"),
        "{shown}"
    );
    let error = Authority::from_pem("science", "flights", &key, &key).unwrap_err();
    let error = format!("{error:?} {error}");
    assert!(!error.contains(secret), "{error}");
}

#[test]
fn bundles_are_joined_and_known_again() {
    let one = Authority::new("science", "flights").unwrap().ca_pem();
    let two = Authority::new("science", "flights").unwrap().ca_pem();
    let both = joined_bundle(&[&one, &two, &one]);
    assert_eq!(both.matches("BEGIN").count(), 2, "each once");
    let digest = bundle_digest(&both);
    assert!(digest.is_some());
    assert_eq!(
        digest,
        bundle_digest(&joined_bundle(&[&two, &one])),
        "order is nothing"
    );
    assert_eq!(
        digest,
        bundle_digest(&format!("a comment\n{two}\r\n\n{one}"))
    );
    assert_ne!(digest, bundle_digest(&one));
    assert_ne!(bundle_digest(&one), certificate_digest(&one));
    let left = without_certificate(&both, &certificate_digest(&one).unwrap());
    assert_eq!(bundle_digest(&left), bundle_digest(&two));
    for nonsense in [
        "",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
    ] {
        assert_eq!(bundle_digest(nonsense), None);
        assert_eq!(certificate_digest(nonsense), None);
    }
}

#[test]
fn the_issuer_is_found_by_its_signature() {
    let old = Authority::new("science", "flights").unwrap();
    let new = Authority::new("science", "flights").unwrap();
    let leaf = new.issue(Role::Worker, HOUR).unwrap();
    let both = joined_bundle(&[&old.ca_pem(), &new.ca_pem()]);
    let issuer = issuer_digest(&leaf.cert_pem, &both);
    assert_eq!(issuer, certificate_digest(&new.ca_pem()));
    assert_eq!(issuer_digest(&leaf.cert_pem, &old.ca_pem()), None);
    let expired = new.issue(Role::Worker, Lifetime::expired()).unwrap();
    assert_eq!(
        issuer_digest(&expired.cert_pem, &both),
        issuer,
        "who signed it stays true"
    );
}

/// An authority as `openssl` or cert-manager make one, with a lifetime of its own.
fn users_authority(is_authority: bool, hours: i64) -> (String, String) {
    let mut params = rcgen::CertificateParams::default();
    let name = &mut params.distinguished_name;
    name.push(rcgen::DnType::OrganizationName, "Company");
    name.push(rcgen::DnType::CommonName, "Company Root");
    if is_authority {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let now = time::OffsetDateTime::from(SystemTime::now());
    params.not_before = now - time::Duration::hours(48);
    params.not_after = now + time::Duration::hours(hours);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_users_authority_issues_and_its_faults_are_told() {
    let (certificate, key) = users_authority(true, 5);
    let authority = Authority::from_user("science", "flights", &certificate, &key).unwrap();
    let leaf = authority.issue(Role::Worker, LEAF_LIFETIME).unwrap();
    verify(&authority, &leaf.cert_pem, KeyUsage::server_auth()).unwrap();
    let end = not_after(&leaf.cert_pem).unwrap();
    assert_eq!(
        end,
        not_after(&certificate).unwrap(),
        "it does not outlive its authority"
    );

    let (_, other) = users_authority(true, 5);
    let (leaf_like, its_key) = users_authority(false, 5);
    let (ended, its_old_key) = users_authority(true, -1);
    for (certificate, key, words) in [
        (&certificate, &other, "is not its key"),
        (&leaf_like, &its_key, "end entity"),
        (&ended, &its_old_key, "it has ended"),
    ] {
        let error = Authority::from_user("science", "flights", certificate, key).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let nothing = Authority::from_user("science", "flights", "", &key).unwrap_err();
    assert!(matches!(nothing, PkiError::Unreadable));
    let error = Authority::from_user("science", "flights", &certificate, "no key").unwrap_err();
    assert!(error.to_string().contains("PKCS #8"), "{error}");
}

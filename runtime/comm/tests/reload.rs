//! Certificates that are renewed while connections come and go.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use oxidask_comm::{
    BulkFound, BulkPieceRequest, BulkPool, BulkRead, BulkSource, CommError, Credentials,
    keep_fresh, serve_bulk,
};
use oxidask_identity::Role;
use oxidask_pki::{Authority, Leaf};
use support::{HOUR, authority, credentials, listener, trusting_both};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Has nothing, which is answer enough.
struct Nothing;

impl BulkSource for Nothing {
    fn find(&self, _: u64) -> BulkFound {
        BulkFound::from(None)
    }

    fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        panic!("these tests read no pieces")
    }

    fn free(&self, _: &[(u64, u32)]) {
        panic!("these tests free nothing")
    }
}

fn write(dir: &Path, bundle: &str, leaf: &Leaf) {
    std::fs::write(dir.join("ca.crt"), bundle).unwrap();
    std::fs::write(dir.join("tls.crt"), &leaf.cert_pem).unwrap();
    std::fs::write(dir.join("tls.key"), &leaf.key_pem).unwrap();
}

fn both(one: &Authority, other: &Authority) -> String {
    format!("{}{}", one.ca_pem(), other.ca_pem())
}

fn leaf(authority: &Authority) -> Leaf {
    authority.issue(Role::Worker, HOUR).unwrap()
}

async fn serve(credentials: Credentials) -> String {
    let (listener, address) = listener().await;
    let shutdown = CancellationToken::new();
    tokio::spawn(serve_bulk(
        listener,
        credentials,
        Arc::new(Nothing),
        shutdown,
    ));
    address
}

/// Over a connection of its own.
async fn ask(address: &str, credentials: Credentials) -> Result<(), CommError> {
    let found = BulkPool::new(credentials).fetch(address, &[7]).await?;
    assert!(found[0].1.is_none());
    Ok(())
}

#[tokio::test]
async fn an_authority_is_replaced_without_a_gap_and_the_old_one_is_refused_afterwards() {
    let (old, new) = (authority(), authority());
    let dir = TempDir::new().unwrap();
    write(dir.path(), &old.ca_pem(), &leaf(&old));
    let server = Credentials::from_dir(dir.path()).unwrap();
    let address = serve(server.clone()).await;
    let peer_old = credentials(&old, Role::Worker);
    let peer_new = trusting_both(&new, &old, Role::Worker);
    // Kept over all that follows: a connection that stands is not cut.
    let kept = BulkPool::new(peer_old.clone());
    kept.fetch(&address, &[7]).await.unwrap();
    ask(&address, peer_new.clone()).await.unwrap_err();
    assert!(!server.reload().unwrap(), "nothing has changed");

    let first = server.loaded();
    write(dir.path(), &both(&old, &new), &leaf(&old));
    assert!(server.reload().unwrap());
    let second = server.loaded();
    assert_ne!(first.bundle, second.bundle);
    ask(&address, peer_old.clone()).await.unwrap();
    ask(&address, peer_new.clone()).await.unwrap();

    write(dir.path(), &new.ca_pem(), &leaf(&new));
    assert!(server.reload().unwrap());
    assert_ne!(second.certificate, server.loaded().certificate);
    ask(&address, peer_new).await.unwrap();
    ask(&address, peer_old).await.unwrap_err();
    kept.fetch(&address, &[7]).await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_together_is_not_taken() {
    let (one, two) = (authority(), authority());
    let dir = TempDir::new().unwrap();
    let own = leaf(&one);
    write(dir.path(), &one.ca_pem(), &own);
    let server = Credentials::from_dir(dir.path()).unwrap();
    let before = server.loaded();
    let address = serve(server.clone()).await;

    // Somebody is writing: the certificate is there, its key is not.
    std::fs::write(dir.path().join("tls.crt"), leaf(&two).cert_pem).unwrap();
    let error = server.reload().unwrap_err();
    assert!(
        matches!(error, CommError::CertificateMismatch(_)),
        "{error:?}"
    );
    std::fs::remove_file(dir.path().join("tls.key")).unwrap();
    let error = server.reload().unwrap_err();
    assert!(
        matches!(error, CommError::CertificateFile { .. }),
        "{error:?}"
    );
    let other = one.issue(Role::Client, HOUR).unwrap();
    write(dir.path(), &one.ca_pem(), &other);
    let error = server.reload().unwrap_err();
    assert!(
        matches!(error, CommError::IdentityChanged { .. }),
        "{error:?}"
    );

    assert_eq!(server.loaded(), before);
    ask(&address, credentials(&one, Role::Worker))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_process_takes_new_files_by_itself() {
    let (old, new) = (authority(), authority());
    let dir = TempDir::new().unwrap();
    write(dir.path(), &old.ca_pem(), &leaf(&old));
    let server = Credentials::from_dir(dir.path()).unwrap();
    let shutdown = CancellationToken::new();
    let keeping = tokio::spawn(keep_fresh(server.clone(), shutdown.clone()));
    let renewed = leaf(&new);
    write(dir.path(), &new.ca_pem(), &renewed);
    let expected = support::with_leaf(&new.ca_pem(), &renewed).loaded();
    timeout(Duration::from_secs(20), async {
        while server.loaded() != expected {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    shutdown.cancel();
    timeout(Duration::from_secs(5), keeping)
        .await
        .unwrap()
        .unwrap();
}

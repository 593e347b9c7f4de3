//! Who gets in and who does not, with real sockets: gRPC over the scheduler's port.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::Stream;
use oxidask_comm::{BulkPool, CommError, Credentials, caller, connect, incoming, server};
use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::Role;
use oxidask_pki::{Authority, Lifetime};
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::wire::scheduler_server::{Scheduler, SchedulerServer};
use oxidask_proto::{fault, wire};
use support::{
    HOUR, accept_raw, authority, connect_raw, credentials, expired, listener, mixed, trusting_both,
    with_leaf,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers `status` to clients, with the caller's identity as the build.
struct Fake;

#[tonic::async_trait]
impl Scheduler for Fake {
    type WorkStream = Replies<wire::WorkBatch>;
    type SessionStream = Replies<wire::SessionBatch>;
    type FetchStream = Replies<wire::FetchChunk>;
    type TelemetryStream = Replies<wire::TelemetryReply>;
    type LogsStream = Replies<wire::LogsReply>;

    async fn work(
        &self,
        request: Request<Streaming<wire::WorkerBatch>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        caller(&request, &[Role::Worker])?;
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }

    async fn session(
        &self,
        request: Request<Streaming<wire::ClientBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        caller(&request, &[Role::Client])?;
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        caller(&request, &[Role::Client])?;
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        let build = caller(&request, &[Role::Client])?.to_string();
        let hello = Some(wire::Hello {
            build,
            ..wire::Hello::default()
        });
        Ok(Response::new(wire::StatusReply {
            hello,
            ..wire::StatusReply::default()
        }))
    }

    async fn retire(
        &self,
        request: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireReply>, Status> {
        caller(&request, &[Role::Client, Role::Operator])?;
        Ok(Response::new(wire::RetireReply::default()))
    }

    async fn worker_ended(
        &self,
        request: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        caller(&request, &[Role::Client, Role::Operator])?;
        Ok(Response::new(wire::WorkerEndedReply::default()))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        caller(&request, &[Role::Client])?;
        Ok(Response::new(wire::ExplainReply::default()))
    }

    async fn logs(
        &self,
        request: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        caller(&request, &[Role::Client])?;
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }

    async fn telemetry(
        &self,
        request: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        caller(&request, &[Role::Operator])?;
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }
}

/// Starts a scheduler and returns its address, without the scheme.
async fn serve(credentials: Credentials) -> String {
    let (listener, address) = listener().await;
    let connections = incoming(listener, credentials, CancellationToken::new());
    tokio::spawn(server().serve_with_incoming(SchedulerServer::new(Fake), connections));
    address
}

async fn status(address: &str, credentials: &Credentials) -> Result<String, CommError> {
    let channel = connect(
        &format!("oxidask://{address}"),
        credentials,
        Role::Scheduler,
    )
    .await?;
    let reply = SchedulerClient::new(channel)
        .status(wire::StatusRequest {})
        .await
        .unwrap();
    Ok(reply.into_inner().hello.unwrap().build)
}

/// The server goes on serving whatever the others did.
async fn assert_still_serves(address: &str, authority: &Authority) {
    let client = credentials(authority, Role::Client);
    let build = timeout(Duration::from_secs(4), status(address, &client))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        build,
        "spiffe://oxidask/ns/local/cluster/flights/role/client"
    );
}

async fn refused(address: &str, credentials: &Credentials, code: Code) -> CommError {
    let outcome = timeout(Duration::from_secs(8), status(address, credentials))
        .await
        .unwrap();
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), code, "{error:?}");
    assert!(error.to_string().contains(address), "{error}");
    error
}

#[tokio::test]
async fn a_client_of_the_cluster_gets_in() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    assert_still_serves(&address, &authority).await;
    let by_name = address.replace("127.0.0.1", "localhost");
    assert_still_serves(&by_name, &authority).await;
}

#[tokio::test]
async fn each_call_has_its_roles() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    for role in Role::ALL {
        let credentials = credentials(&authority, role);
        let url = format!("oxidask://{address}");
        let channel = connect(&url, &credentials, Role::Scheduler).await.unwrap();
        let mut client = SchedulerClient::new(channel);
        let work = client.work(futures::stream::pending()).await.map(drop);
        let session = client.session(futures::stream::pending()).await.map(drop);
        let fetch = client.fetch(wire::FetchRequest::default()).await.map(drop);
        let status = client.status(wire::StatusRequest {}).await.map(drop);
        let retire = client
            .retire(wire::RetireRequest::default())
            .await
            .map(drop);
        let telemetry = client
            .telemetry(wire::TelemetryRequest::default())
            .await
            .map(drop);
        let is_client = role == Role::Client;
        let is_operator = role == Role::Operator;
        for (outcome, may) in [
            (work, role == Role::Worker),
            (session, is_client),
            (fetch, is_client),
            (status, is_client),
            (retire, is_client || is_operator),
            (telemetry, is_operator),
        ] {
            assert_eq!(outcome.is_ok(), may, "{role}: {outcome:?}");
            if let Err(status) = outcome {
                let diagnostic = fault::from_status(&status);
                assert_eq!(diagnostic.code, Code::CallForbidden);
                assert!(diagnostic.message.contains(role.name()), "{diagnostic}");
            }
        }
    }
}

#[tokio::test]
async fn another_authority_is_told_apart_on_both_sides() {
    let (ours, theirs) = (authority(), authority());
    let address = serve(credentials(&ours, Role::Scheduler)).await;
    let client = credentials(&theirs, Role::Client);
    let error = refused(&address, &client, Code::CertificateRejected).await;
    assert!(
        matches!(error, CommError::CertificateRejected { .. }),
        "{error:?}"
    );
    let client = mixed(&ours, &theirs, Role::Client);
    let error = refused(&address, &client, Code::CertificateRejected).await;
    assert!(
        matches!(error, CommError::RejectedByPeer { .. }),
        "{error:?}"
    );
    assert_still_serves(&address, &ours).await;
}

#[tokio::test]
async fn another_cluster_is_refused_even_with_a_trusted_authority() {
    let (ours, theirs) = (authority(), Authority::new("local", "trains").unwrap());
    let address = serve(trusting_both(&ours, &theirs, Role::Scheduler)).await;
    // The client finds out.
    let client = trusting_both(&theirs, &ours, Role::Client);
    let error = refused(&address, &client, Code::IdentityRejected).await;
    assert!(
        matches!(&error, CommError::OtherCluster { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("cluster/flights/role/scheduler"),
        "{error}"
    );
    // The server finds out: a client that does not check gets an alert instead of an answer.
    let leaf = theirs.issue(Role::Client, HOUR).unwrap();
    let mut raw = connect_raw(&address, Some(&leaf), b"h2").await.unwrap();
    let error = raw.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("CertificateUnknown"), "{error}");
    assert_still_serves(&address, &ours).await;
}

#[tokio::test]
async fn expired_certificates_are_refused_on_both_sides() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    let client = expired(&authority, Role::Client);
    let error = refused(&address, &client, Code::CertificateRejected).await;
    assert!(
        matches!(&error, CommError::RejectedByPeer { reason, .. } if reason.contains("expired"))
    );
    assert_still_serves(&address, &authority).await;

    let address = serve(expired(&authority, Role::Scheduler)).await;
    let client = credentials(&authority, Role::Client);
    let error = refused(&address, &client, Code::CertificateRejected).await;
    assert!(
        matches!(&error, CommError::CertificateRejected { reason, .. } if reason.contains("expired"))
    );
}

#[tokio::test]
async fn a_server_in_another_role_is_refused() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Worker)).await;
    let client = credentials(&authority, Role::Client);
    let error = refused(&address, &client, Code::IdentityRejected).await;
    assert!(matches!(
        error,
        CommError::OtherRole {
            expected: Role::Scheduler,
            found: Role::Worker,
            ..
        }
    ));
}

#[tokio::test]
async fn without_a_certificate_nobody_gets_in() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    let mut raw = connect_raw(&address, None, b"h2").await.unwrap();
    let error = raw.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    assert_still_serves(&address, &authority).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_peers_certificate() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    let leaf = authority
        .issue(Role::Client, Duration::from_secs(3))
        .unwrap();
    let client = with_leaf(&authority.ca_pem(), &leaf);
    let url = format!("oxidask://{address}");
    let channel = connect(&url, &client, Role::Scheduler).await.unwrap();
    let mut client = SchedulerClient::new(channel);
    let mut stream = client
        .session(futures::stream::pending())
        .await
        .unwrap()
        .into_inner();
    let start = Instant::now();
    let ended = timeout(Duration::from_secs(8), stream.message())
        .await
        .unwrap();
    assert!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    assert!(start.elapsed() > Duration::from_millis(500));
    // Validity is in whole seconds and includes the last one (RFC 5280, 4.1.2.5).
    sleep(Duration::from_millis(1_100)).await;
    assert!(client.status(wire::StatusRequest {}).await.is_err());
}

#[tokio::test]
async fn peers_that_do_not_speak_tls_are_named() {
    let authority = authority();
    let client = credentials(&authority, Role::Client);
    let (http, address) = listener().await;
    tokio::spawn(async move {
        let (mut tcp, _) = http.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    });
    let error = refused(&address, &client, Code::SchedulerUnreachable).await;
    assert!(matches!(error, CommError::NotTls { .. }), "{error:?}");

    let (silent, address) = listener().await;
    let error = refused(&address, &client, Code::SchedulerUnreachable).await;
    assert!(matches!(error, CommError::Timeout { .. }), "{error:?}");
    drop(silent);

    let (closing, address) = listener().await;
    tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    let error = refused(&address, &client, Code::SchedulerUnreachable).await;
    assert!(matches!(error, CommError::Handshake { .. }), "{error:?}");
}

#[tokio::test]
async fn a_port_without_listener_is_tried_a_few_times() {
    let authority = authority();
    let client = credentials(&authority, Role::Client);
    let (unused, address) = listener().await;
    drop(unused);
    let error = refused(&address, &client, Code::SchedulerUnreachable).await;
    assert!(matches!(error, CommError::Connect { .. }), "{error:?}");

    // One that begins to listen a little later is reached.
    let scheduler = credentials(&authority, Role::Scheduler);
    let later = address.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(300)).await;
        let listener = tokio::net::TcpListener::bind(later).await.unwrap();
        let connections = incoming(listener, scheduler, CancellationToken::new());
        server()
            .serve_with_incoming(SchedulerServer::new(Fake), connections)
            .await
    });
    assert_still_serves(&address, &authority).await;
}

#[tokio::test]
async fn the_data_plane_does_not_mistake_the_schedulers_port() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Worker)).await;
    let pool = BulkPool::new(credentials(&authority, Role::Worker));
    let error = pool.fetch(&address, &[1]).await.unwrap_err();
    assert!(matches!(error, CommError::WrongPort { .. }), "{error:?}");
}

#[tokio::test]
async fn idle_connections_and_random_bytes_disturb_nobody() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    let mut idle = Vec::new();
    for number in 0..1_000_u32 {
        let mut tcp = TcpStream::connect(&address).await.unwrap();
        if number % 10 == 0 {
            let seed = number.wrapping_mul(2_654_435_761).to_le_bytes();
            tcp.write_all(&seed.repeat(50)).await.unwrap();
        }
        if number % 10 == 1 {
            // The beginning of a TLS record that never goes on.
            tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
                .await
                .unwrap();
        }
        idle.push(tcp);
    }
    let start = Instant::now();
    for _ in 0..20 {
        assert_still_serves(&address, &authority).await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    // The idle ones are cut.
    let mut byte = [0];
    let cut = timeout(Duration::from_secs(8), idle[999].read(&mut byte))
        .await
        .unwrap();
    assert!(!matches!(cut, Ok(1)), "{cut:?}");
}

#[tokio::test]
async fn a_flood_of_connections_does_not_keep_others_out() {
    let authority = authority();
    let address = serve(credentials(&authority, Role::Scheduler)).await;
    let mut idle = Vec::new();
    for number in 0..3_000 {
        match TcpStream::connect(&address).await {
            Ok(tcp) => idle.push(tcp),
            // This process may not have as many file descriptors; the server waits then, too.
            Err(_) => break,
        }
        if number % 500 == 0 && number < 2_500 {
            assert_still_serves(&address, &authority).await;
        }
    }
    drop(idle);
    sleep(Duration::from_millis(200)).await;
    assert_still_serves(&address, &authority).await;
}

#[tokio::test]
async fn shutdown_ends_the_stream_and_frees_the_port() {
    let authority = authority();
    let (listener, address) = listener().await;
    let shutdown = CancellationToken::new();
    let scheduler = credentials(&authority, Role::Scheduler);
    let connections = incoming(listener, scheduler, shutdown.clone());
    let serving = server().serve_with_incoming(SchedulerServer::new(Fake), connections);
    let serving = tokio::spawn(serving);
    assert_still_serves(&address, &authority).await;
    shutdown.cancel();
    timeout(Duration::from_secs(3), serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(tokio::net::TcpListener::bind(&address).await.is_ok());
}

#[test]
fn certificate_files_are_explained() {
    let authority = authority();
    let dir = tempfile::tempdir().unwrap();
    let error = Credentials::from_dir(dir.path()).unwrap_err();
    assert_eq!(error.code(), Code::CertificateFiles);
    assert!(error.to_string().contains("ca.crt"), "{error}");
    authority.write_dir(dir.path(), Role::Client, HOUR).unwrap();
    let good = Credentials::from_dir(dir.path()).unwrap();
    assert_eq!(good.identity().role, Role::Client);
    assert!(!format!("{good:?}").contains("key"));

    let (ca, leaf) = (
        authority.ca_pem(),
        authority.issue(Role::Client, HOUR).unwrap(),
    );
    let other = authority.issue(Role::Client, Lifetime::from(HOUR)).unwrap();
    for (ca, certificate, key) in [
        ("", leaf.cert_pem.as_str(), leaf.key_pem.as_str()),
        (&ca, "", &leaf.key_pem),
        (&ca, &leaf.cert_pem, ""),
        (&ca, &leaf.cert_pem, &other.key_pem),
        (&ca, &ca, &leaf.key_pem),
        (&ca, &leaf.key_pem, &leaf.cert_pem),
        (
            &ca,
            "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----",
            &leaf.key_pem,
        ),
    ] {
        let error = Credentials::from_pem(ca, certificate, key).unwrap_err();
        assert_eq!(error.code(), Code::CertificateFiles, "{error:?}");
    }
}

#[tokio::test]
async fn a_raw_server_that_says_nothing_after_the_handshake_is_given_up() {
    let authority = authority();
    let leaf = authority.issue(Role::Scheduler, HOUR).unwrap();
    let (listener, address) = listener().await;
    let held = tokio::spawn(async move { accept_raw(&listener, &leaf, b"h2").await });
    let client = credentials(&authority, Role::Client);
    let error = refused(&address, &client, Code::SchedulerUnreachable).await;
    assert!(matches!(error, CommError::Timeout { .. }), "{error:?}");
    drop(held);
}

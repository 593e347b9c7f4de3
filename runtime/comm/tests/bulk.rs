//! The bulk data plane with real sockets: what arrives, what is refused, and peers that misbehave.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use oxidask_comm::{
    BulkFound, BulkObject, BulkPart, BulkPieceRequest, BulkPool, BulkRead, BulkSource, CommError,
    serve_bulk,
};
use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use support::{HOUR, accept_raw, authority, connect_raw, credentials, expired, listener, mixed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PROTOCOL: &[u8] = b"oxidask-bulk/1";
const GREETING: &[u8] = b"OXBULK2\n";

#[derive(Default)]
struct Objects {
    objects: HashMap<u64, BulkObject>,
    gets: AtomicU64,
}

impl BulkSource for Objects {
    fn find(&self, key: u64) -> BulkFound {
        self.gets.fetch_add(1, Ordering::Relaxed);
        BulkFound::from(self.objects.get(&key).cloned())
    }

    fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        panic!("these tests read no pieces")
    }

    fn free(&self, _: &[(u64, u32)]) {
        panic!("these tests free nothing")
    }
}

/// Bytes that differ from place to place.
fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut pattern = Vec::with_capacity(bytes + 8);
    while pattern.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        pattern.extend_from_slice(&state.to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern
}

fn object(kind: u8, parts: &[Vec<u8>]) -> BulkObject {
    BulkObject {
        kind,
        parts: parts
            .iter()
            .map(|part| Bytes::copy_from_slice(part))
            .collect(),
    }
}

fn content(object: &BulkObject) -> Vec<u8> {
    object.parts.concat()
}

struct Worker {
    address: String,
    source: Arc<Objects>,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), CommError>>,
}

async fn serve(authority: &Authority, objects: HashMap<u64, BulkObject>) -> Worker {
    let (listener, address) = listener().await;
    let source = Arc::new(Objects {
        objects,
        gets: AtomicU64::new(0),
    });
    let shutdown = CancellationToken::new();
    let worker = credentials(authority, Role::Worker);
    let serving = serve_bulk(listener, worker, source.clone(), shutdown.clone());
    Worker {
        address,
        source,
        shutdown,
        serving: tokio::spawn(serving),
    }
}

fn pool(authority: &Authority) -> BulkPool {
    BulkPool::new(credentials(authority, Role::Worker))
}

#[tokio::test]
async fn objects_of_all_sizes_arrive_in_order() {
    let authority = authority();
    let sizes = [
        0, 1, 15, 16, 4_095, 16_383, 16_384, 65_535, 65_536, 65_537, 1_000_003, 9_000_001,
    ];
    let mut objects = HashMap::new();
    for (key, size) in (100..).zip(sizes) {
        let whole = pattern(size, key);
        let (left, right) = whole.split_at(size / 3);
        let kind = u8::try_from(key).unwrap();
        objects.insert(
            key,
            object(kind, &[left.to_vec(), Vec::new(), right.to_vec()]),
        );
    }
    let worker = serve(&authority, objects.clone()).await;
    let pool = pool(&authority);
    let mut keys: Vec<u64> = objects.keys().copied().chain([1, u64::MAX]).collect();
    keys.extend(keys.clone());
    for _ in 0..3 {
        let found = pool.fetch(&worker.address, &keys).await.unwrap();
        assert_eq!(found.len(), keys.len());
        for (key, (found_key, found)) in keys.iter().zip(found) {
            assert_eq!(*key, found_key);
            let found = found.map(|object| (object.kind, content(&object)));
            let expected = objects
                .get(key)
                .map(|object| (object.kind, content(object)));
            assert!(found == expected, "object {key} differs");
        }
    }
    assert_eq!(pool.fetch(&worker.address, &[]).await.unwrap(), []);
}

#[tokio::test]
async fn an_object_of_a_hundred_mebibytes_arrives() {
    let authority = authority();
    let parts = [pattern(60 << 20, 1), pattern(40 << 20, 2)];
    let worker = serve(&authority, HashMap::from([(7, object(2, &parts))])).await;
    let found = pool(&authority).fetch(&worker.address, &[7]).await.unwrap();
    let found = found[0].1.as_ref().unwrap();
    assert_eq!(found.len(), 100 << 20);
    assert!(content(found) == parts.concat());
}

#[tokio::test]
async fn a_hundred_thousand_tiny_objects_arrive_quickly() {
    let authority = authority();
    let count = 100_000;
    let tiny = |key: u64| (key, object(0, &[key.to_string().into_bytes()]));
    let worker = serve(&authority, (0..count).map(tiny).collect()).await;
    let keys: Vec<u64> = (0..count + 10).collect();
    let start = Instant::now();
    let found = pool(&authority)
        .fetch(&worker.address, &keys)
        .await
        .unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    for (key, object) in found {
        let text = object.map(|object| content(&object));
        let expected = (key < count).then(|| key.to_string().into_bytes());
        assert_eq!(text, expected);
    }
}

#[tokio::test]
async fn parts_are_relayed_in_order_and_wait_for_the_receiver() {
    let authority = authority();
    let large = pattern(10_000_000, 3);
    let objects = HashMap::from([
        (1, object(1, std::slice::from_ref(&large))),
        (2, object(0, &[b"small".to_vec()])),
        (4, object(2, &[])),
    ]);
    let worker = serve(&authority, objects).await;
    let (sender, mut receiver) = mpsc::channel(2);
    let (pool, address) = (pool(&authority), worker.address.clone());
    let fetching =
        tokio::spawn(async move { pool.fetch_parts(&address, vec![1, 2, 3, 4], sender).await });
    assert_eq!(
        receiver.recv().await,
        Some(BulkPart::Start {
            key: 1,
            kind: 1,
            bytes: 10_000_000
        })
    );
    let mut relayed = Vec::new();
    let rest = loop {
        match receiver.recv().await.unwrap() {
            BulkPart::Data(data) => {
                assert!(data.len() <= 1 << 20);
                relayed.extend_from_slice(&data);
            }
            part => break part,
        }
    };
    assert!(relayed == large);
    assert_eq!(rest, BulkPart::End { key: 1 });
    let small = Bytes::from_static(b"small");
    assert_eq!(
        receiver.recv().await,
        Some(BulkPart::Whole {
            key: 2,
            kind: 0,
            data: small
        })
    );
    assert_eq!(receiver.recv().await, Some(BulkPart::Missing { key: 3 }));
    let empty = BulkPart::Whole {
        key: 4,
        kind: 2,
        data: Bytes::new(),
    };
    assert_eq!(receiver.recv().await, Some(empty));
    assert_eq!(receiver.recv().await, None);
    fetching.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_receiver_that_goes_away_ends_the_transfer() {
    let authority = authority();
    let objects = HashMap::from([(1, object(1, &[pattern(50 << 20, 3)]))]);
    let worker = serve(&authority, objects).await;
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let pool = pool(&authority);
    let error = pool
        .fetch_parts(&worker.address, vec![1], sender)
        .await
        .unwrap_err();
    assert!(matches!(error, CommError::ReceiverGone { .. }), "{error:?}");
    // The broken connection is not used again.
    assert_eq!(
        pool.fetch(&worker.address, &[2]).await.unwrap(),
        [(2, None)]
    );
}

#[tokio::test]
async fn transfers_run_beside_each_other_and_can_be_given_up() {
    let authority = authority();
    let objects = (0..20)
        .map(|key| (key, object(1, &[pattern(1 << 20, key)])))
        .collect();
    let worker = serve(&authority, objects).await;
    let pool = pool(&authority);
    let mut transfers = Vec::new();
    for key in 0..20 {
        let (pool, address) = (pool.clone(), worker.address.clone());
        transfers.push(tokio::spawn(
            async move { pool.fetch(&address, &[key]).await },
        ));
    }
    transfers[3].abort();
    for (key, transfer) in (0..).zip(transfers) {
        if let Ok(found) = transfer.await {
            let found = found.unwrap();
            assert!(content(found[0].1.as_ref().unwrap()) == pattern(1 << 20, key));
        } else {
            assert_eq!(key, 3);
        }
    }
}

#[tokio::test]
async fn workers_clients_and_the_scheduler_are_served() {
    let authority = authority();
    let worker = serve(&authority, HashMap::new()).await;
    for role in Role::ALL {
        let pool = BulkPool::new(credentials(&authority, role));
        let outcome = pool.fetch(&worker.address, &[1]).await;
        match role {
            Role::Worker | Role::Scheduler | Role::Client => {
                assert_eq!(outcome.unwrap(), [(1, None)]);
            }
            Role::Operator => {
                let error = outcome.unwrap_err();
                assert_eq!(error.code(), Code::CallForbidden, "{error:?}");
            }
        }
    }
    // And fetching goes to workers only.
    let (listener, address) = listener().await;
    let client = credentials(&authority, Role::Client);
    let source = Arc::new(Objects::default());
    tokio::spawn(serve_bulk(
        listener,
        client,
        source,
        CancellationToken::new(),
    ));
    let error = pool(&authority).fetch(&address, &[1]).await.unwrap_err();
    assert!(
        matches!(
            error,
            CommError::OtherRole {
                found: Role::Client,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason() {
    let (authority, other) = (authority(), authority());
    let worker = serve(&authority, HashMap::new()).await;
    for stranger in [
        credentials(&other, Role::Worker),
        mixed(&authority, &other, Role::Worker),
        expired(&authority, Role::Worker),
    ] {
        let error = BulkPool::new(stranger)
            .fetch(&worker.address, &[1])
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::CertificateRejected, "{error:?}");
    }
    let mut raw = connect_raw(&worker.address, None, PROTOCOL).await.unwrap();
    let error = raw.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    assert_eq!(
        pool(&authority).fetch(&worker.address, &[1]).await.unwrap(),
        [(1, None)]
    );
}

#[tokio::test]
async fn idle_connections_and_random_bytes_disturb_nobody() {
    let authority = authority();
    let worker = serve(&authority, HashMap::from([(1, object(0, &[vec![1]]))])).await;
    let mut idle = Vec::new();
    for number in 0..1_000_u64 {
        let mut tcp = TcpStream::connect(&worker.address).await.unwrap();
        if number % 4 == 0 {
            tcp.write_all(&pattern(500, number)).await.unwrap();
        }
        idle.push(tcp);
    }
    let start = Instant::now();
    for _ in 0..20 {
        let found = pool(&authority).fetch(&worker.address, &[1]).await.unwrap();
        assert!(found[0].1.is_some());
    }
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn random_bytes_after_a_good_handshake_only_end_that_connection() {
    let authority = authority();
    let worker = serve(&authority, HashMap::from([(1, object(0, &[vec![1]]))])).await;
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    for seed in 0..20 {
        let mut raw = connect_raw(&worker.address, Some(&leaf), PROTOCOL)
            .await
            .unwrap();
        raw.write_all(&pattern(3_000, seed)).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(5), raw.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(answer.is_empty() || answer == GREETING, "{answer:?}");
    }
    assert!(
        pool(&authority).fetch(&worker.address, &[1]).await.unwrap()[0]
            .1
            .is_some()
    );
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_little_and_harms_nobody() {
    let authority = authority();
    let objects = (0..500)
        .map(|key| (key, object(0, &[vec![9; 1 << 20]])))
        .collect();
    let worker = serve(&authority, objects).await;
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    let mut raw = connect_raw(&worker.address, Some(&leaf), PROTOCOL)
        .await
        .unwrap();
    let mut request = 500_u32.to_le_bytes().to_vec();
    request.extend_from_slice(&[0; 4]);
    for key in 0..500_u64 {
        request.extend_from_slice(&key.to_le_bytes());
    }
    raw.write_all(&request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The kernel takes some mebibytes; the server holds one object more and no queue.
    let gets = worker.source.gets.load(Ordering::Relaxed);
    assert!((1..50).contains(&gets), "{gets}");
    assert!(
        pool(&authority).fetch(&worker.address, &[1]).await.unwrap()[0]
            .1
            .is_some()
    );
}

#[tokio::test]
async fn a_kept_connection_that_died_costs_no_error() {
    let authority = authority();
    let objects = HashMap::from([(1, object(0, &[vec![1]]))]);
    let worker = serve(&authority, objects.clone()).await;
    let pool = pool(&authority);
    assert!(
        pool.fetch(&worker.address, &[1]).await.unwrap()[0]
            .1
            .is_some()
    );
    worker.shutdown.cancel();
    worker.serving.await.unwrap().unwrap();
    // The same port again, as after a restart.
    let listener = loop {
        match tokio::net::TcpListener::bind(&worker.address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let source = Arc::new(Objects {
        objects,
        gets: AtomicU64::new(0),
    });
    let credentials = credentials(&authority, Role::Worker);
    tokio::spawn(serve_bulk(
        listener,
        credentials,
        source,
        CancellationToken::new(),
    ));
    assert!(
        pool.fetch(&worker.address, &[1]).await.unwrap()[0]
            .1
            .is_some()
    );
}

#[tokio::test]
async fn a_dead_worker_is_an_error_at_once() {
    let authority = authority();
    let (unused, address) = listener().await;
    drop(unused);
    let start = Instant::now();
    let error = pool(&authority).fetch(&address, &[1]).await.unwrap_err();
    assert!(matches!(error, CommError::Connect { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let error = pool(&authority).fetch("nonsense", &[1]).await.unwrap_err();
    assert!(matches!(error, CommError::Address { .. }), "{error:?}");
}

/// A peer with a good certificate that answers each request with the same bytes and leaves.
async fn answers(authority: &Authority, answer: Vec<u8>) -> String {
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let mut stream = accept_raw(&listener, &leaf, PROTOCOL).await;
            stream.write_all(GREETING).await.unwrap();
            let mut request = [0; 16];
            let _ = stream.read_exact(&mut request).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

fn header(status: u8, kind: u8, bytes: u64) -> Vec<u8> {
    let mut header = vec![status, kind, 0, 0, 0, 0, 0, 0];
    header.extend_from_slice(&bytes.to_le_bytes());
    header
}

#[tokio::test]
async fn lying_lengths_and_deaths_in_the_middle_are_errors() {
    let authority = authority();
    let cut = [header(1, 0, 1000), vec![1; 999]].concat();
    let cut_large = [header(1, 0, 90 << 20), vec![1; 70 << 20]].concat();
    let endless = [header(1, 0, u64::MAX), vec![1; 100]].concat();
    let huge = [header(1, 0, 1 << 50), vec![1; 100]].concat();
    for answer in [cut, cut_large, endless, huge, Vec::new(), vec![1, 0, 0]] {
        let address = answers(&authority, answer).await;
        let error = pool(&authority).fetch(&address, &[1]).await.unwrap_err();
        assert!(matches!(error, CommError::Transfer { .. }), "{error:?}");
        assert_eq!(error.code(), Code::ResultUnavailable);
    }
    let surplus = [header(0, 0, 0), vec![0; 5]].concat();
    for answer in [
        header(9, 0, 0),
        header(0, 0, 1),
        header(0, 1, 0),
        surplus,
        vec![1; 16],
    ] {
        let address = answers(&authority, answer).await;
        let error = pool(&authority).fetch(&address, &[1]).await.unwrap_err();
        assert!(matches!(error, CommError::Nonsense { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn another_greeting_is_refused() {
    let authority = authority();
    let leaf = authority.issue(Role::Worker, HOUR).unwrap();
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        let mut stream = accept_raw(&listener, &leaf, PROTOCOL).await;
        stream.write_all(b"OXBULK9\n").await.unwrap();
        let _ = stream.read_u8().await;
    });
    let error = pool(&authority).fetch(&address, &[1]).await.unwrap_err();
    assert!(matches!(error, CommError::Nonsense { .. }), "{error:?}");
}

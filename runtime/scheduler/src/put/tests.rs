//! Values on their way from a client to workers whose data planes are real.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use oxidask_comm::{
    BulkFound, BulkPieceRequest, BulkPool, BulkRead, BulkRefusal, BulkSink, BulkSource, BulkUpload,
    Credentials, install_crypto_provider, serve_bulk,
};
use oxidask_core::{TaskIndex, TaskRef, TaskState};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use oxidask_proto::upload::{BODY, UploadArguments};
use oxidask_proto::wire;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Uploaded, WITH_TASK_BYTES_MAX, relay};
use crate::grpc::Shared;
use crate::logs::LogTap;
use crate::rig::{Peer, Rig, one_task};

const MEBIBYTE: usize = 1 << 20;

/// What a worker was brought.
#[derive(Clone)]
struct Plane {
    room: Arc<Mutex<u64>>,
    kept: Arc<Mutex<HashMap<u64, Vec<u8>>>>,
}

struct Sink(Plane, u64);

impl BulkSink for Sink {
    fn keep(self: Box<Self>, parts: Vec<Bytes>) -> Result<(), BulkRefusal> {
        self.0.kept.lock().unwrap().insert(self.1, parts.concat());
        Ok(())
    }
}

impl BulkSource for Plane {
    fn find(&self, _: u64) -> BulkFound {
        BulkFound::Missing
    }

    fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        Box::pin(std::future::ready(BulkRead::Missing))
    }

    fn free(&self, _: &[(u64, u32)]) {}

    fn upload(&self, upload: BulkUpload) -> Result<Box<dyn BulkSink>, BulkRefusal> {
        if upload.bytes > *self.room.lock().unwrap() {
            return Err(BulkRefusal::NoRoom);
        }
        Ok(Box::new(Sink(self.clone(), upload.number)))
    }
}

struct Cluster {
    rig: Rig,
    authority: Authority,
    shared: Shared,
}

impl Cluster {
    fn start() -> Self {
        install_crypto_provider();
        let authority = Authority::new("local", "test").unwrap();
        let rig = Rig::start();
        let shared = Shared::new(
            rig.inputs.clone(),
            BulkPool::new(credentials(&authority, Role::Scheduler)),
            Arc::clone(&rig.metrics),
            LogTap::default().0,
            CancellationToken::new(),
        );
        Self {
            rig,
            authority,
            shared,
        }
    }

    async fn join(&mut self, name: &str, room: usize) -> (Peer, Plane) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let plane = Plane {
            room: Arc::new(Mutex::new(room as u64)),
            kept: Arc::default(),
        };
        let worker = credentials(&self.authority, Role::Worker);
        let stop = self.shared.shutdown.child_token();
        tokio::spawn(serve_bulk(listener, worker, Arc::new(plane.clone()), stop));
        (self.rig.join_at(name, &address).await, plane)
    }

    /// What becomes of a value that comes in parts.
    async fn put(
        &self,
        total: usize,
        parts: Vec<Result<Bytes, Status>>,
        workers: &[&str],
    ) -> Result<Uploaded, Box<Diagnostic>> {
        let first = wire::PutPart {
            key: "k".to_owned(),
            kind: 5,
            total_bytes: total as u64,
            workers: workers.iter().map(|name| (*name).to_owned()).collect(),
            ..wire::PutPart::default()
        };
        let part = |data| wire::PutPart {
            data,
            ..wire::PutPart::default()
        };
        let rest = stream::iter(parts.into_iter().map(|data| data.map(part)));
        relay(&self.shared, first, rest).await
    }
}

fn credentials(authority: &Authority, role: Role) -> Credentials {
    let leaf = authority.issue(role, Duration::from_hours(1)).unwrap();
    Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
}

fn mebibytes(count: usize) -> Vec<Result<Bytes, Status>> {
    let part = |number| {
        Ok(Bytes::from(vec![
            u8::try_from(number % 256).unwrap();
            MEBIBYTE
        ]))
    };
    (0..count).map(part).collect()
}

fn number(uploaded: &Uploaded) -> u64 {
    match UploadArguments::decode(&uploaded.arguments) {
        Some(UploadArguments::Number(number)) => number,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_goes_to_a_worker_that_has_room() {
    let mut cluster = Cluster::start();
    let (_full, full) = cluster.join("a-full", MEBIBYTE).await;
    let (_wide, wide) = cluster.join("wide", 1 << 30).await;
    let uploaded = cluster
        .put(100 * MEBIBYTE, mebibytes(100), &[])
        .await
        .unwrap();
    assert_eq!(uploaded.workers, ["wide"]);
    assert!(uploaded.is_at_worker);
    assert_eq!(uploaded.bytes, 100 * MEBIBYTE as u64);
    let kept = wide
        .kept
        .lock()
        .unwrap()
        .remove(&number(&uploaded))
        .unwrap();
    assert_eq!(kept.len(), 100 * MEBIBYTE);
    assert!(
        kept.chunks(MEBIBYTE)
            .zip(0..)
            .all(|(part, byte)| part == vec![byte; MEBIBYTE])
    );
    assert!(full.kept.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_workers_are_asked_alone_and_waited_for() {
    let mut cluster = Cluster::start();
    let (_one, one) = cluster.join("one", 1 << 30).await;
    let (_two, two) = cluster.join("two", 0).await;
    // It refuses at first: it makes room meanwhile.
    let room = Arc::clone(&two.room);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        *room.lock().unwrap() = 1 << 30;
    });
    let uploaded = cluster.put(MEBIBYTE, mebibytes(1), &["two"]).await.unwrap();
    assert_eq!(uploaded.workers, ["two"]);
    assert!(two.kept.lock().unwrap().contains_key(&number(&uploaded)));
    assert!(one.kept.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_value_goes_with_its_task() {
    let cluster = Cluster::start();
    let parts = || vec![Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
    let uploaded = cluster.put(3, parts(), &["any"]).await.unwrap();
    assert_eq!((uploaded.workers.len(), uploaded.is_at_worker), (1, false));
    let expected = UploadArguments::Value {
        kind: 5,
        data: Bytes::from_static(b"abc"),
    };
    assert_eq!(UploadArguments::decode(&uploaded.arguments), Some(expected));
    for wrong in [1, 4] {
        let error = cluster.put(wrong, parts(), &[]).await.unwrap_err();
        assert_eq!(error.code, Code::UploadRefused, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_fits_nowhere_is_refused() {
    let mut cluster = Cluster::start();
    let (_one, _plane) = cluster.join("one", MEBIBYTE).await;
    let error = cluster
        .put(2 * MEBIBYTE, mebibytes(2), &[])
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::UploadRefused);
    assert_eq!(
        error.message,
        "no worker has room for a value of `2097152` bytes"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_breaks_off_leaves_nothing_behind() {
    let mut cluster = Cluster::start();
    let (_one, plane) = cluster.join("one", 1 << 30).await;
    let total = usize::try_from(WITH_TASK_BYTES_MAX).unwrap() + 1;
    assert!(total < MEBIBYTE);
    // Too short, too long, broken.
    let error = cluster.put(2 * MEBIBYTE, mebibytes(1), &[]).await;
    assert_eq!(error.unwrap_err().code, Code::UploadRefused);
    let error = cluster.put(total, mebibytes(1), &[]).await;
    assert_eq!(error.unwrap_err().code, Code::UploadRefused);
    let parts = vec![Ok(Bytes::from(vec![0; total])), Err(Status::aborted("no"))];
    assert!(cluster.put(total + 1, parts, &[]).await.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(plane.kept.lock().unwrap().is_empty());
    let uploaded = cluster.put(MEBIBYTE, mebibytes(1), &[]).await.unwrap();
    assert!(plane.kept.lock().unwrap().contains_key(&number(&uploaded)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_answer_is_passed_over() {
    let mut cluster = Cluster::start();
    // Nobody listens there.
    let _gone = cluster.rig.join_at("a-gone", "127.0.0.1:1").await;
    let (_one, plane) = cluster.join("one", 1 << 30).await;
    let uploaded = cluster.put(MEBIBYTE, mebibytes(1), &[]).await.unwrap();
    assert_eq!(uploaded.workers, ["one"]);
    assert_eq!(plane.kept.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_lost_with_its_worker_fails_its_task() {
    let mut rig = Rig::start();
    let (one, _two) = (rig.join("one").await, rig.join("two").await);
    let chunk = wire::GraphChunk {
        new_bodies: vec![Bytes::from_static(BODY)],
        arguments: vec![UploadArguments::Number(7).encode()],
        requirement: vec![1],
        new_requirements: vec![wire::Requirement {
            slots: 1,
            resources: Vec::new(),
            workers: vec!["one".to_owned()],
        }],
        ..one_task()
    };
    let graph = rig.submit(chunk).await;
    let task = TaskRef {
        graph,
        task: TaskIndex(0),
    };
    let state = || async {
        let looked = rig.inputs.look(move |main_loop| main_loop.core.state(task));
        looked.await.unwrap()
    };
    rig.wake_after(Duration::from_millis(300)).await;
    assert_eq!(state().await, Some(TaskState::Assigned));
    one.die().await;
    rig.wake_after(Duration::from_millis(300)).await;
    rig.wake_after(Duration::from_millis(50)).await;
    assert_eq!(state().await, Some(TaskState::Failed));
}

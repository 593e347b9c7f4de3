//! Values of clients that the scheduler brings to a real worker, and the tasks that adopt them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: what must not happen ends it"
)]

mod harness;

use bytes::Bytes;
use futures::stream;
use harness::{Cluster, GRAPH, Settings, Worker, assign, assign_with, order};
use oxidask_comm::{BulkPool, BulkRefusal, BulkUpload};
use oxidask_exec::Body;
use oxidask_identity::Role;
use oxidask_proto::upload::{BODY, UploadArguments};
use oxidask_proto::wire;

const MEBIBYTE: usize = 1 << 20;

fn adopt(task: u32, arguments: &UploadArguments) -> wire::Assign {
    wire::Assign {
        inline_body: Bytes::from_static(BODY),
        arguments: arguments.encode(),
        ..assign(task, &Body::new("upload"))
    }
}

async fn bring(
    cluster: &Cluster,
    worker: &Worker,
    number: u64,
    mebibytes: usize,
) -> Result<(), BulkRefusal> {
    let pool = BulkPool::new(cluster.credentials(Role::Scheduler));
    let part = Bytes::from(vec![u8::try_from(number).unwrap(); MEBIBYTE]);
    let mut parts = stream::iter(std::iter::repeat_n(part, mebibytes));
    let upload = BulkUpload {
        number,
        kind: 1,
        bytes: (mebibytes * MEBIBYTE) as u64,
    };
    let address = worker.data.to_string();
    pool.upload(&address, upload, &mut parts).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_becomes_the_result_of_its_task_and_clients_read_it() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(1, 2, 1 << 30).await;
    assert_eq!(bring(&cluster, &worker, 9, 100).await, Ok(()));
    let number = UploadArguments::Number(9);
    joined.order([order(adopt(1, &number))]).await;
    assert_eq!(joined.finished(1).await, 100 * MEBIBYTE as u64);
    joined
        .until("it is held once", |joined| {
            let beat = joined.heartbeat.as_ref();
            beat.is_some_and(|beat| beat.held_bytes == 100 * MEBIBYTE as u64)
        })
        .await;
    let client = BulkPool::new(cluster.credentials(Role::Client));
    let key = u64::from(GRAPH) << 32 | 1;
    let found = client
        .fetch(&worker.data.to_string(), &[key])
        .await
        .unwrap();
    let object = found[0].1.as_ref().unwrap();
    assert_eq!(object.len(), 100 * MEBIBYTE as u64);
    assert!(
        object
            .parts
            .iter()
            .all(|part| part.iter().all(|byte| *byte == 9))
    );
    // A task reads it like any other result.
    let length = assign_with(2, &Body::new("sha256"), &[(1, 1)]);
    joined.order([order(length)]).await;
    joined.finished(2).await;
    // It is adopted once.
    joined.order([order(adopt(3, &number))]).await;
    let (fault, is_retryable) = joined.failed(3).await;
    assert_eq!((fault.code.as_str(), is_retryable), ("OX344", false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_value_comes_with_its_task() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(1, 1, 1 << 30).await;
    let value = UploadArguments::Value {
        kind: 1,
        data: Bytes::from_static(b"small"),
    };
    joined.order([order(adopt(1, &value))]).await;
    joined.finished(1).await;
    assert_eq!(cluster.read(&worker, 1).await.unwrap(), b"small");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_full_refuses() {
    let mut cluster = Cluster::start().await;
    let (worker, mut joined) = cluster.join(1, 1, 50 * MEBIBYTE as u64).await;
    assert_eq!(
        bring(&cluster, &worker, 1, 60).await,
        Err(BulkRefusal::NoRoom)
    );
    assert_eq!(bring(&cluster, &worker, 2, 30).await, Ok(()));
    assert_eq!(
        bring(&cluster, &worker, 3, 30).await,
        Err(BulkRefusal::NoRoom)
    );
    // What was refused has taken nothing.
    let number = UploadArguments::Number(2);
    joined.order([order(adopt(1, &number))]).await;
    joined.finished(1).await;
    joined
        .order([wire::order::Order::Release(wire::TaskId {
            graph: GRAPH,
            task: 1,
        })])
        .await;
    joined
        .until("it is gone", |joined| {
            joined.heartbeat.as_ref().is_some_and(|b| b.held_bytes == 0)
        })
        .await;
    assert_eq!(bring(&cluster, &worker, 4, 30).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_waits_on_the_disk_is_adopted_too() {
    let mut cluster = Cluster::start().await;
    let settings = Settings::spilling(1, 100 * MEBIBYTE as u64);
    let (worker, mut joined) = cluster.join_as(1, settings).await;
    for number in [1, 2, 3, 4] {
        let mut tries = 0;
        while bring(&cluster, &worker, number, 40).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            tries += 1;
            assert!(tries < 200, "others are not spilled");
        }
    }
    for task in [1, 2, 3, 4] {
        let number = UploadArguments::Number(u64::from(task));
        joined.order([order(adopt(task, &number))]).await;
        assert_eq!(joined.finished(task).await, 40 * MEBIBYTE as u64);
    }
    for task in [1, 2, 3, 4] {
        let bytes = cluster.read(&worker, task).await.unwrap();
        assert!(bytes.iter().all(|byte| u32::from(*byte) == task), "{task}");
        assert_eq!(bytes.len(), 40 * MEBIBYTE);
    }
}

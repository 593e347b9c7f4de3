//! A scheduler that is killed and started again: what it has promised is there, what survives is not
//! computed again, and a journal that cannot be used destroys nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_core::CoreConfig;
use oxidask_diagnostic::{Code, Coded};
use oxidask_identity::Role;
use oxidask_journal::MemoryDisk;
use oxidask_proto::fault::from_status;
use oxidask_proto::{hello, wire};
use oxidask_scheduler::{JournalConfig, JournalPlace};
use support::{Cluster, PATIENCE, ScriptedWorker, Session};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

/// Longer than a commit takes, so that what was not promised is durable too.
const A_MOMENT: Duration = Duration::from_millis(150);

fn core() -> CoreConfig {
    CoreConfig::default()
}

fn kept(folder: &Path) -> JournalConfig {
    JournalConfig::in_folder(folder)
}

/// What a crash would leave of the folder now.
fn image(folder: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for path in segments(folder) {
        // A snapshot may remove segments meanwhile.
        let _ = fs::copy(&path, copy.path().join(path.file_name().unwrap()));
    }
    copy
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .collect();
    logs.sort();
    logs
}

async fn graphs(cluster: &Cluster) -> Vec<wire::GraphStatus> {
    let mut client = cluster.connect(Role::Client).await;
    let status = client.status(wire::StatusRequest {}).await.unwrap();
    status.into_inner().graphs
}

/// How a scheduler ends that cannot begin with this journal.
async fn refusal(journal: JournalConfig) -> oxidask_scheduler::SchedulerError {
    let cluster = Cluster::start_kept(core(), Some(journal)).await;
    timeout(PATIENCE, cluster.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err()
}

fn chunk_of(session: &Session, number: u32, tasks: u32) -> wire::GraphChunk {
    let first = number == 0;
    let chunk = session.independent(tasks, &["body"]);
    wire::GraphChunk {
        number,
        is_last: false,
        wanted: (number * tasks..(number + 1) * tasks).collect(),
        new_groups: if first {
            chunk.new_groups.clone()
        } else {
            Vec::new()
        },
        new_bodies: if first {
            chunk.new_bodies.clone()
        } else {
            Vec::new()
        },
        ..chunk
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_returning_worker_holds_is_not_run_again_and_the_rest_is() {
    let folder = TempDir::new().unwrap();
    let mut cluster = Cluster::start_kept(core(), Some(kept(folder.path()))).await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(6, &["a", "b"])).await;
    let mut held = Vec::new();
    while held.len() < 3 {
        let assigned = worker.assigned().await;
        let some = &assigned[..assigned.len().min(3 - held.len())];
        worker.finish(some, |_| Bytes::from_static(b"before")).await;
        held.extend(some.iter().map(|assign| assign.task));
    }
    session.until(|session| session.ready.len() == 3).await;
    sleep(A_MOMENT).await;
    let crashed = image(folder.path());
    let (graph, number) = (session.graph, worker.number);
    let worker = worker.cut();
    cluster.replace(core(), Some(kept(crashed.path()))).await;

    let mut worker = worker.come_back(&cluster).await;
    assert!(worker.is_resumed, "it keeps what it has");
    assert_eq!(worker.number, number);
    let all: Vec<_> = held.iter().map(|task| (graph, *task, 6)).collect();
    worker.send_inventory(ScriptedWorker::holding(&all)).await;
    let mut session = Session::open(&cluster, "g").await;
    assert_eq!((session.graph, session.next_chunk), (graph, 1));
    let mut again = Vec::new();
    while again.len() < 3 {
        let assigned = worker.assigned().await;
        assert!(assigned.iter().all(|assign| assign.epoch == 2));
        worker
            .finish(&assigned, |_| Bytes::from_static(b"after!"))
            .await;
        again.extend(assigned.iter().map(|assign| assign.task));
    }
    session.until(|session| session.is_done).await;
    assert!(
        again.iter().all(|task| !held.contains(task)),
        "{held:?} {again:?}"
    );
    let found = session.fetch(&[0, 1, 2, 3, 4, 5]).await;
    for (task, data) in found {
        let expected: &[u8] = if held.contains(&task) {
            b"before"
        } else {
            b"after!"
        };
        assert_eq!(data.unwrap(), Bytes::from_static(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_come_back_loses_only_what_it_held() {
    let folder = TempDir::new().unwrap();
    let core = CoreConfig {
        suspect_grace_micros: 300_000,
        ..core()
    };
    let mut cluster = Cluster::start_kept(core.clone(), Some(kept(folder.path()))).await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(2, &["a"])).await;
    let assigned = worker.assigned().await;
    worker
        .finish(&assigned[..1], |_| Bytes::from_static(b"1"))
        .await;
    session.until(|session| !session.ready.is_empty()).await;
    sleep(A_MOMENT).await;
    let crashed = image(folder.path());
    drop(worker);
    cluster.replace(core, Some(kept(crashed.path()))).await;
    let other = ScriptedWorker::join(&cluster, "default-1").await;
    assert!(other.number > 16_000, "numbers are never given twice");
    other.run();
    let mut session = Session::open(&cluster, "g").await;
    session.until(|session| session.is_done).await;
    let found = session.fetch(&[0, 1]).await;
    assert!(found.iter().all(|(_, data)| data.as_ref().unwrap() == "a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_whenever_it_crashes() {
    let folder = TempDir::new().unwrap();
    let cluster = Cluster::start_kept(core(), Some(kept(folder.path()))).await;
    let mut session = Session::open(&cluster, "g").await;
    let mut images = vec![(0, image(folder.path()))];
    for number in 0..12 {
        session.send(chunk_of(&session, number, 5)).await;
        session
            .until(|session| session.accepted.contains(&number))
            .await;
        images.push((number + 1, image(folder.path())));
        // What follows may or may not be there.
        if number % 3 == 2 {
            session.send(chunk_of(&session, number + 1, 5)).await;
            images.push((number + 1, image(folder.path())));
            session
                .until(|session| session.accepted.contains(&(number + 1)))
                .await;
        }
    }
    for (acknowledged, image) in images {
        let cluster = Cluster::start_kept(core(), Some(kept(image.path()))).await;
        let found = graphs(&cluster).await;
        assert_eq!(found.len(), 1);
        let session = Session::open(&cluster, "g").await;
        assert!(session.next_chunk >= acknowledged);
        assert!(session.next_chunk <= acknowledged + 1);
        assert_eq!(found[0].total, u64::from(session.next_chunk) * 5);
    }
}

/// Ends the three tasks of a graph; the second fails.
async fn end_all_but_one_well(worker: &mut ScriptedWorker, graph: u32) {
    let mut ended = 0;
    while ended < 3 {
        for assign in worker.assigned().await {
            if assign.graph != graph {
                continue;
            }
            ended += 1;
            if assign.task == 1 {
                let reports = vec![ScriptedWorker::failed(&assign, 9)];
                worker
                    .send(wire::WorkerBatch {
                        reports,
                        ..Default::default()
                    })
                    .await;
            } else {
                worker.finish(&[assign], |_| Bytes::from_static(b"x")).await;
            }
        }
    }
}

/// The next results that the worker is to drop.
async fn dropped_by(worker: &mut ScriptedWorker, count: usize) -> Vec<(u32, u32)> {
    let mut dropped = Vec::new();
    while dropped.len() < count {
        let batch = worker.next().await;
        let orders = batch.orders.into_iter().filter_map(|order| order.order);
        dropped.extend(orders.map(|order| match order {
            wire::order::Order::Release(task) => (task.graph, task.task),
            other => panic!("{other:?}"),
        }));
    }
    dropped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_stays_failed_released_stays_released_and_closed_stays_closed() {
    let folder = TempDir::new().unwrap();
    let mut cluster = Cluster::start_kept(core(), Some(kept(folder.path()))).await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let closed = Session::open(&cluster, "closed").await;
    closed.send(closed.independent(1, &["c"])).await;
    let batch = wire::ClientBatch {
        closed: vec![closed.graph],
        ..Default::default()
    };
    closed.sender.send(batch).await.unwrap();
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(3, &["a", "b", "c"])).await;
    end_all_but_one_well(&mut worker, session.graph).await;
    session.until(|session| session.is_done).await;
    let released = wire::TaskId {
        graph: session.graph,
        task: 0,
    };
    let batch = wire::ClientBatch {
        released: vec![released],
        ..Default::default()
    };
    session.sender.send(batch).await.unwrap();
    sleep(A_MOMENT).await;
    let crashed = image(folder.path());
    let worker = worker.cut();
    cluster.replace(core(), Some(kept(crashed.path()))).await;

    let found = graphs(&cluster).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let mut worker = worker.come_back(&cluster).await;
    let held = [
        (session.graph, 0, 1),
        (session.graph, 2, 1),
        (closed.graph, 0, 1),
    ];
    worker.send_inventory(ScriptedWorker::holding(&held)).await;
    let mut dropped = dropped_by(&mut worker, 2).await;
    dropped.sort_unstable();
    let mut expected = vec![(session.graph, 0), (closed.graph, 0)];
    expected.sort_unstable();
    assert_eq!(dropped, expected, "nobody needs these");
    let mut again = Session::open(&cluster, "g").await;
    again.until(|session| session.is_done).await;
    assert_eq!(again.ready, [(2, 1)]);
    assert_eq!(again.failures.len(), 1);
    let fault = again.failures[0].fault.as_ref().unwrap();
    assert_eq!(
        (fault.code.as_str(), fault.message.as_str()),
        ("OX208", "xxxxxxxxx")
    );
    let anew = Session::open(&cluster, "closed").await;
    assert_eq!(anew.next_chunk, 0);
    assert!(
        anew.graph > session.graph + 1_000,
        "numbers are never given twice"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_start_has_its_epoch_and_without_the_journal_another_incarnation() {
    let folder = TempDir::new().unwrap();
    let (mut met, mut images) = (Vec::new(), Vec::new());
    let mut cluster = Cluster::start_kept(core(), Some(kept(folder.path()))).await;
    for start in 0..3 {
        let mut client = cluster.connect(Role::Client).await;
        let status = client.status(wire::StatusRequest {}).await.unwrap();
        let hello = status.into_inner().hello.unwrap();
        met.push((hello.incarnation, hello.epoch));
        let crashed = image(folder.path());
        let journal = (start != 1).then(|| kept(crashed.path()));
        cluster.replace(core(), journal).await;
        images.push(crashed);
    }
    assert_eq!((met[0].1, met[1]), (1, (met[0].0, 2)));
    assert_ne!(met[2].0, met[0].0);
    assert_eq!(met[2].1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_end_is_cut_and_damage_is_an_error_that_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let cluster = Cluster::start_kept(core(), Some(kept(folder.path()))).await;
    let mut session = Session::open(&cluster, "g").await;
    for number in 0..3 {
        session.send(chunk_of(&session, number, 5)).await;
        session
            .until(|session| session.accepted.contains(&number))
            .await;
    }
    let torn = image(folder.path());
    let path = segments(torn.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    bytes.extend_from_slice(&[7; 100]);
    fs::write(&path, &bytes).unwrap();
    let again = Cluster::start_kept(core(), Some(kept(torn.path()))).await;
    assert_eq!(Session::open(&again, "g").await.next_chunk, 3);

    let damaged = image(folder.path());
    let path = segments(damaged.path()).pop().unwrap();
    bytes.truncate(length);
    bytes[200] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = refusal(JournalConfig::in_folder(damaged.path())).await;
    assert_eq!(error.code(), Code::JournalDamaged, "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(segments(damaged.path()).len(), 1);

    bytes[200] ^= 1;
    bytes[8] = 99;
    fs::write(&path, &bytes).unwrap();
    let error = refusal(JournalConfig::in_folder(damaged.path())).await;
    assert_eq!(error.code(), Code::JournalFormat, "{error}");
    bytes[8] = 1;
    fs::write(&path, &bytes).unwrap();

    let incomplete = image(torn.path());
    let all = segments(incomplete.path());
    assert!(all.len() > 1, "{all:?}");
    fs::remove_file(&all[0]).unwrap();
    let error = refusal(JournalConfig::in_folder(incomplete.path())).await;
    assert_eq!(error.code(), Code::JournalMissing, "{error}");
    assert_eq!(segments(incomplete.path()), all[1..]);

    let error = refusal(JournalConfig::in_folder(folder.path())).await;
    assert_eq!(error.code(), Code::JournalLocked, "{error}");
    let other = TempDir::new().unwrap();
    let stranger = Cluster::start_kept(core(), Some(kept(other.path()))).await;
    Session::open(&stranger, "h").await;
    for path in segments(other.path()) {
        fs::copy(&path, damaged.path().join(path.file_name().unwrap())).unwrap();
    }
    let error = refusal(JournalConfig::in_folder(damaged.path())).await;
    assert_eq!(error.code(), Code::JournalForeign, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_new_graphs_and_running_work_goes_on() {
    let disk = MemoryDisk::new(1);
    let journal = JournalConfig::new(JournalPlace::Memory(disk.clone()));
    let cluster = Cluster::start_kept(core(), Some(journal)).await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(chunk_of(&session, 0, 4)).await;
    session.until(|session| session.accepted == [0]).await;
    sleep(A_MOMENT).await;
    disk.set_capacity(Some(disk.used_bytes()));

    let mut done = 0;
    while done < 4 {
        let assigned = worker.assigned().await;
        worker.finish(&assigned, |_| Bytes::from_static(b"x")).await;
        done += assigned.len();
    }
    session.until(|session| session.ready.len() == 4).await;
    session.until(|session| !session.notices.is_empty()).await;
    assert!(
        session.notices[0].starts_with("OX325: "),
        "{:?}",
        session.notices
    );
    let fault = refused(&cluster, "new").await;
    assert_eq!(fault.code, Code::JournalDiskFull, "{fault}");
    // A graph that is there can be attached to, but its next part waits.
    let mut session = Session::open(&cluster, "g").await;
    assert_eq!((session.next_chunk, session.ready.len()), (1, 4));
    session.send(chunk_of(&session, 1, 4)).await;
    let released = vec![wire::TaskId {
        graph: session.graph,
        task: 7,
    }];
    let batch = wire::ClientBatch {
        released,
        ..Default::default()
    };
    session.sender.send(batch).await.unwrap();
    worker
        .never(Duration::from_millis(600), |batch| !batch.orders.is_empty())
        .await;

    disk.set_capacity(None);
    worker.run();
    session.until(|session| session.accepted == [1]).await;
    session.until(|session| session.ready.len() == 7).await;
    assert!(
        session.ready.iter().all(|(task, _)| *task != 7),
        "released behind its part"
    );
    session
        .until(|session| {
            session
                .notices
                .iter()
                .any(|text| text.contains("written again"))
        })
        .await;
    Session::open(&cluster, "new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_answer_refuses_new_graphs_until_it_does() {
    const LAG: Duration = Duration::from_secs(5);
    let disk = MemoryDisk::new(1);
    let journal = JournalConfig::new(JournalPlace::Memory(disk.clone()));
    let cluster = Cluster::start_kept(core(), Some(journal)).await;
    let mut session = Session::open(&cluster, "g").await;
    disk.set_hanging(true);
    session.send(chunk_of(&session, 0, 4)).await;
    let start = Instant::now();
    let mut fault = None;
    for number in 0.. {
        // It is opened, which nobody is told before it is durable, or refused.
        let name = format!("new-{number}");
        fault = timeout(2 * A_MOMENT, refused(&cluster, &name)).await.ok();
        if fault.is_some() || start.elapsed() > PATIENCE {
            break;
        }
    }
    let waited = start.elapsed();
    let is_told = !session.accepted.is_empty();
    disk.set_hanging(false);
    let fault = fault.unwrap();
    assert_eq!(fault.code, Code::JournalBehind, "{fault}");
    assert!(waited >= LAG && !is_told, "{waited:?}, {is_told}");

    session.until(|session| session.accepted == [0]).await;
    Session::open(&cluster, "other").await;
}

/// Why a session with this graph ends before it begins.
async fn refused(cluster: &Cluster, name: &str) -> oxidask_diagnostic::Diagnostic {
    let mut scheduler = cluster.connect(Role::Client).await;
    let (sender, receiver) = mpsc::channel(4);
    let first = wire::ClientBatch {
        hello: Some(hello::hello()),
        open: Some(wire::OpenGraph {
            name: name.to_owned(),
            ..wire::OpenGraph::default()
        }),
        ..Default::default()
    };
    sender.send(first).await.unwrap();
    let reply = scheduler.session(ReceiverStream::new(receiver)).await;
    let mut inbound = reply.unwrap().into_inner();
    loop {
        match timeout(PATIENCE, inbound.message()).await.unwrap() {
            Ok(Some(batch)) => assert!(batch.attached.is_empty()),
            Ok(None) => panic!("it ended without a reason"),
            Err(status) => return from_status(&status),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_stays_small_while_graphs_come_and_go() {
    const TAIL_BYTES: u64 = 64 * 1024;
    let folder = TempDir::new().unwrap();
    let journal = JournalConfig {
        delay: Duration::from_millis(1),
        snapshot_tail_bytes_min: TAIL_BYTES,
        first_snapshot_after: Some(Duration::ZERO),
        segment_bytes: Some(TAIL_BYTES),
        ..JournalConfig::in_folder(folder.path())
    };
    let mut cluster = Cluster::start_kept(core(), Some(journal.clone())).await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut lasting = Session::open(&cluster, "lasting").await;
    lasting.send(lasting.independent(2, &["a"])).await;
    let first = worker.assigned().await;
    worker
        .finish(&first[..1], |_| Bytes::from_static(b"1"))
        .await;
    lasting.until(|session| !session.ready.is_empty()).await;
    let body = "x".repeat(20_000);
    let (mut written, mut sessions) = (0, Vec::new());
    for number in 0..60 {
        let mut session = Session::open(&cluster, &format!("g{number}")).await;
        session.send(session.independent(3, &[&body])).await;
        session.until(|session| session.accepted == [0]).await;
        written += body.len() as u64;
        let batch = wire::ClientBatch {
            closed: vec![session.graph],
            ..Default::default()
        };
        session.sender.send(batch).await.unwrap();
        // A session that is dropped at once may not have said that.
        sessions.push(session);
    }
    let size = || -> u64 {
        let sizes = segments(folder.path())
            .into_iter()
            .map(|path| fs::metadata(path).map_or(0, |m| m.len()));
        sizes.sum()
    };
    let deadline = Instant::now() + PATIENCE;
    while size() > 4 * TAIL_BYTES {
        assert!(Instant::now() < deadline, "{} of {written} bytes", size());
        sleep(Duration::from_millis(20)).await;
    }
    let crashed = image(folder.path());
    let worker = worker.cut();
    let journal = JournalConfig {
        place: JournalPlace::Folder(crashed.path().into()),
        ..journal
    };
    cluster.replace(core(), Some(journal)).await;
    let worker = worker.come_back(&cluster).await;
    assert!(worker.is_resumed);
    let held = [(lasting.graph, first[0].task, 1)];
    worker.send_inventory(ScriptedWorker::holding(&held)).await;
    worker.run();
    let mut session = Session::open(&cluster, "lasting").await;
    session.until(|session| session.is_done).await;
    assert_eq!(session.ready.len(), 2);
    // Those that were closed may be there, if their end was not durable, but not all of them.
    assert!(graphs(&cluster).await.len() < 5);
}

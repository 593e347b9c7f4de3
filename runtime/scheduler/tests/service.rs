//! The scheduler service as its peers see it: over real TLS, with a worker and a client whose every
//! message is decided here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_identity::Role;
use oxidask_proto::fault::from_status;
use oxidask_proto::wire;
use support::{Cluster, Fetched, PATIENCE, ScriptedWorker, Session, get};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_go_to_the_worker_and_results_come_back() {
    let cluster = Cluster::start().await;
    let worker = ScriptedWorker::join(&cluster, "default-0").await;
    assert!(worker.number > 0);
    worker.run();
    let mut session = Session::open(&cluster, "g").await;
    assert_eq!(session.next_chunk, 0);
    session
        .send(session.independent(500, &["a", "b", "c"]))
        .await;
    session.until(|session| session.is_done).await;
    let mut ready: Vec<u32> = session.ready.iter().map(|(task, _)| *task).collect();
    ready.sort_unstable();
    assert_eq!(ready, (0..500).collect::<Vec<_>>());
    let last = session.progress.last().unwrap();
    assert_eq!(
        (last.groups[0].total, last.groups[0].done),
        (500, 500),
        "progress at the end"
    );
    assert_eq!(last.cluster.as_ref().unwrap().workers, 1);

    let wanted: Vec<u32> = (0..500).rev().collect();
    let found = session.fetch(&wanted).await;
    for (position, (task, data)) in found.iter().enumerate() {
        assert_eq!(*task, wanted[position], "in the order of the request");
        let expected = ["a", "b", "c"][*task as usize % 3];
        assert_eq!(
            data.as_ref().unwrap(),
            &Bytes::from_static(expected.as_bytes())
        );
    }
    assert_eq!(found.len(), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_bodies_go_to_a_worker_once_and_single_ones_inline() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let session = Session::open(&cluster, "g").await;
    let mut chunk = session.independent(4, &["shared", "single"]);
    chunk.body = vec![0, 0, 1, 0];
    session.send(chunk).await;
    let mut assigned = Vec::new();
    while assigned.len() < 4 {
        let new = worker.assigned().await;
        worker.finish(&new, |_| Bytes::from_static(b"x")).await;
        assigned.extend(new);
    }
    assert_eq!(worker.bodies_received, 1);
    assigned.sort_by_key(|assign| assign.task);
    let inline: Vec<bool> = assigned.iter().map(|assign| assign.is_inline).collect();
    assert_eq!(inline, [false, false, true, false]);
    assert_eq!(worker.body(&assigned[0]), "shared");
    assert_eq!(worker.body(&assigned[2]), "single");
    assert_eq!(assigned[3].key, "task-3");
    assert_eq!((assigned[0].epoch, assigned[0].attempt), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_and_streamed_inputs_reach_the_worker_and_progress_counts_rows() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    let first = wire::GraphChunk {
        is_last: false,
        wanted: Vec::new(),
        ..session.independent(2, &["stage"])
    };
    // The second chunk is the first that says something of its tasks.
    let second = wire::GraphChunk {
        number: 1,
        new_groups: Vec::new(),
        new_bodies: Vec::new(),
        input_counts: vec![2, 2],
        inputs: vec![0, 1, 0, 1],
        wanted: vec![2, 3],
        part: vec![0, 5],
        streamed_inputs: vec![0, 1],
        ..session.independent(2, &["stage"])
    };
    session.send(first).await;
    session.send(second).await;
    let mut assigned = Vec::new();
    while assigned.len() < 4 {
        let new = worker.assigned().await;
        worker.finish(&new, |_| Bytes::from_static(b"1234")).await;
        assigned.extend(new);
    }
    assigned.sort_by_key(|assign| assign.task);
    let said = assigned.iter().map(|a| (a.part, a.streamed_inputs));
    assert_eq!(said.collect::<Vec<_>>(), [(0, 0), (0, 0), (0, 0), (5, 1)]);
    assert_eq!(assigned[3].inputs, [0, 1], "streamed inputs are inputs");
    session.until(|session| session.is_done).await;
    let group = &session.progress.last().unwrap().groups[0];
    assert_eq!((group.rows, group.made_bytes), (4 * 7, 16));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_name_their_holders_and_workers_learn_where_those_are() {
    let cluster = Cluster::start().await;
    let mut first = ScriptedWorker::join(&cluster, "default-0").await;
    let mut second = ScriptedWorker::join(&cluster, "default-1").await;
    let session = Session::open(&cluster, "g").await;
    let mut chunk = session.independent(3, &["body"]);
    chunk.input_counts = vec![0, 0, 2];
    chunk.inputs = vec![0, 1];
    chunk.wanted = vec![2];
    session.send(chunk).await;
    let of_first = first.assigned().await;
    let of_second = second.assigned().await;
    first
        .finish(&of_first, |_| Bytes::from_static(b"1234"))
        .await;
    second
        .finish(&of_second, |_| Bytes::from_static(b"1234"))
        .await;
    assert!(first.peers.is_empty() && second.peers.is_empty());
    let merge = tokio::select! {
        assigned = first.assigned() => assigned,
        assigned = second.assigned() => assigned,
    };
    // Only the one that reads something there is told where.
    let known = [&first, &second].map(|worker| worker.peers.clone());
    let to = |worker: &ScriptedWorker| [(worker.number, worker.data_address.clone())].into();
    assert!(
        known == [to(&second), HashMap::new()] || known == [HashMap::new(), to(&first)],
        "{known:?}"
    );
    assert_eq!(merge[0].task, 2);
    assert_eq!(merge[0].inputs, [0, 1]);
    assert_eq!(merge[0].input_bytes, [4, 4]);
    let mut holders = merge[0].holders.clone();
    holders.sort_unstable();
    assert_eq!(holders, [first.number, second.number]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_of_the_same_name_is_refused() {
    let cluster = Cluster::start().await;
    let first = ScriptedWorker::join(&cluster, "default-0").await;
    let refused = ScriptedWorker::try_join(&cluster, "default-0")
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code, "OX307");
    drop(first);
    // The name is free again once the first one is gone.
    let deadline = Instant::now() + PATIENCE;
    while ScriptedWorker::try_join(&cluster, "default-0")
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_workers_tasks_run_elsewhere_and_one_line_says_so() {
    let cluster = Cluster::start().await;
    let mut doomed = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(1, &["body"])).await;
    let assigned = doomed.assigned().await;
    let started = wire::Report {
        outcome: Some(wire::report::Outcome::Started(wire::Empty {})),
        ..ScriptedWorker::finished(&assigned[0], 0)
    };
    doomed
        .send(wire::WorkerBatch {
            reports: vec![started],
            ..Default::default()
        })
        .await;
    sleep(Duration::from_millis(50)).await;
    drop(doomed);
    let mut heir = ScriptedWorker::join(&cluster, "default-1").await;
    let again = heir.assigned().await;
    assert_eq!((again[0].task, again[0].attempt), (0, 2));
    heir.finish(&again, |_| Bytes::from_static(b"x")).await;
    session.until(|session| session.is_done).await;
    assert_eq!(session.notices.len(), 1, "{:?}", session.notices);
    let notice = &session.notices[0];
    assert!(notice.starts_with("worker default-0 died ("), "{notice}");
    assert!(notice.ends_with("; 1 task is tried again"), "{notice}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_its_worker_lacks_is_computed_again_while_the_relay_waits() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(3, &["body"])).await;
    let mut assigned = Vec::new();
    while assigned.len() < 3 {
        let new = worker.assigned().await;
        worker
            .finish(&new, |assign| {
                Bytes::from(vec![b'0'; 3 + assign.task as usize])
            })
            .await;
        assigned.extend(new);
    }
    session.until(|session| session.is_done).await;
    worker.results.0.lock().unwrap().clear();
    let compute_again = tokio::spawn(async move {
        let mut again = Vec::new();
        while again.len() < 3 {
            let new = worker.assigned().await;
            worker
                .finish(&new, |assign| {
                    Bytes::from(vec![b'1'; 3 + assign.task as usize])
                })
                .await;
            again.extend(new);
        }
        worker
    });
    let found = session.fetch(&[1, 0, 2]).await;
    let texts: Vec<(u32, Bytes)> = found
        .into_iter()
        .map(|(task, data)| (task, data.unwrap()))
        .collect();
    let expected = [(1, "1111"), (0, "111"), (2, "11111")];
    assert_eq!(
        texts,
        expected.map(|(task, text)| (task, Bytes::from_static(text.as_bytes())))
    );
    compute_again.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_nobody_knows_is_a_fault_and_others_follow() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(2, &["body"])).await;
    session.until(|session| session.is_done).await;
    let found = session.fetch(&[0, 77, 1]).await;
    assert_eq!(found[0], (0, Ok(Bytes::from_static(b"body"))));
    assert_eq!(found[1], (77, Err("OX304".to_owned())));
    assert_eq!(found[2], (1, Ok(Bytes::from_static(b"body"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_result_is_relayed_in_parts() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(3, &["body"])).await;
    let large: Vec<u8> = (0..100 << 20).map(|i: u32| (i % 251) as u8).collect();
    let large = Bytes::from(large);
    let mut done = 0;
    while done < 3 {
        let new = worker.assigned().await;
        done += new.len();
        let data = large.clone();
        let result = |assign: &wire::Assign| match assign.task {
            1 => data.clone(),
            _ => Bytes::from_static(b"small"),
        };
        worker.finish(&new, result).await;
    }
    session.until(|session| session.is_done).await;
    let found = session.fetch(&[0, 1, 2]).await;
    assert_eq!(found[0], (0, Ok(Bytes::from_static(b"small"))));
    assert!(found[1].1.as_ref().unwrap() == &large);
    assert_eq!(found[2], (2, Ok(Bytes::from_static(b"small"))));
}

fn digit(task: u32) -> u8 {
    b'0' + u8::try_from(task % 10).unwrap()
}

/// A pager, say: longer than the relay's patience, which then gives the worker's connection back
/// and begins again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pauses_a_fetch_gets_everything_and_is_in_nobodys_way() {
    const BYTES: usize = 64 << 20;
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(2, &["body"])).await;
    let mut done = 0;
    while done < 2 {
        let new = worker.assigned().await;
        done += new.len();
        let result = |assign: &wire::Assign| Bytes::from(vec![digit(assign.task); BYTES]);
        worker.finish(&new, result).await;
    }
    session.until(|session| session.is_done).await;
    let mut paused = session.open_fetch(&[0, 1]).await;
    let mut others = Vec::new();
    for _ in 0..6 {
        others.push(session.open_fetch(&[0]).await);
    }
    sleep(Duration::from_secs(7)).await;
    let mut quick = Session::open(&cluster, "g").await;
    assert_eq!(quick.fetch(&[1]).await[0].1.as_ref().unwrap().len(), BYTES);
    drop(others);
    let fetched = Fetched::read(&mut paused).await;
    assert!(fetched.starts > 2, "the first result began again");
    for (task, data) in fetched.found {
        assert!(data.unwrap() == vec![digit(task); BYTES]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_attaches_again_by_name() {
    let cluster = Cluster::start().await;
    let session = Session::open(&cluster, "g").await;
    let graph = session.graph;
    session.send(session.independent(2, &["body"])).await;
    sleep(Duration::from_millis(100)).await;
    drop(session);
    ScriptedWorker::join(&cluster, "default-0").await.run();
    sleep(Duration::from_millis(100)).await;
    let mut again = Session::open(&cluster, "g").await;
    assert_eq!((again.graph, again.next_chunk), (graph, 1));
    again.until(|session| session.is_done).await;
    assert_eq!(again.ready.len(), 2);
    assert_eq!(
        again.fetch(&[0]).await,
        [(0, Ok(Bytes::from_static(b"body")))]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_call_what_it_should() {
    let cluster = Cluster::start().await;
    for role in [Role::Scheduler, Role::Worker, Role::Client, Role::Operator] {
        let mut scheduler = cluster.connect(role).await;
        let no_batches = futures::stream::pending::<wire::WorkerBatch>();
        let work = scheduler.work(no_batches).await.err();
        let no_batches = futures::stream::pending::<wire::ClientBatch>();
        let session = scheduler.session(no_batches).await.err();
        let fetch = scheduler.fetch(wire::FetchRequest::default()).await.err();
        let status = scheduler.status(wire::StatusRequest {}).await.err();
        let telemetry = scheduler
            .telemetry(wire::TelemetryRequest::default())
            .await
            .err();
        let retire = scheduler
            .retire(wire::RetireRequest::default())
            .await
            .unwrap_err();
        for (call, error, is_allowed) in [
            ("work", work, role == Role::Worker),
            ("session", session, role == Role::Client),
            // Clients inside of tasks show the certificate of their worker.
            ("fetch", fetch, matches!(role, Role::Client | Role::Worker)),
            ("status", status, role == Role::Client),
            ("telemetry", telemetry, role == Role::Operator),
        ] {
            match error {
                None => assert!(is_allowed, "{role} may call {call}"),
                Some(status) => {
                    assert!(!is_allowed, "{role} may not call {call}: {status}");
                    assert_eq!(from_status(&status).code.to_string(), "OX404");
                }
            }
        }
        let code = from_status(&retire).code.to_string();
        let is_allowed = matches!(role, Role::Client | Role::Operator);
        assert_eq!(
            code,
            if is_allowed { "OX308" } else { "OX404" },
            "{role} calls retire"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_telemetry_show_workers_and_backlog() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let session = Session::open(&cluster, "g").await;
    session.send(session.independent(10, &["body"])).await;
    worker.assigned().await;
    let mut client = cluster.connect(Role::Client).await;
    let status = client
        .status(wire::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.workers.len(), 1);
    assert_eq!(status.workers[0].data_address, worker.data_address);
    assert_eq!(
        (status.graphs[0].name.as_str(), status.graphs[0].total),
        ("g", 10)
    );
    assert_ne!(status.hello.unwrap().incarnation, 0);
    let mut operator = cluster.connect(Role::Operator).await;
    let mut telemetry = operator
        .telemetry(wire::TelemetryRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = timeout(PATIENCE, telemetry.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(first.backlog_micros > 0);
    assert_eq!(first.ready + first.running, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_ends_the_stream_with_a_code_and_harms_nobody() {
    let cluster = Cluster::start().await;
    let mut session = Session::open(&cluster, "g").await;
    let chunk = wire::GraphChunk {
        graph: session.graph,
        body: vec![0],
        ..Default::default()
    };
    session.send(chunk).await;
    let error = loop {
        match timeout(PATIENCE, session.inbound.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ends with an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(from_status(&error).code.to_string(), "OX308");

    let other = Session::open(&cluster, "h").await;
    let mut chunk = other.independent(2, &["body"]);
    chunk.input_counts = vec![0, 1];
    chunk.inputs = vec![9];
    other.send(chunk).await;
    let mut other = other;
    other.until(|session| !session.refused.is_empty()).await;
    let mut third = Session::open(&cluster, "i").await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    third.send(third.independent(1, &["body"])).await;
    third.until(|session| session.is_done).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pauses_loses_nothing() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    let mut slow = Session::open(&cluster, "slow").await;
    slow.send(slow.independent(20_000, &["body"])).await;
    let mut quick = Session::open(&cluster, "quick").await;
    quick.send(quick.independent(100, &["body"])).await;
    quick.until(|session| session.is_done).await;
    slow.until(|session| session.is_done).await;
    assert_eq!(slow.ready.len(), 20_000);
}

/// Fails tasks with errors of 16 KiB each: 176 MiB, more than outbox and HTTP/2 windows hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_is_closed_and_others_go_on() {
    const TASKS: u32 = 11_000;
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let slow = Session::open(&cluster, "slow").await;
    slow.send(slow.independent(TASKS, &["body"])).await;
    let mut failed = 0;
    while failed < TASKS {
        let assigned = worker.assigned().await;
        failed += u32::try_from(assigned.len()).unwrap();
        for some in assigned.chunks(500) {
            let reports = some
                .iter()
                .map(|assign| ScriptedWorker::failed(assign, 16 * 1024));
            let reports = reports.collect();
            worker
                .send(wire::WorkerBatch {
                    reports,
                    ..Default::default()
                })
                .await;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while !get(&cluster, "/metrics")
        .await
        .contains("slow_peers_total 1")
    {
        assert!(Instant::now() < deadline, "the client is closed");
        sleep(Duration::from_millis(50)).await;
    }
    worker.run();
    let mut quick = Session::open(&cluster, "quick").await;
    quick.send(quick.independent(100, &["body"])).await;
    quick.until(|session| session.is_done).await;
    // The connection was cut, though the client still did not read.
    let mut slow = slow;
    let ended = async { while let Ok(Some(_)) = slow.inbound.message().await {} };
    timeout(PATIENCE, ended)
        .await
        .expect("the stream of the slow client ends");
    assert!(!slow.is_done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_are_open() {
    let cluster = Cluster::start().await;
    ScriptedWorker::join(&cluster, "default-0").await.run();
    sleep(Duration::from_millis(250)).await;
    for path in ["/health", "/livez", "/readyz"] {
        assert!(
            get(&cluster, path).await.starts_with("HTTP/1.1 200"),
            "{path}"
        );
    }
    assert!(
        get(&cluster, "/api/v1/status")
            .await
            .starts_with("HTTP/1.1 401")
    );
    let metrics = get(&cluster, "/metrics").await;
    for line in [
        "oxidask_scheduler_workers 1",
        "oxidask_scheduler_slots 1",
        "oxidask_scheduler_tasks{state=\"ready\"} 0",
        "oxidask_scheduler_events_total ",
        "oxidask_scheduler_loop_busy_seconds_total ",
        "oxidask_scheduler_build_info{version=",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_waits_for_nobody_and_everybody_hears_of_it() {
    let cluster = Cluster::start().await;
    let mut worker = ScriptedWorker::join(&cluster, "default-0").await;
    let mut session = Session::open(&cluster, "g").await;
    session.send(session.independent(1000, &["body"])).await;
    worker.assigned().await;
    let began = Instant::now();
    cluster.shutdown.cancel();
    cluster.serving.await.unwrap().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    let error = loop {
        match timeout(PATIENCE, session.inbound.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ends with an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(from_status(&error).code.to_string(), "OX112");
    while let Ok(Some(_)) = timeout(PATIENCE, worker.inbound.message()).await.unwrap() {}
    assert!(TcpStream::connect(cluster.http).await.is_err());
}

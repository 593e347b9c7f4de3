//! A loop that begins beside its connections, and gets a thread of its own when they become many. Alone
//! in its process, whose threads it looks at.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use support::{Cluster, ScriptedWorker, Session};

/// More than the loop shares a thread with.
const WORKERS: usize = 70;
const TASKS: u32 = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_with_many_connections_goes_on_with_a_thread_of_its_own() {
    let cluster = Cluster::start().await;
    let mut few = Session::open(&cluster, "few").await;
    let mut running = vec![ScriptedWorker::join(&cluster, "default-0").await.run()];
    few.send(few.independent(TASKS, &["body"])).await;
    few.until(|session| session.is_done).await;
    assert!(!has_loop_thread());
    let mut many = Session::open(&cluster, "many").await;
    for number in 1..WORKERS {
        let worker = ScriptedWorker::join(&cluster, &format!("default-{number}")).await;
        running.push(worker.run());
    }
    many.send(many.independent(TASKS, &["body"])).await;
    many.until(|session| session.is_done).await;
    assert!(has_loop_thread());
    for worker in running {
        worker.abort();
    }
}

fn has_loop_thread() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names =
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.any(|name| name.trim_end() == "scheduler-loop")
}

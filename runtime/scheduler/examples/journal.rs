//! What the journal costs and what it gives: `journal [TASKS] [PAIRS] [LARGE]`.
//!
//! Owns nothing but the measurement. A scheduler in this process over real TLS, a worker that ends
//! its tasks at once, and a client, with and without a journal in turns; then a scheduler that goes
//! on from the journal of a graph of LARGE tasks that is half done.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a measurement"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_core::CoreConfig;
use oxidask_identity::Role;
use oxidask_proto::wire;
use oxidask_scheduler::JournalConfig;
use support::{Cluster, ScriptedWorker, Session};
use tempfile::TempDir;

/// Tasks of one chunk.
const CHUNK: u32 = 20_000;

/// Ticks of the clock by which the system counts the time of threads.
const TICKS_PER_SECOND: f64 = 100.0;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse().unwrap());
    let tasks: u32 = arguments.next().unwrap_or(100_000);
    let pairs: u32 = arguments.next().unwrap_or(5);
    let large: u32 = arguments.next().unwrap_or(1_000_000);
    tiny().await;
    let mut ratios = Vec::new();
    for pair in 0..pairs {
        let (off, _) = rate(tasks, false).await;
        let (on, bytes) = rate(tasks, true).await;
        println!(
            "pair {pair}: off {:.3} s {:?}, on {:.3} s {:?}, {:.1} bytes a task",
            off.0,
            off.1,
            on.0,
            on.1,
            bytes as f64 / f64::from(tasks)
        );
        ratios.push(on.0 / off.0);
    }
    ratios.sort_by(f64::total_cmp);
    println!("with / without, median: {:.3}", ratios[ratios.len() / 2]);
    recovery(large).await;
}

type Figures = (f64, BTreeMap<String, f64>);

fn journal(folder: &Path) -> JournalConfig {
    JournalConfig::in_folder(folder)
}

async fn rate(tasks: u32, is_kept: bool) -> (Figures, u64) {
    let folder = TempDir::new_in(".").unwrap();
    let kept = is_kept.then(|| journal(folder.path()));
    let cluster = Cluster::start_kept(CoreConfig::default(), kept).await;
    let mut worker = ScriptedWorker::hello("default-0");
    worker.slots = 16;
    ScriptedWorker::join_as(&cluster, worker).await.run();
    let mut session = Session::open(&cluster, "g").await;
    let before = threads();
    let sent_before = size(folder.path());
    let began = Instant::now();
    send(&session, tasks).await;
    session.until(|session| session.is_done).await;
    let elapsed = began.elapsed().as_secs_f64();
    let mut spent = threads();
    for (name, seconds) in before {
        if let Some(after) = spent.get_mut(&name) {
            *after = ((*after - seconds) * 100.0).round() / 100.0;
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let bytes = size(folder.path()) - sent_before;
    cluster.shutdown.cancel();
    let _ = cluster.serving.await;
    ((elapsed, spent), bytes)
}

async fn send(session: &Session, tasks: u32) {
    let mut first = 0;
    while first < tasks {
        let count = CHUNK.min(tasks - first);
        let mut chunk = session.independent(count, &["x"]);
        let is_first = first == 0;
        chunk.number = first / CHUNK;
        chunk.is_last = first + count == tasks;
        chunk.wanted = (first..first + count).collect();
        if !is_first {
            chunk.new_groups.clear();
            chunk.new_bodies.clear();
        }
        session.send(chunk).await;
        first += count;
    }
}

/// How long a graph of one task takes, with and without a journal.
async fn tiny() {
    for is_kept in [false, true] {
        let folder = TempDir::new_in(".").unwrap();
        let kept = is_kept.then(|| journal(folder.path()));
        let cluster = Cluster::start_kept(CoreConfig::default(), kept).await;
        ScriptedWorker::join(&cluster, "default-0").await.run();
        let mut times = Vec::new();
        for number in 0..40 {
            let began = Instant::now();
            let mut session = Session::open(&cluster, &format!("g{number}")).await;
            session.send(session.independent(1, &["x"])).await;
            session.until(|session| session.is_done).await;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        println!(
            "one task, journal {is_kept}: median {:.2} ms, of 40 the slowest {:.2} ms",
            times[20], times[39]
        );
        cluster.shutdown.cancel();
        let _ = cluster.serving.await;
    }
}

async fn recovery(tasks: u32) {
    let folder = TempDir::new_in(".").unwrap();
    let core = CoreConfig::default;
    let mut cluster = Cluster::start_kept(core(), Some(journal(folder.path()))).await;
    let mut hello = ScriptedWorker::hello("default-0");
    hello.slots = 16;
    let mut worker = ScriptedWorker::join_as(&cluster, hello).await;
    let mut session = Session::open(&cluster, "g").await;
    let sending = send(&session, tasks);
    let half = tasks as usize / 2;
    let working = async {
        let mut done = 0;
        while done < half {
            let assigned = worker.assigned().await;
            worker.finish(&assigned, |_| Bytes::from_static(b"x")).await;
            done += assigned.len();
        }
    };
    tokio::join!(sending, working);
    session.until(|session| session.ready.len() >= half).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let copy = TempDir::new_in(".").unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    println!(
        "journal of {tasks} tasks, half done: {} bytes",
        size(copy.path())
    );
    drop(session);
    let began = Instant::now();
    cluster.replace(core(), Some(journal(copy.path()))).await;
    let mut client = cluster.connect(Role::Client).await;
    let status = client
        .status(wire::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    println!(
        "serves after {:.3} s: {} tasks, {} done",
        began.elapsed().as_secs_f64(),
        status.graphs[0].total,
        status.graphs[0].done
    );
}

fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().metadata().map_or(0, |m| m.len()))
        .sum()
}

/// Seconds of processor time of this process's threads, by name.
fn threads() -> BTreeMap<String, f64> {
    let mut spent = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        let stat = fs::read_to_string(entry.unwrap().path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        if name.starts_with("scheduler-loop") || name.starts_with("journal") {
            *spent.entry(name.to_owned()).or_insert(0.0) += ticks / TICKS_PER_SECOND;
        }
    }
    spent
}

//! A link against a scheduler that is played here, byte for byte as Dask's answers.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::ask::{self, Answer, AskError};
use super::msgpack::{self, Value};
use super::*;

/// What the played scheduler does.
#[derive(Debug, Default)]
struct Script {
    /// It knows both workers, or only the second one after a retirement.
    is_retired: AtomicBool,
    retirements: AtomicUsize,
    /// The first worker has got a task, which it has not told yet.
    has_work: AtomicBool,
    /// It hangs up instead of answering a retirement, although it was done.
    hangs_up: AtomicBool,
}

async fn read(stream: &mut TcpStream) -> Option<Value> {
    let total = usize::try_from(stream.read_u64_le().await.ok()?).unwrap();
    let mut bytes = vec![0; total];
    stream.read_exact(&mut bytes).await.ok()?;
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), 1);
    msgpack::read(&bytes[16..])
}

async fn write(stream: &mut TcpStream, value: &Value) {
    let mut frame = Vec::new();
    msgpack::write(value, &mut frame);
    let length = frame.len() as u64;
    let mut bytes = Vec::new();
    for number in [length + 16, 1, length] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(frame);
    stream.write_all(&bytes).await.unwrap();
}

fn identity(is_retired: bool) -> Value {
    let worker = |name: &str, running| {
        let counts = Value::map([("executing", Value::Int(running))]);
        Value::map([
            ("name", Value::text(name)),
            ("status", Value::text("running")),
            (
                "metrics",
                Value::map([("task_counts", counts), ("managed_bytes", Value::Int(8))]),
            ),
        ])
    };
    let mut workers = vec![(Value::text("tcp://10.0.0.2:1"), worker("b", 1))];
    if !is_retired {
        workers.push((Value::text("tcp://10.0.0.1:1"), worker("a", 0)));
    }
    Value::map([("workers", Value::Map(workers))])
}

async fn serve(mut stream: TcpStream, script: Arc<Script>) {
    read(&mut stream).await.unwrap();
    write(
        &mut stream,
        &Value::map([("pickle-protocol", Value::Int(5))]),
    )
    .await;
    while let Some(question) = read(&mut stream).await {
        let operation = question.get("op").and_then(Value::name).unwrap();
        let answer = match operation.as_str() {
            "identity" => identity(script.is_retired.load(Ordering::SeqCst)),
            "adaptive_target" => Value::Int(3),
            "check_idle" => Value::Nil,
            "processing" => {
                let tasks = if script.has_work.load(Ordering::SeqCst) {
                    vec![Value::text("nap")]
                } else {
                    Vec::new()
                };
                let asked = Value::List(vec![Value::text("tcp://10.0.0.1:1")]);
                assert_eq!(
                    question.get("workers"),
                    Some(&asked),
                    "only about idle ones"
                );
                Value::Map(vec![(Value::text("tcp://10.0.0.1:1"), Value::List(tasks))])
            }
            "retire_workers" => {
                assert!(!script.has_work.load(Ordering::SeqCst), "it is not idle");
                script.retirements.fetch_add(1, Ordering::SeqCst);
                script.is_retired.store(true, Ordering::SeqCst);
                assert_eq!(question.get("n"), None, "always by address");
                if script.hangs_up.load(Ordering::SeqCst) {
                    return;
                }
                Value::Map(vec![(
                    Value::text("tcp://10.0.0.1:1"),
                    Value::Map(Vec::new()),
                )])
            }
            other => panic!("nobody asks `{other}`"),
        };
        write(&mut stream, &answer).await;
    }
}

async fn scheduler() -> (Address, Arc<Script>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let script = Arc::new(Script::default());
    let address = Address {
        host: "127.0.0.1".to_owned(),
        comm_port: listener.local_addr().unwrap().port(),
        http_port: 9,
    };
    let played = Arc::clone(&script);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&played)));
        }
    });
    (address, script)
}

fn links() -> (DaskLinks, Arc<Signals>) {
    let signals = Arc::new(Signals::default());
    let (_, caches) = Caches::new();
    let links = DaskLinks::new(Arc::new(caches), Arc::clone(&signals), Arc::default());
    (links, signals)
}

fn retirement(worker: &str) -> Retirement {
    Retirement {
        namespace: "n".to_owned(),
        cluster: "c".to_owned(),
        worker: worker.to_owned(),
        deadline: std::time::Duration::ZERO,
        is_cancelled: false,
    }
}

/// Waits for up to ten seconds.
async fn until(what: impl Fn() -> bool) -> bool {
    for _ in 0..200 {
        if what() {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test]
async fn a_scheduler_is_heard_and_retires_a_worker_once() {
    let (address, script) = scheduler().await;
    let (links, signals) = links();
    let key = ClusterKey::new("n", "c");
    links.watch(key.clone(), "u", address);
    assert!(until(|| signals.get(&key).is_some()).await);
    let signal = signals.get(&key).unwrap();
    assert_eq!(signal.groups["default"].workers_wanted, 3);
    assert_eq!(
        (signal.workers["a"].running, signal.workers["b"].running),
        (0, 1)
    );
    assert_eq!(signal.workers["a"].host, "10.0.0.1");
    assert_eq!(signal.idle, None);
    let other = Retirement {
        cluster: "rust".to_owned(),
        ..retirement("x")
    };
    let orders = [retirement("a"), other];
    let left = links.retire(&orders);
    assert_eq!(left.len(), 1, "that of another cluster comes back");
    links.retire(&orders);
    assert!(until(|| !signals.get(&key).unwrap().workers.contains_key("a")).await);
    assert_eq!(script.retirements.load(Ordering::SeqCst), 1);
    links.forget(&key);
    assert!(signals.get(&key).is_none());
}

#[tokio::test]
async fn a_worker_that_has_got_work_meanwhile_is_not_retired() {
    let (address, script) = scheduler().await;
    script.has_work.store(true, Ordering::SeqCst);
    let (links, signals) = links();
    let key = ClusterKey::new("n", "c");
    links.watch(key.clone(), "u", address);
    assert!(until(|| signals.get(&key).is_some()).await);
    links.retire(&[retirement("a")]);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(signals.get(&key).unwrap().workers.contains_key("a"));
    assert_eq!(script.retirements.load(Ordering::SeqCst), 0);
    // It is planned again and again until it has gone.
    script.has_work.store(false, Ordering::SeqCst);
    let is_gone = || {
        links.retire(&[retirement("a")]);
        !signals.get(&key).unwrap().workers.contains_key("a")
    };
    assert!(until(is_gone).await);
    assert_eq!(script.retirements.load(Ordering::SeqCst), 1);
}

/// Releases of distributed before 2025.9.0 answer 500 after having retired a worker.
#[tokio::test]
async fn an_answer_that_fails_means_that_the_list_of_workers_is_read_again() {
    let (address, script) = scheduler().await;
    script.hangs_up.store(true, Ordering::SeqCst);
    let (links, signals) = links();
    let key = ClusterKey::new("n", "c");
    links.watch(key.clone(), "u", address);
    assert!(until(|| signals.get(&key).is_some()).await);
    links.retire(&[retirement("a")]);
    assert!(until(|| !signals.get(&key).unwrap().workers.contains_key("a")).await);
    assert_eq!(script.retirements.load(Ordering::SeqCst), 1);
    assert!(signals.get(&key).unwrap().workers.contains_key("b"));
}

/// A scheduler that speaks only HTTP, and one of which the routes are off.
#[tokio::test]
async fn the_routes_are_the_second_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            let request = String::from_utf8_lossy(&bytes[..count]).into_owned();
            let answer = match request.split_whitespace().nth(1).unwrap() {
                "/api/v1/get_workers" => {
                    r#"200 OK|{"num_workers": 1, "workers": [{"name": 0, "address": "tcp://h:1"}]}"#
                }
                "/api/v1/adaptive_target" => r#"200 OK|{"workers": 2}"#,
                "/api/v1/check_idle" => r#"200 OK|{"idle_since": 12.5}"#,
                "/api/v1/retire_workers" => r#"500 Error|{"Error": "Internal Server Error"}"#,
                _ => "404 Not Found|{}",
            };
            let (status, body) = answer.split_once('|').unwrap();
            let answer = format!(
                "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let address = Address {
        host: "127.0.0.1".to_owned(),
        comm_port: 9,
        http_port,
    };
    let answer = ask::report(&address, &mut None).await.unwrap();
    let Answer {
        wanted,
        idle_since,
        workers,
    } = answer;
    assert_eq!((wanted, idle_since), (Some(2), Some(12.5)));
    assert_eq!(
        (workers[0].name.as_str(), workers[0].host.as_str()),
        ("0", "h")
    );
    let retired = ask::retire(&address, &["tcp://h:1".to_owned()], &BTreeSet::new()).await;
    assert!(matches!(retired, Err(AskError::Status(500))));
}

/// The questions are put to a real one with two workers, which the stage `dask` of `cargo xtask
/// test` starts: `OXIDASK_DASK_SCHEDULER=HOST:COMM_PORT:HTTP_PORT`.
#[cfg(feature = "real-dask")]
#[tokio::test]
async fn a_real_scheduler_answers() {
    let place = std::env::var("OXIDASK_DASK_SCHEDULER").unwrap();
    let parts: Vec<&str> = place.split(':').collect();
    let address = Address {
        host: parts[0].to_owned(),
        comm_port: parts[1].parse().unwrap(),
        http_port: parts[2].parse().unwrap(),
    };
    let mut comm = None;
    let answer = ask::report(&address, &mut comm).await.unwrap();
    assert!(comm.is_some() && answer.wanted.is_some());
    let workers = answer.workers;
    assert_eq!(workers.len(), 2, "{workers:?}");
    let first = workers[0].address.clone();
    let idle = BTreeSet::from([first.clone()]);
    let gone = ask::retire(&address, std::slice::from_ref(&first), &idle)
        .await
        .unwrap();
    assert!(gone.contains(&first));
    let left = ask::report(&address, &mut comm).await.unwrap().workers;
    assert!(left.len() == 1 && left[0].address != first);
    // What it does not know, it says nothing about, and retires nothing.
    let unknown = ["tcp://192.0.2.1:1".to_owned()];
    let idle = BTreeSet::from(unknown.clone());
    let gone = ask::retire(&address, &unknown, &idle).await.unwrap();
    assert!(gone.is_empty());
}

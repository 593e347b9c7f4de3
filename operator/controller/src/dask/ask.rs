//! The questions that are put to a Dask scheduler.
//!
//! Owns which way is taken. First Dask's own protocol on `tcp-comm`, which every scheduler speaks
//! whatever its configuration, and which alone says what each worker does and holds; then the
//! routes `/api/v1` on `http-dashboard`, for schedulers that speak only TLS otherwise.
//!
//! Invariant: workers are retired by their addresses, never by a number: a scheduler would choose
//! from all groups, busy ones as well.

use std::collections::BTreeSet;
use std::io;

use serde_json::json;

use super::comm::Comm;
use super::http;
use super::msgpack::Value;

/// States in which a task occupies a worker.
const OCCUPYING: [&str; 6] = [
    "executing",
    "long-running",
    "ready",
    "constrained",
    "waiting",
    "resumed",
];

/// Why a scheduler was not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("it cannot be reached: {0}")]
    Connection(#[from] io::Error),
    #[error("{0}")]
    Protocol(&'static str),
    #[error("it answers with HTTP status {0}")]
    Status(u16),
    #[error("it answers with an error")]
    Failed,
}

/// Where a scheduler is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) comm_port: u16,
    pub(crate) http_port: u16,
}

/// A worker, as a scheduler describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) host: String,
    pub(super) status: String,
    pub(super) running: u32,
    pub(super) held_bytes: u64,
}

/// What a scheduler said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) wanted: Option<u64>,
    /// Seconds since 1970.
    pub(super) idle_since: Option<f64>,
    pub(super) workers: Vec<Described>,
}

/// Asks how things are. A connection is kept for the next time.
pub(super) async fn report(address: &Address, comm: &mut Option<Comm>) -> Result<Answer, AskError> {
    let kept = comm.take();
    let had_one = kept.is_some();
    let first = by_comm(address, kept, comm).await;
    let first = match first {
        // The connection may have been of a former scheduler.
        Err(_) if had_one => by_comm(address, None, comm).await,
        first => first,
    };
    match first {
        Ok(answer) => Ok(answer),
        Err(error) => by_http(address).await.map_err(|second| match second {
            // The routes are off; the first way is the one to repair.
            AskError::Status(_) => error,
            second => second,
        }),
    }
}

async fn by_comm(
    address: &Address,
    kept: Option<Comm>,
    keep: &mut Option<Comm>,
) -> Result<Answer, AskError> {
    let mut comm = match kept {
        Some(comm) => comm,
        None => Comm::connect(&address.host, address.comm_port).await?,
    };
    let identity = comm.ask("identity", []).await?;
    let workers = identity.get("workers");
    let workers = workers.ok_or(AskError::Protocol("it does not say which workers it has"))?;
    let workers = workers.fields().iter();
    let workers = workers.filter_map(|(address, worker)| described(address, worker));
    let workers = workers.collect();
    // Before the question about idleness: that one counts as activity for nobody.
    let wanted = comm.ask("adaptive_target", []).await?.count();
    // Old schedulers do not know the question; they are never idle then.
    let idle_since = comm.ask("check_idle", []).await;
    let idle_since = idle_since.ok().and_then(|since| since.seconds());
    *keep = Some(comm);
    Ok(Answer {
        wanted,
        idle_since,
        workers,
    })
}

fn described(address: &Value, worker: &Value) -> Option<Described> {
    let address = address.name()?;
    let status = worker.get("status").and_then(Value::name);
    let metrics = worker.get("metrics").unwrap_or(&Value::Nil);
    // Releases before 2023.4 have the states beside the other figures.
    let counts = metrics.get("task_counts").unwrap_or(metrics);
    let running = OCCUPYING
        .iter()
        .filter_map(|state| counts.get(state)?.count());
    let running = running.fold(0, u64::saturating_add);
    let spilled = metrics
        .get("spilled_bytes")
        .and_then(|bytes| bytes.get("memory"));
    let held = [metrics.get("managed_bytes"), spilled];
    let held = held.into_iter().filter_map(|bytes| bytes?.count());
    let host = worker.get("host").and_then(Value::name);
    Some(Described {
        name: worker.get("name")?.name()?,
        host: host.unwrap_or_else(|| host_of(&address)),
        address,
        status: status.unwrap_or_default(),
        running: u32::try_from(running).unwrap_or(u32::MAX),
        held_bytes: held.fold(0, u64::saturating_add),
    })
}

/// `10.0.0.1` of `tcp://10.0.0.1:4000`.
fn host_of(address: &str) -> String {
    let place = address.rsplit("://").next().unwrap_or_default();
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    host.trim_matches(['[', ']']).to_owned()
}

async fn by_http(address: &Address) -> Result<Answer, AskError> {
    let get = |path| http::ask(&address.host, address.http_port, path, None);
    let found = get("/api/v1/get_workers").await?;
    let missing = AskError::Protocol("it does not say which workers it has");
    let workers = found["workers"].as_array().ok_or(missing)?;
    let workers = workers.iter().filter_map(|worker| {
        let address = worker["address"].as_str()?.to_owned();
        let name = &worker["name"];
        let text = name.as_str().map(str::to_owned);
        Some(Described {
            name: text.unwrap_or_else(|| name.to_string()),
            host: host_of(&address),
            address,
            status: String::new(),
            // This way nobody says what a worker does.
            running: 0,
            held_bytes: 0,
        })
    });
    let workers = workers.collect();
    let wanted = get("/api/v1/adaptive_target").await?["workers"].as_u64();
    let idle_since = get("/api/v1/check_idle").await?["idle_since"].as_f64();
    Ok(Answer {
        wanted,
        idle_since,
        workers,
    })
}

/// Has workers retired, those that were idle only if they still are; the addresses of those that have
/// gone. Waits until all has been moved. An error says nothing: some may have gone.
pub(super) async fn retire(
    address: &Address,
    workers: &[String],
    idle: &BTreeSet<String>,
) -> Result<BTreeSet<String>, AskError> {
    let connected = Comm::connect(&address.host, address.comm_port).await;
    if let Ok(mut comm) = connected {
        let has_work = with_work(&mut comm, idle).await;
        let mut workers = workers.to_vec();
        workers.retain(|worker| !has_work.contains(worker));
        if workers.is_empty() {
            return Ok(BTreeSet::new());
        }
        let list = workers.iter().map(|worker| Value::text(worker)).collect();
        let arguments = [
            ("workers", Value::List(list)),
            ("close_workers", Value::Bool(false)),
            ("remove", Value::Bool(true)),
        ];
        let gone = comm.ask("retire_workers", arguments).await?;
        let gone = gone
            .fields()
            .iter()
            .filter_map(|(address, _)| address.name());
        return Ok(gone.collect());
    }
    let body = json!({"workers": workers});
    let path = "/api/v1/retire_workers";
    let gone = http::ask(&address.host, address.http_port, path, Some(&body)).await?;
    let gone = gone.as_object().into_iter().flatten();
    Ok(gone.map(|(address, _)| address.clone()).collect())
}

/// Which of these workers have tasks, as the scheduler knows: what workers tell of themselves is a second
/// old, or more on a busy machine. None if it does not say.
async fn with_work(comm: &mut Comm, workers: &BTreeSet<String>) -> BTreeSet<String> {
    if workers.is_empty() {
        return BTreeSet::new();
    }
    let list = workers.iter().map(|worker| Value::text(worker)).collect();
    // It fails if one of them has gone.
    let Ok(processing) = comm
        .ask("processing", [("workers", Value::List(list))])
        .await
    else {
        return BTreeSet::new();
    };
    let busy = processing.fields().iter().filter_map(|(address, tasks)| {
        let has_work = matches!(tasks, Value::List(tasks) if !tasks.is_empty());
        has_work.then(|| address.name()).flatten()
    });
    busy.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_addresses() {
        assert_eq!(host_of("tcp://10.0.0.1:4000"), "10.0.0.1");
        assert_eq!(host_of("tcp://[fd00::1]:4000"), "fd00::1");
        assert_eq!(host_of("inproc"), "inproc");
    }

    #[test]
    fn a_worker_is_read_with_its_load() {
        let counts = [
            ("executing", Value::Int(2)),
            ("ready", Value::Int(3)),
            ("memory", Value::Int(9)),
        ];
        let metrics = Value::map([
            ("task_counts", Value::map(counts)),
            ("managed_bytes", Value::Int(100)),
            (
                "spilled_bytes",
                Value::map([("memory", Value::Int(11)), ("disk", Value::Int(5))]),
            ),
        ]);
        let worker = Value::map([
            ("name", Value::Int(0)),
            ("status", Value::text("running")),
            ("host", Value::text("10.0.0.1")),
            ("metrics", metrics),
        ]);
        let found = described(&Value::text("tcp://10.0.0.1:1"), &worker).unwrap();
        assert_eq!(
            (found.name.as_str(), found.running, found.held_bytes),
            ("0", 5, 111)
        );
        assert_eq!(described(&Value::Nil, &worker), None);
    }
}

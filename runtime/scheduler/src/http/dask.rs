//! Dask's routes: its names and forms, so that tools made for it work here.
//!
//! Where Dask's behaviour is unsound ours differs: a request to retire workers waits for a bounded
//! time and never takes workers of a group that was not named, `idle_since` does not depend on who
//! asked before, and wrong JSON is the caller's fault.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use oxidask_proto::wire;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::Site;
use super::answer::{Answer, Json, Refusal};
use super::json;
use crate::figures::{DaskLoads, DaskStates};
use crate::input::Question;
use crate::look::Snapshot;

/// Time that a request waits until workers are empty. They are drained further afterwards.
const RETIRE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Time between two looks meanwhile.
const RETIRE_LOOK_PAUSE: Duration = Duration::from_millis(50);

type Shared = State<Arc<Site>>;

/// `GET /api/v1/adaptive_target`
pub(crate) async fn adaptive_target(State(site): Shared) -> Answer {
    let snapshot = site.looker.snapshot().await?;
    let groups = snapshot.backlog.groups.iter();
    let groups: Map<String, Value> = groups
        .map(|group| (group.group.clone(), group.workers_wanted.into()))
        .collect();
    Ok(Json(json!({
        "workers": snapshot.desired_workers(),
        "groups": groups,
    })))
}

/// `GET /api/v1/check_idle`
pub(crate) async fn check_idle(State(site): Shared) -> Answer {
    let snapshot = site.looker.snapshot().await?;
    Ok(Json(json!({"idle_since": snapshot.idle_since()})))
}

/// `GET /api/v1/get_workers`
pub(crate) async fn get_workers(State(site): Shared) -> Answer {
    let workers = site.looker.look(|main_loop| main_loop.worker_statuses());
    let workers: Vec<Value> = workers.await?.iter().map(json::worker).collect();
    Ok(Json(json!({
        "num_workers": workers.len(),
        "workers": workers,
    })))
}

/// `GET /json/counts.json`
pub(crate) async fn counts(State(site): Shared) -> Answer {
    let snapshot = site.looker.snapshot().await?;
    let states = DaskStates::of(&snapshot);
    let loads = DaskLoads::of(&snapshot.workers);
    let total: u64 = snapshot.tasks.iter().map(|(_, count)| count).sum();
    let hosts: BTreeSet<&str> = snapshot.workers.iter().map(host).collect();
    Ok(Json(json!({
        "bytes": snapshot.cluster.held_bytes,
        "clients": snapshot.clients,
        "cores": snapshot.cluster.slots,
        "erred": states.erred,
        "hosts": hosts.len(),
        "idle": loads.idle,
        "memory": states.memory,
        "processing": states.processing,
        "released": states.released,
        "saturated": loads.saturated,
        "tasks": total,
        "unrunnable": states.unrunnable,
        "waiting": states.waiting + states.queued,
        "waiting_data": states.waiting,
        "workers": snapshot.cluster.workers,
        "desired_workers": snapshot.desired_workers(),
    })))
}

/// `GET /json/identity.json`
pub(crate) async fn identity(State(site): Shared) -> Answer {
    let snapshot = site.looker.snapshot().await?;
    Ok(Json(identity_of(&snapshot)))
}

fn identity_of(snapshot: &Snapshot) -> Value {
    let workers = snapshot.workers.iter();
    let workers: Map<String, Value> = workers
        .map(|worker| (json::address(worker), identity_of_worker(worker)))
        .collect();
    json!({
        "type": "Scheduler",
        "id": format!("Scheduler-{:016x}-{}", snapshot.hello.incarnation, snapshot.hello.epoch),
        "build": snapshot.hello.build,
        "started": now() - snapshot.uptime.as_secs_f64(),
        "services": {},
        "n_workers": workers.len(),
        "total_threads": snapshot.cluster.slots,
        "total_memory": snapshot.cluster.memory_bytes,
        "workers": workers,
    })
}

fn identity_of_worker(worker: &wire::WorkerStatus) -> Value {
    #[allow(clippy::cast_precision_loss, reason = "a time that is shown")]
    let silent = worker.silent_ms as f64 / 1_000.0;
    let status = match worker.standing() {
        wire::Standing::Paused => "paused",
        wire::Standing::Retiring => "closing_gracefully",
        wire::Standing::Empty => "closed",
        _ => "running",
    };
    json!({
        "type": "Worker",
        "id": worker.name,
        "host": host(worker),
        "resources": {},
        "local_directory": "",
        "name": worker.name,
        "nthreads": worker.slots,
        "memory_limit": worker.memory_bytes,
        "last_seen": now() - silent,
        "services": {},
        "metrics": {
            "task_counts": {"executing": worker.running, "ready": worker.queued},
            "managed_bytes": worker.held_bytes,
            "memory": worker.resident_bytes,
            "spilled_bytes": {"memory": worker.spilled_bytes, "disk": worker.spilled_bytes},
        },
        "status": status,
        "nanny": null,
        "group": worker.group,
        "node": worker.node,
        "pod_uid": worker.pod_uid,
        "standing": json::standing(worker),
    })
}

fn host(worker: &wire::WorkerStatus) -> &str {
    let address = worker.data_address.as_str();
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// What a body asks for.
#[derive(Debug, Default, PartialEq)]
struct Wish {
    /// Names or addresses.
    workers: Vec<String>,
    count: u32,
    group: String,
    deadline: Duration,
    ends: bool,
    is_cancelled: bool,
}

impl Wish {
    fn read(body: &[u8]) -> Result<Self, Refusal> {
        const KNOWN: &str = "workers (a list of addresses or names), n with group, deadline_s, \
                             ends, cancel";
        let wrong = |message: String| Refusal::bad(message).with_hint(format!("known: {KNOWN}"));
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| wrong(format!("the body is not JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(wrong("the body is not a JSON object".to_owned()));
        };
        let mut wish = Self::default();
        for (name, value) in fields {
            let not = |what: &str| wrong(format!("`{name}` is not {what}"));
            let flag = || value.as_bool().ok_or_else(|| not("true or false"));
            match name.as_str() {
                _ if value.is_null() => {}
                "workers" | "names" => {
                    let list = value.as_array().ok_or_else(|| not("a list"))?;
                    for worker in list {
                        wish.workers
                            .push(text_of(worker).ok_or_else(|| not("a list of names"))?);
                    }
                }
                "n" => {
                    let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
                    wish.count = count.ok_or_else(|| not("a whole number"))?;
                }
                "group" => wish.group = text_of(&value).ok_or_else(|| not("a name"))?,
                "deadline_s" => {
                    let seconds = value.as_f64().map(Duration::try_from_secs_f64);
                    let seconds = seconds.and_then(Result::ok);
                    wish.deadline = seconds.ok_or_else(|| not("a number of seconds"))?;
                }
                "ends" => wish.ends = flag()?,
                "cancel" => wish.is_cancelled = flag()?,
                _ => return Err(wrong(format!("`{name}` means nothing here"))),
            }
        }
        Ok(wish)
    }

    /// The request to the loop; nothing if nobody is meant.
    fn request(
        self,
        workers: &[wire::WorkerStatus],
    ) -> Result<Option<wire::RetireRequest>, Refusal> {
        let deadline = u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX);
        let mut request = wire::RetireRequest {
            deadline_ms: deadline,
            ends: self.ends,
            is_cancelled: self.is_cancelled,
            ..wire::RetireRequest::default()
        };
        if self.count > 0 {
            request.group = match self.group {
                group if group.is_empty() => only_group(workers)?,
                group => group,
            };
            request.count = self.count;
            return Ok(Some(request));
        }
        let is_meant = |worker: &&wire::WorkerStatus| {
            let address = json::address(worker);
            self.workers.iter().any(|asked| {
                *asked == worker.name || *asked == address || *asked == worker.data_address
            })
        };
        let meant = workers.iter().filter(is_meant);
        request.workers = meant.map(|worker| worker.name.clone()).collect();
        Ok((!request.workers.is_empty()).then_some(request))
    }
}

/// Names may be numbers, as Dask's are.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn only_group(workers: &[wire::WorkerStatus]) -> Result<String, Refusal> {
    let groups: BTreeSet<&str> = workers.iter().map(|worker| worker.group.as_str()).collect();
    let mut groups = groups.into_iter();
    match (groups.next(), groups.next()) {
        (Some(only), None) => Ok(only.to_owned()),
        (None, _) => Err(Refusal::bad("there are no workers")),
        (Some(_), Some(_)) => Err(
            Refusal::bad("`n` without `group`: there are several groups")
                .with_hint("say which with `group`, or name the workers"),
        ),
    }
}

/// `POST /api/v1/retire_workers`
pub(crate) async fn retire_workers(State(site): Shared, body: Bytes) -> Answer {
    let wish = Wish::read(&body)?;
    let before = site.looker.look(|main_loop| main_loop.worker_statuses());
    let before = before.await?;
    let Some(request) = wish.request(&before)? else {
        return Ok(Json(json!({})));
    };
    let is_cancelled = request.is_cancelled;
    let question = |reply| Question::Retire(Box::new(request), reply);
    let asked = site.looker.shared().inputs.ask(question).await;
    let unavailable =
        |status: tonic::Status| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, status.message());
    let reply = asked
        .map_err(unavailable)?
        .map_err(|diagnostic| Refusal::coded(StatusCode::BAD_REQUEST, *diagnostic))?;
    if is_cancelled {
        return Ok(Json(json!({})));
    }
    let gone = wait(&site, &reply.accepted).await?;
    let retired = before.iter().filter(|worker| gone.contains(&worker.name));
    let retired: Map<String, Value> = retired
        .map(|worker| {
            let mut worker = worker.clone();
            worker.set_standing(wire::Standing::Empty);
            (json::address(&worker), identity_of_worker(&worker))
        })
        .collect();
    Ok(Json(Value::Object(retired)))
}

/// Those of the workers that are empty or gone, when all are settled or the time is over. One that
/// cannot be drained stays, as with Dask, and is not among them.
async fn wait(site: &Site, names: &[String]) -> Result<BTreeSet<String>, Refusal> {
    let until = Instant::now() + RETIRE_WAIT_MAX;
    loop {
        let now = site.looker.look(|main_loop| main_loop.worker_statuses());
        let now = now.await?;
        let mut gone = BTreeSet::new();
        let mut is_settled = true;
        for name in names {
            let worker = now.iter().find(|worker| worker.name == *name);
            match worker.map(wire::WorkerStatus::standing) {
                None | Some(wire::Standing::Empty) => {
                    gone.insert(name.clone());
                }
                Some(wire::Standing::Retiring | wire::Standing::Suspect) => is_settled = false,
                Some(_) => {}
            }
        }
        if is_settled || Instant::now() >= until {
            return Ok(gone);
        }
        sleep(RETIRE_LOOK_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str, group: &str) -> wire::WorkerStatus {
        wire::WorkerStatus {
            name: name.to_owned(),
            group: group.to_owned(),
            data_address: format!("10.0.0.1:{name}"),
            ..Default::default()
        }
    }

    fn request(body: &str) -> Result<Option<wire::RetireRequest>, Refusal> {
        let workers = [worker("1", "default"), worker("2", "gpu")];
        Wish::read(body.as_bytes())?.request(&workers)
    }

    #[test]
    fn workers_are_named_by_address_or_name_and_names_may_be_numbers() {
        for body in [
            r#"{"workers": ["tls://10.0.0.1:1"]}"#,
            r#"{"workers": ["1"]}"#,
            r#"{"names": [1]}"#,
            r#"{"workers": ["1", "nobody"], "n": null}"#,
        ] {
            let asked = request(body).unwrap().unwrap();
            assert_eq!(asked.workers, ["1"], "{body}");
        }
        for body in ["{}", r#"{"n": 0}"#, r#"{"workers": ["nobody"]}"#] {
            assert_eq!(request(body).unwrap(), None, "{body}");
        }
    }

    #[test]
    fn a_number_of_workers_is_never_taken_across_groups() {
        let refused = request(r#"{"n": 1}"#).unwrap_err();
        assert!(format!("{refused:?}").contains("several groups"));
        let asked = request(r#"{"n": 1, "group": "gpu", "deadline_s": 1.5}"#)
            .unwrap()
            .unwrap();
        assert_eq!(
            (asked.group.as_str(), asked.count, asked.deadline_ms),
            ("gpu", 1, 1_500)
        );
        assert_eq!(
            only_group(&[worker("1", "a"), worker("2", "a")]).unwrap(),
            "a"
        );
    }

    #[test]
    fn what_means_nothing_is_said() {
        for body in [
            "",
            "[]",
            r#"{"m": 1}"#,
            r#"{"n": "x"}"#,
            r#"{"workers": "all"}"#,
            r#"{"deadline_s": -1}"#,
        ] {
            assert!(request(body).is_err(), "{body}");
        }
    }
}

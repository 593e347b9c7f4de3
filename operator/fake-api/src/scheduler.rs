//! A scheduler that only talks: it has no tasks, says what a test makes it say, and takes the pods
//! that are ready for its workers.
//!
//! Speaks the real protocol over mutual TLS with the certificate that the operator keeps in its
//! Secret. A worker that is to be drained is empty after a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::Stream;
use oxidask_comm::{Credentials, caller, incoming, install_crypto_provider, server};
use oxidask_identity::Role;
use oxidask_proto::wire;
use oxidask_proto::wire::scheduler_server::{Scheduler as Service, SchedulerServer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::error::FakeError;
use crate::fake::{Fake, Shared};
use crate::kinds::PODS;
use crate::selector::Selector;

/// How often it looks whether workers came, went or became empty.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long the operator may take to make the certificate.
const SECRET_LIMIT: Duration = Duration::from_mins(1);

/// How long a worker takes to become empty.
const DRAINS_IN: Duration = Duration::from_millis(50);

/// How long a worker without work has had none: longer than any window.
const IDLE_MS: u64 = 3_600_000;

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug, Default)]
struct Mind {
    wanted: BTreeMap<String, u64>,
    /// By name and UID of the pod: a new pod of the same name is another worker.
    retired: BTreeMap<(String, String), Instant>,
    asked: BTreeSet<String>,
    ended: BTreeSet<String>,
    is_stuck: bool,
}

#[derive(Debug)]
struct State {
    store: Arc<Shared>,
    namespace: String,
    cluster: String,
    mind: Mutex<Mind>,
    told: watch::Sender<wire::TelemetryReply>,
}

/// A scheduler that runs until it is dropped.
#[derive(Debug)]
pub struct FakeScheduler {
    state: Arc<State>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl FakeScheduler {
    /// Starts the scheduler of a cluster as soon as there is a certificate for it.
    pub async fn start(
        fake: &Fake,
        (namespace, cluster): (&str, &str),
        address: SocketAddr,
    ) -> Result<Self, FakeError> {
        install_crypto_provider();
        let secret = format!("{cluster}-tls-scheduler");
        let credentials = || credentials(&fake.get("Secret", namespace, &secret)?);
        fake.until(SECRET_LIMIT, |_| credentials().is_some()).await;
        let missing = || FakeError::Certificate {
            secret: secret.clone(),
        };
        let credentials = credentials().ok_or_else(missing)?;
        let listen = |source| FakeError::Listen {
            address: address.to_string(),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let state = Arc::new(State {
            store: fake.shared(),
            namespace: namespace.to_owned(),
            cluster: cluster.to_owned(),
            mind: Mutex::default(),
            told: watch::Sender::default(),
        });
        state.look();
        let stop = CancellationToken::new();
        let connections = incoming(listener, credentials, stop.clone());
        let talking = Talking(Arc::clone(&state));
        let served = server()
            .add_service(SchedulerServer::new(talking))
            .serve_with_incoming(connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = served.await;
        });
        let looking = Arc::clone(&state);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                looking.look();
            }
        });
        Ok(Self {
            state,
            stop,
            _tasks: tasks,
        })
    }

    /// From now on the work of a group needs so many workers.
    pub fn want(&self, group: &str, workers: u64) {
        self.state.mind().wanted.insert(group.to_owned(), workers);
        self.state.look();
    }

    /// Workers that are drained never become empty, as if they held something that has no room
    /// elsewhere.
    pub fn hold_on(&self, is_stuck: bool) {
        self.state.mind().is_stuck = is_stuck;
    }

    /// Every worker that was ever to be drained.
    pub fn asked_to_drain(&self) -> BTreeSet<String> {
        self.state.mind().asked.clone()
    }

    /// Every worker that it was told had ended.
    pub fn told_ended(&self) -> BTreeSet<String> {
        self.state.mind().ended.clone()
    }
}

impl Drop for FakeScheduler {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl State {
    fn mind(&self) -> MutexGuard<'_, Mind> {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the pods, and says what is new.
    fn look(&self) {
        let labels = format!(
            "dask.org/cluster-name={},dask.org/component=worker",
            self.cluster
        );
        let selector = Selector::parse(&labels, "").unwrap_or_default();
        let everything = (None, usize::MAX);
        let store = self.store.lock();
        let (pods, _) = store.list(PODS, Some(&self.namespace), &selector, everything);
        drop(store);
        let mind = self.mind();
        let ready = pods.iter().filter(|pod| is_ready(&pod.value));
        let workers: Vec<_> = ready.map(|pod| self.worker(&mind, &pod.value)).collect();
        let mut groups: BTreeSet<&str> = workers.iter().map(|it| it.group.as_str()).collect();
        groups.extend(mind.wanted.keys().map(String::as_str));
        let groups = groups.iter().map(|group| backlog(&mind, group, &workers));
        let groups: Vec<_> = groups.collect();
        let is_busy = mind.wanted.values().any(|wanted| *wanted > 0);
        drop(mind);
        let reply = wire::TelemetryReply {
            ready: u64::from(is_busy),
            graphs: u32::from(is_busy),
            idle_ms: if is_busy { 0 } else { IDLE_MS },
            groups,
            workers,
            incarnation: 1,
            ..wire::TelemetryReply::default()
        };
        self.told.send_if_modified(|told| {
            let is_new = *told != reply;
            *told = reply;
            is_new
        });
    }

    fn worker(&self, mind: &Mind, pod: &Value) -> wire::WorkerStatus {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&pod["metadata"]["name"]);
        let group = text(&pod["metadata"]["labels"]["dask.org/workergroup-name"]);
        let start = format!("{}-", self.cluster);
        let group = group.strip_prefix(&start).unwrap_or(&group).to_owned();
        let is_busy = mind.wanted.get(&group).is_some_and(|wanted| *wanted > 0);
        let process = (name.clone(), text(&pod["metadata"]["uid"]));
        let standing = match mind.retired.get(&process) {
            None => wire::Standing::Active,
            Some(since) if since.elapsed() < DRAINS_IN || mind.is_stuck => wire::Standing::Retiring,
            Some(_) => wire::Standing::Empty,
        };
        wire::WorkerStatus {
            slots: 2,
            data_address: format!("{}:8789", text(&pod["status"]["podIP"])),
            standing: standing.into(),
            idle_ms: if is_busy { 0 } else { IDLE_MS },
            node: text(&pod["spec"]["nodeName"]),
            pod_uid: process.1,
            name,
            group,
            ..wire::WorkerStatus::default()
        }
    }
}

fn backlog(mind: &Mind, group: &str, workers: &[wire::WorkerStatus]) -> wire::GroupBacklog {
    let wanted = mind.wanted.get(group).copied().unwrap_or_default();
    let count = workers.iter().filter(|it| it.group == group).count();
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    wire::GroupBacklog {
        group: group.to_owned(),
        workers: count,
        workers_open: count,
        slots: u64::from(count) * 2,
        waiting_tasks: wanted * 2,
        waiting_micros: wanted * 10_000_000,
        workers_wanted: wanted,
        idle_ms: if wanted > 0 { 0 } else { IDLE_MS },
        reason: format!("the work needs {wanted} workers"),
        ..wire::GroupBacklog::default()
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
        && pod["metadata"]["deletionTimestamp"].is_null()
}

fn credentials(secret: &Value) -> Option<Credentials> {
    let text = |key: &str| {
        let encoded = secret["data"][key].as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    Credentials::from_pem(&text("ca.crt")?, &text("tls.crt")?, &text("tls.key")?).ok()
}

struct Talking(Arc<State>);

#[tonic::async_trait]
impl Service for Talking {
    type WorkStream = BoxStream<wire::WorkBatch>;
    type SessionStream = BoxStream<wire::SessionBatch>;
    type FetchStream = BoxStream<wire::FetchChunk>;
    type TelemetryStream = BoxStream<wire::TelemetryReply>;
    type LogsStream = BoxStream<wire::LogsReply>;

    async fn work(
        &self,
        _: Request<Streaming<wire::WorkerBatch>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        Err(Status::unimplemented("work"))
    }

    async fn session(
        &self,
        _: Request<Streaming<wire::ClientBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("session"))
    }

    async fn fetch(
        &self,
        _: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("fetch"))
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        Err(Status::unimplemented("status"))
    }

    async fn retire(
        &self,
        request: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireReply>, Status> {
        caller(&request, &[Role::Operator])?;
        let request = request.into_inner();
        let known = self.0.told.borrow().workers.clone();
        let mut mind = self.0.mind();
        for worker in known
            .iter()
            .filter(|known| request.workers.contains(&known.name))
        {
            let process = (worker.name.clone(), worker.pod_uid.clone());
            if request.is_cancelled {
                mind.retired.remove(&process);
            } else {
                mind.retired.entry(process).or_insert_with(Instant::now);
                mind.asked.insert(worker.name.clone());
            }
        }
        drop(mind);
        self.0.look();
        let accepted = request.workers;
        let refused = Vec::new();
        Ok(Response::new(wire::RetireReply { accepted, refused }))
    }

    async fn worker_ended(
        &self,
        request: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        caller(&request, &[Role::Operator])?;
        self.0.mind().ended.insert(request.into_inner().worker);
        let was_known = true;
        Ok(Response::new(wire::WorkerEndedReply { was_known }))
    }

    async fn telemetry(
        &self,
        request: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        caller(&request, &[Role::Operator])?;
        let mut told = self.0.told.subscribe();
        told.mark_changed();
        let stream = futures::stream::unfold(told, |mut told| async move {
            told.changed().await.ok()?;
            let reply = told.borrow_and_update().clone();
            Some((Ok(reply), told))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn explain(
        &self,
        _: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        Err(Status::unimplemented("explain"))
    }

    async fn logs(
        &self,
        _: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("logs"))
    }
}

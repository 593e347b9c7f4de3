//! Links to a scheduler of the test's own, over mutual TLS.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::Stream;
use k8s_openapi::ByteString;
use kube::runtime::watcher::Event;
use oxidask_comm::{Credentials, caller, incoming, server};
use oxidask_identity::Role;
use oxidask_operator_api::kubernetes::DaskWorkerGroup;
use oxidask_operator_plan::signal::Standing;
use oxidask_pki::Authority;
use oxidask_proto::wire::scheduler_server::{Scheduler, SchedulerServer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::server::{self as api, Log};

const SOON: Duration = Duration::from_secs(20);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Says what the test makes it say.
#[derive(Clone, Default)]
struct Fake {
    told: Arc<watch::Sender<wire::TelemetryReply>>,
    streams: Arc<AtomicU32>,
    is_deaf: Arc<AtomicBool>,
    /// Ends the streams of the server that runs.
    cut: Arc<Mutex<CancellationToken>>,
    retired: Arc<Mutex<Vec<wire::RetireRequest>>>,
    ended: Arc<Mutex<Vec<wire::WorkerEndedRequest>>>,
}

#[tonic::async_trait]
impl Scheduler for Fake {
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
        let accepted = request.workers.clone();
        self.retired.lock().unwrap().push(request);
        let refused = Vec::new();
        Ok(Response::new(wire::RetireReply { accepted, refused }))
    }

    async fn worker_ended(
        &self,
        request: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        caller(&request, &[Role::Operator])?;
        self.ended.lock().unwrap().push(request.into_inner());
        let was_known = true;
        Ok(Response::new(wire::WorkerEndedReply { was_known }))
    }

    async fn telemetry(
        &self,
        request: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        caller(&request, &[Role::Operator])?;
        self.streams.fetch_add(1, Ordering::SeqCst);
        let mut told = self.told.subscribe();
        told.mark_changed();
        let (is_deaf, cut) = (Arc::clone(&self.is_deaf), self.cut.lock().unwrap().clone());
        let stream = futures::stream::unfold(told, move |mut told| {
            let (is_deaf, cut) = (Arc::clone(&is_deaf), cut.clone());
            async move {
                if is_deaf.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                tokio::select! {
                    () = cut.cancelled() => return None,
                    changed = told.changed() => changed.ok()?,
                }
                let reply = told.borrow_and_update().clone();
                Some((Ok(reply), told))
            }
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

fn credentials(authority: &Authority, role: Role) -> Credentials {
    let leaf = authority.issue(role, Duration::from_hours(1)).unwrap();
    Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
}

fn secret(authority: &Authority, role: Role) -> Value {
    let leaf = authority.issue(role, Duration::from_hours(1)).unwrap();
    let bytes = |text: String| ByteString(text.into_bytes());
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "c-tls-operator", "namespace": "n"},
        "data": {
            "ca.crt": bytes(authority.ca_pem()),
            "tls.crt": bytes(leaf.cert_pem),
            "tls.key": bytes(leaf.key_pem),
        },
    })
}

/// Serves until the token fires.
async fn serve(
    fake: &Fake,
    authority: &Authority,
    address: &str,
) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    *fake.cut.lock().unwrap() = stop.clone();
    let connections = incoming(
        listener,
        credentials(authority, Role::Scheduler),
        stop.clone(),
    );
    let served = server()
        .add_service(SchedulerServer::new(fake.clone()))
        .serve_with_incoming(connections);
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = served => {}
            () = stopped.cancelled() => {}
        }
    });
    (address, stop)
}

fn reply(wanted: u64) -> wire::TelemetryReply {
    wire::TelemetryReply {
        graphs: 1,
        groups: vec![wire::GroupBacklog {
            group: "default".to_owned(),
            workers_wanted: wanted,
            ..wire::GroupBacklog::default()
        }],
        workers: vec![wire::WorkerStatus {
            name: "w".to_owned(),
            group: "default".to_owned(),
            standing: wire::Standing::Active.into(),
            ..wire::WorkerStatus::default()
        }],
        ..wire::TelemetryReply::default()
    }
}

struct Scene {
    context: Context,
    log: Log,
    fake: Fake,
    authority: Authority,
    address: SocketAddr,
    stop: CancellationToken,
    key: ClusterKey,
}

async fn scene(role: Role) -> Scene {
    let authority = Authority::new("n", "c").unwrap();
    let fake = Fake::default();
    fake.told.send_replace(reply(1));
    let (address, stop) = serve(&fake, &authority, "127.0.0.1:0").await;
    let secret = secret(&authority, role);
    let (context, mut feeds, log) = api::context_with_schedulers(
        move |_| (200, secret.clone()),
        address.to_string().parse().unwrap(),
    );
    let group = json!({
        "apiVersion": "kubernetes.dask.org/v1", "kind": "DaskWorkerGroup",
        "metadata": {"name": "c-default", "namespace": "n", "uid": "g"},
        "spec": {"cluster": "c", "worker": {}},
    });
    let group: DaskWorkerGroup = serde_json::from_value(group).unwrap();
    feeds.groups.take(&Event::Apply(group));
    Scene {
        context,
        log,
        fake,
        authority,
        address,
        stop,
        key: ClusterKey::new("n", "c"),
    }
}

impl Scene {
    async fn until(&self, is_so: impl Fn(Option<&oxidask_operator_plan::signal::Signal>) -> bool) {
        let waited = timeout(SOON, async {
            while !is_so(self.context.signals.get(&self.key).as_ref()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap();
    }

    fn follow(&self) {
        self.context.links.follow(&self.key, "u", true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_backlog_reaches_the_group_at_once() {
    let scene = scene(Role::Operator).await;
    let mut receivers = scene.context.queues.open();
    scene.follow();
    scene.until(|signal| signal.is_some()).await;
    let first = timeout(SOON, receivers.groups.recv()).await.unwrap();
    assert_eq!(first.unwrap().name, "c-default");
    let cluster = timeout(SOON, receivers.clusters.recv()).await.unwrap();
    assert_eq!(cluster.unwrap().name, "c");

    let began = Instant::now();
    scene.fake.told.send_replace(reply(8));
    let group = timeout(SOON, receivers.groups.recv()).await.unwrap();
    assert_eq!(group.unwrap().name, "c-default");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let signal = scene.context.signals.get(&scene.key).unwrap();
    assert_eq!(signal.groups["default"].workers_wanted, 8);
    assert_eq!(signal.workers["w"].standing, Standing::Active);
    assert!(receivers.clusters.try_recv().is_err(), "of the group only");
    let asked = scene.log.lock().unwrap()[0].line();
    assert_eq!(asked, "GET /api/v1/namespaces/n/secrets/c-tls-operator");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_drained_together_and_ends_are_told() {
    let scene = scene(Role::Operator).await;
    let retirement = |worker: &str, seconds| Retirement {
        namespace: "n".to_owned(),
        cluster: "c".to_owned(),
        worker: worker.to_owned(),
        deadline: Duration::from_secs(seconds),
        is_cancelled: false,
    };
    let retirements = [retirement("a", 0), retirement("b", 0), retirement("c", 9)];
    assert!(!retire(&scene.context, &retirements).await, "nobody to ask");
    scene.follow();
    scene.until(|signal| signal.is_some()).await;
    assert!(retire(&scene.context, &retirements).await);
    let retired = scene.fake.retired.lock().unwrap().clone();
    let mut names: Vec<_> = retired.iter().map(|it| it.workers.join(",")).collect();
    names.sort();
    assert_eq!(names, ["a,b", "c"]);
    assert!(retired.iter().all(|it| !it.ends && !it.is_cancelled));
    let end = WorkerEnd {
        namespace: "n".to_owned(),
        cluster: "c".to_owned(),
        worker: "a".to_owned(),
        pod_uid: "p".to_owned(),
        reason: "out of memory".to_owned(),
    };
    ended(&scene.context, &[end]).await;
    let told = scene.fake.ended.lock().unwrap()[0].clone();
    assert_eq!((&*told.worker, &*told.pod_uid), ("a", "p"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_goes_is_silent_and_is_found_again() {
    let scene = scene(Role::Operator).await;
    scene.follow();
    scene.until(|signal| signal.is_some()).await;
    scene.stop.cancel();
    scene.until(|signal| signal.is_none()).await;
    assert!(scene.context.links.client(&scene.key).is_none());
    let address = scene.address.to_string();
    let (_address, _stop) = serve(&scene.fake, &scene.authority, &address).await;
    scene.until(|signal| signal.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_has_nothing_new_is_not_silent_and_one_that_hangs_is() {
    let scene = scene(Role::Operator).await;
    scene.follow();
    scene.until(|signal| signal.is_some()).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(scene.context.signals.get(&scene.key).is_some());
    assert!(scene.fake.streams.load(Ordering::SeqCst) >= 3);
    scene.fake.is_deaf.store(true, Ordering::SeqCst);
    scene.until(|signal| signal.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_role_hears_nothing() {
    let scene = scene(Role::Worker).await;
    scene.follow();
    let waited = timeout(
        Duration::from_secs(1),
        scene.until(|signal| signal.is_some()),
    );
    assert!(waited.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_goes_with_its_cluster() {
    let scene = scene(Role::Operator).await;
    scene.follow();
    scene.until(|signal| signal.is_some()).await;
    scene.context.links.drop_link(&scene.key);
    assert!(scene.context.signals.get(&scene.key).is_none());
    assert!(scene.context.links.client(&scene.key).is_none());
    scene.follow();
    scene.until(|signal| signal.is_some()).await;
    scene.context.links.clear();
    assert!(scene.context.signals.get(&scene.key).is_none());
}

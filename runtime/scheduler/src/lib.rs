//! The scheduler service.
//!
//! Owns the shell around the pure core: the thread that runs it, the gRPC service for workers and
//! clients, the relay of results, and the HTTP port. Never decides where a task runs and never opens
//! a body or a payload.
//!
//! Invariants: the core is touched by one thread only; every queue towards it and away from it is
//! bounded; a peer that does not read is closed and the others do not notice; after the shutdown
//! token fires, [`serve`] returns within a second.

mod bodies;
mod connection;
mod effects;
mod error;
mod grpc;
mod http;
mod input;
mod links;
mod main_loop;
mod metrics;
mod notice;
mod outbox;
mod parts;
mod relay;
mod session_stream;
mod views;
mod work_stream;

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use oxidask_comm::{BulkPool, Connection, Credentials};
use oxidask_core::CoreConfig;
use oxidask_proto::wire::scheduler_server::SchedulerServer;
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Connected;

pub use error::SchedulerError;

use connection::Cuttable;
use grpc::{Service, Shared, introduce};
use input::{Input, Inputs};
use main_loop::{MainLoop, TICK};
use metrics::Metrics;

/// Time that open calls are given to end when the scheduler stops.
const FAREWELL_TIME: Duration = Duration::from_millis(300);

/// Time after which a stopping scheduler leaves whatever still hangs.
const STOP_TIME_MAX: Duration = Duration::from_millis(700);

/// What a scheduler needs.
#[derive(Debug)]
pub struct SchedulerConfig {
    /// Bound: the port of workers and clients.
    pub listener: TcpListener,
    /// Bound: the port of health and metrics.
    pub http_listener: Option<TcpListener>,
    /// Of role scheduler.
    pub credentials: Credentials,
    /// Settings of the core.
    pub core: CoreConfig,
}

/// Serves until the token fires or something essential fails.
///
/// The future is boxed so that its code is made once, here, and not anew in each program.
pub fn serve(
    config: SchedulerConfig,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), SchedulerError>> {
    Box::pin(serve_all(config, shutdown))
}

async fn serve_all(
    config: SchedulerConfig,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let stop = shutdown.child_token();
    let _stop_everything_at_the_end = stop.clone().drop_guard();
    let metrics = Arc::new(Metrics::new());
    let (inputs, loop_ended) = start_loop(config.core, &metrics)?;
    tokio::spawn(wake_regularly(inputs.clone(), stop.clone()));

    let shared = Shared::new(
        inputs.clone(),
        BulkPool::new(config.credentials.clone()),
        Arc::clone(&metrics),
        stop.clone(),
    );
    let grpc = serve_grpc(config.listener, config.credentials, shared, stop.clone());
    let http_stop = stop.clone();
    let http = async {
        match config.http_listener {
            Some(listener) => http::serve(listener, metrics, http_stop).await,
            None => Ok(()),
        }
    };
    let result = tokio::select! {
        served = async { tokio::try_join!(grpc, http) } => served.map(|_| ()),
        _ = loop_ended => Err(SchedulerError::LoopEnded),
        () = too_long_after(&stop) => Ok(()),
    };
    let _ = tokio::time::timeout(FAREWELL_TIME, inputs.send(Input::Stop)).await;
    result
}

async fn too_long_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_TIME_MAX).await;
}

/// Starts the loop's thread. The receiver resolves when the thread ends, whatever ends it.
fn start_loop(
    core: CoreConfig,
    metrics: &Arc<Metrics>,
) -> Result<(Inputs, oneshot::Receiver<()>), SchedulerError> {
    let (inputs, receiver) = Inputs::channel();
    let (alive, ended) = oneshot::channel();
    let hello = wire::Hello {
        incarnation: incarnation(),
        epoch: core.epoch,
        ..hello::hello()
    };
    let main_loop = MainLoop::new(core, hello, Arc::clone(metrics));
    std::thread::Builder::new()
        .name("scheduler-loop".to_owned())
        .spawn(move || {
            let _dropped_when_the_thread_ends: oneshot::Sender<()> = alive;
            main_loop.run(receiver);
        })
        .map_err(|source| SchedulerError::StartLoop { source })?;
    Ok((inputs, ended))
}

/// Tells this scheduler from the one before it. There is no journal yet, so each start is new.
fn incarnation() -> u64 {
    RandomState::new().build_hasher().finish()
}

async fn wake_regularly(inputs: Inputs, stop: CancellationToken) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => inputs.wake(),
        }
    }
}

fn serve_grpc(
    listener: TcpListener,
    credentials: Credentials,
    shared: Shared,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), SchedulerError>> {
    let service = SchedulerServer::new(Service(Arc::new(shared)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let service =
        InterceptedService::new(service, introduce::<<Connection as Connected>::ConnectInfo>);
    let cut_all = CancellationToken::new();
    tokio::spawn(cut_after(stop.clone(), cut_all.clone()));
    let incoming = oxidask_comm::incoming(listener, credentials, stop.clone())
        .map(move |accepted| accepted.map(|line| Cuttable::new(line, cut_all.child_token())));
    let server = oxidask_comm::server().serve_with_incoming_shutdown(
        service,
        incoming,
        stop.cancelled_owned(),
    );
    async {
        server
            .await
            .map_err(|source| SchedulerError::Grpc { source })
    }
}

async fn cut_after(stop: CancellationToken, cut_all: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FAREWELL_TIME).await;
    cut_all.cancel();
}

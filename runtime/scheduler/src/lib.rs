//! The scheduler service.
//!
//! Owns the shell around the pure core: the loop that runs it, the gRPC service for workers and
//! clients, the relay of results, and the HTTP port. Never decides where a task runs and never opens
//! a body or a payload.
//!
//! Invariants: the core is touched by one loop only; every queue towards it and away from it is
//! bounded; a peer that does not read is closed and the others do not notice; after the shutdown
//! token fires, [`serve`] returns within a second.

mod attention;
mod bodies;
#[allow(dead_code, reason = "the service for futures asks")]
mod commands;
mod connection;
mod dial;
mod effects;
mod error;
mod explain;
mod figures;
mod futures;
mod grpc;
mod http;
mod input;
mod journal;
mod keda;
mod links;
mod logs;
mod look;
mod main_loop;
mod metrics;
mod notice;
mod outbox;
mod parts;
mod presence;
#[allow(dead_code, reason = "the service for futures asks")]
mod put;
mod relay;
mod retire;
#[cfg(test)]
mod rig;
mod session_stream;
mod spans;
mod telemetry;
mod values;
mod views;
mod vitals;
mod work_stream;

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ::futures::StreamExt;
use ::futures::future::BoxFuture;
use oxidask_comm::{BulkPool, Connection, Credentials};
use oxidask_core::CoreConfig;
use oxidask_proto::keda::external_scaler_server::ExternalScalerServer;
use oxidask_proto::wire::futures_server::FuturesServer;
use oxidask_proto::wire::scheduler_server::SchedulerServer;
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Connected;

pub use error::SchedulerError;
pub use http::HttpTokens;
pub use journal::{JournalConfig, JournalPlace};
pub use logs::LogTap;

use self::futures::FuturesService;
use connection::Cuttable;
use grpc::{Service, Shared, introduce};
use input::{Input, Inputs, Queued};
use journal::Beginning;
use keda::Scaler;
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
    /// Whether the loop has a thread of its own from the start. With few processors, handing over from
    /// thread to thread costs more than it brings, as long as there are few connections.
    pub has_loop_thread: bool,
    /// Settings of the core. With a journal, its epoch is the journal's.
    pub core: CoreConfig,
    /// What is kept for the next start; nothing if absent.
    pub journal: Option<JournalConfig>,
    /// Who may look through the HTTP port.
    pub http_tokens: HttpTokens,
    /// Where log lines of this process arrive.
    pub log_tap: LogTap,
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
    let logs = Arc::clone(&config.log_tap.0);
    let (inputs, receiver) = Inputs::channel();
    let shared = Shared::new(
        inputs.clone(),
        BulkPool::new(config.credentials.clone()),
        Arc::clone(&metrics),
        config.log_tap.0,
        stop.clone(),
    );
    let shared = Arc::new(shared.with_journal(config.journal.is_some()));
    let looked_at = Arc::clone(&shared);
    let http_stop = stop.clone();
    let http_port = dashboard_port(config.http_listener.as_ref());
    let http = async {
        match config.http_listener {
            Some(listener) => http::serve(listener, looked_at, config.http_tokens, http_stop).await,
            None => Ok(()),
        }
    };
    metrics.set_recovering(true);
    let loop_ended = CancellationToken::new();
    let alive = loop_ended.clone().drop_guard();
    let work = async {
        let beginning = begin(config.journal, config.core, &inputs, &metrics).await?;
        shared.begin_numbers(beginning.next_worker);
        let formers = dial::addresses(&beginning.workers);
        let hello = wire::Hello {
            incarnation: beginning.incarnation,
            epoch: beginning.epoch,
            ..hello::hello()
        };
        let main_loop = MainLoop::new(hello, Arc::clone(&metrics), logs);
        let mut main_loop = main_loop.begin(beginning);
        main_loop.watch.credentials = Some(config.credentials.clone());
        if config.has_loop_thread {
            loop_on_thread(main_loop, receiver, alive)?;
        } else {
            tokio::spawn(loop_beside_connections(main_loop, receiver, alive));
        }
        dial::look_after_all(&shared, formers);
        metrics.set_recovering(false);
        tokio::spawn(wake_regularly(inputs.clone(), stop.clone()));
        tokio::spawn(oxidask_comm::keep_fresh(
            config.credentials.clone(),
            stop.clone(),
        ));
        let futures = futures::start(&shared, http_port);
        let services = (shared, futures);
        let grpc = serve_grpc(config.listener, config.credentials, services, stop.clone());
        tokio::select! {
            served = grpc => served,
            () = loop_ended.cancelled() => Err(SchedulerError::LoopEnded),
        }
    };
    let result = tokio::select! {
        served = async { tokio::try_join!(work, http) } => served.map(|_| ()),
        () = too_long_after(&stop) => Ok(()),
    };
    let farewell = async {
        inputs.send(Input::Stop).await;
        // The journal is closed when the loop has ended.
        loop_ended.cancelled().await;
    };
    let _ = tokio::time::timeout(FAREWELL_TIME, farewell).await;
    result
}

fn dashboard_port(listener: Option<&TcpListener>) -> Option<u16> {
    Some(listener?.local_addr().ok()?.port())
}

async fn too_long_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_TIME_MAX).await;
}

/// What the scheduler begins with: what its journal has kept, if it has one.
async fn begin(
    journal: Option<JournalConfig>,
    core: CoreConfig,
    inputs: &Inputs,
    metrics: &Arc<Metrics>,
) -> Result<Beginning, SchedulerError> {
    let Some(journal) = journal else {
        return Ok(Beginning::new(core, incarnation()));
    };
    let (inputs, metrics) = (inputs.clone(), Arc::clone(metrics));
    // Reading takes a while, and would keep a thread of the runtime from its connections.
    let recovery = tokio::task::spawn_blocking(move || {
        Beginning::recover(&journal, core, incarnation(), &inputs, &metrics)
    });
    match recovery.await {
        Ok(recovered) => recovered,
        Err(source) => Err(SchedulerError::StartLoop {
            source: source.into(),
        }),
    }
}

/// Runs the loop on the connections' thread for as long as these are few. The guard is dropped when
/// the loop ends, whatever ends it.
async fn loop_beside_connections(
    main_loop: MainLoop,
    receiver: mpsc::Receiver<Queued>,
    alive: DropGuard,
) {
    if let Some((main_loop, receiver)) = main_loop.run(receiver, true).await
        && let Err(error) = loop_on_thread(main_loop, receiver, alive)
    {
        tracing::error!(%error, "there is no thread for the loop");
    }
}

fn loop_on_thread(
    main_loop: MainLoop,
    receiver: mpsc::Receiver<Queued>,
    alive: DropGuard,
) -> Result<(), SchedulerError> {
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("scheduler-loop".to_owned())
        .spawn(move || {
            let _dropped_when_the_thread_ends = alive;
            runtime.block_on(main_loop.run(receiver, false));
        })
        .map_err(|source| SchedulerError::StartLoop { source })?;
    Ok(())
}

/// Tells a journal that begins now from all others. Without one, each start is new.
fn incarnation() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
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
    (shared, futures): (Arc<Shared>, FuturesService),
    stop: CancellationToken,
) -> impl Future<Output = Result<(), SchedulerError>> {
    let scaler = ExternalScalerServer::new(Scaler(Arc::clone(&shared)));
    let service = SchedulerServer::new(Service(shared))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let futures = FuturesServer::new(futures)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let introduce = introduce::<<Connection as Connected>::ConnectInfo>;
    let service = InterceptedService::new(service, introduce);
    let scaler = InterceptedService::new(scaler, introduce);
    let futures = InterceptedService::new(futures, introduce);
    let cut_all = CancellationToken::new();
    tokio::spawn(cut_after(stop.clone(), cut_all.clone()));
    let incoming = oxidask_comm::incoming(listener, credentials, stop.clone())
        .map(move |accepted| accepted.map(|line| Cuttable::new(line, cut_all.child_token())));
    let mut server = oxidask_comm::server();
    let server = server.add_service(service).add_service(scaler);
    let server = server.add_service(futures);
    let server = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
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

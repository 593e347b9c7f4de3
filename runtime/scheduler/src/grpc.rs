//! The gRPC service: who may call what, and where each call goes.
//!
//! Owns the table of roles. Streams are run by `work_stream` and `session_stream`, results by
//! `relay`; the rest is asked of the main loop.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use oxidask_comm::{BulkPool, caller};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_identity::Role;
use oxidask_proto::fault::to_status;
use oxidask_proto::wire;
use oxidask_proto::wire::scheduler_server::Scheduler;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::connection::Line;
use crate::dial::DIALS_MAX;
use crate::input::{Inputs, Question};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::{relay, session_stream, telemetry, work_stream};

/// Time in which the first message of a stream must come.
pub(crate) const HELLO_TIME_MAX: Duration = Duration::from_secs(10);

/// Time that a peer is given to read why its stream ended, before its connection is cut.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) inputs: Inputs,
    pub(crate) bulk: BulkPool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) shutdown: CancellationToken,
    /// Bounds the connections that are tried at once.
    pub(crate) dials: Semaphore,
    /// Whether chunks are kept.
    pub(crate) is_journalled: bool,
    next_number: AtomicU32,
}

impl Shared {
    pub(crate) fn new(
        inputs: Inputs,
        bulk: BulkPool,
        metrics: Arc<Metrics>,
        logs: Arc<Logs>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inputs,
            bulk,
            metrics,
            logs,
            shutdown,
            dials: Semaphore::new(DIALS_MAX),
            is_journalled: false,
            next_number: AtomicU32::new(1),
        }
    }

    /// Numbers begin here, beyond all that were handed out before.
    pub(crate) fn begin_numbers(&self, first: u32) {
        self.next_number.store(first, Ordering::Relaxed);
    }

    /// Chunks are encoded for a journal.
    pub(crate) fn with_journal(mut self, is_journalled: bool) -> Self {
        self.is_journalled = is_journalled;
        self
    }

    /// The number of a new worker or client: from 1, growing.
    pub(crate) fn next_number(&self) -> u32 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }
}

/// The token that cuts the caller's connection.
#[derive(Debug, Clone)]
pub(crate) struct Cut(CancellationToken);

impl Cut {
    /// That of a call.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        Self(
            request
                .extensions()
                .get::<Self>()
                .map_or_else(CancellationToken::new, |c| c.0.clone()),
        )
    }

    /// Cuts the connection after a moment in which the peer may still read.
    pub(crate) async fn after_farewell(self) {
        tokio::time::sleep(FAREWELL_TIME).await;
        self.0.cancel();
    }
}

/// Makes what the connection knows visible to the calls: the peer and the means to cut it.
#[allow(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the form of tonic's interceptors"
)]
pub(crate) fn introduce<I>(mut request: Request<()>) -> Result<Request<()>, Status>
where
    I: Clone + Send + Sync + 'static,
{
    if let Some(line) = request.extensions().get::<Line<I>>().cloned() {
        request.extensions_mut().insert(line.peer);
        request.extensions_mut().insert(Cut(line.cut));
    }
    Ok(request)
}

/// The end that peers are told when the scheduler stops.
pub(crate) fn shutting_down() -> Status {
    to_status(&Diagnostic::new(
        Code::SchedulerEnded,
        "the scheduler is shutting down",
    ))
}

/// The service.
pub(crate) struct Service(pub(crate) Arc<Shared>);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Scheduler for Service {
    type WorkStream = BoxStream<wire::WorkBatch>;
    type SessionStream = BoxStream<wire::SessionBatch>;
    type FetchStream = BoxStream<wire::FetchChunk>;
    type TelemetryStream = BoxStream<wire::TelemetryReply>;
    type LogsStream = BoxStream<wire::LogsReply>;

    async fn work(
        &self,
        request: Request<Streaming<wire::WorkerBatch>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        caller(&request, &[Role::Worker])?;
        let cut = Cut::of(&request);
        let outbox = work_stream::open(Arc::clone(&self.0), cut, request.into_inner());
        Ok(Response::new(Box::pin(outbox.into_stream())))
    }

    async fn session(
        &self,
        request: Request<Streaming<wire::ClientBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        caller(&request, &[Role::Client])?;
        let cut = Cut::of(&request);
        let outbox = session_stream::open(Arc::clone(&self.0), cut, request.into_inner());
        Ok(Response::new(Box::pin(outbox.into_stream())))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        // A task may be a client, too.
        caller(&request, &[Role::Client, Role::Worker])?;
        let chunks = relay::open(Arc::clone(&self.0), request.into_inner())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        caller(&request, &[Role::Client])?;
        self.0.inputs.ask(Question::Status).await.map(Response::new)
    }

    async fn retire(
        &self,
        request: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireReply>, Status> {
        caller(&request, &[Role::Operator, Role::Client])?;
        let request = Box::new(request.into_inner());
        let answer = self.0.inputs.ask(|reply| Question::Retire(request, reply));
        let reply = answer.await?.map_err(|error| to_status(&error))?;
        Ok(Response::new(reply))
    }

    async fn worker_ended(
        &self,
        request: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        caller(&request, &[Role::Operator, Role::Client])?;
        let request = Box::new(request.into_inner());
        let answer = self
            .0
            .inputs
            .ask(|reply| Question::WorkerEnded(request, reply));
        let was_known = answer.await?;
        Ok(Response::new(wire::WorkerEndedReply { was_known }))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        caller(&request, &[Role::Client])?;
        let request = request.into_inner();
        let explained = self
            .0
            .inputs
            .look(move |main_loop| main_loop.explain(&request));
        explained.await.map(Response::new)
    }

    async fn logs(
        &self,
        request: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        caller(&request, &[Role::Client])?;
        let shutdown = self.0.shutdown.clone();
        let lines = self.0.logs.open(request.into_inner(), shutdown);
        Ok(Response::new(Box::pin(lines)))
    }

    async fn telemetry(
        &self,
        request: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        caller(&request, &[Role::Operator])?;
        let target = request.get_ref().target_seconds;
        let told = telemetry::open(&self.0, target).await?;
        let told = told.map(|told| told.map(|told| (*told).clone()));
        Ok(Response::new(Box::pin(told)))
    }
}

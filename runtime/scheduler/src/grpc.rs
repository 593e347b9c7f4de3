//! The gRPC service: who may call what, and where each call goes.
//!
//! Owns the table of roles. Streams are run by `work_stream` and `session_stream`, results by
//! `relay`; the rest is asked of the main loop.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::Stream;
use oxidask_comm::{BulkPool, caller};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_identity::Role;
use oxidask_proto::fault::to_status;
use oxidask_proto::wire;
use oxidask_proto::wire::scheduler_server::Scheduler;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::connection::Line;
use crate::input::{Inputs, Question};
use crate::metrics::Metrics;
use crate::{relay, session_stream, work_stream};

/// Time between two telemetry messages.
const TELEMETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time in which the first message of a stream must come.
pub(crate) const HELLO_TIME_MAX: Duration = Duration::from_secs(10);

/// Time that a peer is given to read why its stream ended, before its connection is cut.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) inputs: Inputs,
    pub(crate) bulk: BulkPool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: CancellationToken,
    next_number: AtomicU32,
}

impl Shared {
    pub(crate) fn new(
        inputs: Inputs,
        bulk: BulkPool,
        metrics: Arc<Metrics>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inputs,
            bulk,
            metrics,
            shutdown,
            next_number: AtomicU32::new(1),
        }
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
    fn of<T>(request: &Request<T>) -> Self {
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
        caller(&request, &[Role::Client])?;
        let chunks = relay::open(Arc::clone(&self.0), request.into_inner().tasks)?;
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
        let error = Diagnostic::new(
            Code::ProtocolMismatch,
            "this scheduler cannot retire workers yet: nothing was changed",
        )
        .with_hint("stop the worker's process: its results are computed again where needed");
        Err(to_status(&error))
    }

    async fn telemetry(
        &self,
        request: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        caller(&request, &[Role::Operator])?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(send_telemetry(Arc::clone(&self.0), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A message at first and whenever something changed, at most once a second.
async fn send_telemetry(
    shared: Arc<Shared>,
    sender: mpsc::Sender<Result<wire::TelemetryReply, Status>>,
) {
    let mut last = None;
    loop {
        match shared.inputs.ask(Question::Telemetry).await {
            Ok(now) if last.as_ref() == Some(&now) => {}
            Ok(now) => {
                last = Some(now.clone());
                if sender.send(Ok(now)).await.is_err() {
                    return;
                }
            }
            Err(status) => {
                let _ = sender.send(Err(status)).await;
                return;
            }
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => {
                let _ = sender.send(Err(shutting_down())).await;
                return;
            }
            () = sender.closed() => return,
            () = tokio::time::sleep(TELEMETRY_INTERVAL) => {}
        }
    }
}

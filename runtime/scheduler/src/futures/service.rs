//! The gRPC service of Dask clients: who may call what, and where each call goes.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use oxidask_comm::caller;
use oxidask_core::TaskRef;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_futures::{FuturesError, questions};
use oxidask_identity::Role;
use oxidask_proto::fault::from_status;
use oxidask_proto::wire;
use oxidask_proto::wire::futures_server::Futures;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use super::{Asked, Put, Said, stream};
use crate::grpc::{Cut, Shared, shutting_down};
use crate::put;

/// The service.
#[derive(Clone)]
pub(crate) struct FuturesService {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: mpsc::Sender<Said>,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Addresses of workers begin with it.
pub(super) const SCHEME: &str = "oxidask://";

/// Clients, and tasks that are clients too.
const ROLES: [Role; 2] = [Role::Client, Role::Worker];

#[tonic::async_trait]
impl Futures for FuturesService {
    type ExchangeStream = BoxStream<wire::FuturesReply>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::FuturesBatch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        caller(&request, &ROLES)?;
        let cut = Cut::of(&request);
        let (shared, actor) = (Arc::clone(&self.shared), self.actor.clone());
        let outbox = stream::open(shared, actor, cut, request.into_inner());
        Ok(Response::new(Box::pin(outbox.into_stream())))
    }

    async fn ask(
        &self,
        request: Request<wire::Question>,
    ) -> Result<Response<wire::Answer>, Status> {
        caller(&request, &ROLES)?;
        let question = request.into_inner();
        let Some(operation) = questions::operation(&question.content) else {
            let operation = "a text without an operation".to_owned();
            let error = FuturesError::UnknownQuestion { operation };
            return Ok(Response::new(refusal(&Diagnostic::from_error(&error))));
        };
        let (reply, answer) = oneshot::channel();
        let asked = Asked {
            client: question.client,
            operation,
            content: question.content,
            values: question.values,
            reply,
        };
        let sent = self.actor.send(Said::Asked(Box::new(asked))).await;
        sent.map_err(|_| shutting_down())?;
        let answer = answer.await.map_err(|_| shutting_down())?;
        Ok(Response::new(answer))
    }

    async fn put(
        &self,
        request: Request<Streaming<wire::PutPart>>,
    ) -> Result<Response<wire::PutReply>, Status> {
        caller(&request, &ROLES)?;
        let mut parts = request.into_inner();
        let Some(first) = parts.message().await? else {
            return Err(Status::invalid_argument("the value has no first part"));
        };
        let outcome = self.put_value(first, parts).await;
        let reply = match outcome {
            Ok(task) => wire::PutReply {
                fault: None,
                task: Some(task.into()),
            },
            Err(error) => wire::PutReply {
                fault: Some(wire::Fault::from(&*error)),
                task: None,
            },
        };
        Ok(Response::new(reply))
    }
}

impl FuturesService {
    /// Brings a value to a worker, and makes it the result of its key.
    async fn put_value(
        &self,
        mut first: wire::PutPart,
        parts: Streaming<wire::PutPart>,
    ) -> Result<TaskRef, Box<Diagnostic>> {
        let (client, key) = (first.client.clone(), first.key.clone());
        let workers = first.workers.clone();
        for worker in &mut first.workers {
            if let Some(address) = worker.strip_prefix(SCHEME) {
                *worker = address.to_owned();
            }
        }
        let shared_with = first.is_shared.then(|| first.workers.clone());
        let uploaded = put::relay(&self.shared, first, parts).await?;
        let (reply, answer) = oneshot::channel();
        let put = Put {
            client,
            key,
            workers,
            uploaded,
            reply,
        };
        let stopped = || Box::new(from_status(&shutting_down()));
        let sent = self.actor.send(Said::Put(Box::new(put))).await;
        sent.map_err(|_| stopped())?;
        let task = answer.await.map_err(|_| stopped())?.ok_or_else(|| {
            let message = "the value's key was refused, or its client is not connected";
            Box::new(Diagnostic::new(Code::SubmissionRefused, message))
        })?;
        if let Some(workers) = shared_with {
            put::spread(&self.shared, task, workers).await;
        }
        Ok(task)
    }
}

/// An answer that says why there is none.
pub(super) fn refusal(error: &Diagnostic) -> wire::Answer {
    wire::Answer {
        fault: Some(error.into()),
        ..wire::Answer::default()
    }
}

/// An answer that is one JSON value.
pub(super) fn json(value: &serde_json::Value) -> wire::Answer {
    wire::Answer {
        content: Bytes::from(value.to_string()),
        ..wire::Answer::default()
    }
}

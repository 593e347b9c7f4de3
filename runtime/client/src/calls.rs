//! Calls that are one question and its answer, or a stream of answers.

use futures::future::BoxFuture;
use oxidask_proto::wire;
use tonic::Streaming;

use crate::error::ClientError;
use crate::session::{Client, answered};

impl Client {
    /// The state of the cluster.
    pub fn status(&self) -> BoxFuture<'_, Result<wire::StatusReply, ClientError>> {
        let mut scheduler = self.scheduler();
        Box::pin(async move {
            let reply = answered(scheduler.status(wire::StatusRequest {})).await?;
            Ok(reply.into_inner())
        })
    }

    /// Why a task waits, is where it is, or failed.
    pub fn explain(
        &self,
        request: wire::ExplainRequest,
    ) -> BoxFuture<'_, Result<wire::ExplainReply, ClientError>> {
        let mut scheduler = self.scheduler();
        Box::pin(async move { Ok(answered(scheduler.explain(request)).await?.into_inner()) })
    }

    /// Log lines that are kept and, if they are followed, those that come.
    pub fn logs(
        &self,
        request: wire::LogsRequest,
    ) -> BoxFuture<'_, Result<Streaming<wire::LogsReply>, ClientError>> {
        let mut scheduler = self.scheduler();
        Box::pin(async move { Ok(answered(scheduler.logs(request)).await?.into_inner()) })
    }

    /// Asks workers to hand over what they hold and go, or to stay after all.
    pub fn retire(
        &self,
        request: wire::RetireRequest,
    ) -> BoxFuture<'_, Result<wire::RetireReply, ClientError>> {
        let mut scheduler = self.scheduler();
        Box::pin(async move { Ok(answered(scheduler.retire(request)).await?.into_inner()) })
    }

    /// Says that the process of a worker has ended, and how. For whoever started it.
    pub fn worker_ended(
        &self,
        request: wire::WorkerEndedRequest,
    ) -> BoxFuture<'_, Result<wire::WorkerEndedReply, ClientError>> {
        let mut scheduler = self.scheduler();
        Box::pin(async move {
            Ok(answered(scheduler.worker_ended(request))
                .await?
                .into_inner())
        })
    }
}

//! The actor as a client of the main loop: the graph of all Dask clients, and what it hears of it.

use std::sync::Arc;

use futures::StreamExt;
use oxidask_core::{ClientId, Event as CoreEvent, GraphId};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_futures::keys::{Connection, Event, SmallValue};
use oxidask_proto::fault::from_status;
use oxidask_proto::wire;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{ANSWER_TIME_MAX, Actor, REJOIN_PAUSE};
use crate::futures::forward::Forward;
use crate::links::ClientLink;
use crate::outbox::{OUTBOX_BYTES_MAX, Outbox};

impl Actor {
    /// Opens a graph if the next submission needs one, and waits until it is there.
    pub(super) async fn open_if_needed(&mut self) {
        if !self.futures.needs_graph() {
            return;
        }
        let name: Arc<str> = Arc::from(self.futures.next_graph_name());
        let before = self.futures.graph();
        let open = open_event(self.own, &name);
        self.graph_name = Arc::clone(&name);
        self.send(Forward::Events(vec![open])).await;
        let waiting = async {
            while self.futures.graph() == before {
                let heard = self.session.next().await;
                self.hear_or_rejoin(heard).await;
                if self.own == ClientId(0) {
                    return;
                }
            }
        };
        if timeout(ANSWER_TIME_MAX, waiting).await.is_err() {
            let message = "the scheduler could not open a graph for tasks of Dask in time";
            let error = Arc::new(Diagnostic::new(Code::SubmissionRefused, message));
            self.react(Event::GraphUnavailable { error }).await;
        }
    }

    /// Hears of the graph that is there, and how far it is.
    pub(super) async fn attach(&mut self) {
        if self.graph_name.is_empty() {
            return;
        }
        let open = open_event(self.own, &self.graph_name);
        self.send(Forward::Events(vec![open])).await;
    }

    pub(super) async fn join(&mut self) {
        self.own = ClientId(self.shared.next_number());
        let outbox = Outbox::new(OUTBOX_BYTES_MAX, &self.shared.shutdown);
        let link = ClientLink::new(Arc::clone(&outbox)).own();
        self.session = Box::pin(outbox.into_stream());
        self.send(Forward::Join(self.own, Box::new(link))).await;
    }

    pub(super) async fn hear_or_rejoin(
        &mut self,
        heard: Option<Result<wire::SessionBatch, Status>>,
    ) {
        let error = match heard {
            Some(Ok(batch)) => return self.hear(batch).await,
            Some(Err(status)) => Some(from_status(&status)),
            None => None,
        };
        if self.shared.shutdown.is_cancelled() {
            // The actor is ended with everything else.
            return std::future::pending().await;
        }
        if let Some(error) = error {
            tracing::warn!(code = %error.code, error = error.message, "futures lost their session");
            let error = Arc::new(error);
            self.react(Event::GraphUnavailable { error }).await;
        }
        sleep(REJOIN_PAUSE).await;
        let client = self.own;
        let lost = vec![CoreEvent::ClientLost { client }];
        self.send(Forward::Events(lost)).await;
        self.join().await;
        self.attach().await;
    }

    /// The main loop says something.
    async fn hear(&mut self, batch: wire::SessionBatch) {
        for attached in batch.attached {
            if *attached.name == *self.graph_name {
                let graph = GraphId(attached.graph);
                let name = Arc::clone(&self.graph_name);
                self.react(Event::GraphOpened { graph, name }).await;
            }
        }
        for accepted in batch.accepted {
            let graph = GraphId(accepted.graph);
            let number = accepted.number;
            self.react(Event::ChunkAccepted { graph, number }).await;
        }
        for refused in batch.refused {
            let graph = GraphId(refused.graph);
            let error = Arc::new(refused.fault.unwrap_or_default().into());
            self.react(Event::GraphRefused { graph, error }).await;
        }
        let tasks = batch.ready_graph.into_iter().zip(batch.ready_task);
        let mut values = batch.ready_value.into_iter();
        for ((graph, task), bytes) in tasks.zip(batch.ready_bytes) {
            let task = wire::TaskId { graph, task }.into();
            let value = values.next().filter(|value| !value.data.is_empty());
            let value = value.map(|wire::SmallValue { kind, data }| SmallValue { kind, data });
            self.react(Event::TaskReady { task, bytes, value }).await;
        }
        let mut error: Option<Arc<Diagnostic>> = None;
        for failure in batch.failures {
            if let Some(fault) = failure.fault {
                error = Some(Arc::new(fault.into()));
            }
            if let (Some(task), Some(error)) = (failure.task, &error) {
                let (task, error) = (task.into(), Arc::clone(error));
                self.react(Event::TaskFailed { task, error }).await;
            }
        }
        for notice in batch.notices {
            let all: Vec<Connection> = self.links.keys().copied().collect();
            for connection in all {
                let notice = notice.clone();
                self.tell(connection, notice.text.len(), |reply| {
                    reply.notices.push(notice);
                });
            }
        }
    }
}

/// Opens the graph of this name, or attaches to it.
pub(super) fn open_event(client: ClientId, name: &Arc<str>) -> CoreEvent {
    CoreEvent::GraphOpened {
        client,
        name: Arc::clone(name),
        is_open_ended: true,
    }
}

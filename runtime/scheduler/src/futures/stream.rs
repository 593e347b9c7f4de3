//! One Dask client's stream: hello, commands, end.
//!
//! Decodes on its own task. Of one client [`BATCHES_WAITING_MAX`] messages may wait for the actor;
//! then its stream is not read further and HTTP/2 makes it wait.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_futures::keys::Connection;
use oxidask_proto::fault::{error_to_status, to_status};
use oxidask_proto::{hello, wire};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{ClientOutbox, Said, convert};
use crate::grpc::{Cut, HELLO_TIME_MAX, Shared, shutting_down};
use crate::outbox::{OUTBOX_BYTES_MAX, Outbox};

/// Messages of one client that may wait for the actor.
const BATCHES_WAITING_MAX: usize = 4;

/// Time in which a dropped stream shows that nobody reads it any more.
const FAREWELL_TIME: Duration = Duration::from_millis(50);

/// Starts to serve a client.
pub(super) fn open(
    shared: Arc<Shared>,
    actor: mpsc::Sender<Said>,
    cut: Cut,
    inbound: Streaming<wire::FuturesBatch>,
) -> Arc<ClientOutbox> {
    let outbox = Outbox::new(OUTBOX_BYTES_MAX, &shared.shutdown);
    let client = Client {
        connection: Connection(shared.next_number()),
        shared,
        actor,
        outbox: Arc::clone(&outbox),
        batches: Arc::new(Semaphore::new(BATCHES_WAITING_MAX)),
    };
    tokio::spawn(client.run(cut, inbound));
    outbox
}

struct Client {
    connection: Connection,
    shared: Arc<Shared>,
    actor: mpsc::Sender<Said>,
    outbox: Arc<ClientOutbox>,
    batches: Arc<Semaphore>,
}

impl Client {
    async fn run(self, cut: Cut, mut inbound: Streaming<wire::FuturesBatch>) {
        let end = match self.join(&mut inbound).await {
            Ok(first) => {
                let (end, is_clean) = match self.read(first, &mut inbound).await {
                    Ok(is_clean) => (Ok(()), is_clean),
                    Err(status) => (Err(status), false),
                };
                let connection = self.connection;
                let left = Said::Left {
                    connection,
                    is_clean,
                };
                let _ = self.actor.send(left).await;
                end
            }
            Err(status) => Err(status),
        };
        let was_closed = self.outbox.is_overflown();
        self.outbox.finish(end);
        if was_closed {
            cut.after_farewell().await;
        }
    }

    async fn join(
        &self,
        inbound: &mut Streaming<wire::FuturesBatch>,
    ) -> Result<wire::FuturesBatch, Status> {
        let mut first = match timeout(HELLO_TIME_MAX, inbound.message()).await {
            Ok(first) => first?.unwrap_or_default(),
            Err(_) => return Err(Status::deadline_exceeded("no hello came in time")),
        };
        let mut hello = first.hello.take().unwrap_or_default();
        hello::check(hello.hello.take()).map_err(|error| error_to_status(&error))?;
        let joined = Said::Joined {
            connection: self.connection,
            hello: Box::new(hello),
            outbox: Arc::clone(&self.outbox),
        };
        match self.actor.send(joined).await {
            Ok(()) => Ok(first),
            Err(_) => Err(shutting_down()),
        }
    }

    /// Reads until the stream is over. True if the client has ended it.
    async fn read(
        &self,
        first: wire::FuturesBatch,
        inbound: &mut Streaming<wire::FuturesBatch>,
    ) -> Result<bool, Status> {
        let mut closed = pin!(self.outbox.closed().cancelled());
        let mut next = first;
        loop {
            self.take(next).await?;
            next = tokio::select! {
                biased;
                () = &mut closed => {
                    let is_shutdown = self.shared.shutdown.is_cancelled();
                    return if is_shutdown { Err(shutting_down()) } else { Ok(false) };
                }
                // An error means that the client is gone: there is nobody to tell.
                received = inbound.message() => match received {
                    Ok(Some(batch)) => batch,
                    Ok(None) => return Ok(self.still_reads().await),
                    Err(_) => return Ok(false),
                },
            };
        }
    }

    /// A client that ends its side and still reads has closed itself. One that drops its stream, to
    /// connect again, or because its process ends, reads no more.
    async fn still_reads(&self) -> bool {
        let gone = timeout(FAREWELL_TIME, self.outbox.closed().cancelled());
        gone.await.is_err()
    }

    async fn take(&self, batch: wire::FuturesBatch) -> Result<(), Status> {
        if batch.hello.is_some() {
            let message = "a client said hello twice on one stream";
            return Err(to_status(&Diagnostic::new(Code::ProtocolMismatch, message)));
        }
        if batch.commands.is_empty() {
            return Ok(());
        }
        let commands = batch.commands.into_iter().map(convert::command).collect();
        let permit = Arc::clone(&self.batches).acquire_owned().await;
        let said = Said::Commands {
            connection: self.connection,
            commands,
            permit: permit.map_err(|_| shutting_down())?,
        };
        self.actor.send(said).await.map_err(|_| shutting_down())
    }
}

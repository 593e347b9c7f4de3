//! Accepting connections: many handshakes beside each other, none of which can hold up another.
//!
//! Invariants: at most [`HANDSHAKES_MAX`] connections are being set up, and when one more comes the
//! oldest of them is cut, so a peer that is quick always gets in; a listener that is out of file
//! descriptors cuts the oldest, too, and waits a little instead of spinning.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::credentials::{Application, Credentials};
use crate::error::CommError;
use crate::handshake::answer;
use crate::warnings::Warnings;
use crate::watch::watch_caller;

/// Connections that are being set up at a time, each for five seconds at most.
const HANDSHAKES_MAX: usize = 1024;
/// Connections that are set up and wait to be taken.
const BACKLOG_MAX: usize = 64;
/// How long to wait when a connection cannot be accepted.
const ACCEPT_PAUSE_MS: u64 = 10;

/// Connections whose peers have been checked, for tonic's `serve_with_incoming`.
///
/// Must be called within a runtime. The stream ends after `shutdown`.
pub fn incoming(
    listener: TcpListener,
    credentials: Credentials,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let connections = accept(listener, credentials, Application::Grpc, shutdown);
    futures::stream::unfold(connections, |mut connections| async move {
        let connection = connections.recv().await?;
        Some((connection, connections))
    })
}

/// Starts to accept; whatever is received has passed its checks.
pub(crate) fn accept(
    listener: TcpListener,
    credentials: Credentials,
    application: Application,
    shutdown: CancellationToken,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(BACKLOG_MAX);
    match credentials.server_config(application) {
        Ok(_) => {
            let door = Door {
                application,
                credentials,
                warnings: Arc::new(Warnings::new()),
                sender,
            };
            tokio::spawn(door.run(listener, shutdown));
        }
        Err(error) => {
            // The channel is new and empty.
            let _ = sender.try_send(Err(io::Error::other(error)));
        }
    }
    receiver
}

#[derive(Clone)]
struct Door {
    application: Application,
    credentials: Credentials,
    warnings: Arc<Warnings>,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Door {
    async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.sender.closed() => return,
                Some(_) = tasks.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.warnings.accept_failed(&error);
                    if is_out_of_files(&error) {
                        cut_oldest(&mut oldest_first);
                    }
                    sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
                    continue;
                }
            };
            if tasks.len() >= HANDSHAKES_MAX {
                cut_oldest(&mut oldest_first);
            } else if oldest_first.len() >= 2 * HANDSHAKES_MAX {
                oldest_first.retain(|task| !task.is_finished());
            }
            oldest_first.push_back(tasks.spawn(self.clone().admit(tcp, address)));
        }
    }

    async fn admit(self, tcp: TcpStream, address: SocketAddr) {
        // Only costs speed if it fails.
        let _ = tcp.set_nodelay(true);
        let _ = watch_caller(&tcp);
        match answer(tcp, address, &self.credentials, self.application).await {
            // Nobody takes it when the server is on its way out.
            Ok(connection) => drop(self.sender.send(Ok(connection)).await),
            Err(error) if is_probe(&error) => tracing::debug!(peer = %address, "port probed"),
            Err(error) => self.warnings.refused(address, &error),
        }
    }
}

fn cut_oldest(oldest_first: &mut VecDeque<AbortHandle>) {
    oldest_first.retain(|task| !task.is_finished());
    if let Some(oldest) = oldest_first.pop_front() {
        oldest.abort();
    }
}

// EMFILE or ENFILE, of this process or of the machine; the numbers are the same on all Unix systems.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

// Health checks and port scans connect and leave without a word.
fn is_probe(error: &CommError) -> bool {
    match error {
        CommError::Handshake { source, .. } => matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        _ => false,
    }
}

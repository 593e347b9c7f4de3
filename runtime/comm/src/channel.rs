//! gRPC channels over checked connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use oxidask_identity::Role;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint as GrpcEndpoint, Server, Uri};
use tower::service_fn;

use crate::address::Endpoint;
use crate::connection::Connection;
use crate::credentials::{Application, Credentials};
use crate::error::CommError;
use crate::handshake::initiate;
use crate::reload::reload;
use crate::watch::{watch_peer, watch_reader};

/// How long one attempt to reach an address may take.
const CONNECT_SECONDS_MAX: u64 = 5;
/// How often a refused connection is tried: a scheduler that is just starting needs a moment.
const CONNECT_ATTEMPTS_MAX: u32 = 10;
const CONNECT_PAUSE_FIRST_MS: u64 = 20;
const CONNECT_PAUSE_MAX_MS: u64 = 500;

const KEEPALIVE_SECONDS: u64 = 10;
const KEEPALIVE_ANSWER_SECONDS: u64 = 5;
/// Bytes that a peer may send ahead of what is read, per stream and per connection.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES_MAX: u32 = 256 * 1024;
const STREAMS_MAX: u32 = 256;

/// Opens a channel to a process of this cluster in the given role.
///
/// The first connection is made and checked at once, so errors are clear; later ones are made by
/// the channel itself when calls need them. The future is boxed so that its code is made once,
/// here, and not anew in each program.
pub fn connect<'a>(
    address: &'a str,
    credentials: &'a Credentials,
    expected: Role,
) -> BoxFuture<'a, Result<Channel, CommError>> {
    connect_with_tries(address, credentials, expected, CONNECT_ATTEMPTS_MAX)
}

/// The same for callers that know how often an address at which nobody listens is worth a try.
pub fn connect_with_tries<'a>(
    address: &'a str,
    credentials: &'a Credentials,
    expected: Role,
    tries: u32,
) -> BoxFuture<'a, Result<Channel, CommError>> {
    Box::pin(connect_checked(address, credentials, expected, tries))
}

async fn connect_checked(
    address: &str,
    credentials: &Credentials,
    expected: Role,
    tries: u32,
) -> Result<Channel, CommError> {
    let target = Target {
        endpoint: Endpoint::from_url(address)?,
        credentials: credentials.clone(),
        expected,
    };
    let failed = |source| CommError::Channel {
        address: address.to_owned(),
        source,
    };
    let uri = format!("http://{}", target.endpoint.authority);
    let grpc = GrpcEndpoint::from_shared(uri)
        .map_err(failed)?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(Duration::from_secs(KEEPALIVE_SECONDS))
        .keep_alive_timeout(Duration::from_secs(KEEPALIVE_ANSWER_SECONDS))
        .keep_alive_while_idle(true);
    let first = target.reach(tries).await?;
    let connector = Connector {
        target,
        first: Arc::new(Mutex::new(Some(first))),
    };
    let service = service_fn(move |_: Uri| connector.connect());
    grpc.connect_with_connector(service).await.map_err(failed)
}

/// A gRPC server with this crate's limits: windows, frames, keepalive. Serve on it with
/// [`incoming`](crate::incoming).
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(KEEPALIVE_SECONDS)))
        .http2_keepalive_timeout(Some(Duration::from_secs(KEEPALIVE_ANSWER_SECONDS)))
}

#[derive(Clone)]
struct Target {
    endpoint: Endpoint,
    credentials: Credentials,
    expected: Role,
}

impl Target {
    async fn reach(&self, attempts: u32) -> Result<Connection, CommError> {
        let tcp = reach(&self.endpoint, attempts).await?;
        let address = &self.endpoint.authority;
        watch_reader(&tcp).map_err(|source| CommError::Connect {
            address: address.clone(),
            source,
        })?;
        initiate(
            tcp,
            address,
            &self.credentials,
            self.expected,
            Application::Grpc,
        )
        .await
    }
}

struct Connector {
    target: Target,
    first: Arc<Mutex<Option<Connection>>>,
}

type Connecting = Pin<Box<dyn Future<Output = Result<TokioIo<Connection>, CommError>> + Send>>;

impl Connector {
    fn connect(&self) -> Connecting {
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let target = self.target.clone();
        Box::pin(async move {
            if let Some(connection) = first {
                Ok(TokioIo::new(connection))
            } else {
                // Whoever lives long enough to connect again may have new certificates.
                reload(&target.credentials, None).await;
                target.reach(1).await.map(TokioIo::new)
            }
        })
    }
}

/// Opens a TCP connection, trying again a few times while nobody listens.
pub(crate) async fn reach(endpoint: &Endpoint, attempts: u32) -> Result<TcpStream, CommError> {
    let mut pause_ms = CONNECT_PAUSE_FIRST_MS;
    let mut attempt = 1;
    loop {
        match reach_once(endpoint).await {
            Err(CommError::Connect { source, .. })
                if attempt < attempts && source.kind() == io::ErrorKind::ConnectionRefused => {}
            outcome => return outcome,
        }
        sleep(Duration::from_millis(pause_ms)).await;
        pause_ms = (pause_ms * 2).min(CONNECT_PAUSE_MAX_MS);
        attempt += 1;
    }
}

async fn reach_once(endpoint: &Endpoint) -> Result<TcpStream, CommError> {
    let address = || endpoint.authority.clone();
    let connecting = async {
        let mut last = None;
        for socket in endpoint.resolve().await? {
            match TcpStream::connect(socket).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = Some(error),
            }
        }
        let source = last.unwrap_or_else(|| io::ErrorKind::NotFound.into());
        Err(CommError::Connect {
            address: address(),
            source,
        })
    };
    let connected = timeout(Duration::from_secs(CONNECT_SECONDS_MAX), connecting).await;
    let tcp = connected.map_err(|_| CommError::Timeout {
        address: address(),
        seconds: CONNECT_SECONDS_MAX,
    })??;
    let set = tcp.set_nodelay(true).and_then(|()| watch_peer(&tcp));
    set.map_err(|source| CommError::Connect {
        address: address(),
        source,
    })?;
    Ok(tcp)
}

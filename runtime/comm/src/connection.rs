//! A checked connection, and who is at its other end.
//!
//! Invariant: it ends when the peer's certificate does. The wall clock is looked at, at least once
//! an hour, because machines sleep and clocks are set.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use oxidask_identity::{Identity, Role};
use oxidask_proto::fault;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::error::CommError;
use crate::socket::Socket;

const CLOCK_CHECK_SECONDS: u64 = 3600;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// As its certificate proves it.
    pub identity: Identity,
    /// Where its packets come from; means nothing for trust.
    pub address: SocketAddr,
}

/// A TLS connection whose peer has been checked.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<Socket>,
    peer: Peer,
    not_after: SystemTime,
    alarm: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<Socket>, peer: Peer, not_after: SystemTime) -> Self {
        let alarm = Box::pin(sleep(until_check(not_after)));
        Self {
            stream,
            peer,
            not_after,
            alarm,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn limit_buffer(&mut self, bytes: usize) {
        match &mut self.stream {
            TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(bytes)),
            TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(bytes)),
        }
    }

    fn check_validity(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while self.alarm.as_mut().poll(context).is_ready() {
            let left = until_check(self.not_after);
            if left.is_zero() {
                let text = "the certificate of the peer has expired";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
            }
            self.alarm.as_mut().reset(Instant::now() + left);
        }
        Ok(())
    }
}

fn until_check(not_after: SystemTime) -> Duration {
    let left = not_after
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    left.min(Duration::from_secs(CLOCK_CHECK_SECONDS))
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_validity(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_validity(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_validity(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Who makes a call, if a role in `allowed`; otherwise the answer to give.
///
/// That the caller belongs to this cluster was checked when it connected.
pub fn caller<T>(request: &tonic::Request<T>, allowed: &[Role]) -> Result<Identity, tonic::Status> {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.ok_or_else(|| fault::error_to_status(&CommError::CallerUnknown))?;
    if allowed.contains(&peer.identity.role) {
        return Ok(peer.identity.clone());
    }
    tracing::warn!(peer = %peer.address, identity = %peer.identity, "call refused");
    let identity = Box::new(peer.identity.clone());
    Err(fault::error_to_status(&CommError::Forbidden { identity }))
}

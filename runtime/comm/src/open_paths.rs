//! Connections of the HTTP ports, whose open paths anybody may ask for: plain TCP.
//!
//! Invariants: at most [`CONNECTIONS_MAX`] are open, each for [`CONNECTION_TIME_MAX`]. When one more
//! comes the oldest is cut, so idle ones can neither keep a health check out nor use up the file
//! descriptors that other ports need.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// How long a connection may last, busy or not.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(15);

/// A listener for `axum::serve` with these bounds.
#[derive(Debug)]
pub struct OpenListener {
    listener: TcpListener,
    /// Oldest first; cancelled when the connection has ended, or to end it.
    connections: VecDeque<CancellationToken>,
    connections_max: usize,
    connection_time_max: Duration,
}

impl OpenListener {
    /// Takes over a bound listener.
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            connections: VecDeque::new(),
            connections_max: CONNECTIONS_MAX,
            connection_time_max: CONNECTION_TIME_MAX,
        }
    }

    fn make_room(&mut self) {
        if self.connections.len() < self.connections_max {
            return;
        }
        self.connections.retain(|end| !end.is_cancelled());
        if self.connections.len() >= self.connections_max
            && let Some(oldest) = self.connections.pop_front()
        {
            oldest.cancel();
        }
    }
}

impl Listener for OpenListener {
    type Io = OpenStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (OpenStream, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.listener).await;
        self.make_room();
        let end = CancellationToken::new();
        self.connections.push_back(end.clone());
        let stream = OpenStream {
            stream,
            too_long: Box::pin(sleep(self.connection_time_max)),
            cut: Box::pin(end.clone().cancelled_owned()),
            _ended: end.drop_guard(),
        };
        (stream, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends in time.
pub struct OpenStream {
    stream: TcpStream,
    too_long: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _ended: DropGuard,
}

impl fmt::Debug for OpenStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStream")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl OpenStream {
    // Whoever serves a connection always waits in one of the calls below.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.too_long.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for OpenStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for OpenStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn bounded(connections_max: usize, connection_time_max: Duration) -> OpenListener {
        OpenListener {
            connections_max,
            connection_time_max,
            ..OpenListener::new(TcpListener::bind("127.0.0.1:0").await.unwrap())
        }
    }

    async fn connect(open: &mut OpenListener) -> (TcpStream, OpenStream) {
        let peer = TcpStream::connect(open.local_addr().unwrap());
        let (peer, (stream, _)) = tokio::join!(peer, open.accept());
        (peer.unwrap(), stream)
    }

    fn is_cut(stream: &mut OpenStream) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        stream.check(&mut context).is_err()
    }

    #[tokio::test]
    async fn one_too_many_cuts_the_oldest_that_is_still_open() {
        let mut open = bounded(3, Duration::from_mins(1)).await;
        let gone = connect(&mut open).await;
        let mut oldest = connect(&mut open).await.1;
        let mut next = connect(&mut open).await.1;
        drop(gone);
        let _fits = connect(&mut open).await;
        assert!(!is_cut(&mut oldest));
        let _too_many = connect(&mut open).await;
        let error = oldest.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(!is_cut(&mut next));
    }

    #[tokio::test]
    async fn an_idle_connection_ends() {
        let mut open = bounded(3, Duration::from_millis(20)).await;
        let (_peer, mut stream) = connect(&mut open).await;
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

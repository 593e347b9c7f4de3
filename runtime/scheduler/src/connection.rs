//! Connections that can be cut from our side.
//!
//! Owns the means to end a TCP connection whose peer does not read: HTTP/2 alone cannot, because the
//! end of a stream waits behind the data that the peer does not take. Reads and writes pass through
//! unchanged. Never looks at bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Who is at the other end, and the means to cut the connection.
#[derive(Debug, Clone)]
pub(crate) struct Line<I> {
    /// What the connection itself says of its peer.
    pub(crate) peer: I,
    /// Cancel it to cut the connection.
    pub(crate) cut: CancellationToken,
}

/// A connection that ends when its token is cancelled.
pub(crate) struct Cuttable<C> {
    inner: C,
    token: CancellationToken,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<C> Cuttable<C> {
    /// `token` is a fresh one, or the child of one that cuts everything.
    pub(crate) fn new(inner: C, token: CancellationToken) -> Self {
        let cut = Box::pin(token.clone().cancelled_owned());
        Self { inner, token, cut }
    }
}

fn was_cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was cut from this side",
    )
}

impl<C: Connected> Connected for Cuttable<C> {
    type ConnectInfo = Line<C::ConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Line {
            peer: self.inner.connect_info(),
            cut: self.token.clone(),
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Cuttable<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A connection is always being read, so this alone wakes its task.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Cuttable<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.token.is_cancelled() {
            return Poll::Ready(Err(was_cut()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

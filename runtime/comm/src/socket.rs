//! A TCP stream that is read in large steps.
//!
//! The TLS library asks for 4 KiB at a time, which would be a system call each. This keeps what
//! one large read brought and hands it out piece by piece. Writes pass through.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of one read from the socket, once a connection has shown that it has much to say.
const READ_BYTES_MAX: usize = 128 * 1024;
/// Bytes of the first reads: most connections never need more.
const READ_BYTES_FIRST: usize = 8 * 1024;

#[derive(Debug)]
pub(crate) struct Socket {
    tcp: TcpStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            buffer: vec![0; READ_BYTES_FIRST].into(),
            start: 0,
            end: 0,
        }
    }

    pub(crate) fn peer_address(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.start == this.end {
            let mut room = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.tcp).poll_read(context, &mut room))?;
            let read = room.filled().len();
            (this.start, this.end) = (0, read);
        }
        let ready = &this.buffer[this.start..this.end];
        let count = ready.len().min(into.remaining());
        into.put_slice(&ready[..count]);
        this.start += count;
        // A read that filled the buffer means that more is waiting.
        if this.start == this.end && this.end == this.buffer.len() && this.end < READ_BYTES_MAX {
            this.buffer = vec![0; READ_BYTES_MAX].into();
            (this.start, this.end) = (0, 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

//! A Unix socket over which files travel.
//!
//! Invariant: waiting for the other end blocks no thread.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use bytes::BytesMut;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::frame::FILES_MAX;

/// Read at once.
const READ_BYTES: usize = 32 << 10;

/// Files that one message of a child may bring; it sends one.
const FILES_RECEIVED_MAX: usize = 8;

/// One end of a pair of sockets.
#[derive(Debug)]
pub(crate) struct Socket(UnixStream);

impl Socket {
    /// This end, and the one for another process.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = StdStream::pair()?;
        own.set_nonblocking(true)?;
        Ok((Self(UnixStream::from_std(own)?), other.into()))
    }

    /// Sends everything, the files beside the first byte.
    pub(crate) async fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        debug_assert!(files.len() <= FILES_MAX, "files go in several frames");
        let mut sent = 0;
        while sent < bytes.len() {
            let now = if sent == 0 { files } else { &[] };
            let send = || send_some(self.0.as_fd(), &bytes[sent..], now);
            sent += self.0.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// Reads what is there, or waits for it; 0 at the end.
    pub(crate) async fn receive(
        &self,
        buffer: &mut BytesMut,
        files: &mut VecDeque<OwnedFd>,
    ) -> io::Result<usize> {
        let start = buffer.len();
        let receive = || {
            buffer.resize(start + READ_BYTES, 0);
            let received = receive_some(self.0.as_fd(), &mut buffer[start..], files);
            buffer.truncate(start + received.as_ref().copied().unwrap_or(0));
            received
        };
        self.0.async_io(Interest::READABLE, receive).await
    }

    /// Both ends are at their end.
    pub(crate) fn close(&self) {
        // Fails only if the other end is gone.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let slices = [IoSlice::new(bytes)];
    if files.is_empty() {
        let mut nothing = SendAncillaryBuffer::default();
        return Ok(sendmsg(socket, &slices, &mut nothing, SendFlags::NOSIGNAL)?);
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)?)
}

fn receive_some(
    socket: BorrowedFd<'_>,
    block: &mut [u8],
    files: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_RECEIVED_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(block)];
    let message = recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            files.extend(rights);
        }
    }
    Ok(message.bytes)
}

//! The line of a process: packets that it takes out one by one, each when it is done with the one
//! before.
//!
//! Owns both ends of a pair of sockets: what is still in line has not begun for sure, and can be taken
//! out again on this side. The system decides who gets a packet, so a run is never begun and taken
//! back at the same time.
//!
//! Invariants: packets stay in order; whoever puts one in line blocks no thread.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use tokio::net::UnixDatagram;

/// Longer packets travel as frames of a stream, and the line only says so.
pub(crate) const PACKET_BYTES_MAX: usize = 48 << 10;

/// Both ends of a line.
#[derive(Debug)]
pub(crate) struct Line {
    own: UnixDatagram,
    /// The end that the process reads from.
    other: OwnedFd,
    /// Whoever holds it puts packets in or takes some out.
    at_work: Mutex<()>,
}

impl Line {
    /// The line, and the end of it for another process.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Of packets, as those have, but with an end that shows.
        let own = StdDatagram::from(own);
        own.set_nonblocking(true)?;
        let kept = fcntl_dupfd_cloexec(&other, 0)?;
        let line = Self {
            own: UnixDatagram::from_std(own)?,
            other: kept,
            at_work: Mutex::default(),
        };
        Ok((line, other))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a packet at the end of the line if there is room.
    fn try_put(&self, packet: &[u8]) -> io::Result<()> {
        let _at_work = self.lock();
        self.own.try_send(packet).map(drop)
    }

    /// Puts a packet at the end of the line, as soon as there is room.
    pub(crate) async fn put(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match self.try_put(packet) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.own.writable().await?;
                }
                done => return done,
            }
        }
    }

    /// Takes packets out of the line; those that are not wanted out stay, in their order.
    pub(crate) fn take_out(&self, mut is_wanted_out: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
        let _at_work = self.lock();
        let mut stay = Vec::new();
        let mut block = vec![0; PACKET_BYTES_MAX];
        loop {
            match recv(&self.other, block.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((0, _)) => break,
                Ok((length, _)) => {
                    let packet = &block[..length];
                    if !is_wanted_out(packet) {
                        stay.push(packet.to_vec());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        for packet in stay {
            send(&self.own, &packet, flags)?;
        }
        Ok(())
    }

    /// Whoever reads is at the end.
    pub(crate) fn close(&self) {
        // Fails only if the other end is gone.
        let _ = self.own.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(end: &OwnedFd) -> Vec<u8> {
        let mut block = [0; 8];
        let (length, _) = recv(end, block.as_mut_slice(), RecvFlags::DONTWAIT).unwrap();
        block[..length].to_vec()
    }

    #[tokio::test]
    async fn what_is_in_line_is_taken_out_and_the_rest_stays_in_order() {
        let (line, other) = Line::new().unwrap();
        for number in 1..=6_u8 {
            line.put(&[number]).await.unwrap();
        }
        assert_eq!(next(&other), [1]);
        let mut seen = Vec::new();
        let wanted_out = |packet: &[u8]| {
            seen.push(packet[0]);
            packet[0].is_multiple_of(2)
        };
        line.take_out(wanted_out).unwrap();
        assert_eq!(seen, [2, 3, 4, 5, 6]);
        assert_eq!((next(&other), next(&other)), (vec![3], vec![5]));
        line.close();
        assert_eq!(next(&other), Vec::<u8>::new());
    }

    #[tokio::test]
    async fn a_full_line_makes_one_wait_until_there_is_room() {
        let (line, other) = Line::new().unwrap();
        let packet = vec![7; PACKET_BYTES_MAX];
        while line.try_put(&packet).is_ok() {}
        let line = std::sync::Arc::new(line);
        let waiting = {
            let (line, packet) = (std::sync::Arc::clone(&line), packet.clone());
            tokio::spawn(async move { line.put(&packet).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        line.take_out(|_| true).unwrap();
        waiting.await.unwrap().unwrap();
        drop(other);
    }
}

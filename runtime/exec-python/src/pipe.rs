//! A pipe on which a process writes lines.
//!
//! Owns the order with what comes another way: whoever hears from the process that something is over can
//! first take what was written before ([`Pipe::take_written`]). Never blocks.
//!
//! Invariant: each line is taken once, in order, whoever reads.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::net::unix::pipe;

/// Bytes of a line that are kept.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Read at once.
const READ_BYTES: usize = 16 << 10;

/// Read before something else goes on: as much as a pipe holds.
const WRITTEN_BYTES_MAX: usize = 64 << 10;

/// The end of a pipe that is read.
#[derive(Debug)]
pub(crate) struct Pipe {
    receiver: pipe::Receiver,
    /// What there is of a line. Whoever holds it reads.
    unfinished: Mutex<Vec<u8>>,
}

impl Pipe {
    /// Reads a pipe, in the runtime that this is called in.
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            receiver: pipe::Receiver::from_owned_fd(file)?,
            unfinished: Mutex::default(),
        })
    }

    /// Takes all lines until the end. A carriage return ends a line too: bars of progress use it.
    pub(crate) async fn read_lines(&self, mut take: impl FnMut(&str)) {
        while self.receiver.readable().await.is_ok() {
            match self.read(|block| self.receiver.try_read(block), &mut take) {
                Ok(1..) => {}
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
        }
        end_line(&mut self.lock(), &mut take);
    }

    /// Takes the lines that were written up to now, also if the runtime has not heard of them yet.
    pub(crate) fn take_written(&self, mut take: impl FnMut(&str)) {
        let mut taken = 0;
        let read = |block: &mut [u8]| Ok(rustix::io::read(&self.receiver, block)?);
        while let Ok(count @ 1..) = self.read(read, &mut take) {
            taken += count;
            if taken >= WRITTEN_BYTES_MAX {
                break;
            }
        }
    }

    fn read(
        &self,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
        take: &mut impl FnMut(&str),
    ) -> io::Result<usize> {
        let mut unfinished = self.lock();
        let mut block = [0; READ_BYTES];
        let count = read(&mut block)?;
        for byte in &block[..count] {
            match byte {
                b'\n' | b'\r' => end_line(&mut unfinished, take),
                _ if unfinished.len() < LINE_BYTES_MAX => unfinished.push(*byte),
                _ => {}
            }
        }
        Ok(count)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn end_line(line: &mut Vec<u8>, take: &mut impl FnMut(&str)) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    if !text.is_empty() {
        take(text);
    }
    line.clear();
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (Pipe, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (Pipe::new(read).unwrap(), write)
    }

    #[tokio::test]
    async fn what_was_written_before_can_be_taken_at_once_and_the_rest_comes_in_order() {
        let (pipe, write) = pipe();
        let mut lines: Vec<String> = Vec::new();
        rustix::io::write(&write, b"one\rtwo\nthr").unwrap();
        // The runtime has had no chance to look at the pipe.
        pipe.take_written(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one", "two"]);
        pipe.take_written(|line| lines.push(line.to_owned()));
        assert_eq!(lines.len(), 2);
        rustix::io::write(&write, b"ee\n\nend").unwrap();
        drop(write);
        pipe.read_lines(|line| lines.push(line.to_owned())).await;
        assert_eq!(lines, ["one", "two", "three", "end"]);
        pipe.take_written(|_| panic!("it has ended"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut() {
        let (pipe, write) = pipe();
        let writing = std::thread::spawn(move || {
            for _ in 0..10 {
                rustix::io::write(&write, &[b'x'; 4 << 10]).unwrap();
            }
        });
        let mut lines = Vec::new();
        pipe.read_lines(|line| lines.push(line.len())).await;
        writing.join().unwrap();
        assert_eq!(lines, [LINE_BYTES_MAX]);
    }
}

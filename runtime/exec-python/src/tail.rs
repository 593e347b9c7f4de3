//! The last lines of a process, and the lines of a pipe.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Lines that are kept.
const LINES_MAX: usize = 20;

/// Bytes of a line that are kept.
pub(crate) const LINE_BYTES_MAX: usize = 8 << 10;

/// Bytes of each of the last lines in a message.
const TAIL_LINE_BYTES_MAX: usize = 400;

/// Read at once.
const READ_BYTES: usize = 16 << 10;

/// The last lines of a process.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    pub(crate) fn push(&mut self, line: &str) {
        if self.0.len() == LINES_MAX {
            self.0.pop_front();
        }
        let end = line.floor_char_boundary(TAIL_LINE_BYTES_MAX);
        self.0.push_back(line[..end].to_owned());
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// As text, without what would command a terminal.
    pub(crate) fn text(&self) -> String {
        let lines: Vec<&str> = self.0.iter().map(String::as_str).collect();
        let is_wanted = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
        lines.join("\n").chars().filter(is_wanted).collect()
    }
}

/// Reads a pipe to its end, line by line. A carriage return ends a line too: bars of progress use it.
pub(crate) async fn read_lines(pipe: OwnedFd, mut take: impl FnMut(&str)) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(pipe) else {
        return;
    };
    let mut block = vec![0; READ_BYTES];
    let mut unfinished: Vec<u8> = Vec::new();
    let mut end_line = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if !text.is_empty() {
            take(text);
        }
        line.clear();
    };
    while let Ok(count @ 1..) = pipe.read(&mut block).await {
        for byte in &block[..count] {
            match byte {
                b'\n' | b'\r' => end_line(&mut unfinished),
                _ if unfinished.len() < LINE_BYTES_MAX => unfinished.push(*byte),
                _ => {}
            }
        }
    }
    end_line(&mut unfinished);
}

//! Log lines of this process, on standard error.
//!
//! Owns the set-up of `tracing`. Lines go through the terminal, so bars stay whole.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::arguments::{LogFormat, LoggingArguments};
use crate::terminal::Terminal;

/// Starts logging; `default_level` holds unless the command line or the environment says another.
pub(crate) fn start(arguments: &LoggingArguments, default_level: &str, terminal: &Terminal) {
    let level = arguments.log_level.as_deref().unwrap_or(default_level);
    // The command line has checked the text already.
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new(default_level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(LineWriter {
            terminal: terminal.clone(),
            line: Vec::new(),
        });
    // A second start in one process cannot happen, and would only keep the first.
    let _ = match arguments.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Collects one event and hands it over as a line.
#[derive(Debug)]
struct LineWriter {
    terminal: Terminal,
    line: Vec<u8>,
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            terminal: self.terminal.clone(),
            line: Vec::new(),
        }
    }
}

impl io::Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.terminal
                .line(String::from_utf8_lossy(&self.line).trim_end());
        }
    }
}

//! The thread that writes results.
//!
//! A reader may be slow or stop reading (`| less`): only this thread waits for it. Its queue is
//! short, so results wait on the workers and not here.

use std::io::{self, IsTerminal, Write};

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::Payload;
use tokio::sync::{mpsc, oneshot};

use super::limit::{Limited, Limits};
use super::render::{self, RenderError};
use super::{Label, form};
use crate::arguments::OutputForm;
use crate::error::CliError;
use crate::progress::counted;
use crate::terminal::Terminal;

/// Results that wait for the thread.
const QUEUE: usize = 256;
/// Bytes collected for one write.
const BUFFER_BYTES: usize = 64 * 1024;

/// A result and what it is printed as.
#[derive(Debug)]
pub(crate) struct Item {
    /// How.
    pub(crate) label: Label,
    /// What.
    pub(crate) payload: Payload,
}

/// The way to the thread. Cheap to clone.
pub(crate) type Sending = mpsc::Sender<Item>;

/// The thread's other end.
#[derive(Debug)]
pub(crate) struct Writer {
    sending: Sending,
    end: oneshot::Receiver<Result<(), CliError>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        asked: Option<OutputForm>,
        limits: Limits,
        terminal: &Terminal,
    ) -> Result<Self, CliError> {
        let (sending, queue) = mpsc::channel(QUEUE);
        let (sender, end) = oneshot::channel();
        let form = form(asked);
        let terminal = terminal.clone();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let result = write_all(queue, form, limits, &terminal);
                // Nobody waits for it when the run ends early.
                let _ = sender.send(result);
            })
            .map_err(|error| CliError::start("the output's thread cannot be started", &error))?;
        Ok(Self { sending, end })
    }

    /// Where results go. It closes when the thread ends early; [`Writer::finish`] says why.
    pub(crate) fn sending(&self) -> Sending {
        self.sending.clone()
    }

    /// Waits until everything is written. All other ends of the queue must be gone.
    pub(crate) async fn finish(self) -> Result<(), CliError> {
        drop(self.sending);
        self.end.await.unwrap_or_else(|_| {
            let message = "the thread that writes the output ended";
            Err(CliError::failed(Diagnostic::new(
                Code::OutputFailed,
                message,
            )))
        })
    }
}

fn write_all(
    mut queue: mpsc::Receiver<Item>,
    form: OutputForm,
    limits: Limits,
    terminal: &Terminal,
) -> Result<(), CliError> {
    let output = Output {
        buffer: Vec::with_capacity(BUFFER_BYTES),
        terminal: io::stdout().is_terminal().then(|| terminal.clone()),
    };
    let mut output = Limited::new(output, limits);
    let mut is_first = true;
    loop {
        let mut next = queue.try_recv().ok();
        if next.is_none() {
            // Nothing more for now: show what there is.
            output.flush().map_err(|error| failure(&error))?;
            next = queue.blocking_recv();
        }
        let Some(item) = next else { break };
        if let Label::Written(what) = &item.label {
            let rows = serde_json::from_slice(&item.payload.parts.concat()).unwrap_or(0);
            terminal.notice(&format!("{what} wrote {}", counted(rows, "row")));
            continue;
        }
        write(&item, form, is_first, &mut output).map_err(|error| match error {
            RenderError::Write(error) => failure(&error),
            RenderError::Table(error) => CliError::from_failure(&error),
        })?;
        is_first = false;
    }
    if let Some(line) = output.left_out_line() {
        terminal.notice(&line);
    }
    Ok(())
}

fn write(
    item: &Item,
    form: OutputForm,
    is_first: bool,
    output: &mut Limited<Output>,
) -> Result<(), RenderError> {
    if output.is_full() {
        output.leave_out(render::rows(item, form)?);
        return Ok(());
    }
    match form {
        OutputForm::Json => render::json(item, output),
        OutputForm::Table => {
            output.expect_heading(render::heading_lines(item, is_first));
            render::table(item, is_first, output)
        }
    }
}

/// The error for a write that failed; a reader that went away is none.
pub(crate) fn failure(error: &io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return CliError::reader_gone();
    }
    let message = "standard output cannot be written";
    CliError::failed(Diagnostic::new(Code::OutputFailed, message).with_cause(error.to_string()))
}

/// Standard output behind one buffer.
struct Output {
    buffer: Vec<u8>,
    /// Set if bars may be in the way.
    terminal: Option<Terminal>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let write = || {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&self.buffer)?;
            stdout.flush()
        };
        match &self.terminal {
            Some(terminal) => terminal.suspend(write)?,
            None => write()?,
        }
        self.buffer.clear();
        Ok(())
    }
}

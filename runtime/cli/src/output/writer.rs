//! The thread that writes results.
//!
//! A reader may be slow or stop reading (`| less`): only this thread waits for it. Its queue is
//! short, so results wait on the workers and not here.

use std::io::{self, IsTerminal, Write};

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec_frame::render::TextTable;
use oxidask_store::{Payload, PayloadKind};
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
    /// Whether a result begins with it. Rows of a query may come in parts.
    pub(crate) is_first: bool,
    /// Whether a result ends with it.
    pub(crate) is_last: bool,
}

impl Item {
    /// A result that comes in one part.
    pub(crate) fn whole(label: Label, payload: Payload) -> Self {
        Self {
            label,
            payload,
            is_first: true,
            is_last: true,
        }
    }
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
    let mut printer = Printer::new(form);
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
        printer.print(item, &mut output).map_err(failed)?;
    }
    printer.end_table(&mut output).map_err(failed)?;
    output.flush().map_err(|error| failure(&error))?;
    if let Some(line) = output.left_out_line() {
        terminal.notice(&line);
    }
    Ok(())
}

/// What is printed next depends on what was printed before.
struct Printer {
    form: OutputForm,
    is_first: bool,
    /// The rows of a query for people, while parts of them come.
    table: Option<TextTable>,
}

impl Printer {
    fn new(form: OutputForm) -> Self {
        Self {
            form,
            is_first: true,
            table: None,
        }
    }

    fn print<W: Write>(&mut self, item: Item, output: &mut Limited<W>) -> Result<(), RenderError> {
        if item.is_first {
            self.end_table(output)?;
        }
        // A query without results of its own is not even empty.
        if item.label == Label::Rows && item.payload.is_empty() {
            return if item.is_last {
                self.end_table(output)
            } else {
                Ok(())
            };
        }
        if output.is_full() && self.table.is_none() {
            output.leave_out(render::rows(&item, self.form)?);
            return Ok(());
        }
        let is_rows = item.label == Label::Rows && item.payload.kind == PayloadKind::Table;
        match self.form {
            OutputForm::Json => render::json(&item, output)?,
            OutputForm::Table if is_rows => self.rows(item, output)?,
            OutputForm::Table => {
                output.expect_heading(render::heading_lines(&item, self.is_first));
                render::table(&item, self.is_first, output)?;
            }
        }
        self.is_first = false;
        Ok(())
    }

    fn rows<W: Write>(&mut self, item: Item, output: &mut Limited<W>) -> Result<(), RenderError> {
        let mut table = if let Some(table) = self.table.take() {
            table
        } else {
            output.expect_heading(render::heading_lines(&item, self.is_first));
            render::begin_rows(self.is_first, output)?
        };
        table.part(item.payload, output)?;
        self.table = Some(table);
        if item.is_last {
            self.end_table(output)?;
        }
        Ok(())
    }

    fn end_table<W: Write>(&mut self, output: &mut Limited<W>) -> Result<(), RenderError> {
        if let Some(table) = self.table.take() {
            table.finish(output)?;
        }
        Ok(())
    }
}

fn failed(error: RenderError) -> CliError {
    match error {
        RenderError::Write(error) => failure(&error),
        RenderError::Table(error) => CliError::from_failure(&error),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(is_first: bool, is_last: bool) -> Item {
        Item {
            label: Label::Rows,
            payload: Payload::new(PayloadKind::Table, Vec::new()),
            is_first,
            is_last,
        }
    }

    #[test]
    fn rows_without_a_table_print_nothing() {
        for form in [OutputForm::Table, OutputForm::Json] {
            let mut output = Limited::new(Vec::new(), Limits::default());
            let mut printer = Printer::new(form);
            for item in [rows(true, true), rows(true, false), rows(false, true)] {
                printer.print(item, &mut output).unwrap();
            }
            printer.end_table(&mut output).unwrap();
            assert!(printer.is_first && printer.table.is_none());
        }
    }
}

//! `exec`: a program over files.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Coded, Diagnostic};
use oxidask_store::{Payload, PayloadKind};
use tempfile::TempDir;
use tokio::process::Command;

use super::output::{OUTPUT_BYTES_MAX, TAIL_LINES_MAX};
use super::process::{Ending, Finished, run};
use super::wait::duration;
use super::{blocking, cancelled, contiguous, noun, refused};
use crate::catalogue::ExecArguments;
use crate::guard::Guard;
use crate::programs::MemoryEnd;
use crate::{Program, TableToCsv, TaskContext, TaskError};

/// Where relative locations of the manifest start: programs run in a folder of their own.
const BASE_DIR_VARIABLE: &str = "OXIDASK_BASE_DIR";

/// Runs a program with its inputs as files `0`, `1`, … in its working folder.
pub(crate) struct Exec {
    arguments: ExecArguments,
    tables: Option<Arc<dyn TableToCsv>>,
    guard: Arc<Guard>,
}

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("the program `{program}` was not found")]
    NotFound { program: String },
    #[error("the program `{program}` cannot be started")]
    Start { program: String, source: io::Error },
    #[error("the program `{program}` ended with {status}")]
    Failed { program: String, status: String },
    #[error("the program `{program}` took longer than {seconds} s and was ended")]
    TimedOut { program: String, seconds: f64 },
    #[error("the program `{program}` printed more than {} MiB and was ended", OUTPUT_BYTES_MAX >> 20)]
    Overflowed { program: String },
    #[error(
        "the program `{program}` was ended because memory ran out: it used {} of the worker's {}",
        Size(end.program_bytes), Size(end.limit_bytes)
    )]
    EndedForMemory { program: String, end: MemoryEnd },
    #[error("the system ended the program `{program}` with {status} because memory ran out")]
    OutOfMemory { program: String, status: String },
    #[error("the working folder of the program `{program}` cannot be made")]
    Folder { program: String, source: io::Error },
    #[error("input {position} cannot be written to the working folder of the program `{program}`")]
    Input {
        program: String,
        position: usize,
        source: io::Error,
    },
}

impl Coded for ExecError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::Start { .. } | Self::Failed { .. } => Code::CommandFailed,
            Self::TimedOut { .. } => Code::TaskTimeout,
            Self::Overflowed { .. } => Code::LimitPassed,
            Self::EndedForMemory { .. } | Self::OutOfMemory { .. } => Code::MemoryRanOut,
            Self::Folder { .. } | Self::Input { .. } => Code::WorkerDisk,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::NotFound { .. } => {
                "install it where the workers run, or give its path; no shell \
                 is implied: for one use [\"sh\", \"-c\", \"…\"]"
                    .into()
            }
            Self::Start { source, .. } if source.kind() == io::ErrorKind::ArgumentListTooLong => {
                "pass long texts as inputs: they are the files `0`, `1`, … in the program's folder"
                    .into()
            }
            Self::Start { .. } => "is it a program for this machine, and executable?".into(),
            Self::Overflowed { .. } => {
                "let it write large results to storage and print where".into()
            }
            _ => self.code().hint().into(),
        }
    }
}

impl ExecError {
    /// Another worker, or another time, may do better in each case.
    fn into_task_error(self, finished: Option<&Finished>) -> TaskError {
        let mut diagnostic = Diagnostic::from_error(&self);
        if let Some(finished) = finished {
            for cause in memory_causes(&self, finished) {
                diagnostic = diagnostic.with_cause(cause);
            }
            let tail = finished.errors.tail();
            diagnostic = diagnostic.with_cause(if tail.is_empty() {
                "it printed nothing to standard error".to_owned()
            } else {
                format!(
                    "the last lines (at most {TAIL_LINES_MAX}) of its standard error:\n    {}",
                    tail.replace('\n', "\n    ")
                )
            });
        }
        TaskError::retryable(diagnostic)
    }
}

/// What is known of the memory when a program failed.
fn memory_causes(error: &ExecError, finished: &Finished) -> Vec<String> {
    let mut causes = Vec::new();
    if let ExecError::EndedForMemory { end, .. } = error {
        let (used, limit) = (Size(end.used_bytes), Size(end.limit_bytes));
        causes.push(format!("{used} of {limit} were used in all"));
    }
    let count = finished.out_of_memory_count;
    if count > 0 && matches!(error, ExecError::Failed { .. }) {
        causes.push(format!(
            "while it ran, the system ended other processes because memory ran out ({count} in all)"
        ));
    }
    if let Some(peak) = finished.peak_bytes {
        causes.push(format!(
            "it was seen to use at most {} of memory",
            Size(peak)
        ));
    }
    causes
}

impl Exec {
    pub(crate) fn new(
        arguments: ExecArguments,
        tables: Option<Arc<dyn TableToCsv>>,
        guard: Arc<Guard>,
    ) -> Self {
        Self {
            arguments,
            tables,
            guard,
        }
    }

    /// The program as messages show it.
    fn program(&self) -> String {
        self.arguments.command.first().cloned().unwrap_or_default()
    }

    /// A program with a path is looked for from the manifest's folder on, others in `PATH`.
    fn command(&self, folder: &Path, context: &TaskContext) -> Command {
        let program = self.program();
        // The working folder is another: a relative path would be lost.
        let base_dir =
            std::path::absolute(&context.base_dir).unwrap_or_else(|_| context.base_dir.clone());
        let path = if program.contains('/') {
            base_dir.join(&program)
        } else {
            PathBuf::from(&program)
        };
        let mut command = Command::new(path);
        command
            .args(self.arguments.command.iter().skip(1))
            .env(BASE_DIR_VARIABLE, base_dir)
            .envs(&self.arguments.env)
            .current_dir(folder);
        command
    }

    async fn attempt(
        self: Arc<Self>,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> Result<Payload, TaskError> {
        let this = Arc::clone(&self);
        let scratch_dir = context.scratch_dir.clone();
        let folder = blocking(move || this.working_folder(&scratch_dir, &inputs)).await?;
        let limit = self.arguments.timeout_seconds.map(duration);
        let command = self.command(folder.path(), &context);
        let finished = run(command, limit, &context, Arc::clone(&self.guard)).await;
        // Removing many files takes a while; what cannot be removed goes with the scratch folder.
        let removed = tokio::task::spawn_blocking(move || folder.close()).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::debug!(key = %context.key, "the working folder of a program is left behind");
        }
        let finished = finished.map_err(|source| self.start_error(source).into_task_error(None))?;
        self.result(&finished)
    }

    fn start_error(&self, source: io::Error) -> ExecError {
        let program = self.program();
        if source.kind() == io::ErrorKind::NotFound {
            ExecError::NotFound { program }
        } else {
            ExecError::Start { program, source }
        }
    }

    fn result(&self, finished: &Finished) -> Result<Payload, TaskError> {
        let program = self.program();
        let error = match &finished.ending {
            Ending::Exited(status) if status.success() => {
                return Ok(Payload::new(PayloadKind::Bytes, finished.output.take()));
            }
            Ending::Exited(status) => {
                let was_killed = is_kill(*status) && finished.out_of_memory_count > 0;
                let status = described(*status);
                if was_killed {
                    ExecError::OutOfMemory { program, status }
                } else {
                    ExecError::Failed { program, status }
                }
            }
            Ending::Memory(end) => ExecError::EndedForMemory { program, end: *end },
            Ending::TimedOut => ExecError::TimedOut {
                program,
                seconds: self.arguments.timeout_seconds.unwrap_or_default(),
            },
            Ending::Overflowed => ExecError::Overflowed { program },
            Ending::Cancelled => return Err(cancelled()),
        };
        Err(error.into_task_error(Some(finished)))
    }

    /// Makes the folder and writes the inputs.
    fn working_folder(&self, scratch_dir: &Path, inputs: &[Payload]) -> Result<TempDir, TaskError> {
        let program = self.program();
        let folder = std::fs::create_dir_all(scratch_dir)
            .and_then(|()| {
                tempfile::Builder::new()
                    .prefix("exec-")
                    .tempdir_in(scratch_dir)
            })
            .map_err(|source| {
                ExecError::Folder {
                    program: program.clone(),
                    source,
                }
                .into_task_error(None)
            })?;
        for (position, input) in inputs.iter().enumerate() {
            let failed = |source| {
                let program = program.clone();
                ExecError::Input {
                    program,
                    position,
                    source,
                }
                .into_task_error(None)
            };
            let mut file =
                File::create(folder.path().join(position.to_string())).map_err(failed)?;
            match input.kind {
                PayloadKind::Bytes => write_parts(input, &mut file).map_err(failed)?,
                PayloadKind::Value => write_value(input, &mut file).map_err(failed)?,
                PayloadKind::Table => self.write_table(position, input, file)?,
                kind @ (PayloadKind::Slices | PayloadKind::Graph | PayloadKind::Python) => {
                    let found = noun(kind);
                    return Err(refused(format!(
                        "`exec` cannot read input {position}: it is {found}"
                    )));
                }
            }
        }
        Ok(folder)
    }

    fn write_table(&self, position: usize, input: &Payload, file: File) -> Result<(), TaskError> {
        let Some(tables) = &self.tables else {
            return Err(refused(format!(
                "input {position} is a table, which this worker cannot write as CSV"
            )));
        };
        let mut writer = io::BufWriter::new(file);
        tables
            .write_csv(input, &mut writer)
            .map_err(TaskError::retryable)?;
        writer.flush().map_err(|source| {
            ExecError::Input {
                program: self.program(),
                position,
                source,
            }
            .into_task_error(None)
        })
    }
}

fn write_parts(input: &Payload, file: &mut File) -> io::Result<()> {
    input.parts.iter().try_for_each(|part| file.write_all(part))
}

/// A string as its text, anything else as its JSON.
fn write_value(input: &Payload, file: &mut File) -> io::Result<()> {
    let json = contiguous(input);
    if json.starts_with(b"\"") {
        let text: String = serde_json::from_slice(&json)?;
        return file.write_all(text.as_bytes());
    }
    file.write_all(&json)
}

fn described(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match signal_name(signal) {
            Some(name) => format!("signal {signal} ({name})"),
            None => format!("signal {signal}"),
        },
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Whether it was killed, or is a shell whose last program was.
fn is_kill(status: ExitStatus) -> bool {
    const KILL: i32 = 9;
    const SHELL_SAYS_KILL: i32 = 128 + KILL;
    status.signal() == Some(KILL) || status.code() == Some(SHELL_SAYS_KILL)
}

/// Bytes as people read them.
#[derive(Debug, Clone, Copy)]
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let found = UNITS.iter().find(|(_, shift)| self.0 >> shift > 0);
        let Some((unit, shift)) = found else {
            return write!(f, "{} bytes", self.0);
        };
        // In tenths, without floating point.
        let tenths = (u128::from(self.0) * 10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// Signals by which programs usually end.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => return None,
    })
}

impl Program for Exec {
    fn run(
        self: Arc<Self>,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        self.attempt(inputs, context).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_read_them() {
        let text = |bytes| Size(bytes).to_string();
        assert_eq!(text(0), "0 bytes");
        assert_eq!(text(1_023), "1023 bytes");
        assert_eq!(text(1_536), "1.5 KiB");
        assert_eq!(text(96 << 20), "96.0 MiB");
        assert_eq!(text((2 << 30) - 1), "1.9 GiB");
        assert_eq!(text(u64::MAX), "17179869183.9 GiB");
    }
}

//! The engines that a load is given to: our cluster, or a program that answers requests.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use oxidask_tpch::Answer;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::memory::Sampler;
use super::ours::Ours;
use crate::Failure;

/// Time that one request may take.
const ANSWER_TIME_MAX: Duration = Duration::from_mins(15);
/// Time that a program has to end by itself.
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// What an engine is to do. A program gets it as a line of JSON.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Makes the tables of a folder known; its time does not count.
    Open {
        /// The same as statements.
        definitions: Vec<String>,
        /// Where the tables are, a folder each.
        folder: String,
        /// Their names.
        tables: Vec<String>,
    },
    /// Runs a query over them.
    Query {
        /// Its number in the specification.
        number: u32,
        /// Its text.
        sql: String,
    },
    /// Cleans CSV files of a folder into another, and sums them up.
    Csv {
        /// The dirty files.
        input: String,
        /// Where the clean ones go; it does not exist.
        output: String,
    },
    /// Runs statements one after the other in a session of their own; the last gives rows.
    Script {
        /// The statements, without semicolons.
        statements: Vec<String>,
    },
}

/// An answer, and how long it took.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Timed {
    /// From the text to the rows.
    pub(crate) seconds: f64,
    /// The rows.
    #[serde(flatten)]
    pub(crate) answer: Answer,
}

/// Something that answers.
#[derive(Debug)]
pub(crate) enum Engine {
    /// Our cluster.
    Ours(Box<Ours>),
    /// A program.
    Program(Box<Program>),
}

impl Engine {
    /// Its name in tables.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Ours(_) => "oxidask",
            Self::Program(program) => &program.name,
        }
    }

    /// Does what is asked.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Timed, Failure> {
        let answered = match self {
            Self::Ours(ours) => timeout(ANSWER_TIME_MAX, ours.ask(request)).await,
            Self::Program(program) => timeout(ANSWER_TIME_MAX, program.ask(request)).await,
        };
        let Ok(answered) = answered else {
            let seconds = ANSWER_TIME_MAX.as_secs();
            return Err(format!("{} did not answer in {seconds} s", self.name()).into());
        };
        answered
    }

    /// Watches the memory of all its processes.
    pub(crate) fn watch(&self, sampler: &Sampler, name: &str) {
        match self {
            Self::Ours(ours) => {
                // This process is the client; what it starts are other engines.
                let mut processes = ours.processes();
                processes.push(std::process::id());
                sampler.watch_processes(name, processes);
            }
            Self::Program(program) => sampler.watch_trees(name, program.processes()),
        }
    }

    /// Watches the memory of the processes that do the work.
    pub(crate) fn watch_services(&self, sampler: &Sampler, name: &str) {
        match self {
            Self::Ours(ours) => sampler.watch_processes(name, ours.processes()),
            Self::Program(program) => sampler.watch_processes(name, program.processes()),
        }
    }

    /// Whether this is our cluster.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Ends it; a program has some time to end by itself.
    pub(crate) async fn end(self) {
        if let Self::Program(program) = self {
            let Program {
                mut child, stdin, ..
            } = *program;
            drop(stdin);
            if timeout(END_TIME_MAX, child.wait()).await.is_err() {
                // It is killed when it is dropped.
                let _ = child.start_kill();
            }
        }
    }
}

/// A program that answers requests, a line of JSON each.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// Where its standard error goes.
    log: tempfile::NamedTempFile,
}

/// One of the two is there.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Reply {
    Refused { error: String },
    Answered(Timed),
}

impl Program {
    /// Starts it.
    pub(crate) fn start(name: &str, program: &Path, words: &[&str]) -> Result<Self, Failure> {
        let log = tempfile::NamedTempFile::new()?;
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.reopen()?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {name}: `{}`: {error}", program.display()))?;
        let stdin = child
            .stdin
            .take()
            .ok_or("the program has no standard input")?;
        let stdout = child
            .stdout
            .take()
            .ok_or("the program has no standard output")?;
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            log,
        })
    }

    fn processes(&self) -> Vec<u32> {
        self.child.id().into_iter().collect()
    }

    async fn ask(&mut self, request: &Request) -> Result<Timed, Failure> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stdin
            .write_all(&line)
            .await
            .map_err(|error| self.lost(&error.to_string()))?;
        self.stdin
            .flush()
            .await
            .map_err(|error| self.lost(&error.to_string()))?;
        let Some(line) = self.lines.next_line().await? else {
            return Err(self.lost("it ended"));
        };
        match serde_json::from_str(&line) {
            Ok(Reply::Answered(timed)) => Ok(timed),
            Ok(Reply::Refused { error }) => Err(format!("{}: {error}", self.name).into()),
            Err(error) => Err(self.lost(&format!("its answer is unreadable: {error}"))),
        }
    }

    /// Why it does not answer, with its last words.
    fn lost(&self, reason: &str) -> Failure {
        let log = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        format!("{}: {reason}\n{}", self.name, last.join("\n")).into()
    }
}

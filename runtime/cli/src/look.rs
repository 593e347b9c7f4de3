//! What the commands that look at a cluster share: the connection, and tables.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use oxidask_client::{Client, ClientError};
use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;

use crate::arguments::ClusterArguments;
use crate::error::CliError;
use crate::output;

/// Threads beside the main thread.
pub(crate) const THREADS: usize = 1;
/// Time for the whole answer.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// A cluster that is looked at.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    address: &'a str,
    credentials: Credentials,
}

impl<'a> Site<'a> {
    /// Reads the certificates.
    pub(crate) fn new(cluster: &'a ClusterArguments) -> Result<Self, CliError> {
        let credentials =
            Credentials::from_dir(&cluster.tls_dir).map_err(|error| CliError::from_file(&error))?;
        let address = cluster.address();
        Ok(Self {
            address,
            credentials,
        })
    }

    /// Where the scheduler is.
    pub(crate) fn address(&self) -> &str {
        self.address
    }

    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(self.address, &self.credentials).await
    }

    /// Connects and asks, in a bounded time.
    pub(crate) async fn ask<A, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<A, CliError>
    where
        F: Future<Output = Result<A, ClientError>>,
    {
        let asking = async {
            let client = self.connect().await?;
            ask(client).await
        };
        let Ok(answer) = tokio::time::timeout(ANSWER_TIME, asking).await else {
            let seconds = ANSWER_TIME.as_secs();
            let message = format!("`{}` did not answer in {seconds} s", self.address);
            let code = Code::SchedulerUnreachable;
            return Err(CliError::failed(Diagnostic::new(code, message)));
        };
        answer.map_err(|error| CliError::failed(error.diagnostic()))
    }
}

/// Puts a text on standard output.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| output::failure(&error))
}

/// How the scheduler regards a worker.
pub(crate) fn standing(worker: &wire::WorkerStatus) -> &'static str {
    match worker.standing() {
        wire::Standing::Unknown => "",
        wire::Standing::Active => "active",
        wire::Standing::Paused => "paused",
        wire::Standing::Retiring => "retiring",
        wire::Standing::Empty => "empty",
        wire::Standing::Suspect => "suspect",
    }
}

/// Left-aligned columns, two blanks apart.
pub(crate) fn columns<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

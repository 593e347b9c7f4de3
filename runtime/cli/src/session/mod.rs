//! A job on a cluster, from its submission to the last printed result.
//!
//! Owns the loop in which everything meets: reports of the scheduler, results that are fetched and
//! printed in order, processes that end, signals. A graph is submitted as it is. Statements of a
//! SQL text are submitted in waves; a statement whose result is a plan goes on as a graph of its
//! own. Results are fetched in windows of bounded size and only as fast as they are printed.

mod delivery;
mod drive;
mod fetching;
mod graphs;
mod results;

use std::time::Duration;

use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec_frame::script::ClusterSize;

use crate::attach;
use crate::error::CliError;
use crate::local::LocalCluster;
use crate::output::Writer;
use crate::progress::Progress;
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::work::PlannedWork;
use drive::Session;

/// Time to write what is there when the run ends early for another reason than its own failure.
const WRITE_TIME: Duration = Duration::from_millis(300);

/// Where the work runs.
pub(crate) struct Site<'a> {
    /// The cluster, if it is ours.
    pub(crate) cluster: Option<&'a mut LocalCluster>,
    /// The size of the cluster, if it is ours.
    pub(crate) size: Option<ClusterSize>,
    /// The scheduler.
    pub(crate) address: &'a str,
    /// Our identity.
    pub(crate) credentials: &'a Credentials,
    /// Ctrl-C and its like.
    pub(crate) signals: &'a Signals,
    /// Lines for people.
    pub(crate) terminal: &'a Terminal,
    /// How long to wait for a scheduler that takes the work.
    pub(crate) wait: Duration,
    /// How long the work may be without a scheduler once it runs.
    pub(crate) reconnect: Duration,
    /// The name under which another submission goes on with this one's work.
    pub(crate) run_id: Option<&'a str>,
    /// When to give up, and after how many seconds that is.
    pub(crate) deadline: Option<(tokio::time::Instant, u64)>,
}

impl Site<'_> {
    /// Ends only if the run has to.
    async fn trouble(&mut self) -> CliError {
        let signals = self.signals;
        let supervise = async {
            match &mut self.cluster {
                Some(cluster) => cluster.supervise().await,
                None => std::future::pending().await,
            }
        };
        let deadline = self.deadline;
        let too_late = async {
            match deadline {
                Some((at, _)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = signals.first() => CliError::interrupted(status),
            failure = supervise => failure,
            () = too_late => {
                let seconds = deadline.map_or(0, |(_, seconds)| seconds);
                let message = format!("the job took longer than its `{seconds}` s");
                let diagnostic = Diagnostic::new(Code::TaskTimeout, message);
                CliError::failed(diagnostic.with_hint("raise spec.activeDeadlineSeconds"))
            }
        }
    }

    /// Does something that the end of the cluster or a signal may interrupt.
    pub(crate) async fn guarded<T>(
        &mut self,
        doing: impl Future<Output = T>,
    ) -> Result<T, CliError> {
        tokio::select! {
            biased;
            done = doing => Ok(done),
            failure = self.trouble() => Err(failure),
        }
    }

    /// The error for a connection that is lost: that of the scheduler's process if it has ended.
    pub(crate) async fn disconnected(&mut self, diagnostic: Diagnostic) -> CliError {
        let cause = match &mut self.cluster {
            Some(cluster) => cluster.cause_of_disconnect().await,
            None => None,
        };
        cause.unwrap_or_else(|| CliError::failed(diagnostic))
    }
}

/// Runs the work and prints its results.
pub(crate) async fn run(
    mut site: Site<'_>,
    work: &PlannedWork,
    writer: Writer,
    progress: &mut Progress,
) -> Result<(), CliError> {
    let attached = attach::attach(&mut site, work).await?;
    let may_go_on = site.run_id.is_some();
    let mut session = Session::new(attached, work, writer.sending(), may_go_on);
    let mut result = session.drive(&mut site, progress).await;
    let is_jobs_own = result.is_ok() || session.has_failed();
    let goes_on = may_go_on && result.as_ref().is_err_and(CliError::is_interruption);
    // Without its end of the queue, the writer ends.
    let graphs = session.into_graphs();
    // What was printed last must be out before the error that follows it.
    let written = if is_jobs_own {
        site.guarded(writer.finish())
            .await
            .and_then(|written| written)
    } else {
        tokio::time::timeout(WRITE_TIME, writer.finish())
            .await
            .unwrap_or(Ok(()))
    };
    // A reader that went away ends the run quietly only if nothing else did.
    if result.is_ok() {
        result = written;
    }
    // Of a cluster that ends now, nothing needs to be tidied up.
    if site.cluster.is_none() && !goes_on {
        graphs.end(result.is_err()).await;
    }
    result
}

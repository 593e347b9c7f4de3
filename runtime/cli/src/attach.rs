//! From an address to a graph that the scheduler has taken.
//!
//! Owns the patience with a scheduler that is not there yet, as in a pod that starts beside it.
//! Invariants: what cannot change is an error at once; each cause is told once; every try submits
//! under the same name, so the work runs once even if an answer was lost.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oxidask_client::{Client, ClientError, GraphRun};
use oxidask_comm::Credentials;
use oxidask_diagnostic::Diagnostic;
use tokio::time::{Instant, sleep};

use crate::error::CliError;
use crate::session::Site;
use crate::work::PlannedWork;

/// Pause after the first failure; doubled with each.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Different causes that are told.
const CAUSES_TOLD_MAX: usize = 16;

/// Connects and submits, again and again for as long as the site allows it.
pub(crate) async fn attach(site: &mut Site<'_>, work: &PlannedWork) -> Result<GraphRun, CliError> {
    let (address, credentials) = (site.address, site.credentials);
    let name = unique_name(&work.name);
    let start = Instant::now();
    let mut pause = PAUSE_FIRST;
    let mut told = BTreeSet::new();
    loop {
        let error = match site
            .guarded(submit(address, credentials, &name, work))
            .await?
        {
            Ok(graph) => return Ok(graph),
            Err(error) => error,
        };
        let left = site.wait.saturating_sub(start.elapsed());
        if !error.may_pass() || left.is_zero() {
            return Err(site.disconnected(error.diagnostic()).await);
        }
        let cause = in_one_line(&error.diagnostic());
        if told.len() < CAUSES_TOLD_MAX && told.insert(cause.clone()) {
            site.terminal
                .notice(&format!("waiting for the scheduler: {cause}"));
        }
        site.guarded(sleep(pause.min(left))).await?;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn submit(
    address: &str,
    credentials: &Credentials,
    name: &str,
    work: &PlannedWork,
) -> Result<GraphRun, ClientError> {
    let client = Client::connect(address, credentials).await?;
    client.submit(name, &work.plan).await
}

fn in_one_line(diagnostic: &Diagnostic) -> String {
    let mut line = diagnostic.message.clone();
    for cause in &diagnostic.causes {
        line.push_str(": ");
        line.push_str(cause);
    }
    line
}

/// Graphs of two runs on one cluster must not meet.
fn unique_name(name: &str) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = nanos.map_or(0, |elapsed| elapsed.as_nanos());
    format!("{name}-{}-{nanos:x}", std::process::id())
}

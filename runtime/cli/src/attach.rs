//! From an address to a graph that the scheduler has taken.
//!
//! Owns the patience with a scheduler that is not there yet, as in a pod that starts beside it.
//! Invariants: what cannot change is an error at once; each cause is told once; every try submits
//! under the same name, so the work runs once even if an answer was lost.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oxidask_client::{Client, ClientError, GraphRun, Pauses};
use oxidask_comm::Credentials;
use oxidask_diagnostic::Diagnostic;
use oxidask_exec_frame::script::ClusterSize;
use oxidask_proto::wire;
use tokio::time::{Instant, sleep};

use crate::error::CliError;
use crate::session::Site;
use crate::work::{PlannedWork, SqlWork};

/// Pause after the first failure; they grow to the largest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Different causes that are told.
const CAUSES_TOLD_MAX: usize = 16;

/// A graph that the scheduler has taken.
pub(crate) struct Attached<'a> {
    /// The connection.
    pub(crate) client: Client,
    /// The graph's name.
    pub(crate) name: String,
    /// The graph: all of a graph, or the first wave of a SQL text.
    pub(crate) graph: GraphRun,
    /// The SQL text, planned for the cluster.
    pub(crate) sql: Option<Cow<'a, SqlWork>>,
}

/// Why the work could not be submitted.
enum Refusal {
    Client(ClientError),
    /// The work itself is to blame.
    Work(Diagnostic),
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// Connects and submits, again and again for as long as the site allows it.
pub(crate) async fn attach<'a>(
    site: &mut Site<'_>,
    work: &'a PlannedWork,
) -> Result<Attached<'a>, CliError> {
    let target = Target {
        address: site.address,
        credentials: site.credentials,
        reconnect: site.reconnect,
    };
    let name = match site.run_id {
        Some(id) => format!("{}-{id}", work.name),
        None => unique_name(&work.name),
    };
    // Once it is known it stays: the same name must always stand for the same tasks.
    let mut size = site.size;
    patiently(site, async || submit(target, &name, work, &mut size).await).await
}

/// Waits until the scheduler can be reached, for as long as the site allows it.
pub(crate) async fn reach(site: &mut Site<'_>) -> Result<(), CliError> {
    let (address, credentials) = (site.address, site.credentials);
    patiently(site, async || {
        Client::connect(address, credentials).await?;
        Ok(())
    })
    .await
}

async fn patiently<T>(
    site: &mut Site<'_>,
    mut trying: impl AsyncFnMut() -> Result<T, Refusal>,
) -> Result<T, CliError> {
    let start = Instant::now();
    let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
    let mut told = BTreeSet::new();
    loop {
        let error = match site.guarded(trying()).await? {
            Ok(done) => return Ok(done),
            Err(Refusal::Work(diagnostic)) => return Err(CliError::failed(diagnostic)),
            Err(Refusal::Client(error)) => error,
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
        site.guarded(sleep(pauses.next_pause().min(left))).await?;
    }
}

/// The scheduler.
#[derive(Clone, Copy)]
struct Target<'a> {
    address: &'a str,
    credentials: &'a Credentials,
    reconnect: Duration,
}

async fn submit<'a>(
    target: Target<'_>,
    name: &str,
    work: &'a PlannedWork,
    size: &mut Option<ClusterSize>,
) -> Result<Attached<'a>, Refusal> {
    let client = Client::connect(target.address, target.credentials).await?;
    let client = client.reconnecting_for(target.reconnect);
    let Some(sql) = &work.sql else {
        return Ok(Attached {
            graph: client.submit(name, &work.plan).await?,
            client,
            name: name.to_owned(),
            sql: None,
        });
    };
    // The cluster's size is asked for while the graph is opened, which takes as long.
    let asking = async {
        match *size {
            Some(size) => Ok(size),
            None => client
                .status()
                .await
                .map(|status| size_of(&status, sql.cluster)),
        }
    };
    let (graph, asked) = tokio::join!(client.open(name), asking);
    let (graph, asked) = (graph?, asked?);
    *size = Some(asked);
    let sql = sql.sized(asked).map_err(Refusal::Work)?;
    match &sql {
        Cow::Borrowed(_) => graph.send(work.plan.chunks()).await,
        Cow::Owned(sql) => {
            let plan = sql.wave(&sql.first_wave()).map_err(Refusal::Work)?;
            graph.send(plan.chunks()).await;
        }
    }
    Ok(Attached {
        client,
        name: name.to_owned(),
        graph,
        sql: Some(sql),
    })
}

/// What is there, or what the manifest promises if that is more: workers may still be on their way.
fn size_of(status: &wire::StatusReply, promised: ClusterSize) -> ClusterSize {
    let slots = status.workers.iter().map(|worker| u64::from(worker.slots));
    let bounded = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let memory = status.workers.iter().map(|worker| worker.memory_bytes);
    ClusterSize {
        workers: bounded(status.workers.len() as u64).max(promised.workers),
        slots: bounded(slots.sum()).max(promised.slots),
        memory_bytes: memory
            .filter(|bytes| *bytes > 0)
            .min()
            .unwrap_or(promised.memory_bytes),
    }
}

fn in_one_line(diagnostic: &Diagnostic) -> String {
    let mut line = diagnostic.message.clone();
    for cause in &diagnostic.causes {
        line.push_str(": ");
        line.push_str(cause);
    }
    line
}

/// Graphs of two runs on one cluster must not meet, unless they are meant to.
fn unique_name(name: &str) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = nanos.map_or(0, |elapsed| elapsed.as_nanos());
    // Pods of one moment may have the same time and the same process id.
    let random = RandomState::new().build_hasher().finish();
    format!("{name}-{}-{nanos:x}-{random:016x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_meet() {
        let names: BTreeSet<String> = (0..100).map(|_| unique_name("job")).collect();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|name| name.starts_with("job-")));
    }

    #[test]
    fn the_size_is_what_is_there_or_what_comes() {
        let promised = ClusterSize {
            workers: 2,
            slots: 4,
            memory_bytes: 100,
        };
        let mut status = wire::StatusReply::default();
        assert_eq!(size_of(&status, promised), promised);
        for memory_bytes in [0, 70, 50] {
            status.workers.push(wire::WorkerStatus {
                slots: 3,
                memory_bytes,
                ..Default::default()
            });
        }
        let there = ClusterSize {
            workers: 3,
            slots: 9,
            memory_bytes: 50,
        };
        assert_eq!(size_of(&status, promised), there);
    }
}

//! The graphs of a job that are on the cluster, and those on their way there.
//!
//! Owns their connections: opening, events, closing. Invariant: a graph that is over and printed is
//! closed, so that the scheduler forgets it before the job ends. If another submission may have to
//! go on, all stay, with their results, until the job ends: it hears of everything anew.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, select_all};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use oxidask_client::{Client, ClientError, GraphEvent, GraphRun};
use oxidask_diagnostic::Diagnostic;
use oxidask_proto::wire;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout_at;

/// Time to hand over the last messages.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// What a graph is for.
#[derive(Debug)]
pub(super) enum Role {
    /// The work itself.
    Graph,
    /// Statements, by task.
    Wave(Vec<usize>),
    /// The stages of one statement, with the tasks whose results are its result.
    Stages(usize, Vec<u32>),
}

/// A graph on the cluster.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) run: GraphRun,
    pub(super) role: Role,
    /// Wanted results that are there and not fetched yet, with their bytes.
    pub(super) ready: HashMap<u32, u64>,
    /// Fetched, and not wanted from the workers any more.
    pub(super) released: Vec<u32>,
    /// Results that were not fetched yet; counts only for waves.
    pub(super) unfetched: usize,
    /// Every wanted task is done or failed.
    pub(super) is_done: bool,
    /// Its scheduler is gone, and is expected to come back.
    pub(super) is_away: bool,
    /// The failure of an input, in case that of the input itself is not reported.
    pub(super) inherited_failure: Option<Diagnostic>,
}

/// A graph that was sent.
pub(super) struct Submitted {
    pub(super) role: Role,
    pub(super) outcome: Result<GraphRun, ClientError>,
}

/// All graphs of a job, numbered in the order in which they came to the cluster.
pub(super) struct Graphs {
    live: BTreeMap<usize, Live>,
    next: usize,
    submitting: FuturesUnordered<BoxFuture<'static, Submitted>>,
    /// Graphs of stages among those on their way.
    stages_submitting: usize,
    closing: JoinSet<()>,
    are_kept: bool,
    /// Bodies of graphs that write something.
    writes: Vec<Bytes>,
}

impl Graphs {
    /// None yet. If they are kept, nothing of them is let go before [`Self::end`].
    pub(super) fn new(are_kept: bool) -> Self {
        Self {
            are_kept,
            live: BTreeMap::new(),
            next: 0,
            submitting: FuturesUnordered::new(),
            stages_submitting: 0,
            closing: JoinSet::new(),
            writes: Vec::new(),
        }
    }

    /// What a graph that writes something runs: if it does not come to its end, what it has written
    /// and not shown is removed.
    pub(super) fn note_write(&mut self, bodies: Vec<Bytes>) {
        self.writes.extend(bodies);
    }

    /// A graph that the scheduler has taken; returns its number.
    pub(super) fn add(&mut self, run: GraphRun, role: Role) -> usize {
        let number = self.next;
        self.next += 1;
        let unfetched = match &role {
            Role::Wave(statements) => statements.len(),
            Role::Graph | Role::Stages(..) => 0,
        };
        let live = Live {
            run,
            role,
            ready: HashMap::new(),
            released: Vec::new(),
            unfetched,
            is_done: false,
            is_away: false,
            inherited_failure: None,
        };
        self.live.insert(number, live);
        number
    }

    pub(super) fn get(&self, number: usize) -> Option<&Live> {
        self.live.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Live> {
        self.live.get_mut(&number)
    }

    /// Whether nothing is on its way and every graph is done.
    pub(super) fn are_done(&self) -> bool {
        self.submitting.is_empty() && self.live.values().all(|live| live.is_done)
    }

    /// Whether a graph is without its scheduler.
    pub(super) fn any_is_away(&self) -> bool {
        self.live.values().any(|live| live.is_away)
    }

    /// Graphs of stages: those that are not done, and all.
    pub(super) fn stages(&self) -> (usize, usize) {
        let stages = self.live.values();
        let stages = stages.filter(|live| matches!(live.role, Role::Stages(..)));
        let (mut undone, mut all) = (self.stages_submitting, self.stages_submitting);
        for live in stages {
            undone += usize::from(!live.is_done);
            all += 1;
        }
        (undone, all)
    }

    /// Sends a graph; [`Graphs::next`] tells how it went.
    pub(super) fn submit(
        &mut self,
        client: Client,
        name: String,
        role: Role,
        chunks: impl Iterator<Item = wire::GraphChunk> + Send + 'static,
    ) {
        self.stages_submitting += usize::from(matches!(role, Role::Stages(..)));
        let sending = async move {
            let outcome = match client.open(&name).await {
                Ok(run) => {
                    run.send(chunks).await;
                    Ok(run)
                }
                Err(error) => Err(error),
            };
            Submitted { role, outcome }
        };
        self.submitting.push(sending.boxed());
    }

    /// Whether nothing is let go before the end.
    pub(super) fn are_kept(&self) -> bool {
        self.are_kept
    }

    /// Tells the scheduler what is not wanted any more.
    pub(super) fn release(&mut self) {
        for live in self.live.values_mut() {
            if self.are_kept {
                live.released.clear();
            } else if !live.released.is_empty() {
                live.run.release(std::mem::take(&mut live.released));
            }
        }
    }

    /// Stops all graphs. What is there stays.
    pub(super) fn cancel(&self) {
        for live in self.live.values() {
            live.run.cancel();
        }
    }

    /// Closes the graph without waiting for it, unless it is kept.
    pub(super) fn close(&mut self, number: usize) {
        if self.are_kept {
            return;
        }
        while self.closing.try_join_next().is_some() {}
        if let Some(mut live) = self.live.remove(&number) {
            live.run.release(std::mem::take(&mut live.released));
            self.closing.spawn(live.run.close());
        }
    }

    /// Closes all graphs, also those on their way, and waits a moment for that.
    pub(super) async fn end(mut self, is_cancelled: bool) {
        let deadline = tokio::time::Instant::now() + CLOSE_TIME;
        while let Ok(Some(submitted)) = timeout_at(deadline, self.submitting.next()).await {
            if let Ok(run) = submitted.outcome {
                self.add(run, submitted.role);
            }
        }
        if is_cancelled {
            self.cancel();
        }
        self.are_kept = false;
        for number in self.live.keys().copied().collect::<Vec<_>>() {
            self.close(number);
        }
        // The scheduler forgets a graph anyhow some time after its client is gone.
        let all = async { while self.closing.join_next().await.is_some() {} };
        let _ = timeout_at(deadline, all).await;
        if is_cancelled {
            let writes = std::mem::take(&mut self.writes);
            let discarded = spawn_blocking(move || oxidask_exec_frame::discard(&writes));
            // It is a courtesy: the next write to the place removes what is left.
            let _ = timeout_at(deadline + CLOSE_TIME, discarded).await;
        }
    }

    /// The next event of any graph. May be dropped while it waits.
    pub(super) async fn next_event(
        live: &mut BTreeMap<usize, Live>,
    ) -> (usize, Option<GraphEvent>) {
        if live.is_empty() {
            return std::future::pending().await;
        }
        let events = live.iter_mut().map(|(number, live)| {
            let event = live.run.next_event();
            async move { (*number, event.await) }.boxed()
        });
        select_all(events).await.0
    }

    /// Another event that has come already.
    pub(super) fn waiting_event(&mut self, number: usize) -> Option<GraphEvent> {
        let live = self.live.get_mut(&number)?;
        live.run.next_event().now_or_never().flatten()
    }

    /// What happens next: an event, or a graph was sent. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Happening {
        let (live, submitting) = (&mut self.live, &mut self.submitting);
        tokio::select! {
            (number, event) = Self::next_event(live) => Happening::Event(number, event),
            Some(submitted) = submitting.next(), if !submitting.is_empty() => {
                if matches!(submitted.role, Role::Stages(..)) {
                    self.stages_submitting -= 1;
                }
                Happening::Submitted(submitted)
            }
        }
    }
}

/// What has happened to a graph.
pub(super) enum Happening {
    Event(usize, Option<GraphEvent>),
    Submitted(Submitted),
}

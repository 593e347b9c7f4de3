//! One graph on a cluster, from its submission to the last printed result.
//!
//! Owns the loop in which everything meets: reports of the scheduler, results that are fetched and
//! printed in order, processes that end, signals. Results are fetched in windows of bounded size
//! and only as fast as they are printed.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use oxidask_client::{GraphEvent, GraphRun};
use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::Payload;
use tokio::sync::mpsc::error::TrySendError;

use crate::attach;
use crate::error::CliError;
use crate::local::LocalCluster;
use crate::output::{Item, Label, Sending, Writer};
use crate::progress::Progress;
use crate::signals::Signals;
use crate::terminal::Terminal;
use crate::work::PlannedWork;

/// Results of one window.
const WINDOW_RESULTS_MAX: usize = 4_096;
/// Bytes of one window, unless its first result alone has more.
const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// Pause before a result that could not be fetched is asked for again.
const REFETCH_PAUSE: Duration = Duration::from_millis(200);
/// Failed fetches in a row, while nothing is being computed, after which a result is given up.
const REFETCHES_MAX: u32 = 25;
/// Time that a finished result of a job that has failed may take to arrive.
const LAST_RESULTS_TIME: Duration = Duration::from_secs(5);
/// Time to hand over the last messages.
const CLOSE_TIME: Duration = Duration::from_millis(500);
/// Time to write what is there when the run ends early for another reason than its own failure.
const WRITE_TIME: Duration = Duration::from_millis(300);
/// Events taken, or results passed on, before the loop looks around again.
const BATCH_MAX: usize = 1_024;

type Fetched = (u32, Result<Payload, Diagnostic>);
type Window = Pin<Box<dyn Stream<Item = Fetched> + Send>>;

/// Where the work runs.
pub(crate) struct Site<'a> {
    /// The cluster, if it is ours.
    pub(crate) cluster: Option<&'a mut LocalCluster>,
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
    let graph = attach::attach(&mut site, work).await?;
    let mut session = Session::new(graph, work, writer.sending());
    let mut result = session.drive(&mut site, progress).await;
    let is_jobs_own = result.is_ok() || session.failure.is_some();
    let Session { graph, sending, .. } = session;
    drop(sending);
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
    if site.cluster.is_none() {
        if result.is_err() {
            graph.cancel();
        }
        // The scheduler forgets the graph anyhow some time after this client is gone.
        let _ = tokio::time::timeout(CLOSE_TIME, graph.close()).await;
    }
    result
}

struct Session<'a> {
    graph: GraphRun,
    work: &'a PlannedWork,
    sending: Sending,
    /// Wanted results that are there and not printed yet, with their bytes.
    ready: HashMap<u32, u64>,
    /// Position of the next output to fetch.
    next: usize,
    /// Fetched, and not wanted from the workers any more.
    released: Vec<u32>,
    window: Option<Window>,
    /// Positions of the outputs that the window delivers, last first.
    expected: Vec<usize>,
    pending: Option<Item>,
    refetch_at: Option<tokio::time::Instant>,
    refetches: u32,
    /// When a result was last received or passed on, or the job failed.
    moved_at: tokio::time::Instant,
    is_done: bool,
    /// Set once the job has failed: what is finished is still printed.
    failure: Option<Diagnostic>,
    /// The failure of an input, in case that of the input itself is not reported.
    inherited_failure: Option<Diagnostic>,
}

/// What the loop goes on with.
enum Move {
    Trouble(CliError),
    Event(Option<GraphEvent>),
    WriterReady,
    WriterEnded,
    Fetched(Option<Fetched>),
    AskAgain,
    GiveUp,
}

enum Step {
    Continue,
    Finished,
}

impl<'a> Session<'a> {
    fn new(graph: GraphRun, work: &'a PlannedWork, sending: Sending) -> Self {
        Self {
            graph,
            work,
            sending,
            ready: HashMap::new(),
            next: 0,
            released: Vec::new(),
            window: None,
            expected: Vec::new(),
            pending: None,
            refetch_at: None,
            refetches: 0,
            moved_at: tokio::time::Instant::now(),
            is_done: false,
            failure: None,
            inherited_failure: None,
        }
    }

    async fn drive(
        &mut self,
        site: &mut Site<'_>,
        progress: &mut Progress,
    ) -> Result<(), CliError> {
        loop {
            self.open_window();
            if !self.released.is_empty() {
                self.graph.release(std::mem::take(&mut self.released));
            }
            if let Step::Finished = self.state()? {
                return Ok(());
            }
            match self.next_move(site).await {
                Move::Trouble(failure) => return Err(failure),
                Move::Event(Some(event)) => {
                    if let Some(lost) = self.on_events(event, site, progress) {
                        return Err(site.disconnected(lost).await);
                    }
                }
                Move::Event(None) => {
                    let message = "the connection to the scheduler ended";
                    let diagnostic = Diagnostic::new(Code::SchedulerEnded, message);
                    return Err(site.disconnected(diagnostic).await);
                }
                // The writer knows why.
                Move::WriterEnded => return Ok(()),
                Move::WriterReady => {
                    self.moved_at = tokio::time::Instant::now();
                    self.pass_on()?;
                }
                Move::Fetched(fetched) => {
                    self.moved_at = tokio::time::Instant::now();
                    self.on_fetched(fetched)?;
                    self.pass_on()?;
                }
                Move::AskAgain => self.refetch_at = None,
                Move::GiveUp => {
                    self.window = None;
                    self.next = self.work.plan.outputs().len();
                }
            }
        }
    }

    /// Waits for whatever comes first. May be dropped while it waits.
    async fn next_move(&mut self, site: &mut Site<'_>) -> Move {
        let refetch_at = self.refetch_at;
        let is_fetching = self.pending.is_none() && self.window.is_some();
        let is_last_chance = is_fetching && self.failure.is_some();
        let give_up_at = Some(self.moved_at + LAST_RESULTS_TIME);
        tokio::select! {
            failure = site.trouble() => Move::Trouble(failure),
            event = self.graph.next_event() => Move::Event(event),
            permit = self.sending.reserve(), if self.pending.is_some() => match permit {
                Ok(_) => Move::WriterReady,
                Err(_) => Move::WriterEnded,
            },
            fetched = next_of(&mut self.window), if is_fetching => Move::Fetched(fetched),
            () = sleep_until(refetch_at), if refetch_at.is_some() => Move::AskAgain,
            () = sleep_until(give_up_at), if is_last_chance => Move::GiveUp,
        }
    }

    /// Whether anything is left to do.
    fn state(&self) -> Result<Step, CliError> {
        if self.window.is_some() || self.pending.is_some() || self.refetch_at.is_some() {
            return Ok(Step::Continue);
        }
        if let Some(failure) = &self.failure {
            return Err(CliError::failed(failure.clone()));
        }
        let is_printed = self.next == self.work.plan.outputs().len();
        Ok(if is_printed && self.is_done {
            Step::Finished
        } else {
            Step::Continue
        })
    }

    /// Takes an event and those that have come with it; the answer is why the connection is lost.
    fn on_events(
        &mut self,
        first: GraphEvent,
        site: &Site<'_>,
        progress: &mut Progress,
    ) -> Option<Diagnostic> {
        let mut next = Some(first);
        for _ in 0..BATCH_MAX {
            match next {
                Some(GraphEvent::Disconnected(diagnostic)) => return Some(diagnostic),
                Some(event) => self.on_event(event, site, progress),
                None => break,
            }
            next = self.graph.next_event().now_or_never().flatten();
        }
        if let Some(event) = next {
            self.on_event(event, site, progress);
        }
        None
    }

    fn on_event(&mut self, event: GraphEvent, site: &Site<'_>, progress: &mut Progress) {
        match event {
            GraphEvent::Ready(results) => {
                if self.failure.is_none() {
                    self.ready.extend(results);
                }
            }
            GraphEvent::Refused(diagnostic) => {
                self.moved_at = tokio::time::Instant::now();
                self.failure = Some(diagnostic);
            }
            GraphEvent::Failed {
                task,
                diagnostic,
                is_origin,
            } => {
                if self.failure.is_some() {
                    return;
                }
                if is_origin {
                    self.moved_at = tokio::time::Instant::now();
                    self.failure = Some(self.work.named(task, &diagnostic));
                    self.graph.cancel();
                } else {
                    self.inherited_failure
                        .get_or_insert_with(|| Diagnostic::clone(&diagnostic));
                }
            }
            GraphEvent::Progress(report) => {
                let running = report
                    .cluster
                    .as_ref()
                    .is_some_and(|cluster| cluster.running > 0);
                if running {
                    self.refetches = 0;
                }
                progress.update(&report, Instant::now());
            }
            GraphEvent::Notice(text) => {
                // Of our own processes we know better how they ended, and have said so.
                let is_known = site.cluster.is_some() && text.starts_with("worker ");
                if !is_known {
                    site.terminal.notice(&text);
                }
            }
            GraphEvent::Done => {
                self.is_done = true;
                if self.failure.is_none() {
                    self.moved_at = tokio::time::Instant::now();
                    self.failure = self.inherited_failure.take();
                }
            }
            GraphEvent::Disconnected(_) => {}
        }
    }

    /// Asks for the next results that are there: in order, and after a failure with gaps.
    fn open_window(&mut self) {
        if self.window.is_some() || self.refetch_at.is_some() {
            return;
        }
        let outputs = self.work.plan.outputs();
        let mut tasks = Vec::new();
        let mut window_bytes = 0;
        while self.next < outputs.len() && tasks.len() < WINDOW_RESULTS_MAX {
            let task = outputs[self.next];
            match self.ready.get(&task) {
                Some(bytes) => {
                    window_bytes += bytes;
                    if window_bytes > WINDOW_BYTES_MAX && !tasks.is_empty() {
                        break;
                    }
                    tasks.push(task);
                    self.expected.push(self.next);
                }
                None if self.failure.is_some() => {}
                None => break,
            }
            self.next += 1;
        }
        if tasks.is_empty() {
            return;
        }
        self.expected.reverse();
        self.window = Some(self.graph.fetch(tasks));
    }

    /// Passes on what is there without waiting.
    fn pass_on(&mut self) -> Result<(), CliError> {
        for _ in 0..BATCH_MAX {
            if let Some(item) = self.pending.take()
                && let Err(refused) = self.sending.try_send(item)
            {
                let (TrySendError::Full(item) | TrySendError::Closed(item)) = refused;
                self.pending = Some(item);
                return Ok(());
            }
            match next_of(&mut self.window).now_or_never() {
                Some(fetched) if self.window.is_some() => self.on_fetched(fetched)?,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn on_fetched(&mut self, fetched: Option<Fetched>) -> Result<(), CliError> {
        let Some((task, result)) = fetched else {
            self.window = None;
            let missing = self.expected.len();
            return if missing == 0 {
                Ok(())
            } else {
                self.ask_again(None)
            };
        };
        match result {
            Ok(payload) => {
                let Some(position) = self.expected.pop() else {
                    return Ok(());
                };
                self.refetches = 0;
                let label = self.work.label(position);
                self.pending = (label != Label::Silent).then_some(Item { label, payload });
                self.ready.remove(&task);
                self.released.push(task);
                Ok(())
            }
            Err(diagnostic) => self.ask_again(Some(diagnostic)),
        }
    }

    /// A result was lost on the way, most likely with its worker: it is computed again, and asked
    /// for again.
    fn ask_again(&mut self, diagnostic: Option<Diagnostic>) -> Result<(), CliError> {
        self.window = None;
        if self.failure.is_some() {
            // The graph is cancelled: nothing is computed any more.
            self.expected.pop();
            self.next = self.expected.pop().unwrap_or(self.next);
            self.expected.clear();
            return Ok(());
        }
        self.refetches += 1;
        if self.refetches > REFETCHES_MAX {
            let message = "the results stopped coming";
            let missing = || Diagnostic::new(Code::ResultUnavailable, message);
            return Err(CliError::failed(diagnostic.unwrap_or_else(missing)));
        }
        self.next = self.expected.pop().unwrap_or(self.next);
        self.expected.clear();
        self.refetch_at = Some(tokio::time::Instant::now() + REFETCH_PAUSE);
        Ok(())
    }
}

async fn next_of(window: &mut Option<Window>) -> Option<Fetched> {
    match window {
        Some(window) => window.next().await,
        None => None,
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

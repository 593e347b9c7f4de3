//! The loop of a job.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use oxidask_client::{Client, GraphEvent};
use oxidask_diagnostic::{Code, Diagnostic};

use super::Site;
use super::fetching::{Delivery, Fetching};
use super::graphs::{Graphs, Happening, Role, Submitted};
use super::results::{Outputs, Results, State};
use crate::attach::Attached;
use crate::error::CliError;
use crate::output::{Item, Sending};
use crate::progress::{Progress, duration};
use crate::work::{PlannedWork, SqlWork};

/// Time that a finished result of a job that has failed may take to arrive.
const LAST_RESULTS_TIME: Duration = Duration::from_secs(5);
/// Events taken, or results passed on, before the loop looks around again.
pub(super) const BATCH_MAX: usize = 1_024;
/// Statements whose stages are computed at a time, besides the one that is printed next.
const STAGES_COMPUTED_MAX: usize = 4;
/// Statements whose stages are on the cluster, also those that only wait to be printed.
const STAGES_KEPT_MAX: usize = 64;
/// Deaths of workers that are told; each graph hears of all.
const NOTICES_KEPT_MAX: usize = 64;

/// A job that runs.
pub(super) struct Session<'a> {
    pub(super) work: &'a PlannedWork,
    pub(super) sql: Option<Cow<'a, SqlWork>>,
    pub(super) client: Client,
    /// The name of the first graph; those of the others begin with it.
    pub(super) name: String,
    pub(super) graphs: Graphs,
    pub(super) results: Results<'a>,
    /// Statements whose result, perhaps a plan, can be fetched.
    pub(super) fetchable: BTreeSet<usize>,
    /// Statements whose plan can be submitted.
    pub(super) staged: BTreeSet<usize>,
    pub(super) held_bytes: u64,
    /// Results of statements, or plans.
    pub(super) early: Fetching,
    /// Outputs of a graph, in order.
    pub(super) printing: Fetching,
    pub(super) sending: Sending,
    pub(super) pending: Option<Item>,
    /// When a result was last received or passed on, or the job failed.
    pub(super) moved_at: tokio::time::Instant,
    pub(super) told: Vec<String>,
    /// Since when graphs are without their scheduler.
    pub(super) away_since: Option<Instant>,
    /// Set once the job has failed: what is finished is still printed.
    pub(super) failure: Option<Diagnostic>,
}

/// What the loop goes on with.
enum Move {
    Trouble(CliError),
    Graph(Happening),
    WriterReady,
    WriterEnded,
    Printing(Delivery),
    Early(Delivery),
    AskAgain,
    GiveUp,
}

enum Step {
    Continue,
    Finished,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        attached: Attached<'a>,
        work: &'a PlannedWork,
        sending: Sending,
        may_go_on: bool,
    ) -> Self {
        let Attached {
            client,
            name,
            graph,
            sql,
        } = attached;
        let (mut results, role) = match &sql {
            Some(sql) => (Results::of_script(&sql.tasks), Role::Wave(sql.first_wave())),
            None => (Results::of_graph(work.plan.outputs()), Role::Graph),
        };
        let mut graphs = Graphs::new(may_go_on);
        let first = results.next_wave();
        let number = graphs.add(graph, role);
        for (task, statement) in (0..).zip(first) {
            results.set(
                statement,
                State::Planned {
                    graph: number,
                    task,
                },
            );
        }
        Self {
            work,
            sql,
            client,
            name,
            graphs,
            results,
            fetchable: BTreeSet::new(),
            staged: BTreeSet::new(),
            held_bytes: 0,
            early: Fetching::default(),
            printing: Fetching::default(),
            sending,
            pending: None,
            moved_at: tokio::time::Instant::now(),
            told: Vec::new(),
            away_since: None,
            failure: None,
        }
    }

    /// Whether the job itself has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Ends the printing.
    pub(super) fn into_graphs(self) -> Graphs {
        self.graphs
    }

    pub(super) async fn drive(
        &mut self,
        site: &mut Site<'_>,
        progress: &mut Progress,
    ) -> Result<(), CliError> {
        loop {
            self.submit_stages();
            self.submit_wave();
            self.open_early();
            while self.pass_on()? {}
            self.graphs.release();
            if let Step::Finished = self.state()? {
                return Ok(());
            }
            match self.next_move(site).await {
                Move::Trouble(failure) => return Err(failure),
                Move::Graph(Happening::Event(graph, event)) => {
                    if let Some(lost) = self.on_events(graph, event, site, progress) {
                        return Err(site.disconnected(lost).await);
                    }
                }
                Move::Graph(Happening::Submitted(submitted)) => {
                    if let Some(lost) = self.on_submitted(submitted) {
                        return Err(site.disconnected(lost).await);
                    }
                }
                // The writer knows why.
                Move::WriterEnded => return Ok(()),
                Move::WriterReady => self.moved_at = tokio::time::Instant::now(),
                Move::Printing(delivery) => self.on_printing(delivery)?,
                Move::Early(delivery) => self.on_early_batch(delivery)?,
                Move::AskAgain => {
                    let now = tokio::time::Instant::now();
                    self.early.ask_again(now);
                    self.printing.ask_again(now);
                }
                Move::GiveUp => self.give_up(),
            }
        }
    }

    /// Waits for whatever comes first. May be dropped while it waits.
    async fn next_move(&mut self, site: &mut Site<'_>) -> Move {
        let refetch_at = self.early.refetch_at().into_iter();
        let refetch_at = refetch_at.chain(self.printing.refetch_at()).min();
        let can_print = self.pending.is_none() && self.printing.is_open();
        let is_fetching = can_print || self.early.is_open();
        let is_last_chance = is_fetching && self.failure.is_some();
        let give_up_at = Some(self.moved_at + LAST_RESULTS_TIME);
        let (early, printing) = (&mut self.early, &mut self.printing);
        tokio::select! {
            failure = site.trouble() => Move::Trouble(failure),
            happening = self.graphs.next() => Move::Graph(happening),
            permit = self.sending.reserve(), if self.pending.is_some() => match permit {
                Ok(_) => Move::WriterReady,
                Err(_) => Move::WriterEnded,
            },
            delivery = printing.next(), if can_print => Move::Printing(delivery),
            delivery = early.next(), if early.is_open() => Move::Early(delivery),
            () = sleep_until(refetch_at), if refetch_at.is_some() => Move::AskAgain,
            () = sleep_until(give_up_at), if is_last_chance => Move::GiveUp,
        }
    }

    /// Whether anything is left to do.
    fn state(&self) -> Result<Step, CliError> {
        let is_busy = self.pending.is_some() || !self.early.is_idle() || !self.printing.is_idle();
        if is_busy {
            return Ok(Step::Continue);
        }
        if let Some(failure) = &self.failure {
            return Err(CliError::failed(failure.clone()));
        }
        Ok(
            if self.results.front().is_none() && self.graphs.are_done() {
                Step::Finished
            } else {
                Step::Continue
            },
        )
    }

    /// The job has failed: everything stops, but what is finished is still printed.
    pub(super) fn fail(&mut self, failure: Diagnostic) {
        if self.failure.is_none() {
            self.moved_at = tokio::time::Instant::now();
            self.failure = Some(failure);
            self.graphs.cancel();
            self.staged.clear();
        }
    }

    fn give_up(&mut self) {
        self.early.give_up();
        self.printing.give_up();
        self.results.give_up();
    }

    // ---- graphs ----

    /// Submits the statements that wait for nothing any more.
    fn submit_wave(&mut self) {
        let Some(sql) = self.sql.as_deref().filter(|_| self.failure.is_none()) else {
            return;
        };
        let wave = self.results.next_wave();
        // What is ready at the same time is chance, and the same name must always stand for the
        // same tasks.
        let size = if self.graphs.are_kept() {
            1
        } else {
            usize::MAX
        };
        for wave in wave.chunks(size) {
            match sql.wave(wave) {
                Ok(plan) => {
                    let first = wave.first().copied().unwrap_or_default();
                    let name = format!("{}/wave-{first}", self.name);
                    let chunks: Vec<_> = plan.chunks().collect();
                    let role = Role::Wave(wave.to_vec());
                    self.graphs
                        .submit(self.client.clone(), name, role, chunks.into_iter());
                }
                Err(failure) => return self.fail(failure),
            }
        }
    }

    /// Submits plans as graphs of their own, some at a time. What is printed next never waits.
    fn submit_stages(&mut self) {
        let Some(sql) = self.sql.as_deref() else {
            return;
        };
        let front = self.results.front();
        while let Some(statement) = self.staged.first().copied() {
            let (computed, kept) = self.graphs.stages();
            let has_room = computed < STAGES_COMPUTED_MAX && kept < STAGES_KEPT_MAX;
            if !has_room && front != Some(statement) {
                return;
            }
            self.staged.remove(&statement);
            let Some(state) = self.results.state_mut(statement) else {
                return;
            };
            if let State::Staged(planned, bytes) = std::mem::replace(state, State::Submitted) {
                self.held_bytes = self.held_bytes.saturating_sub(bytes);
                let key = sql
                    .tasks
                    .get(statement)
                    .map_or("", |task| task.key.as_str());
                let name = format!("{}/{key}", self.name);
                let role = Role::Stages(statement, planned.outputs().to_vec());
                let is_write = self.sql.as_deref().and_then(|sql| sql.tasks.get(statement));
                if is_write.is_some_and(|task| !task.is_table) {
                    self.graphs.note_write(planned.bodies());
                }
                let chunks = planned.into_chunks();
                self.graphs.submit(self.client.clone(), name, role, chunks);
            }
        }
    }

    /// A graph was sent; the answer is why the connection is lost.
    fn on_submitted(&mut self, submitted: Submitted) -> Option<Diagnostic> {
        let run = match submitted.outcome {
            Ok(run) => run,
            Err(error) => return Some(error.diagnostic()),
        };
        if self.failure.is_some() {
            run.cancel();
        }
        let number = self.graphs.add(run, submitted.role);
        match &self.graphs.get(number)?.role {
            Role::Graph => {}
            Role::Wave(statements) => {
                for (task, statement) in (0..).zip(statements) {
                    let graph = number;
                    self.results.set(*statement, State::Planned { graph, task });
                }
            }
            Role::Stages(statement, outputs) => {
                let outputs = Outputs::new(number, outputs.clone());
                self.results.set(*statement, State::Running(outputs));
            }
        }
        None
    }

    /// Takes an event and those that have come with it; the answer is why the connection is lost.
    fn on_events(
        &mut self,
        graph: usize,
        first: Option<GraphEvent>,
        site: &Site<'_>,
        progress: &mut Progress,
    ) -> Option<Diagnostic> {
        let Some(mut event) = first else {
            let message = "the connection to the scheduler ended";
            return Some(Diagnostic::new(Code::SchedulerEnded, message));
        };
        for _ in 0..BATCH_MAX {
            if let GraphEvent::Disconnected(diagnostic) = event {
                return Some(diagnostic);
            }
            self.on_event(graph, event, site, progress);
            event = self.graphs.waiting_event(graph)?;
        }
        if let GraphEvent::Disconnected(diagnostic) = event {
            return Some(diagnostic);
        }
        self.on_event(graph, event, site, progress);
        None
    }

    fn on_event(
        &mut self,
        graph: usize,
        event: GraphEvent,
        site: &Site<'_>,
        progress: &mut Progress,
    ) {
        match event {
            GraphEvent::Ready(results) => self.on_ready(graph, results),
            GraphEvent::Refused(diagnostic) => self.fail(diagnostic),
            GraphEvent::Failed {
                task,
                diagnostic,
                is_origin: true,
            } => {
                let failure = self.work.named(task, &diagnostic);
                self.fail(failure);
            }
            GraphEvent::Failed { diagnostic, .. } => {
                if let Some(live) = self.graphs.get_mut(graph) {
                    live.inherited_failure
                        .get_or_insert_with(|| Diagnostic::clone(&diagnostic));
                }
            }
            GraphEvent::Progress(report) => {
                let cluster = report.cluster.as_ref();
                if cluster.is_some_and(|cluster| cluster.running > 0) {
                    self.early.has_hope();
                    self.printing.has_hope();
                }
                progress.update(graph, self.title(graph), report, Instant::now());
            }
            GraphEvent::Notice(text) => self.tell(&text, site),
            GraphEvent::Done => self.on_done(graph),
            GraphEvent::Reconnecting(why) => self.on_connection(graph, Some(&why), site),
            GraphEvent::Reconnected => self.on_connection(graph, None, site),
            GraphEvent::Disconnected(_) => {}
        }
    }

    /// What distinguishes the groups of a graph from those of others.
    fn title(&self, graph: usize) -> Option<&str> {
        match self.graphs.get(graph)?.role {
            Role::Stages(statement, _) => {
                let task = self.sql.as_deref()?.tasks.get(statement)?;
                Some(&task.key)
            }
            Role::Graph | Role::Wave(_) => None,
        }
    }

    /// Every graph hears of a worker's death.
    fn tell(&mut self, text: &str, site: &Site<'_>) {
        // Of our own processes we know better how they ended, and have said so.
        let is_known = site.cluster.is_some() && text.starts_with("worker ");
        let what = text.split(';').next().unwrap_or_default();
        if is_known || self.told.iter().any(|told| told == what) {
            return;
        }
        if self.told.len() == NOTICES_KEPT_MAX {
            self.told.remove(0);
        }
        self.told.push(what.to_owned());
        site.terminal.notice(text);
    }

    /// The connection of a graph is lost, or is there again. All graphs have the same scheduler, so
    /// it is told once.
    fn on_connection(&mut self, graph: usize, lost: Option<&Diagnostic>, site: &Site<'_>) {
        let was_away = self.graphs.any_is_away();
        if let Some(live) = self.graphs.get_mut(graph) {
            live.is_away = lost.is_some();
        }
        match lost {
            Some(why) if !was_away => {
                self.away_since = Some(Instant::now());
                let line = format!("reconnecting to the scheduler: {}", why.message);
                site.terminal.notice(&line);
            }
            None if !self.graphs.any_is_away() => {
                let Some(since) = self.away_since.take() else {
                    return;
                };
                // What was lost in that time counts from now.
                self.early.has_hope();
                self.printing.has_hope();
                let seconds = duration(since.elapsed().as_secs_f64());
                let line = format!("connected to the scheduler again after {seconds}");
                site.terminal.notice(&line);
            }
            _ => {}
        }
    }

    fn on_ready(&mut self, graph: usize, results: Vec<(u32, u64)>) {
        let Some(live) = self
            .graphs
            .get_mut(graph)
            .filter(|_| self.failure.is_none())
        else {
            return;
        };
        if let Role::Wave(statements) = &live.role {
            let of_tasks = results
                .iter()
                .filter_map(|(task, _)| statements.get(*task as usize));
            for statement in of_tasks {
                if let Some(State::Planned { .. }) = self.results.state(*statement) {
                    self.fetchable.insert(*statement);
                }
            }
        }
        live.ready.extend(results);
    }

    fn on_done(&mut self, graph: usize) {
        let Some(live) = self.graphs.get_mut(graph) else {
            return;
        };
        if self.failure.is_some() {
            return;
        }
        live.is_done = true;
        let failure = live.inherited_failure.take();
        if let (None, Role::Stages(statement, _)) = (&failure, &live.role) {
            self.results.computed(*statement);
        }
        if let Some(failure) = failure {
            self.fail(failure);
        } else {
            self.close_if_over(graph);
        }
    }

    /// Closes a graph of which nothing is wanted any more, unless it is the work itself.
    pub(super) fn close_if_over(&mut self, graph: usize) {
        let is_over = self.graphs.get(graph).is_some_and(|live| {
            live.is_done
                && match &live.role {
                    Role::Graph => false,
                    Role::Wave(_) => live.unfetched == 0,
                    Role::Stages(statement, _) => {
                        matches!(self.results.state(*statement), Some(State::Printed))
                    }
                }
        });
        if is_over {
            self.graphs.close(graph);
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

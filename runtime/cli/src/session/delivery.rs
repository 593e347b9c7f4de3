//! What the loop does with results: those of statements, which may be plans, and those that are
//! printed, in order.

use futures::FutureExt;
use oxidask_client::PlannedGraph;
use oxidask_diagnostic::Diagnostic;
use oxidask_store::{Payload, PayloadKind};
use tokio::sync::mpsc::error::TrySendError;

use super::drive::{BATCH_MAX, Session};
use super::fetching::{Delivery, Outcome, WINDOW_BYTES_MAX, WINDOW_RESULTS_MAX};
use super::graphs::Role;
use super::results::State;
use crate::error::CliError;
use crate::output::{Item, Label};

/// Bytes of results and plans of statements that are here before their turn.
const HELD_BYTES_MAX: u64 = WINDOW_BYTES_MAX;

impl Session<'_> {
    // ---- results of statements ----

    /// Fetches results of statements as soon as they are there: they may be plans. Those that come
    /// before their turn are bounded in bytes; what is printed next never waits.
    pub(super) fn open_early(&mut self) {
        if !self.early.is_idle() || self.fetchable.is_empty() {
            return;
        }
        let front = self.results.front();
        let mut graph = None;
        let mut asked = Vec::new();
        let mut bytes = self.held_bytes;
        for statement in &self.fetchable {
            let Some(State::Planned { graph: of, task }) = self.results.state(*statement) else {
                continue;
            };
            let Some(live) = self
                .graphs
                .get(*of)
                .filter(|_| graph.is_none_or(|g| g == *of))
            else {
                continue;
            };
            let result_bytes = live.ready.get(task).copied().unwrap_or(0);
            let is_next = front == Some(*statement);
            if !is_next && bytes.saturating_add(result_bytes) > HELD_BYTES_MAX {
                continue;
            }
            bytes = bytes.saturating_add(result_bytes);
            graph = Some(*of);
            asked.push((*task, *statement));
            if asked.len() == WINDOW_RESULTS_MAX {
                break;
            }
        }
        if let Some(number) = graph
            && let Some(live) = self.graphs.get(number)
        {
            for (_, statement) in &asked {
                self.fetchable.remove(statement);
            }
            self.early.open((number, &live.run), asked);
        }
    }

    /// Takes a delivery and those that have come with it.
    pub(super) fn on_early_batch(&mut self, first: Delivery) -> Result<(), CliError> {
        self.on_early(first)?;
        for _ in 0..BATCH_MAX {
            match self.early.next().now_or_never() {
                Some(delivery) if self.early.is_open() => self.on_early(delivery)?,
                _ => break,
            }
        }
        Ok(())
    }

    fn on_early(&mut self, delivery: Delivery) -> Result<(), CliError> {
        self.moved_at = tokio::time::Instant::now();
        let graph = self.early.graph();
        match self.early.take(delivery) {
            Outcome::Got(statement, task, payload) => {
                if let Some(live) = self.graphs.get_mut(graph) {
                    live.ready.remove(&task);
                    live.released.push(task);
                    live.unfetched = live.unfetched.saturating_sub(1);
                }
                self.take_result(statement, payload);
                self.close_if_over(graph);
                Ok(())
            }
            Outcome::Over(mut missing, error) => {
                if missing.is_empty() {
                    return Ok(());
                }
                if self.failure.is_some() {
                    // The graphs are cancelled: nothing is computed any more.
                    missing.pop_front();
                } else {
                    self.early.pause(error).map_err(CliError::failed)?;
                }
                self.fetchable.extend(missing);
                Ok(())
            }
        }
    }

    /// The result of a statement is here: a plan, or what is printed.
    fn take_result(&mut self, statement: usize, payload: Payload) {
        if payload.kind != PayloadKind::Graph {
            self.held_bytes += payload.len();
            self.results.set(statement, State::Held(payload));
            self.results.computed(statement);
            return;
        }
        if self.failure.is_some() {
            self.results.set(statement, State::Printed);
            return;
        }
        match PlannedGraph::from_payload(&payload) {
            Ok(planned) => {
                let staged = State::Staged(Box::new(planned), payload.len());
                self.held_bytes += payload.len();
                self.results.set(statement, staged);
                self.staged.insert(statement);
            }
            Err(error) => self.fail(Diagnostic::from_error(&error)),
        }
    }

    // ---- printing ----

    /// Passes on what is there, in order and without waiting. True if there is more.
    pub(super) fn pass_on(&mut self) -> Result<bool, CliError> {
        for _ in 0..BATCH_MAX {
            if let Some(item) = self.pending.take()
                && let Err(refused) = self.sending.try_send(item)
            {
                let (TrySendError::Full(item) | TrySendError::Closed(item)) = refused;
                self.pending = Some(item);
                return Ok(false);
            }
            if self.printing.is_open() {
                match self.printing.next().now_or_never() {
                    Some(delivery) => self.on_printing(delivery)?,
                    None => return Ok(false),
                }
                continue;
            }
            let front = self.results.front();
            if !front.is_some_and(|front| self.print_next(front)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at what is printed next; whether that made something happen.
    fn print_next(&mut self, front: usize) -> bool {
        let has_failed = self.failure.is_some();
        match self.results.state(front) {
            Some(State::Held(_)) => {
                if let Some(State::Held(payload)) = self.results.finish(front) {
                    self.held_bytes -= payload.len();
                    let label = self
                        .sql
                        .as_deref()
                        .map_or(Label::Silent, |sql| sql.label(front));
                    self.pending = (label != Label::Silent).then(|| Item::whole(label, payload));
                }
                true
            }
            Some(State::Running(_)) => self.print_outputs(front),
            Some(State::Planned { .. }) => {
                let is_coming = self.early.is_open() || self.fetchable.contains(&front);
                self.skip_if(front, has_failed && !is_coming)
            }
            Some(State::Waiting | State::Submitted | State::Staged(..)) => {
                self.skip_if(front, has_failed)
            }
            Some(State::Printed) | None => false,
        }
    }

    fn skip_if(&mut self, statement: usize, is_hopeless: bool) -> bool {
        if is_hopeless {
            self.results.set(statement, State::Printed);
        }
        is_hopeless
    }

    /// Opens the next window of outputs, or finds that there are no more.
    fn print_outputs(&mut self, front: usize) -> bool {
        if !self.printing.is_idle() {
            return false;
        }
        let has_failed = self.failure.is_some();
        let Some(State::Running(outputs)) = self.results.state_mut(front) else {
            return false;
        };
        let graph = outputs.graph;
        let Some(live) = self.graphs.get(graph) else {
            return self.skip_if(front, true);
        };
        let is_part = matches!(live.role, Role::Stages(..));
        // Of a table that will never be whole, nothing more is printed.
        if has_failed && is_part && !live.is_done {
            return self.skip_if(front, true);
        }
        let mut asked = Vec::new();
        let mut window_bytes = 0;
        while outputs.next < outputs.tasks.len() && asked.len() < WINDOW_RESULTS_MAX {
            let task = outputs.tasks[outputs.next];
            match live.ready.get(&task) {
                Some(bytes) => {
                    window_bytes += bytes;
                    if window_bytes > WINDOW_BYTES_MAX && !asked.is_empty() {
                        break;
                    }
                    asked.push((task, outputs.next));
                }
                // After a failure with gaps.
                None if has_failed => {}
                None => break,
            }
            outputs.next += 1;
        }
        if !asked.is_empty() {
            self.printing.open((graph, &live.run), asked);
            return true;
        }
        let is_over = outputs.next == outputs.tasks.len();
        if is_over {
            self.results.finish(front);
            self.close_if_over(graph);
        }
        is_over
    }

    pub(super) fn on_printing(&mut self, delivery: Delivery) -> Result<(), CliError> {
        self.moved_at = tokio::time::Instant::now();
        let graph = self.printing.graph();
        match self.printing.take(delivery) {
            Outcome::Got(position, task, payload) => {
                if let Some(live) = self.graphs.get_mut(graph) {
                    live.ready.remove(&task);
                    live.released.push(task);
                }
                self.pending = self.item(position, payload);
                Ok(())
            }
            Outcome::Over(mut missing, error) => {
                if missing.is_empty() {
                    return Ok(());
                }
                if self.failure.is_some() {
                    missing.pop_front();
                } else {
                    self.printing.pause(error).map_err(CliError::failed)?;
                }
                let front = self.results.front();
                let state = front.and_then(|front| self.results.state_mut(front));
                if let (Some(State::Running(outputs)), Some(first)) = (state, missing.front()) {
                    outputs.next = *first;
                }
                Ok(())
            }
        }
    }

    /// An output of the graph that is printed now.
    fn item(&self, position: usize, payload: Payload) -> Option<Item> {
        let front = self.results.front()?;
        let Some(State::Running(outputs)) = self.results.state(front) else {
            return None;
        };
        let Some(sql) = self.sql.as_deref() else {
            let label = self.work.label(position);
            return (label != Label::Silent).then(|| Item::whole(label, payload));
        };
        let label = sql.label(front);
        (label != Label::Silent).then(|| Item {
            label,
            payload,
            is_first: position == 0,
            is_last: position + 1 == outputs.tasks.len(),
        })
    }
}

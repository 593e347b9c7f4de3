//! Results, read through the scheduler's relay.
//!
//! Owns the reading of one long list of tasks in requests of [`TASKS_PER_REQUEST`], and the putting
//! together of large results. Invariants: each task is answered exactly once, in the order of the
//! list; HTTP/2 makes the scheduler wait for a reader that is slow; when a request breaks, what is
//! missing is asked for again, at most [`BREAKS_MAX`] times in a row without an answer between.

use std::collections::VecDeque;
use std::vec::IntoIter;

use bytes::Bytes;
use futures::Stream;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_store::{Payload, PayloadKind};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::error::{may_pass, session_ended};
use crate::link::{PAUSE_FIRST, PAUSE_MAX, Standing};
use crate::pauses::Pauses;

/// Tasks in one request.
const TASKS_PER_REQUEST: usize = 10_000;

/// Requests in a row that may break before anything is answered. While the graph's session is being
/// connected again, nothing is asked.
const BREAKS_MAX: u32 = 10;

/// A task with its result.
pub(crate) type Answer = (u32, Result<Payload, Diagnostic>);

/// Reads the results of tasks of one graph.
pub(crate) fn fetch(
    client: SchedulerClient<Channel>,
    standing: watch::Receiver<Standing>,
    graph: u32,
    tasks: Vec<u32>,
) -> impl Stream<Item = Answer> + Send + 'static {
    let reader = Reader {
        client,
        standing,
        breaks: 0,
        pauses: Pauses::new(PAUSE_FIRST, PAUSE_MAX),
        graph,
        tasks: tasks.into_iter(),
        asked: VecDeque::new(),
        inbound: None,
        large: None,
        answers: VecDeque::new(),
    };
    futures::stream::unfold(reader, |mut reader| async move {
        let answer = reader.next().await?;
        Some((answer, reader))
    })
}

struct Reader {
    client: SchedulerClient<Channel>,
    /// Of the graph's session.
    standing: watch::Receiver<Standing>,
    breaks: u32,
    pauses: Pauses,
    graph: u32,
    tasks: IntoIter<u32>,
    /// Asked for and not answered yet.
    asked: VecDeque<u32>,
    inbound: Option<Streaming<wire::FetchChunk>>,
    /// The large result whose parts arrive.
    large: Option<(u32, Vec<Bytes>)>,
    answers: VecDeque<Answer>,
}

impl Reader {
    async fn next(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            if self.asked.is_empty() {
                self.asked
                    .extend(self.tasks.by_ref().take(TASKS_PER_REQUEST));
                if self.asked.is_empty() {
                    return None;
                }
                self.ask().await;
            } else {
                self.read().await;
            }
        }
    }

    async fn ask(&mut self) {
        let graph = self.graph;
        let tasks = self
            .asked
            .iter()
            .map(|task| wire::TaskId { graph, task: *task })
            .collect();
        self.large = None;
        let request = wire::FetchRequest {
            tasks,
            places_wanted: false,
        };
        match self.client.fetch(request).await {
            Ok(response) => self.inbound = Some(response.into_inner()),
            Err(status) => self.broke(session_ended(Some(&status))).await,
        }
    }

    /// What is missing is asked for again as soon as that may help.
    async fn broke(&mut self, why: Diagnostic) {
        self.inbound = None;
        self.large = None;
        self.breaks += 1;
        if self.breaks > BREAKS_MAX || !may_pass(&why) {
            self.fail_rest(&why);
            return;
        }
        sleep(self.pauses.next_pause()).await;
        loop {
            let standing = self.standing.borrow_and_update().clone();
            match standing {
                Standing::Connected => return,
                Standing::Over(reason) => {
                    self.fail_rest(&reason);
                    return;
                }
                // Whoever reads outlives the graph's session.
                Standing::Reconnecting => {
                    if self.standing.changed().await.is_err() {
                        self.fail_rest(&why);
                        return;
                    }
                }
            }
        }
    }

    async fn read(&mut self) {
        let Some(inbound) = &mut self.inbound else {
            self.ask().await;
            return;
        };
        match inbound.message().await {
            Ok(Some(chunk)) => {
                if let Err(what) = self.take(chunk) {
                    self.inbound = None;
                    self.fail_rest(&misunderstood(what));
                }
            }
            Ok(None) => self.broke(session_ended(None)).await,
            Err(status) => self.broke(session_ended(Some(&status))).await,
        }
    }

    fn take(&mut self, chunk: wire::FetchChunk) -> Result<(), &'static str> {
        for small in chunk.small {
            self.expect(small.task)?;
            self.answer(small.kind, vec![small.data]);
        }
        if let Some(fault) = chunk.fault {
            self.expect(chunk.task)?;
            self.large = None;
            if let Some(task) = self.asked.pop_front() {
                self.answers.push_back((task, Err(fault.into())));
            }
            return Ok(());
        }
        if chunk.is_start {
            self.expect(chunk.task)?;
            self.large = Some((chunk.kind, Vec::new()));
        }
        if !chunk.data.is_empty() {
            let (_, parts) = self.large.as_mut().ok_or("data without a start")?;
            parts.push(chunk.data);
        }
        if chunk.is_end {
            let (kind, parts) = self.large.take().ok_or("an end without a start")?;
            self.answer(kind, parts);
        }
        Ok(())
    }

    fn expect(&self, task: Option<wire::TaskId>) -> Result<(), &'static str> {
        let expected = self.asked.front().map(|task| wire::TaskId {
            graph: self.graph,
            task: *task,
        });
        if expected.is_some() && task == expected {
            Ok(())
        } else {
            Err("an answer out of order")
        }
    }

    fn answer(&mut self, kind: u32, parts: Vec<Bytes>) {
        let Some(task) = self.asked.pop_front() else {
            return;
        };
        self.breaks = 0;
        self.pauses.reset();
        let payload = PayloadKind::from_number(kind)
            .map(|kind| Payload { kind, parts })
            .ok_or_else(|| misunderstood("a result is of an unknown kind"));
        self.answers.push_back((task, payload));
    }

    fn fail_rest(&mut self, why: &Diagnostic) {
        self.inbound = None;
        let failed = self.asked.drain(..).map(|task| (task, Err(why.clone())));
        self.answers.extend(failed);
    }
}

fn misunderstood(what: &str) -> Diagnostic {
    let message = format!("the scheduler's answer cannot be understood: {what}");
    Diagnostic::new(Code::ProtocolMismatch, message)
}

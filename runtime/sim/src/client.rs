//! Clients: they open graphs, send them, read what they want, go away and come back.

use std::collections::BTreeSet;

use oxidask_core::{GraphChunk, GraphId, TaskIndex, TaskRef};

use crate::graphs::Plan;
use crate::network::{Happening, Link, Note, Peer, Up};
use crate::open_ended::WISH_PAUSE_MAX;
use crate::world::World;

/// Time between two tries to connect.
const AWAY_MICROS: u64 = 50_000;
/// Longest pause between two chunks.
const CHUNK_PAUSE_MAX: u64 = 20_000;

/// One client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) link: Option<Link>,
    /// How long it stays away when its connection ends.
    pub(crate) away_micros: u64,
}

/// A graph as its client sees it.
#[derive(Debug)]
pub(crate) struct GraphRun {
    pub(crate) id: Option<GraphId>,
    pub(crate) chunks: Vec<GraphChunk>,
    pub(crate) values: Vec<Option<u64>>,
    pub(crate) has_failed: Vec<bool>,
    asked: BTreeSet<u32>,
    pub(crate) is_done: bool,
    pub(crate) is_cancelled: bool,
    pub(crate) is_closed: bool,
    /// The graph's number when it was attached to last, and chunks that need not be sent again.
    promised: Option<(GraphId, u32)>,
}

impl GraphRun {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            id: None,
            chunks: plan.chunks(),
            values: vec![None; plan.tasks.len()],
            has_failed: vec![false; plan.tasks.len()],
            asked: BTreeSet::new(),
            is_done: false,
            is_cancelled: false,
            is_closed: false,
            promised: None,
        }
    }

    /// Whether the client has all that it wanted.
    pub(crate) fn is_complete(&self, plan: &Plan) -> bool {
        let mut wanted = (0..plan.tasks.len()).filter(|at| plan.tasks[*at].is_wanted);
        let is_settled = if plan.is_open_ended() && !self.is_cancelled {
            self.chunks_promised() == self.chunks.len()
        } else {
            self.is_done
        };
        self.is_closed
            || (is_settled
                && (self.is_cancelled
                    || wanted.all(|at| self.values[at].is_some() || self.has_failed[at])))
    }

    /// Chunks that the scheduler is known to have.
    pub(crate) fn chunks_promised(&self) -> usize {
        self.promised.map_or(0, |(_, next)| next as usize)
    }
}

impl World {
    pub(crate) fn client_connects(&mut self, client: usize) {
        if !self.scheduler.is_up {
            self.at(self.now + AWAY_MICROS, Happening::ClientConnects(client));
            return;
        }
        let link = self.connect(Peer::Client(client));
        self.clients[client].link = Some(link);
        for run in 0..self.runs.len() {
            if self.plans[run].client == client && !self.runs[run].is_closed {
                self.runs[run].id = None;
                let name = self.plans[run].name.clone();
                let is_open_ended = self.plans[run].is_open_ended();
                self.send_up(link, Up::Open(name, is_open_ended));
            }
        }
    }

    pub(crate) fn client_hears_end(&mut self, link: Link) {
        let Some(client) = self
            .clients
            .iter()
            .position(|client| client.link == Some(link))
        else {
            return;
        };
        self.clients[client].link = None;
        let away = std::mem::take(&mut self.clients[client].away_micros);
        for run in 0..self.runs.len() {
            if self.plans[run].client == client {
                self.runs[run].id = None;
            }
        }
        self.at(self.now + away, Happening::ClientConnects(client));
    }

    pub(crate) fn client_hears(&mut self, link: Link, notes: Vec<Note>) {
        if !self.arrives(link) {
            return;
        }
        let Some(client) = self
            .clients
            .iter()
            .position(|client| client.link == Some(link))
        else {
            return;
        };
        for note in notes {
            self.client_takes(link, client, note);
        }
    }

    fn client_takes(&mut self, link: Link, client: usize, note: Note) {
        match note {
            Note::Attached(name, graph, next_chunk) => {
                let is_own = |run: &usize| {
                    self.plans[*run].client == client && self.plans[*run].name == name
                };
                if let Some(run) = (0..self.runs.len()).find(is_own) {
                    self.client_attaches(link, run, graph, next_chunk);
                }
            }
            Note::Accepted(graph, number) => {
                if let Some(run) = self.run_of(graph)
                    && let Some((promised, next)) = &mut self.runs[run].promised
                    && *promised == graph
                {
                    *next = (*next).max(number + 1);
                }
            }
            Note::Refused(graph, error) => {
                if let Some(run) = self.run_of(graph)
                    && !self.runs[run].is_cancelled
                {
                    self.violate(format!("a good graph was refused: {error}"));
                }
            }
            Note::Ready(task) => {
                let Some(run) = self.run_of(task.graph) else {
                    return;
                };
                let index = task.task.0;
                let graph = &mut self.runs[run];
                if graph.values[index as usize].is_none() && graph.asked.insert(index) {
                    self.send_up(link, Up::Fetch(task));
                }
            }
            Note::Failed(task) => {
                if let Some(run) = self.run_of(task.graph) {
                    self.runs[run].has_failed[task.task.0 as usize] = true;
                }
            }
            Note::Done(graph) => {
                if let Some(run) = self.run_of(graph) {
                    self.runs[run].is_done = true;
                    if self.plans[run].is_open_ended() && !self.runs[run].is_cancelled {
                        self.violate(format!("graph {graph} is called done and is open-ended"));
                    }
                }
            }
            Note::Value(task, value) => self.client_reads(link, task, value),
        }
    }

    fn client_attaches(&mut self, link: Link, run: usize, graph: GraphId, next_chunk: u32) {
        if self.runs[run].is_closed {
            self.send_up(link, Up::Close(graph));
            return;
        }
        let before = self.runs[run].promised.replace((graph, next_chunk));
        let was_forgotten = match before {
            // A graph without a client ends after the grace; it may be another one then.
            Some((other, _)) if other != graph => self.config.grace_millis >= 60_000,
            Some((_, next)) => next_chunk < next,
            None => false,
        };
        if was_forgotten {
            self.violate(format!(
                "{before:?} was promised, the scheduler knows graph {graph} up to {next_chunk}"
            ));
        }
        let again = u32::from(next_chunk > 0 && self.random.chance(300));
        let chunks = u32::try_from(self.runs[run].chunks.len()).unwrap_or(0);
        let graph_run = &mut self.runs[run];
        graph_run.id = Some(graph);
        graph_run.is_done = false;
        graph_run.asked.clear();
        if graph_run.is_cancelled {
            self.send_up(link, Up::Cancel(graph));
            return;
        }
        // What was given back may not have reached a scheduler that still is.
        let read = (0..graph_run.values.len()).filter(|at| graph_run.values[*at].is_some());
        let read: Vec<usize> = read.filter(|_| self.plans[run].releases).collect();
        for index in read {
            self.send_up(link, Up::Release(Self::task_ref(graph, index)));
        }
        let pause_max = if self.plans[run].is_open_ended() {
            self.client_repeats_releases(link, run, graph);
            WISH_PAUSE_MAX
        } else {
            CHUNK_PAUSE_MAX
        };
        let mut at = self.now;
        for number in next_chunk - again..chunks {
            at += self
                .network_delay
                .unwrap_or_else(|| self.random.below(pause_max));
            self.at(at, Happening::ClientSendsChunk(link, run, number));
        }
    }

    pub(crate) fn client_sends_chunk(&mut self, link: Link, run: usize, number: u32) {
        let Some(graph) = self.runs[run].id else {
            return;
        };
        if self.clients[self.plans[run].client].link != Some(link) || self.runs[run].is_closed {
            return;
        }
        self.client_releases_before(link, run, number);
        if let Some(chunk) = self.runs[run].chunks.get(number as usize) {
            let chunk = Box::new(chunk.clone());
            self.send_up(link, Up::Chunk(graph, number, chunk));
        }
    }

    fn client_reads(&mut self, link: Link, task: TaskRef, value: Option<u64>) {
        let Some(run) = self.run_of(task.graph) else {
            return;
        };
        let index = task.task.0 as usize;
        self.runs[run].asked.remove(&task.task.0);
        let Some(value) = value else { return };
        if self.plans[run].values[index] != Some(value) {
            self.violate(format!("the client reads a wrong value of {task}"));
        }
        self.runs[run].values[index] = Some(value);
        if self.plans[run].releases {
            self.send_up(link, Up::Release(task));
        }
    }

    pub(crate) fn client_cancels(&mut self, run: usize) {
        self.runs[run].is_cancelled = true;
        if let (Some(link), Some(graph)) = self.link_and_graph(run) {
            self.send_up(link, Up::Cancel(graph));
        }
    }

    pub(crate) fn client_closes(&mut self, run: usize) {
        if std::mem::replace(&mut self.runs[run].is_closed, true) {
            return;
        }
        if let (Some(link), Some(graph)) = self.link_and_graph(run) {
            self.send_up(link, Up::Close(graph));
        }
    }

    fn link_and_graph(&self, run: usize) -> (Option<Link>, Option<GraphId>) {
        (self.clients[self.plans[run].client].link, self.runs[run].id)
    }

    /// The graph that a client means by this number at the moment.
    fn run_of(&self, graph: GraphId) -> Option<usize> {
        self.runs
            .iter()
            .position(|run| run.id == Some(graph) && !run.is_closed)
    }

    /// A task of a graph.
    pub(crate) fn task_ref(graph: GraphId, index: usize) -> TaskRef {
        TaskRef {
            graph,
            task: TaskIndex(u32::try_from(index).unwrap_or(u32::MAX)),
        }
    }
}

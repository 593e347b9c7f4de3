//! The one thread that owns the core.
//!
//! Takes inputs from a bounded channel, lets the core react to each, lets it place once a round, and
//! hands each peer one message a round. Never waits for a peer, never opens a body, does no I/O.
//!
//! Invariants: effects are carried out before the next event, because they name what the core knows
//! at that moment; a round lasts about [`ROUND_TIME_MAX`], so that a stream of large chunks does not
//! keep reports and new work waiting; without inputs the thread sleeps.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxidask_core::{
    ClientId, Core, CoreConfig, Effect, Event, GraphId, TaskRef, TaskState, Timestamp, WorkerId,
    WorkerLoss,
};
use oxidask_proto::wire;
use tokio::sync::mpsc;

use crate::bodies::GraphBodies;
use crate::input::{ChunkInput, Input, Question, Whereabouts};
use crate::links::{ClientLink, WorkerLink};
use crate::metrics::Metrics;
use crate::parts::GraphParts;
use crate::{notice, views};

/// After this time a round stops taking inputs, places and sends.
const ROUND_TIME_MAX: Duration = Duration::from_millis(2);

/// Inputs taken from the channel at once.
const INPUTS_PER_RECEIVE: usize = 64;

/// Time between two looks at deadlines, and between two progress messages of a graph.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// What the loop keeps of a graph besides what the core knows.
#[derive(Default)]
pub(crate) struct GraphLink {
    pub(crate) client: Option<ClientId>,
    pub(crate) is_done: bool,
    pub(crate) bodies: GraphBodies,
    pub(crate) parts: GraphParts,
}

/// The loop's state.
pub(crate) struct MainLoop {
    pub(crate) core: Core,
    pub(crate) workers: HashMap<WorkerId, WorkerLink>,
    pub(crate) clients: HashMap<ClientId, ClientLink>,
    pub(crate) graphs: HashMap<GraphId, GraphLink>,
    pub(crate) hello: wire::Hello,
    /// Peers with messages of this round; may name one twice.
    pub(crate) workers_to_flush: Vec<WorkerId>,
    pub(crate) clients_to_flush: Vec<ClientId>,
    /// Tasks that the current event makes run again, by client.
    pub(crate) rescheduled: HashMap<ClientId, u64>,
    effects: Vec<Effect>,
    started: Instant,
    next_tick: Instant,
    events: u64,
    metrics: Arc<Metrics>,
}

impl MainLoop {
    /// A loop without peers and graphs.
    pub(crate) fn new(config: CoreConfig, hello: wire::Hello, metrics: Arc<Metrics>) -> Self {
        let now = Instant::now();
        Self {
            core: Core::new(config),
            workers: HashMap::new(),
            clients: HashMap::new(),
            graphs: HashMap::new(),
            hello,
            workers_to_flush: Vec::new(),
            clients_to_flush: Vec::new(),
            rescheduled: HashMap::new(),
            effects: Vec::new(),
            started: now,
            next_tick: now + TICK,
            events: 0,
            metrics,
        }
    }

    /// Runs until it is stopped or nobody can send any more.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut received = Vec::with_capacity(INPUTS_PER_RECEIVE);
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                if inputs.blocking_recv_many(&mut received, INPUTS_PER_RECEIVE) == 0 {
                    return;
                }
                waiting.extend(received.drain(..));
            }
            let began = Instant::now();
            while let Some(input) = waiting.pop_front() {
                if matches!(input, Input::Stop) {
                    return;
                }
                self.take(input);
                if began.elapsed() > ROUND_TIME_MAX {
                    break;
                }
            }
            if Instant::now() >= self.next_tick {
                self.tick();
            }
            self.core.place(self.now(), &mut self.effects);
            self.carry_out();
            self.flush();
            self.metrics.count_events(std::mem::take(&mut self.events));
            self.metrics.count_busy(began.elapsed());
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::WorkerJoined(worker, link) => {
                let info = (&link.hello).into();
                self.workers.insert(worker, *link);
                self.react(Event::WorkerJoined { worker, info });
            }
            Input::ClientJoined(client, mut link) => {
                let hello = self.hello.clone();
                link.add(hello.build.len(), |batch| batch.hello = Some(hello));
                self.clients_to_flush.push(client);
                self.clients.insert(client, *link);
            }
            Input::Events(events) => {
                for event in events {
                    self.take_event(event);
                }
            }
            Input::Chunk(chunk) => self.take_chunk(*chunk),
            Input::Question(question) => self.answer(question),
            Input::Wake | Input::Stop => {}
        }
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::WorkerLost { worker, loss } => self.lose_worker(worker, loss),
            Event::ClientLost { client } => {
                self.clients.remove(&client);
                for graph in self
                    .graphs
                    .values_mut()
                    .filter(|graph| graph.client == Some(client))
                {
                    graph.client = None;
                }
                self.react(event);
            }
            // A worker that was refused or closed may still have sent something.
            Event::TaskReported { worker, .. } | Event::CopiesAdded { worker, .. }
                if !self.workers.contains_key(&worker) => {}
            event => self.react(event),
        }
    }

    fn lose_worker(&mut self, worker: WorkerId, loss: WorkerLoss) {
        let Some(link) = self.workers.remove(&worker) else {
            return;
        };
        let died = match &loss {
            WorkerLoss::Died(reason) => Some(reason.clone()),
            WorkerLoss::Retired => None,
        };
        self.rescheduled.clear();
        self.react(Event::WorkerLost { worker, loss });
        if let Some(reason) = died {
            self.tell_of_death(&link.hello.name, &reason);
        }
    }

    fn tell_of_death(&mut self, name: &str, reason: &str) {
        tracing::warn!(worker = name, reason, "worker died");
        let mut running: Vec<ClientId> = self
            .graphs
            .values()
            .filter(|graph| !graph.is_done)
            .filter_map(|g| g.client)
            .collect();
        running.extend(self.rescheduled.keys());
        running.sort_unstable();
        running.dedup();
        for client in running {
            let tasks = self.rescheduled.get(&client).copied().unwrap_or(0);
            let text = notice::worker_died(name, reason, tasks);
            self.tell_client(client, text.len(), |batch| {
                batch.notices.push(wire::Notice { text });
            });
        }
    }

    fn take_chunk(&mut self, input: ChunkInput) {
        let ChunkInput {
            client,
            graph,
            number,
            chunk,
            bodies,
            parts,
            permit,
        } = input;
        self.events += 1;
        let event = Event::ChunkArrived {
            client,
            graph,
            number,
            chunk,
        };
        self.core.react(event, self.now(), &mut self.effects);
        drop(permit);
        let is_accepted = self.effects.iter().any(|effect| {
            matches!(effect, Effect::ChunkAccepted { graph: g, number: n, .. }
                if *g == graph && *n == number)
        });
        if let Some(link) = self.graphs.get_mut(&graph).filter(|_| is_accepted) {
            if link.bodies.accept(number, bodies) {
                link.parts.append(parts);
            }
            link.is_done = false;
        }
        self.carry_out();
    }

    fn react(&mut self, event: Event) {
        self.events += 1;
        self.core.react(event, self.now(), &mut self.effects);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
    }

    fn tick(&mut self) {
        self.next_tick = Instant::now() + TICK;
        self.react(Event::Tick);
        let cluster = self.core.cluster();
        self.metrics.set_cluster(&cluster, self.clients.len());
        let running: Vec<(GraphId, ClientId)> = self
            .graphs
            .iter()
            .filter(|(_, graph)| !graph.is_done)
            .filter_map(|(id, graph)| Some((*id, graph.client?)))
            .collect();
        for (graph, client) in running {
            self.send_progress(graph, client, &cluster);
        }
    }

    pub(crate) fn send_progress(
        &mut self,
        graph: GraphId,
        client: ClientId,
        cluster: &oxidask_core::ClusterSummary,
    ) {
        if let Some(progress) = self.core.progress(graph) {
            let (message, bytes) = views::progress(graph, progress, cluster);
            self.tell_client(client, bytes, |batch| batch.progress.push(message));
        }
    }

    fn answer(&mut self, question: Question) {
        // An asker that has gone away needs no answer.
        match question {
            Question::Whereabouts(tasks, reply) => {
                let places = tasks
                    .into_iter()
                    .map(|task| self.whereabouts(task))
                    .collect();
                let _ = reply.send(places);
            }
            Question::Status(reply) => {
                let workers = self.worker_statuses();
                let graphs = self.core.graphs().iter().map(views::graph).collect();
                let hello = Some(self.hello.clone());
                let uptime = self.started.elapsed().as_millis();
                let uptime_ms = u64::try_from(uptime).unwrap_or(u64::MAX);
                let _ = reply.send(wire::StatusReply {
                    hello,
                    uptime_ms,
                    workers,
                    graphs,
                });
            }
            Question::Telemetry(reply) => {
                let workers = self.worker_statuses();
                let _ = reply.send(views::telemetry(&self.core.cluster(), workers));
            }
        }
    }

    fn whereabouts(&self, task: TaskRef) -> Whereabouts {
        let held = self.core.holders(task).iter().find_map(|worker| {
            let address = Arc::clone(&self.workers.get(worker)?.address);
            Some(Whereabouts::Held {
                worker: *worker,
                address,
                bytes: self.core.bytes(task),
            })
        });
        match held {
            Some(held) => held,
            None if self.core.state(task).is_some_and(TaskState::is_pending) => {
                Whereabouts::Pending
            }
            None => Whereabouts::Gone,
        }
    }

    fn worker_statuses(&self) -> Vec<wire::WorkerStatus> {
        let workers = self.core.workers().into_iter();
        workers
            .map(|summary| {
                let link = self.workers.get(&summary.worker);
                views::worker(summary, link)
            })
            .collect()
    }

    /// Adds to a client's message of this round; nothing if the client is gone.
    pub(crate) fn tell_client(
        &mut self,
        client: ClientId,
        bytes: usize,
        change: impl FnOnce(&mut wire::SessionBatch),
    ) {
        if let Some(link) = self.clients.get_mut(&client)
            && link.add(bytes, change)
        {
            self.clients_to_flush.push(client);
        }
    }

    /// Adds to a worker's message of this round; nothing if the worker is gone.
    pub(crate) fn tell_worker(
        &mut self,
        worker: WorkerId,
        bytes: usize,
        change: impl FnOnce(&mut wire::WorkBatch),
    ) {
        if let Some(link) = self.workers.get_mut(&worker)
            && link.add(bytes, change)
        {
            self.workers_to_flush.push(worker);
        }
    }

    fn flush(&mut self) {
        for worker in self.workers_to_flush.drain(..) {
            if let Some(link) = self.workers.get_mut(&worker)
                && !link.flush()
            {
                self.metrics.count_slow_peer();
            }
        }
        for client in self.clients_to_flush.drain(..) {
            if let Some(link) = self.clients.get_mut(&client)
                && !link.flush()
            {
                self.metrics.count_slow_peer();
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

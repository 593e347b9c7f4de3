//! The loop that owns the core, on a thread of its own or beside the connections.
//!
//! Takes inputs from a bounded channel, lets the core react to each, lets it place once a round, and
//! hands each peer one message a round. Never waits for a peer, never opens a body, does no I/O.
//!
//! Invariants: effects are carried out before the next event, because they name what the core knows
//! at that moment; a round lasts about [`ROUND_TIME_MAX`], so that a stream of large chunks does not
//! keep reports and new work waiting; connections have their turn after each round; without inputs the
//! loop sleeps, in the middle of a conversation after a moment (see `attention`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use oxidask_core::{
    ClientId, Core, CoreConfig, Effect, Event, GraphId, TaskRef, TaskState, Timestamp, WorkerId,
};
use oxidask_proto::wire;
use tokio::sync::mpsc;
use tokio::task::yield_now;

use crate::attention::{AWAY_TIME_MIN, Attention};
use crate::bodies::GraphBodies;
use crate::commands::Commands;
use crate::input::{ChunkInput, Input, Question, Queued, Whereabouts};
use crate::journal::Keeper;
use crate::links::{ClientLink, WorkerLink};
use crate::logs::Logs;
use crate::look::Watch;
use crate::metrics::Metrics;
use crate::parts::GraphParts;
use crate::presence::Death;
use crate::values::ReportedValues;
use crate::views;

/// After this time a round stops taking inputs, places and sends.
const ROUND_TIME_MAX: Duration = Duration::from_millis(2);

/// Inputs taken from the channel at once.
const INPUTS_PER_RECEIVE: usize = 256;

/// With more peers than this their connections would keep a loop on the same thread waiting.
const SHARING_PEERS_MAX: usize = 64;

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
    /// Workers that nobody hears of.
    pub(crate) suspects: HashSet<WorkerId>,
    /// Tasks that the current event makes run again, by client.
    pub(crate) rescheduled: HashMap<ClientId, u64>,
    /// Workers that died with the current event.
    pub(crate) deaths: Vec<Death>,
    /// The core had more to hand out than fits into a round.
    has_more_to_place: bool,
    /// A worker has joined since the last tick.
    pub(crate) has_newcomer: bool,
    /// Workers that cannot retire, as the current event shows.
    pub(crate) refusals: Vec<(WorkerId, String)>,
    /// What only those need who look at the cluster.
    pub(crate) watch: Watch,
    /// What is kept for the next start, unless nothing is.
    pub(crate) journal: Option<Keeper>,
    /// Until when tasks are looked for whose values were lost with workers.
    pub(crate) uploads_watched_until: Option<Instant>,
    /// What workers do beside tasks.
    pub(crate) commands: Commands,
    /// What came with the reports that the core reacts to just now.
    pub(crate) values: ReportedValues,
    effects: Vec<Effect>,
    attention: Attention,
    pub(crate) started: Instant,
    next_tick: Instant,
    events: u64,
    pub(crate) metrics: Arc<Metrics>,
    /// The last lines of workers, for errors.
    pub(crate) logs: Arc<Logs>,
}

impl MainLoop {
    /// A loop without peers and graphs.
    pub(crate) fn new(hello: wire::Hello, metrics: Arc<Metrics>, logs: Arc<Logs>) -> Self {
        let now = Instant::now();
        Self {
            core: Core::new(CoreConfig::default()),
            workers: HashMap::new(),
            clients: HashMap::new(),
            graphs: HashMap::new(),
            hello,
            workers_to_flush: Vec::new(),
            clients_to_flush: Vec::new(),
            suspects: HashSet::new(),
            rescheduled: HashMap::new(),
            deaths: Vec::new(),
            has_more_to_place: false,
            has_newcomer: false,
            refusals: Vec::new(),
            watch: Watch::new(now),
            journal: None,
            uploads_watched_until: None,
            commands: Commands::default(),
            values: ReportedValues::default(),
            effects: Vec::new(),
            attention: Attention::new(available_parallelism().map_or(1, NonZero::get)),
            started: now,
            next_tick: now + TICK,
            events: 0,
            metrics,
            logs,
        }
    }

    /// Runs until it is stopped or nobody can send any more. A loop that shares its thread with the
    /// connections comes back with what it was given when they are too many for that.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Queued>,
        is_shared: bool,
    ) -> Option<(Self, mpsc::Receiver<Queued>)> {
        let mut received = Vec::with_capacity(INPUTS_PER_RECEIVE);
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                if is_shared && self.workers.len() + self.clients.len() > SHARING_PEERS_MAX {
                    return Some((self, inputs));
                }
                if self.has_more_to_place {
                    let arrived = std::iter::from_fn(|| inputs.try_recv().ok());
                    waiting.extend(arrived.take(INPUTS_PER_RECEIVE));
                } else {
                    if is_shared {
                        self.look_for(&mut inputs).await;
                    }
                    if inputs.recv_many(&mut received, INPUTS_PER_RECEIVE).await == 0 {
                        return None;
                    }
                }
                waiting.extend(received.drain(..));
            }
            let began = Instant::now();
            while let Some(input) = self.journal_resumed() {
                self.take(input);
            }
            while let Some(Queued { since, input }) = waiting.pop_front() {
                if matches!(input, Input::Stop) {
                    return None;
                }
                self.metrics.observe_lag(since.elapsed());
                if let Some(input) = self.journal_admit(input) {
                    self.take(input);
                }
                if began.elapsed() > ROUND_TIME_MAX {
                    break;
                }
            }
            if Instant::now() >= self.next_tick {
                self.tick();
            }
            self.place();
            self.journal_round();
            if is_shared {
                self.attend();
            }
            self.flush();
            self.look_after_round(self.events);
            self.metrics.count_events(std::mem::take(&mut self.events));
            self.metrics.count_busy(began.elapsed());
            // Connections that share the thread have their turn now.
            if self.has_more_to_place || !(waiting.is_empty() && inputs.is_empty()) {
                yield_now().await;
            }
        }
    }

    /// Waits awake while an input is likely to come soon: until there is one, or it is time to sleep.
    async fn look_for(&mut self, inputs: &mut mpsc::Receiver<Queued>) {
        while inputs.is_empty() {
            let began = Instant::now();
            if !self.attention.is_awake(began) {
                return;
            }
            // Whoever else has something to do comes first; then connections look for messages.
            std::thread::yield_now();
            if began.elapsed() > AWAY_TIME_MIN {
                self.attention.was_away(began);
                return;
            }
            yield_now().await;
            if !inputs.is_empty() {
                self.attention.found();
            }
        }
    }

    /// Notes whether this round tells peers something.
    fn attend(&mut self) {
        if !(self.workers_to_flush.is_empty() && self.clients_to_flush.is_empty()) {
            let tasks_wait = self.has_more_to_place || self.core.has_queues();
            self.attention.told(Instant::now(), tasks_wait);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::WorkerArrived(arrival) => self.admit(*arrival),
            Input::WorkerSaid(worker, stream, said) => self.hear(worker, stream, said),
            Input::WorkerDead(worker) => self.bury(worker),
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
            Input::Command(command) => self.command(*command),
            Input::Wake | Input::Stop => {}
        }
    }

    pub(crate) fn take_event(&mut self, event: Event) {
        self.watch_event(&event);
        match event {
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
            event => self.react(event),
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
            message,
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
            link.is_done = false;
            if link.bodies.accept(number, bodies) {
                link.parts.append(parts);
                self.journal_chunk(graph, &message);
            }
        }
        self.journal_notes();
        self.carry_out();
    }

    pub(crate) fn react(&mut self, event: Event) {
        self.events += 1;
        self.core.react(event, self.now(), &mut self.effects);
        self.journal_notes();
        self.carry_out();
        if !(self.deaths.is_empty() && self.rescheduled.is_empty()) {
            self.tell_of_deaths();
        }
    }

    /// Lets the core hand out work.
    pub(crate) fn place(&mut self) {
        self.has_more_to_place = self.core.place(self.now(), &mut self.effects);
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
        self.commands.tick(Instant::now());
        self.look_for_lost_uploads();
        self.leave_again();
        let cluster = self.core.cluster();
        self.look_at_tick(&cluster);
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
            Question::Retire(request, reply) => {
                let _ = reply.send(self.retire(&request).map_err(Box::new));
            }
            Question::WorkerEnded(request, reply) => {
                let _ = reply.send(self.worker_ended(&request));
            }
            Question::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Question::Look(look) => look(self),
        }
    }

    fn whereabouts(&self, task: TaskRef) -> Whereabouts {
        let holders = self.core.holders(task);
        let of = |worker: &WorkerId, is_suspect| {
            let address = Arc::clone(&self.workers.get(worker)?.address);
            Some(Whereabouts::Held {
                worker: *worker,
                address,
                bytes: self.core.bytes(task),
                is_suspect,
            })
        };
        let is_suspect = |worker: &&WorkerId| self.suspects.contains(*worker);
        let mut heard = holders.iter().filter(|worker| !is_suspect(worker));
        let held = heard.find_map(|worker| of(worker, false));
        let mut others = holders.iter().filter(is_suspect);
        let held = held.or_else(|| others.find_map(|worker| of(worker, true)));
        match held {
            Some(held) => held,
            None if self.core.state(task).is_some_and(TaskState::is_pending) => {
                Whereabouts::Pending
            }
            None => Whereabouts::Gone,
        }
    }

    pub(crate) fn worker_statuses(&self) -> Vec<wire::WorkerStatus> {
        let now = self.now();
        let workers = self.core.workers().into_iter();
        workers
            .map(|summary| {
                let link = self.workers.get(&summary.worker);
                views::worker(summary, link, now)
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

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

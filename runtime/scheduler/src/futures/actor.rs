//! The one task that owns the keys of Dask clients.
//!
//! Takes what clients say and what the main loop tells, lets the pure state react, and carries out
//! its effects; each client gets one message a wake-up. To the main loop it is one client.
//!
//! Invariants: commands are taken in order, and reach the main loop in order; a client is told that a
//! command is taken when its chunk is accepted (with a journal: durable); when the way to the main
//! loop breaks, the actor attaches to its graph again and hears how far it is.

mod session;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use oxidask_core::{ClientId, Event as CoreEvent, Requirement, TaskRef, Timestamp};
use oxidask_futures::coordination::Question;
use oxidask_futures::keys::{Command, Connection, Effect, Event, Futures, KeyEvent, Submission};
use oxidask_proto::wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tonic::Status;

use self::session::open_event;
use super::convert::{self, SaidCommand};
use super::desk::{Desk, Task};
use super::forward::{self, Forward};
use super::{Asked, ClientOutbox, Put, Said, cluster, fleet, lookup};
use crate::grpc::Shared;
use crate::input::Look;
use crate::main_loop::MainLoop;
use crate::values::WAITING_BYTES_MAX;

/// Time between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);

/// Messages that are taken before clients are told.
const SAID_PER_WAKE: usize = 64;

/// A client's message is handed over early when it reaches this many bytes.
const PENDING_BYTES_MAX: usize = 1024 * 1024;

/// Time that a new graph, or a look at the main loop, may take; a journal without room makes it wait.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Time between two attempts to reach the main loop again.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);

/// Bytes counted for a message besides its events.
const MESSAGE_BYTES: usize = 16;

/// The group of the tasks that values of clients have.
const PUT_GROUP: &str = "scatter";

type Session = Pin<Box<dyn Stream<Item = Result<wire::SessionBatch, Status>> + Send>>;

/// The way to a client, and what it is told next.
struct Link {
    outbox: Arc<ClientOutbox>,
    pending: wire::FuturesReply,
    pending_bytes: usize,
}

/// The actor.
pub(super) struct Actor {
    pub(super) shared: Arc<Shared>,
    pub(super) dashboard_port: Option<u16>,
    pub(super) futures: Futures,
    hello: wire::Hello,
    began: Instant,
    own: ClientId,
    session: Session,
    forward: mpsc::Sender<Forward>,
    links: HashMap<Connection, Link>,
    /// Clients with messages; may name one twice.
    to_flush: Vec<Connection>,
    /// What clients said of themselves, by name.
    pub(super) versions: HashMap<Arc<str>, Vec<wire::Version>>,
    graph_name: Arc<str>,
    desk: Desk,
    /// Clients that will not come back, by name.
    gone: Vec<Arc<str>>,
    ticked: Instant,
}

/// Runs until the scheduler stops.
pub(super) async fn run(
    shared: Arc<Shared>,
    dashboard_port: Option<u16>,
    said: mpsc::Receiver<Said>,
) {
    let Some(mut actor) = Actor::begin(shared, dashboard_port).await else {
        return;
    };
    actor.serve(said).await;
}

impl Actor {
    /// Joins the main loop, and goes on with what a journal has kept.
    async fn begin(shared: Arc<Shared>, dashboard_port: Option<u16>) -> Option<Self> {
        let look = |main_loop: &mut MainLoop| {
            let restored = lookup::restored(main_loop);
            (main_loop.hello.clone(), restored)
        };
        let (hello, mut restored) = shared.inputs.look(look).await.ok()?;
        let forward = forward::start(Arc::clone(&shared));
        let mut actor = Self {
            own: ClientId(0),
            session: Box::pin(futures::stream::empty()),
            shared,
            dashboard_port,
            futures: Futures::new(),
            hello,
            began: Instant::now(),
            forward,
            links: HashMap::new(),
            to_flush: Vec::new(),
            versions: HashMap::new(),
            graph_name: Arc::from(""),
            desk: Desk::new(),
            gone: Vec::new(),
            ticked: Instant::now(),
        };
        actor.join().await;
        let newest = restored.pop();
        for left in restored {
            let client = actor.own;
            let mut events = vec![open_event(client, &left.name)];
            let closed = left
                .graph
                .map(|graph| CoreEvent::GraphClosed { client, graph });
            events.extend(closed);
            actor.send(Forward::Events(events)).await;
        }
        if let Some(newest) = newest {
            tracing::info!(keys = newest.wanted.len(), graph = %newest.name, "futures are there again");
            actor.graph_name = Arc::clone(&newest.name);
            actor.react(Event::Restored(Box::new(newest))).await;
            actor.attach().await;
        }
        Some(actor)
    }

    async fn serve(&mut self, mut said: mpsc::Receiver<Said>) {
        loop {
            let next_tick = self.next_tick();
            let has_room = self.forward.capacity() > forward::WAITING_MAX / 2;
            tokio::select! {
                heard = self.session.next() => self.hear_or_rejoin(heard).await,
                next = said.recv(), if has_room => match next {
                    Some(next) => self.take_all(next, &mut said).await,
                    None => return,
                },
                () = sleep_until(next_tick.into()) => self.tick().await,
            }
            self.clean_up().await;
            self.flush();
        }
    }

    async fn take_all(&mut self, first: Said, said: &mut mpsc::Receiver<Said>) {
        self.take(first).await;
        for _ in 1..SAID_PER_WAKE {
            if self.forward.capacity() <= forward::WAITING_MAX / 2 {
                return;
            }
            let Ok(next) = said.try_recv() else {
                return;
            };
            self.take(next).await;
        }
    }

    // ---- clients ----

    async fn take(&mut self, said: Said) {
        match said {
            Said::Joined {
                connection,
                hello,
                outbox,
            } => self.joined(connection, *hello, outbox).await,
            Said::Commands {
                connection,
                commands,
                permit,
            } => {
                for (number, command) in commands {
                    let command = self.prepare(command).await;
                    let said = Event::Said {
                        connection,
                        number,
                        command,
                    };
                    self.react(said).await;
                }
                drop(permit);
            }
            Said::Left {
                connection,
                is_clean,
            } => {
                self.links.remove(&connection);
                let left = Event::Left {
                    connection,
                    is_clean,
                };
                self.react(left).await;
            }
            Said::Asked(asked) => self.asked(*asked).await,
            Said::Put(put) => self.put(*put).await,
        }
    }

    async fn joined(
        &mut self,
        connection: Connection,
        hello: wire::FuturesHello,
        outbox: Arc<ClientOutbox>,
    ) {
        let pending = wire::FuturesReply {
            hello: Some(self.hello.clone()),
            ..wire::FuturesReply::default()
        };
        let link = Link {
            outbox,
            pending,
            pending_bytes: MESSAGE_BYTES,
        };
        self.links.insert(connection, link);
        self.to_flush.push(connection);
        self.versions
            .insert(Arc::from(hello.client.as_str()), hello.versions);
        let joined = Event::Joined {
            connection,
            name: hello.client,
            is_back: hello.is_back,
            wanted: hello.wanted,
        };
        self.react(joined).await;
    }

    /// Looks up what a command needs.
    async fn prepare(&mut self, command: SaidCommand) -> Command {
        match command {
            SaidCommand::Plain(Command::Submit(mut submission)) => {
                self.open_if_needed().await;
                self.name_workers(&mut submission).await;
                Command::Submit(submission)
            }
            SaidCommand::Plain(command) => command,
            SaidCommand::Cancel(mut cancel) => {
                let tasks = self.tasks_of(&cancel.keys);
                if !tasks.is_empty() {
                    let look = move |main: &mut MainLoop| lookup::dependents(main, &tasks);
                    cancel.dependents = self.look(look).await.unwrap_or_default();
                }
                Command::Cancel(cancel)
            }
            SaidCommand::Retry(keys) => {
                let tasks = self.tasks_of(&keys);
                let look = move |main: &mut MainLoop| lookup::failed_around(main, &tasks);
                Command::Retry(Box::new(self.look(look).await.unwrap_or_default()))
            }
        }
    }

    fn tasks_of(&self, keys: &[String]) -> Vec<TaskRef> {
        let tasks = keys.iter().filter_map(|key| self.futures.task_of(key));
        tasks.collect()
    }

    /// Clients name workers by their addresses, the core by their names.
    async fn name_workers(&mut self, submission: &mut Submission) {
        let requirements = submission.requirements.iter_mut();
        let mut named: Vec<&mut String> = requirements
            .flat_map(|requirement| &mut requirement.workers)
            .filter(|worker| worker.contains("://"))
            .collect();
        if named.is_empty() {
            return;
        }
        let Some(names) = self.look(|main| fleet::names_by_address(main)).await else {
            return;
        };
        for worker in &mut named {
            if let Some(name) = names.get(worker.as_str()) {
                name.clone_into(worker);
            }
        }
    }

    /// A value that a client gave becomes the result of a key.
    async fn put(&mut self, put: Put) {
        let is_at_worker = put.uploaded.is_at_worker;
        let workers = if is_at_worker {
            put.uploaded.workers
        } else {
            put.workers
        };
        let mut submission = Submission {
            key_lengths: vec![u32::try_from(put.key.len()).unwrap_or(u32::MAX)],
            keys: put.key.clone(),
            body: put.uploaded.body,
            arguments: vec![put.uploaded.arguments],
            group: vec![0],
            groups: vec![PUT_GROUP.to_owned()],
            // The worker keeps the value for a short time only.
            priority: vec![i32::MAX],
            wanted: vec![0],
            ..Submission::default()
        };
        if !workers.is_empty() {
            submission.requirement = vec![1];
            submission.requirements = vec![Requirement {
                workers,
                ..Requirement::default()
            }];
        }
        self.open_if_needed().await;
        self.name_workers(&mut submission).await;
        let placed = Event::Placed {
            client: put.client,
            submission: Box::new(submission),
        };
        self.react(placed).await;
        let task = self.futures.task_of(&put.key);
        // An asker that has gone away needs no answer.
        let _ = put.reply.send(task);
    }

    async fn asked(&mut self, asked: Asked) {
        if Question::is_ours(&asked.operation) {
            let tasks = self.desk.ask(asked, self.now());
            self.carry_out(tasks).await;
            return;
        }
        if asked.operation == "restart" {
            self.react(Event::Restarted).await;
        }
        cluster::answer(self, asked);
    }

    /// What comes of locks, queues and topics.
    async fn carry_out(&mut self, tasks: Vec<Task>) {
        for task in tasks {
            match task {
                Task::Name(key, is_named) => self.react(Event::Named { key, is_named }).await,
                Task::Topic(client, event) => {
                    if let Some(connection) = self.futures.connection_of(&client) {
                        let bytes = event.topic.len() + event.content.len();
                        self.tell(connection, bytes, |reply| reply.topics.push(event));
                    }
                }
            }
        }
    }

    async fn tick(&mut self) {
        self.ticked = Instant::now();
        self.react(Event::Tick).await;
        let tasks = self.desk.tick(self.now());
        self.carry_out(tasks).await;
    }

    /// When deadlines are looked at next.
    fn next_tick(&self) -> Instant {
        let regular = self.ticked + TICK;
        let deadline = self.desk.next_deadline();
        let deadline = deadline.map(|at| self.began + Duration::from_micros(at.0));
        deadline.map_or(regular, |deadline| deadline.min(regular))
    }

    /// What clients that will not come back leave behind.
    async fn clean_up(&mut self) {
        while let Some(client) = self.gone.pop() {
            let tasks = self.desk.client_gone(&client, self.now());
            self.carry_out(tasks).await;
        }
    }

    // ---- effects ----

    pub(super) async fn react(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.futures.react(event, self.now(), &mut effects);
        for effect in effects {
            self.perform(effect).await;
        }
    }

    async fn perform(&mut self, effect: Effect) {
        let client = self.own;
        match effect {
            Effect::Chunk(chunk) => self.send(Forward::Chunk(client, chunk)).await,
            Effect::Release { tasks } => {
                let released = CoreEvent::ResultsReleased { client, tasks };
                self.send(Forward::Events(vec![released])).await;
            }
            Effect::CloseGraph { graph } => {
                let closed = CoreEvent::GraphClosed { client, graph };
                self.send(Forward::Events(vec![closed])).await;
            }
            Effect::Tell {
                connection,
                key,
                mut event,
            } => {
                if let KeyEvent::Ready { value, .. } = &mut event
                    && !self.has_room_for_values(connection)
                {
                    *value = None;
                }
                let (event, bytes) = convert::event(&key, event);
                self.tell(connection, bytes, |reply| reply.events.push(event));
            }
            Effect::Acknowledge { connection, number } => {
                self.tell(connection, 0, |reply| {
                    reply.acknowledged = reply.acknowledged.max(number);
                });
            }
            Effect::TellRestarted { connection } => {
                self.tell(connection, 0, |reply| {
                    reply.events.clear();
                    reply.is_restarted = true;
                });
            }
            Effect::ClientGone { name } => {
                // One of the same name may have taken its place already.
                if !self.futures.has_client(&name) {
                    self.versions.remove(&name);
                }
                self.gone.push(name);
            }
            Effect::HangUp { connection, error } => {
                let fault = wire::Fault::from(&*error);
                self.tell(connection, error.message.len(), |reply| {
                    reply.refused = Some(fault);
                });
                self.hand_over(connection);
                if let Some(link) = self.links.remove(&connection) {
                    link.outbox.finish(Ok(()));
                }
            }
        }
    }

    /// Adds to a client's next message; nothing if the client is gone.
    pub(super) fn tell(
        &mut self,
        connection: Connection,
        bytes: usize,
        change: impl FnOnce(&mut wire::FuturesReply),
    ) {
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        if link.pending_bytes == 0 {
            self.to_flush.push(connection);
            link.pending_bytes = MESSAGE_BYTES;
        }
        change(&mut link.pending);
        link.pending_bytes += bytes;
        if link.pending_bytes >= PENDING_BYTES_MAX {
            self.hand_over(connection);
        }
    }

    /// A client that reads slowly asks for values when it wants them.
    fn has_room_for_values(&self, connection: Connection) -> bool {
        let link = self.links.get(&connection);
        link.is_some_and(|link| link.outbox.bytes() < WAITING_BYTES_MAX)
    }

    fn hand_over(&mut self, connection: Connection) {
        let Some(link) = self.links.get_mut(&connection) else {
            return;
        };
        if link.pending_bytes == 0 {
            return;
        }
        let reply = std::mem::take(&mut link.pending);
        let bytes = std::mem::take(&mut link.pending_bytes);
        if !link.outbox.push(reply, bytes) {
            self.shared.metrics.count_slow_peer();
        }
    }

    fn flush(&mut self) {
        for connection in std::mem::take(&mut self.to_flush) {
            self.hand_over(connection);
        }
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &self.shared.metrics.futures;
        metrics.clients.set(gauge(self.futures.clients_connected()));
        metrics.keys.set(gauge(self.futures.keys()));
    }

    // ---- the main loop ----

    async fn send(&mut self, item: Forward) {
        // An error means that the main loop has ended, and everything else is about to.
        let _ = self.forward.send(item).await;
    }

    /// Looks at the main loop, behind everything that was sent before. Nothing if that takes long.
    async fn look<A: Send + 'static>(
        &mut self,
        look: impl FnOnce(&mut MainLoop) -> A + Send + 'static,
    ) -> Option<A> {
        let (reply, answer) = oneshot::channel();
        let look: Look = Box::new(move |main_loop| {
            let _ = reply.send(look(main_loop));
        });
        let asked = async {
            self.send(Forward::Look(look)).await;
            answer.await.ok()
        };
        timeout(ANSWER_TIME_MAX, asked).await.ok().flatten()
    }

    pub(super) fn now(&self) -> Timestamp {
        let micros = self.began.elapsed().as_micros();
        Timestamp(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

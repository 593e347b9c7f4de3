//! Which workers are there: they come, fall silent, come back, differ from what we believe, die.
//!
//! Owns the standing of each worker's link and tells the core of it. What is ordered of a worker
//! that is not heard is dropped at its link; the core settles that with the inventory that the
//! worker sends when it is back.
//!
//! Invariants: a worker is in `suspects` exactly if its link is not [`Hearing::Heard`]; no more than
//! one inventory is awaited of a stream, so one that comes is newer than all that was ordered.

use std::collections::{BTreeSet, HashMap};

use oxidask_core::{ClientId, Digest, Event, GraphId, Inventory, WorkerId, WorkerLoss};
use oxidask_proto::wire;

use crate::bodies::BodiesSent;
use crate::input::{Arrival, Said};
use crate::links::{Hearing, Quiet, Stream, WorkerLink};
use crate::main_loop::MainLoop;
use crate::notice;
use crate::values::ReportedValues;

/// Beats without anything else on its way, after which worker and scheduler must agree.
const QUIET_BEATS: u32 = 2;

/// With each repair in a row twice as many beats are waited for, up to so many repairs.
const REPAIRS_PAUSE_MAX: u32 = 6;

/// Lines of a dead worker's log that its tasks' errors show.
const DEATH_LINES_MAX: usize = 8;

/// Bytes counted for a line of a worker's message besides its contents.
const LINE_BYTES: usize = 32;

/// A worker that died.
pub(crate) struct Death {
    /// Its name.
    name: String,
    /// How, in one line.
    reason: String,
}

impl MainLoop {
    /// A worker has said hello: it is a new one, or one that comes back.
    pub(crate) fn admit(&mut self, arrival: Arrival) {
        match self.former(&arrival.hello) {
            Some(worker) => self.resume(worker, arrival),
            None => self.join(arrival),
        }
    }

    /// The worker as which this one was known, if it is the same process and still counts.
    fn former(&self, hello: &wire::WorkerHello) -> Option<WorkerId> {
        let met = hello.hello.as_ref().map_or(0, |hello| hello.incarnation);
        let worker = WorkerId(hello.former);
        let link = self.workers.get(&worker)?;
        (met == self.hello.incarnation && is_same_process(&link.hello, hello)).then_some(worker)
    }

    /// The worker keeps its number and what it has, and says what that is.
    fn resume(&mut self, worker: WorkerId, arrival: Arrival) {
        self.suspect(worker, Hearing::Away);
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let stream = Stream {
            number: arrival.number,
            outbox: arrival.outbox,
        };
        let before = link.address.clone();
        link.come_back(arrival.hello, (arrival.vitals, stream));
        link.mute(Hearing::Asked);
        let address = link.address.clone();
        tracing::info!(worker = link.hello.name, address = %address, "worker came back");
        if address != before {
            self.tell_peers(worker, &address);
        }
        self.greet(worker, true);
        let _ = arrival.admitted.send(worker);
    }

    fn join(&mut self, arrival: Arrival) {
        let worker = WorkerId(arrival.number);
        self.make_way(&arrival.hello);
        let info = (&arrival.hello).into();
        let stream = Stream {
            number: arrival.number,
            outbox: arrival.outbox,
        };
        let link = WorkerLink::new(arrival.hello, arrival.vitals, stream);
        self.workers.insert(worker, link);
        let _ = arrival.admitted.send(worker);
        self.take_event(Event::WorkerJoined { worker, info });
    }

    /// A process that connects anew has no other stream: whatever we thought is over.
    fn make_way(&mut self, hello: &wire::WorkerHello) {
        let same = |(_, link): &(&WorkerId, &WorkerLink)| {
            hello.process_id != 0 && is_same_process(&link.hello, hello)
        };
        if let Some(other) = self.workers.iter().find(same).map(|(id, _)| *id) {
            self.suspect(other, Hearing::Away);
        }
    }

    /// The worker may begin: it learns its number. One that comes back learns where all others are,
    /// since nobody knows which of them it had been told of and what of that arrived.
    pub(crate) fn greet(&mut self, worker: WorkerId, is_resumed: bool) {
        let others = self.workers.iter();
        let others = others.filter(|(other, _)| is_resumed && **other != worker);
        let peers: Vec<wire::Peer> = others
            .map(|(other, link)| peer(*other, &link.address))
            .collect();
        let hello = self.hello.clone();
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let ids = peers.iter().map(|peer| WorkerId(peer.worker));
        link.peers_told.extend(ids);
        // Those that have gone meanwhile are not in the list: they are told later.
        link.peers_missed
            .retain(|peer| peer.data_address.is_empty());
        let is_first = link.say(LINE_BYTES * (1 + peers.len()), |batch| {
            batch.hello = Some(hello);
            batch.worker = worker.0;
            batch.is_resumed = is_resumed;
            batch.peers = peers;
        });
        if is_first {
            self.workers_to_flush.push(worker);
        }
    }

    /// All that know a worker learn where it is now; an empty address means that it is gone.
    pub(crate) fn tell_peers(&mut self, worker: WorkerId, address: &str) {
        for (other, link) in &mut self.workers {
            if *other != worker && link.tell_peer(peer(worker, address)) {
                self.workers_to_flush.push(*other);
            }
        }
    }

    /// What a stream of a worker brought. Nothing of one that is over or was replaced counts.
    pub(crate) fn hear(&mut self, worker: WorkerId, stream: u32, said: Vec<Said>) {
        for said in said {
            let link = self.workers.get_mut(&worker);
            let Some(link) = link.filter(|link| link.is_of(stream)) else {
                return;
            };
            match said {
                Said::Event(event) => {
                    link.quiet = Quiet::default();
                    self.take_event(event);
                }
                Said::Reported(event, values) => {
                    link.quiet = Quiet::default();
                    self.values = values;
                    self.take_event(event);
                    self.values = ReportedValues::default();
                }
                Said::Beat(digest) => self.beat(worker, digest),
                Said::Leaving { deadline_micros } => self.leaves(worker, deadline_micros),
                Said::CommandResults(answers) => self.take_answers(worker, answers),
                Said::Inventory(inventory) => self.take_back(worker, inventory),
                Said::Silent => self.suspect(worker, Hearing::Silent),
                Said::Heard => self.ask_for_inventory(worker),
                Said::Broken { reason, is_clean } => self.stream_broke(worker, reason, is_clean),
                Said::Nonsense { reason } => self.lose(worker, reason),
            }
        }
    }

    /// Nobody hears of a worker. Nothing reaches it until it is heard again.
    fn suspect(&mut self, worker: WorkerId, hearing: Hearing) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        match (link.hearing(), hearing) {
            (Hearing::Heard, Hearing::Away) => link.lose_stream(),
            (Hearing::Heard, _) => link.mute(hearing),
            // It is a suspect already; it only has no stream any more.
            (_, Hearing::Away) => return link.lose_stream(),
            _ => return,
        }
        tracing::info!(worker = link.hello.name, ?hearing, "worker is not heard");
        self.suspects.insert(worker);
        self.metrics.fleet.suspected.inc();
        self.take_event(Event::WorkerSuspected { worker });
    }

    fn stream_broke(&mut self, worker: WorkerId, reason: &str, is_clean: bool) {
        let Some(link) = self.workers.get(&worker) else {
            return;
        };
        tracing::debug!(
            worker = link.hello.name,
            reason,
            "the stream of a worker is over"
        );
        if link.is_empty && (is_clean || link.ends) {
            self.retired(worker);
        } else {
            self.suspect(worker, Hearing::Away);
        }
    }

    /// A worker with an open stream is to say all that it has; until then nothing reaches it.
    fn ask_for_inventory(&mut self, worker: WorkerId) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        if link.hearing() == Hearing::Asked || link.hearing() == Hearing::Away {
            return;
        }
        link.mute(Hearing::Asked);
        if link.say(LINE_BYTES, |batch| batch.inventory_wanted = true) {
            self.workers_to_flush.push(worker);
        }
        if self.suspects.insert(worker) {
            self.take_event(Event::WorkerSuspected { worker });
        }
    }

    /// A worker says all that it has: it is heard again.
    fn take_back(&mut self, worker: WorkerId, inventory: Box<Inventory>) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        if link.hearing() != Hearing::Asked {
            return;
        }
        tracing::info!(
            worker = link.hello.name,
            held = inventory.held.len(),
            running = inventory.running.len(),
            "worker is heard again"
        );
        link.hear();
        self.suspects.remove(&worker);
        self.metrics.fleet.returned.inc();
        self.catch_up(worker, &inventory);
        self.give_unanswered(worker);
        self.take_event(Event::WorkerReturned { worker, inventory });
    }

    /// What the worker has missed: peers, and graphs that are gone.
    fn catch_up(&mut self, worker: WorkerId, inventory: &Inventory) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        // The core does not speak of graphs that ended before this process began.
        for (task, _) in &inventory.held {
            link.graphs.entry(task.graph).or_default();
        }
        let known = link.graphs.keys().copied();
        let gone: BTreeSet<GraphId> = known
            .filter(|graph| !self.graphs.contains_key(graph))
            .collect();
        link.graphs.retain(|graph, _| !gone.contains(graph));
        let peers = std::mem::take(&mut link.peers_missed);
        let bytes = LINE_BYTES * (peers.len() + gone.len());
        if bytes > 0
            && link.add(bytes, |batch| {
                batch.peers.extend(peers);
                batch
                    .graphs_forgotten
                    .extend(gone.iter().map(|graph| graph.0));
            })
        {
            self.workers_to_flush.push(worker);
        }
    }

    /// Compares what a worker believes with what we do, if nothing is on its way.
    fn beat(&mut self, worker: WorkerId, said: Digest) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let quiet = &mut link.quiet;
        quiet.beats = quiet.beats.saturating_add(1);
        if link.hearing() != Hearing::Heard
            || link.quiet.beats < QUIET_BEATS << link.repairs.min(REPAIRS_PAUSE_MAX)
            || link.quiet.agreed == Some(said)
            || !link.is_flushed()
        {
            return;
        }
        if self.core.digest(worker) == Some(said) {
            link.quiet.agreed = Some(said);
            link.repairs = 0;
            return;
        }
        link.repairs = link.repairs.saturating_add(1);
        let name = &link.hello.name;
        tracing::warn!(
            worker = name,
            "a worker has not what it should have; it is asked for all"
        );
        self.metrics.fleet.repairs.inc();
        self.ask_for_inventory(worker);
    }

    /// The process of a worker that nobody hears of is known to have ended.
    pub(crate) fn bury(&mut self, worker: WorkerId) {
        let Some(link) = self.workers.get(&worker) else {
            return;
        };
        // It has come back meanwhile.
        if matches!(link.hearing(), Hearing::Heard | Hearing::Asked) {
            return;
        }
        self.ended(worker, "its process ended".to_owned());
    }

    /// Whoever started a worker says how its process ended. True if that worker is known.
    pub(crate) fn worker_ended(&mut self, request: &wire::WorkerEndedRequest) -> bool {
        let fits = |link: &WorkerLink| {
            let hello = &link.hello;
            hello.name == request.worker
                && if request.pod_uid.is_empty() && hello.pod_uid.is_empty() {
                    // A journal may not know the process's number.
                    hello.process_id == 0 || hello.process_id == request.process_id
                } else {
                    hello.pod_uid == request.pod_uid
                }
        };
        let found = self.workers.iter().find(|(_, link)| fits(link));
        let Some(worker) = found.map(|(worker, _)| *worker) else {
            return false;
        };
        self.ended(worker, notice::cut(&request.reason));
        true
    }

    fn ended(&mut self, worker: WorkerId, reason: String) {
        if self.workers.get(&worker).is_some_and(|link| link.is_empty) {
            self.retired(worker);
        } else {
            self.lose(worker, reason);
        }
    }

    /// A worker has gone as it was asked to.
    fn retired(&mut self, worker: WorkerId) {
        if let Some(name) = self.forget_worker(worker).map(|link| link.hello.name) {
            tracing::info!(worker = name, "worker has gone");
            let loss = WorkerLoss::Retired;
            self.take_event(Event::WorkerLost { worker, loss });
        }
    }

    /// A worker is dead: whose tasks ran there reads how it died.
    fn lose(&mut self, worker: WorkerId, reason: String) {
        let Some(link) = self.forget_worker(worker) else {
            return;
        };
        let lines = self.logs.last_lines(&link.hello.name, DEATH_LINES_MAX);
        let told = notice::death(&reason, &link.vitals, &lines);
        let name = link.hello.name;
        self.deaths.push(Death { name, reason });
        let loss = WorkerLoss::Died(told);
        self.take_event(Event::WorkerLost { worker, loss });
    }

    /// The core has given up a suspect.
    pub(crate) fn given_up(&mut self, worker: WorkerId, reason: String) {
        if let Some(link) = self.forget_worker(worker) {
            self.metrics.fleet.given_up.inc();
            let name = link.hello.name;
            self.deaths.push(Death { name, reason });
        }
    }

    fn forget_worker(&mut self, worker: WorkerId) -> Option<WorkerLink> {
        let mut link = self.workers.remove(&worker)?;
        self.suspects.remove(&worker);
        self.commands.lose(worker);
        self.watch_uploads();
        link.lose_stream();
        self.metrics.fleet.removed.inc();
        self.tell_peers(worker, "");
        Some(link)
    }

    /// Says in a line what became of workers and of the tasks that ran there.
    pub(crate) fn tell_of_deaths(&mut self) {
        let deaths = std::mem::take(&mut self.deaths);
        let rescheduled = std::mem::take(&mut self.rescheduled);
        for Death { name, reason } in &deaths {
            tracing::warn!(worker = name, reason, "worker died");
        }
        if deaths.is_empty() {
            self.tell_of_silence(&rescheduled);
            return;
        }
        let mut running: Vec<ClientId> = rescheduled.keys().copied().collect();
        let graphs = self.graphs.values().filter(|graph| !graph.is_done);
        running.extend(graphs.filter_map(|graph| graph.client));
        running.sort_unstable();
        running.dedup();
        for client in running {
            let mut tasks = rescheduled.get(&client).copied().unwrap_or(0);
            for Death { name, reason } in &deaths {
                let text = notice::worker_died(name, reason, std::mem::take(&mut tasks));
                self.tell_client(client, text.len(), |batch| {
                    batch.notices.push(wire::Notice { text });
                });
            }
        }
    }

    /// Says in a line that tasks of workers that nobody hears of are tried elsewhere.
    fn tell_of_silence(&mut self, rescheduled: &HashMap<ClientId, u64>) {
        let links = self.suspects.iter().filter_map(|id| self.workers.get(id));
        let mut names: Vec<String> = links.map(|link| link.hello.name.clone()).collect();
        names.sort_unstable();
        for (client, tasks) in rescheduled {
            let text = notice::workers_silent(&names, *tasks);
            self.tell_client(*client, text.len(), |batch| {
                batch.notices.push(wire::Notice { text });
            });
        }
    }

    /// The graph is gone: workers that have something of it are told, others when they are back.
    pub(crate) fn forget_graph(&mut self, graph: GraphId) {
        self.graphs.remove(&graph);
        for (worker, link) in &mut self.workers {
            if link.hearing() != Hearing::Heard {
                continue;
            }
            let bodies: Option<BodiesSent> = link.graphs.remove(&graph);
            if bodies.is_some()
                && link.add(LINE_BYTES, |batch| batch.graphs_forgotten.push(graph.0))
            {
                self.workers_to_flush.push(*worker);
            }
        }
    }

    /// A worker that was there before this process began; it is a suspect in the core.
    pub(crate) fn add_former(&mut self, worker: WorkerId, hello: wire::WorkerHello) {
        self.suspects.insert(worker);
        self.commands.owe_standing(worker);
        self.workers.insert(worker, WorkerLink::former(hello));
    }
}

fn peer(worker: WorkerId, address: &str) -> wire::Peer {
    wire::Peer {
        worker: worker.0,
        data_address: address.to_owned(),
    }
}

/// Whether two hellos are of one process. A journal may not know the process's number.
fn is_same_process(known: &wire::WorkerHello, now: &wire::WorkerHello) -> bool {
    let is_same_number = known.process_id == 0 || known.process_id == now.process_id;
    known.name == now.name && known.pod_uid == now.pod_uid && is_same_number
}

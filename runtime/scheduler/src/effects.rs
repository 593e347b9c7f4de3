//! Carries out the core's effects: each becomes a part of one peer's next message.
//!
//! Reads from the core what a message needs besides ids. Owns the rules which bodies, peers and
//! holders a worker is told. Never waits, never decides anything about tasks.

use std::collections::HashSet;

use oxidask_core::{Attempt, Core, Effect, TaskRef, WorkerId};
use oxidask_proto::ids::attempt_to_wire;
use oxidask_proto::wire;

use crate::bodies::Sending;
use crate::links::{ClientLink, Hearing};
use crate::main_loop::MainLoop;

/// Other holders named for one input.
const ALTERNATES_MAX: usize = 3;

/// Tasks with more inputs are told one holder each; a worker that misses one reports it.
const INPUTS_WITH_ALTERNATES_MAX: usize = 4096;

/// Bytes counted for an order besides its key, body and inputs.
const ORDER_BYTES: usize = 32;

/// Bytes counted for an input of an assignment.
const INPUT_BYTES: usize = 12;

impl MainLoop {
    pub(crate) fn perform(&mut self, effect: Effect) {
        if self.journal_effect(&effect) {
            return;
        }
        match effect {
            Effect::Assign {
                worker,
                task,
                attempt,
                turn,
            } => self.assign(worker, task, (attempt, turn)),
            Effect::ResultReady {
                client,
                task,
                bytes,
            } => {
                let value = self.values.take(task);
                if let Some(link) = self.clients.get_mut(&client)
                    && link.ready(task.into(), bytes, value)
                {
                    self.clients_to_flush.push(client);
                }
            }
            Effect::Release { worker, task } => {
                self.order(worker, wire::order::Order::Release(task.into()));
            }
            Effect::Retract {
                worker,
                task,
                attempt,
            } => {
                let id = attempt_to_wire(task, attempt);
                self.order(worker, wire::order::Order::Retract(id));
            }
            Effect::Cancel {
                worker,
                task,
                attempt,
            } => {
                let id = attempt_to_wire(task, attempt);
                self.order(worker, wire::order::Order::Cancel(id));
            }
            Effect::TaskFailed {
                client,
                task,
                error,
                is_origin,
            } => {
                if let Some(link) = self.clients.get_mut(&client)
                    && link.failed(task.into(), &error, is_origin)
                {
                    self.clients_to_flush.push(client);
                }
            }
            Effect::Copy { worker, task, from } => self.copy(worker, task, from),
            other => self.perform_for_worker(other),
        }
    }

    /// What becomes of workers.
    fn perform_for_worker(&mut self, effect: Effect) {
        match effect {
            Effect::WorkerAccepted { worker } => self.welcome(worker),
            Effect::WorkerRefused { worker, error } => {
                self.metrics.fleet.rejected.inc();
                let refused = Some(wire::Fault::from(&*error));
                if let Some(mut link) = self.workers.remove(&worker) {
                    link.add(error.message.len(), |batch| batch.refused = refused);
                    link.finish();
                }
            }
            Effect::WorkerGivenUp { worker, reason } => self.given_up(worker, reason),
            Effect::WorkerEmpty { worker } => self.emptied(worker),
            Effect::RetireRefused { worker, reason } => self.retirement_refused(worker, reason),
            Effect::TaskRescheduled { client, .. } => {
                *self.rescheduled.entry(client).or_insert(0) += 1;
            }
            other => self.perform_for_graph(other),
        }
    }

    fn perform_for_graph(&mut self, effect: Effect) {
        match effect {
            Effect::GraphAttached {
                client,
                name,
                graph,
                next_chunk,
            } => {
                let link = self.graphs.entry(graph).or_default();
                link.client = Some(client);
                link.is_done = false;
                let name = name.to_string();
                self.tell_client(client, name.len() + ORDER_BYTES, |batch| {
                    batch.attached.push(wire::GraphAttached {
                        name,
                        graph: graph.0,
                        next_chunk,
                    });
                });
            }
            Effect::ChunkAccepted {
                client,
                graph,
                number,
            } => {
                let graph = graph.0;
                self.tell_client(client, ORDER_BYTES, |batch| {
                    batch.accepted.push(wire::ChunkAccepted { graph, number });
                });
            }
            Effect::GraphRefused {
                client,
                graph,
                error,
            } => {
                let refused = wire::GraphRefused {
                    graph: graph.0,
                    fault: Some(wire::Fault::from(&*error)),
                };
                if let Some(link) = self.graphs.get_mut(&graph) {
                    link.is_done = true;
                }
                let bytes = error.message.len() + ORDER_BYTES;
                self.tell_client(client, bytes, |batch| batch.refused.push(refused));
            }
            Effect::GraphDone { client, graph } => {
                if let Some(link) = self.graphs.get_mut(&graph) {
                    link.is_done = true;
                }
                let cluster = self.core.cluster();
                self.send_progress(graph, client, &cluster);
                self.tell_client(client, ORDER_BYTES, |batch| batch.done.push(graph.0));
            }
            Effect::GraphForgotten { graph } => self.forget_graph(graph),
            // Carried out above.
            _ => {}
        }
    }

    fn order(&mut self, worker: WorkerId, order: wire::order::Order) {
        self.tell_worker(worker, ORDER_BYTES, |batch| {
            batch.orders.push(wire::Order { order: Some(order) });
        });
    }

    /// The worker may begin: it learns its number. It meets its peers when it needs them.
    fn welcome(&mut self, worker: WorkerId) {
        let Some(link) = self.workers.get(&worker) else {
            return;
        };
        let (name, address) = (&link.hello.name, &link.address);
        tracing::info!(worker = name, address = %address, "worker joined");
        self.greet(worker, false);
        self.commands.owe_standing(worker);
        self.give_unanswered(worker);
        self.has_newcomer = true;
        self.metrics.fleet.added.inc();
    }

    fn copy(&mut self, worker: WorkerId, task: TaskRef, from: WorkerId) {
        let copy = wire::CopyOrder {
            task: Some(task.into()),
            bytes: self.core.bytes(task),
            from: from.0,
        };
        let peers = self.introduced(worker, [from.0]);
        self.introduce(worker, peers);
        self.tell_worker(worker, ORDER_BYTES, |batch| batch.copies.push(copy));
    }

    /// Those of the holders that the worker has not been told of.
    fn introduced(
        &self,
        worker: WorkerId,
        holders: impl IntoIterator<Item = u32>,
    ) -> Vec<wire::Peer> {
        let mut peers: Vec<wire::Peer> = Vec::new();
        let Some(link) = self.workers.get(&worker) else {
            return peers;
        };
        for holder in holders {
            let holder = WorkerId(holder);
            if holder.0 == 0 || holder == worker || link.peers_told.contains(&holder) {
                continue;
            }
            let is_listed = peers.iter().any(|peer| peer.worker == holder.0);
            let found = self.workers.get(&holder).filter(|_| !is_listed);
            peers.extend(found.map(|found| wire::Peer {
                worker: holder.0,
                data_address: found.address.to_string(),
            }));
        }
        peers
    }

    /// Tells a worker of peers before an order that names them.
    fn introduce(&mut self, worker: WorkerId, peers: Vec<wire::Peer>) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        for peer in peers {
            if link.meet_peer(peer) {
                self.workers_to_flush.push(worker);
            }
        }
    }

    fn assign(&mut self, worker: WorkerId, task: TaskRef, (attempt, turn): (Attempt, u32)) {
        let link = self.workers.get(&worker);
        if link.is_none_or(|link| link.hearing() != Hearing::Heard) {
            return;
        }
        let holders = Holders {
            worker,
            suspects: &self.suspects,
        };
        let mut order = assignment(&self.core, &holders, task, (attempt, turn));
        if !order.holders.is_empty() {
            let others = order.alternates.iter().flat_map(|other| &other.holders);
            let named = order.holders.iter().chain(others).copied();
            let peers = self.introduced(worker, named);
            self.introduce(worker, peers);
        }
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let body = self.core.body(task).unwrap_or(u32::MAX);
        let graph = self.graphs.get(&task.graph);
        let sending = graph.and_then(|graph| graph.bodies.sending(body));
        let bodies_sent = link.graphs.entry(task.graph).or_default();
        let mut bytes = ORDER_BYTES + order.key.len() + order.inputs.len() * INPUT_BYTES;
        order.body = body;
        order.value_wanted = self.core.is_wanted(task)
            && graph
                .and_then(|graph| self.clients.get(&graph.client?))
                .is_some_and(ClientLink::is_own);
        if let Some(graph) = graph {
            order.part = graph.parts.part(task.task.0);
            order.streamed_inputs = graph.parts.streamed_inputs(task.task.0);
            order.arguments = graph.parts.arguments(task.task.0);
            bytes += order.arguments.len();
        }
        let mut shared = None;
        match sending {
            Some(Sending::Inline(content)) => {
                bytes += content.len();
                order.is_inline = true;
                order.inline_body = content;
            }
            Some(Sending::Shared(content)) => {
                if bodies_sent.insert(body) {
                    bytes += content.len();
                    shared = Some(wire::Body {
                        graph: task.graph.0,
                        body,
                        content,
                    });
                }
            }
            // The worker refuses an empty body, so the task fails with its name.
            None => order.is_inline = true,
        }
        let is_first = link.add(bytes, |batch| {
            batch.bodies.extend(shared);
            batch.orders.push(wire::Order {
                order: Some(wire::order::Order::Assign(order)),
            });
        });
        if is_first {
            self.workers_to_flush.push(worker);
        }
    }
}

fn assignment(
    core: &Core,
    of: &Holders<'_>,
    task: TaskRef,
    (attempt, turn): (Attempt, u32),
) -> wire::Assign {
    let inputs = core.inputs(task);
    let mut order = wire::Assign {
        graph: task.graph.0,
        task: task.task.0,
        epoch: attempt.epoch,
        attempt: attempt.number,
        key: core.key(task).unwrap_or_default().to_owned(),
        priority: core.priority(task),
        turn,
        slots: core.slots(task),
        ..wire::Assign::default()
    };
    if inputs.is_empty() {
        return order;
    }
    order.inputs.reserve_exact(inputs.len());
    order.input_bytes.reserve_exact(inputs.len());
    order.holders.reserve_exact(inputs.len());
    for (position, input) in inputs.iter().enumerate() {
        let input = TaskRef {
            graph: task.graph,
            task: *input,
        };
        let holders = core.holders(input);
        let chosen = of.choose(holders, task.task.0);
        order.inputs.push(input.task.0);
        order.input_bytes.push(core.bytes(input));
        order.holders.push(chosen.map_or(0, |holder| holder.0));
        if holders.len() > 1
            && chosen != Some(of.worker)
            && inputs.len() <= INPUTS_WITH_ALTERNATES_MAX
        {
            order.alternates.push(wire::Alternate {
                position: u32::try_from(position).unwrap_or(u32::MAX),
                holders: of.others(holders, chosen),
            });
        }
    }
    order
}

/// Whom a worker is told to read an input from.
struct Holders<'a> {
    worker: WorkerId,
    suspects: &'a HashSet<WorkerId>,
}

impl Holders<'_> {
    /// The worker itself if it holds the input; otherwise consumers spread over the holders, and
    /// those that nobody hears of are asked only if there is no other.
    fn choose(&self, holders: &[WorkerId], spread: u32) -> Option<WorkerId> {
        if holders.contains(&self.worker) {
            return Some(self.worker);
        }
        let spread = spread as usize;
        if !self.suspects.is_empty() {
            let is_heard = |holder: &&WorkerId| !self.suspects.contains(*holder);
            let heard = holders.iter().filter(is_heard).count();
            if heard > 0 {
                return holders.iter().filter(is_heard).nth(spread % heard).copied();
            }
        }
        holders.get(spread % holders.len().max(1)).copied()
    }

    /// Some of the other holders, those that are heard first.
    fn others(&self, holders: &[WorkerId], chosen: Option<WorkerId>) -> Vec<u32> {
        let others = || holders.iter().filter(|other| Some(**other) != chosen);
        let heard = others().filter(|other| !self.suspects.contains(*other));
        let suspect = others().filter(|other| self.suspects.contains(*other));
        let all = heard.chain(suspect).take(ALTERNATES_MAX);
        all.map(|other| other.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_that_nobody_hears_of_are_asked_last() {
        let all = [1, 2, 3, 4].map(WorkerId);
        let suspects: HashSet<WorkerId> = [WorkerId(1), WorkerId(3)].into();
        let of = |worker| Holders {
            worker: WorkerId(worker),
            suspects: &suspects,
        };
        let chosen = |spread| of(9).choose(&all, spread).map(|holder| holder.0);
        assert_eq!(
            [chosen(0), chosen(1), chosen(2)],
            [Some(2), Some(4), Some(2)]
        );
        assert_eq!(
            of(3).choose(&all, 0),
            Some(WorkerId(3)),
            "what is there is not fetched"
        );
        assert_eq!(
            of(9).choose(&all[..1], 5),
            Some(WorkerId(1)),
            "better than nobody"
        );
        assert_eq!(of(9).choose(&[], 5), None);
        assert_eq!(of(9).others(&all, Some(WorkerId(2))), [4, 1, 3]);
    }
}

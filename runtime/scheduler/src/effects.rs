//! Carries out the core's effects: each becomes a part of one peer's next message.
//!
//! Reads from the core what a message needs besides ids. Owns the rules which bodies, peers and
//! holders a worker is told. Never waits, never decides anything about tasks.

use oxidask_core::{Attempt, Core, Effect, TaskRef, WorkerId};
use oxidask_proto::ids::attempt_to_wire;
use oxidask_proto::wire;

use crate::bodies::Sending;
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
        match effect {
            Effect::Assign {
                worker,
                task,
                attempt,
            } => self.assign(worker, task, attempt),
            Effect::ResultReady {
                client,
                task,
                bytes,
            } => {
                if let Some(link) = self.clients.get_mut(&client)
                    && link.ready(task.into(), bytes)
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
            Effect::WorkerAccepted { worker } => self.welcome(worker),
            Effect::WorkerRefused { worker, error } => {
                let refused = Some(wire::Fault::from(&*error));
                if let Some(mut link) = self.workers.remove(&worker) {
                    link.add(error.message.len(), |batch| batch.refused = refused);
                    link.finish();
                }
            }
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
            Effect::GraphForgotten { graph } => {
                self.graphs.remove(&graph);
                for (worker, link) in &mut self.workers {
                    if link.graphs.remove(&graph).is_some()
                        && link.add(ORDER_BYTES, |batch| batch.graphs_forgotten.push(graph.0))
                    {
                        self.workers_to_flush.push(*worker);
                    }
                }
            }
            // Carried out by `perform`.
            _ => {}
        }
    }

    fn order(&mut self, worker: WorkerId, order: wire::order::Order) {
        self.tell_worker(worker, ORDER_BYTES, |batch| {
            batch.orders.push(wire::Order { order: Some(order) });
        });
    }

    /// The worker may begin: it learns its number and all peers, and all peers learn of it.
    fn welcome(&mut self, worker: WorkerId) {
        let Some(link) = self.workers.get(&worker) else {
            return;
        };
        let data_address = link.address.to_string();
        tracing::info!(
            worker = link.hello.name,
            address = data_address,
            "worker joined"
        );
        let others: Vec<WorkerId> = self
            .workers
            .keys()
            .copied()
            .filter(|other| *other != worker)
            .collect();
        let peer = |worker: &WorkerId, address: &str| wire::Peer {
            worker: worker.0,
            data_address: address.to_owned(),
        };
        let peers: Vec<wire::Peer> = others
            .iter()
            .filter_map(|other| Some(peer(other, &self.workers.get(other)?.address)))
            .collect();
        for other in others {
            let newcomer = peer(&worker, &data_address);
            self.tell_worker(other, ORDER_BYTES + data_address.len(), |batch| {
                batch.peers.push(newcomer);
            });
        }
        let hello = self.hello.clone();
        self.tell_worker(worker, ORDER_BYTES * (1 + peers.len()), |batch| {
            batch.hello = Some(hello);
            batch.worker = worker.0;
            batch.peers = peers;
        });
    }

    fn assign(&mut self, worker: WorkerId, task: TaskRef, attempt: Attempt) {
        let Some(link) = self.workers.get_mut(&worker) else {
            return;
        };
        let body = self.core.body(task).unwrap_or(u32::MAX);
        let graph = self.graphs.get(&task.graph);
        let sending = graph.and_then(|graph| graph.bodies.sending(body));
        let bodies_sent = link.graphs.entry(task.graph).or_default();
        let mut order = assignment(&self.core, worker, task, attempt);
        let mut bytes = ORDER_BYTES + order.key.len() + order.inputs.len() * INPUT_BYTES;
        order.body = body;
        if let Some(graph) = graph {
            order.part = graph.parts.part(task.task.0);
            order.streamed_inputs = graph.parts.streamed_inputs(task.task.0);
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

fn assignment(core: &Core, worker: WorkerId, task: TaskRef, attempt: Attempt) -> wire::Assign {
    let inputs = core.inputs(task);
    let mut order = wire::Assign {
        graph: task.graph.0,
        task: task.task.0,
        epoch: attempt.epoch,
        attempt: attempt.number,
        key: core.key(task).unwrap_or_default().to_owned(),
        priority: core.priority(task),
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
        let chosen = choose_holder(holders, worker, task.task.0);
        order.inputs.push(input.task.0);
        order.input_bytes.push(core.bytes(input));
        order.holders.push(chosen.map_or(0, |holder| holder.0));
        if holders.len() > 1 && chosen != Some(worker) && inputs.len() <= INPUTS_WITH_ALTERNATES_MAX
        {
            let others = holders.iter().filter(|other| Some(**other) != chosen);
            order.alternates.push(wire::Alternate {
                position: u32::try_from(position).unwrap_or(u32::MAX),
                holders: others.take(ALTERNATES_MAX).map(|other| other.0).collect(),
            });
        }
    }
    order
}

/// The worker itself if it holds the input; otherwise consumers spread over the holders.
fn choose_holder(holders: &[WorkerId], worker: WorkerId, spread: u32) -> Option<WorkerId> {
    if holders.contains(&worker) {
        return Some(worker);
    }
    let position = spread as usize % holders.len().max(1);
    holders.get(position).copied()
}

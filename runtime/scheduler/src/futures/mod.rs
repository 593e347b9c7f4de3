//! The scheduler's side of stock Dask clients.
//!
//! Owns the service `Futures`: streams of clients ([`stream`]), questions ([`cluster`]) and the one
//! task that owns the pure state ([`actor`]). That task is a client of the main loop for all Dask
//! clients together: it opens graphs, sends chunks and hears of results as any other client does.
//! Never opens a body or a value, never decides where a task runs.
//!
//! Invariants: the pure state is touched by one task only; every queue towards it and away from it is
//! bounded; a client that does not read is closed and the others do not notice.

mod actor;
mod cluster;
mod convert;
mod desk;
mod fleet;
mod forward;
mod lookup;
mod service;
mod stream;

use std::sync::Arc;

use oxidask_core::TaskRef;
use oxidask_futures::keys::Connection;
use oxidask_proto::wire;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::grpc::Shared;
use crate::outbox::{Batch, Outbox};
use crate::put::Uploaded;

pub(crate) use service::FuturesService;

/// Messages that wait for the actor; whoever has more waits.
const SAID_MAX: usize = 256;

/// The way to a client.
type ClientOutbox = Outbox<wire::FuturesReply>;

/// What reaches the actor.
enum Said {
    /// A client has said hello.
    Joined {
        connection: Connection,
        hello: Box<wire::FuturesHello>,
        outbox: Arc<ClientOutbox>,
    },
    /// A client says something, in order. The permit bounds what waits of one client.
    Commands {
        connection: Connection,
        commands: Vec<(u64, convert::SaidCommand)>,
        permit: OwnedSemaphorePermit,
    },
    /// The stream of a client is over.
    Left {
        connection: Connection,
        is_clean: bool,
    },
    /// Somebody asks.
    Asked(Box<Asked>),
    /// A client has given a value.
    Put(Box<Put>),
}

/// A value that is at a worker, or with its task.
struct Put {
    client: String,
    key: String,
    /// Of which one has to have it, as the client said.
    workers: Vec<String>,
    uploaded: Uploaded,
    reply: oneshot::Sender<Option<TaskRef>>,
}

/// A question on its way.
struct Asked {
    client: String,
    operation: String,
    content: bytes::Bytes,
    values: Vec<bytes::Bytes>,
    reply: oneshot::Sender<wire::Answer>,
}

/// Starts the actor; the service reaches it.
pub(crate) fn start(shared: &Arc<Shared>, dashboard_port: Option<u16>) -> FuturesService {
    let (sender, receiver) = mpsc::channel(SAID_MAX);
    let stop = shared.shutdown.clone();
    let actor = actor::run(Arc::clone(shared), dashboard_port, receiver);
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = actor => {}
        }
    });
    FuturesService {
        shared: Arc::clone(shared),
        actor: sender,
    }
}

impl Batch for wire::FuturesReply {
    fn append(&mut self, mut later: Self) {
        if later.hello.is_some() {
            self.hello = later.hello;
        }
        if later.refused.is_some() {
            self.refused = later.refused;
        }
        self.acknowledged = self.acknowledged.max(later.acknowledged);
        if later.is_restarted {
            // What was said of keys before does not hold any more.
            self.events.clear();
            self.is_restarted = true;
        }
        self.events.append(&mut later.events);
        self.topics.append(&mut later.topics);
        self.notices.append(&mut later.notices);
    }
}

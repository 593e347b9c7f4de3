//! The first exchange with the scheduler.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use oxidask_comm::{CommError, connect_with_tries};
use oxidask_core::WorkerId;
use oxidask_diagnostic::Diagnostic;
use oxidask_identity::Role;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, fault, hello, ids, wire};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::config::WorkerConfig;
use crate::error::{Reported, WorkerError};

/// How long the scheduler has to accept a worker once the connection is there.
const ANSWER_SECONDS_MAX: u64 = 10;
/// How often a worker that has just started tries at once: its scheduler may be starting, too.
const TRIES_FIRST: u32 = 10;
/// Messages to the scheduler that wait for the transport; what comes meanwhile is merged.
const MESSAGES_WAITING_MAX: usize = 1;

/// What this worker is to a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Met {
    /// The number that the scheduler gave it.
    pub(crate) own: WorkerId,
    /// Of the scheduler.
    pub(crate) incarnation: u64,
    pub(crate) epoch: u32,
}

impl Met {
    /// Whether what was held as the former still means the same.
    pub(crate) fn continues(self, former: Option<Met>) -> bool {
        former
            .is_some_and(|former| (former.own, former.incarnation) == (self.own, self.incarnation))
    }
}

/// An open stream to a scheduler that has accepted this worker.
pub(crate) struct Stream {
    pub(crate) met: Met,
    pub(crate) orders: Streaming<wire::WorkBatch>,
    pub(crate) messages: mpsc::Sender<wire::WorkerBatch>,
    /// The first message may carry orders already.
    pub(crate) first: wire::WorkBatch,
}

/// Connects and introduces this worker, as the one that it was to a scheduler before.
pub(crate) async fn register(
    config: &WorkerConfig,
    former: Option<Met>,
) -> Result<Stream, WorkerError> {
    let address = &config.scheduler_address;
    let unreachable = |source| WorkerError::Connect {
        name: config.name.clone(),
        address: address.clone(),
        source: Box::new(source),
    };
    // A worker that has had a scheduler knows when to try again.
    let tries = if former.is_some() { 1 } else { TRIES_FIRST };
    let channel = connect_with_tries(address, &config.credentials, Role::Scheduler, tries)
        .await
        .map_err(unreachable)?;
    let facing = data_address(&config.advertise_address, address).await;
    let data_address = facing.map_err(|source| {
        let address = address.clone();
        unreachable(CommError::Lookup { address, source })
    })?;
    let mut client = SchedulerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (messages, outgoing) = mpsc::channel(MESSAGES_WAITING_MAX);
    let introduction = wire::WorkerBatch {
        hello: Some(introduction(config, data_address, former)),
        ..wire::WorkerBatch::default()
    };
    if messages.send(introduction).await.is_err() {
        return Err(WorkerError::PartEnded {
            part: "stream to the scheduler",
        });
    }
    let (orders, first) = exchange(config, &mut client, outgoing).await?;
    let mut first = first.ok_or(WorkerError::SchedulerGone { source: None })?;
    if let Some(fault) = first.refused.take() {
        return Err(refused(config, fault.into()));
    }
    let theirs = hello::check(first.hello.take()).map_err(WorkerError::Message)?;
    tracing::info!(
        worker = first.worker,
        name = config.name,
        scheduler = config.scheduler_address,
        build = theirs.build,
        incarnation = theirs.incarnation,
        epoch = theirs.epoch,
        is_resumed = first.is_resumed,
        "registered"
    );
    Ok(Stream {
        met: Met {
            own: WorkerId(first.worker),
            incarnation: theirs.incarnation,
            epoch: theirs.epoch,
        },
        orders,
        messages,
        first,
    })
}

type Answer = (Streaming<wire::WorkBatch>, Option<wire::WorkBatch>);

/// Opens the stream and waits for the first message.
async fn exchange(
    config: &WorkerConfig,
    client: &mut SchedulerClient<Channel>,
    outgoing: mpsc::Receiver<wire::WorkerBatch>,
) -> Result<Answer, WorkerError> {
    let exchange = async {
        let mut orders = client
            .work(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let first = orders.message().await?;
        Ok::<_, Status>((orders, first))
    };
    let answer = timeout(Duration::from_secs(ANSWER_SECONDS_MAX), exchange).await;
    let no_answer = |_| WorkerError::NoAnswer {
        address: config.scheduler_address.clone(),
        seconds: ANSWER_SECONDS_MAX,
    };
    answer
        .map_err(no_answer)?
        .map_err(|status| refused(config, fault::from_status(&status)))
}

fn refused(config: &WorkerConfig, diagnostic: Diagnostic) -> WorkerError {
    WorkerError::Refused {
        name: config.name.clone(),
        source: Reported(Box::new(diagnostic)),
    }
}

/// Where peers reach a worker: what it advertises, or the address that faces the scheduler in place
/// of an unspecified host. Fails while the scheduler's name is not found. For whoever tells the
/// processes of an executor where their worker is: the scheduler and Dask clients call it the same.
pub async fn data_address(advertise_address: &str, scheduler_address: &str) -> io::Result<String> {
    match advertise_address.parse::<SocketAddr>() {
        Ok(bound) if bound.ip().is_unspecified() => facing(bound, scheduler_address).await,
        _ => Ok(advertise_address.to_owned()),
    }
}

/// The own address on the way to the scheduler. Connecting a UDP socket sends nothing.
async fn facing(bound: SocketAddr, scheduler: &str) -> io::Result<String> {
    let host_and_port = scheduler.strip_prefix("oxidask://").unwrap_or(scheduler);
    let socket = UdpSocket::bind(SocketAddr::new(bound.ip(), 0)).await?;
    socket.connect(host_and_port.trim_end_matches('/')).await?;
    let facing = socket.local_addr()?;
    Ok(SocketAddr::new(facing.ip(), bound.port()).to_string())
}

fn introduction(
    config: &WorkerConfig,
    data_address: String,
    former: Option<Met>,
) -> wire::WorkerHello {
    let hello = wire::Hello {
        incarnation: former.map_or(0, |former| former.incarnation),
        epoch: former.map_or(0, |former| former.epoch),
        ..hello::hello()
    };
    wire::WorkerHello {
        hello: Some(hello),
        name: config.name.clone(),
        group: config.group.clone(),
        pod_uid: config.pod_uid.clone(),
        node: config.node.clone(),
        slots: config.slots.max(1),
        resources: ids::amounts_to_wire(config.resources.clone()),
        memory_bytes: config.memory_bytes,
        data_address,
        process_id: std::process::id(),
        former: former.map_or(0, |former| former.own.0),
    }
}

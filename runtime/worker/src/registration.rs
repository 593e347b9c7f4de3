//! The first exchange with the scheduler.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use oxidask_comm::{CommError, connect};
use oxidask_core::WorkerId;
use oxidask_identity::Role;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, fault, hello, ids, wire};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::config::WorkerConfig;
use crate::error::{Reported, WorkerError};

/// How long the scheduler has to accept a worker once the connection is there.
const ANSWER_SECONDS_MAX: u64 = 10;
/// Messages to the scheduler that wait for the transport; what comes meanwhile is merged.
const MESSAGES_WAITING_MAX: usize = 1;

/// An open stream to a scheduler that has accepted this worker.
pub(crate) struct Session {
    pub(crate) own: WorkerId,
    pub(crate) orders: Streaming<wire::WorkBatch>,
    pub(crate) messages: mpsc::Sender<wire::WorkerBatch>,
    /// The first message may carry orders already.
    pub(crate) first: wire::WorkBatch,
}

/// Connects and introduces this worker.
pub(crate) async fn register(config: &WorkerConfig) -> Result<Session, WorkerError> {
    let address = &config.scheduler_address;
    let unreachable = |source| WorkerError::Connect {
        name: config.name.clone(),
        address: address.clone(),
        source: Box::new(source),
    };
    let channel = connect(address, &config.credentials, Role::Scheduler)
        .await
        .map_err(unreachable)?;
    let data_address = data_address(config).await.map_err(|source| {
        let address = address.clone();
        unreachable(CommError::Lookup { address, source })
    })?;
    let mut client = SchedulerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (messages, outgoing) = mpsc::channel(MESSAGES_WAITING_MAX);
    let introduction = wire::WorkerBatch {
        hello: Some(introduction(config, data_address)),
        ..wire::WorkerBatch::default()
    };
    if messages.send(introduction).await.is_err() {
        return Err(WorkerError::PartEnded {
            part: "stream to the scheduler",
        });
    }
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
    let refused = |diagnostic| WorkerError::Refused {
        name: config.name.clone(),
        source: Reported(Box::new(diagnostic)),
    };
    let (orders, first) = answer
        .map_err(no_answer)?
        .map_err(|status| refused(fault::from_status(&status)))?;
    let mut first = first.ok_or(WorkerError::SchedulerGone { source: None })?;
    if let Some(fault) = first.refused.take() {
        return Err(refused(fault.into()));
    }
    let theirs = hello::check(first.hello.take()).map_err(WorkerError::Message)?;
    tracing::info!(
        worker = first.worker,
        name = config.name,
        scheduler = config.scheduler_address,
        build = theirs.build,
        "registered"
    );
    Ok(Session {
        own: WorkerId(first.worker),
        orders,
        messages,
        first,
    })
}

/// Where peers reach this worker. The scheduler's name has just been found, which at the start of
/// the worker it need not be.
async fn data_address(config: &WorkerConfig) -> io::Result<String> {
    match config.advertise_address.parse::<SocketAddr>() {
        Ok(bound) if bound.ip().is_unspecified() => facing(bound, &config.scheduler_address).await,
        _ => Ok(config.advertise_address.clone()),
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

fn introduction(config: &WorkerConfig, data_address: String) -> wire::WorkerHello {
    wire::WorkerHello {
        hello: Some(hello::hello()),
        name: config.name.clone(),
        group: config.group.clone(),
        pod_uid: config.pod_uid.clone(),
        node: config.node.clone(),
        slots: config.slots.max(1),
        resources: ids::amounts_to_wire(config.resources.clone()),
        memory_bytes: config.memory_bytes,
        data_address,
        process_id: std::process::id(),
        held: Vec::new(),
    }
}

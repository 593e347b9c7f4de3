//! The first exchange with the scheduler.

use std::time::Duration;

use oxidask_comm::connect;
use oxidask_core::WorkerId;
use oxidask_proto::wire::scheduler_client::SchedulerClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, Role, fault, hello, ids, wire};
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
    let channel = connect(
        &config.scheduler_address,
        &config.credentials,
        Role::Scheduler,
    )
    .await
    .map_err(|source| WorkerError::Connect {
        name: config.name.clone(),
        address: config.scheduler_address.clone(),
        source: Box::new(source),
    })?;
    let mut client = SchedulerClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (messages, outgoing) = mpsc::channel(MESSAGES_WAITING_MAX);
    let introduction = wire::WorkerBatch {
        hello: Some(introduction(config)),
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

fn introduction(config: &WorkerConfig) -> wire::WorkerHello {
    wire::WorkerHello {
        hello: Some(hello::hello()),
        name: config.name.clone(),
        group: config.group.clone(),
        pod_uid: config.pod_uid.clone(),
        node: config.node.clone(),
        slots: config.slots.max(1),
        resources: ids::amounts_to_wire(config.resources.clone()),
        memory_bytes: config.memory_bytes,
        data_address: config.advertise_address.clone(),
        process_id: std::process::id(),
        held: Vec::new(),
    }
}

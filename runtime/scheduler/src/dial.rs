//! Finds out whether the process of a worker that fell silent is dead.
//!
//! A port that refuses says that the machine lives and the process does not: its tasks need not wait
//! for the end of a grace period. Anything else says nothing. Runs beside the main loop, which is
//! told only of deaths; looks again a few times, because a process may take a while to end.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use oxidask_core::WorkerId;
use oxidask_proto::wire;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::grpc::Shared;
use crate::input::Input;

/// Time in which a port must answer.
const DIAL_TIME_MAX: Duration = Duration::from_millis(300);

/// Connections that are tried at once.
pub(crate) const DIALS_MAX: usize = 64;

/// Pauses before each look.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(700),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// Whoever started the process may say how it ended: waited for, so that errors can tell.
const EXPLANATION_TIME: Duration = Duration::from_millis(50);

/// Looks after a worker that nobody hears of.
pub(crate) async fn look_after(shared: Arc<Shared>, worker: WorkerId, address: Arc<str>) {
    let looking = async {
        for pause in PAUSES {
            sleep(pause).await;
            if is_refused(&shared, &address).await {
                sleep(EXPLANATION_TIME).await;
                shared.inputs.send(Input::WorkerDead(worker)).await;
                return;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = shared.shutdown.cancelled() => {}
    }
}

/// The data planes of workers that were there before this process began.
pub(crate) fn addresses(
    workers: &HashMap<WorkerId, wire::WorkerHello>,
) -> Vec<(WorkerId, Arc<str>)> {
    let address = |hello: &wire::WorkerHello| Arc::from(hello.data_address.as_str());
    let all = workers.iter();
    all.map(|(worker, hello)| (*worker, address(hello)))
        .collect()
}

/// Looks after all of them: those that died meanwhile are not waited for.
pub(crate) fn look_after_all(shared: &Arc<Shared>, workers: Vec<(WorkerId, Arc<str>)>) {
    for (worker, address) in workers {
        tokio::spawn(look_after(Arc::clone(shared), worker, address));
    }
}

async fn is_refused(shared: &Shared, address: &str) -> bool {
    let Ok(_permit) = shared.dials.acquire().await else {
        return false;
    };
    match timeout(DIAL_TIME_MAX, TcpStream::connect(address)).await {
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        _ => false,
    }
}

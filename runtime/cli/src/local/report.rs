//! Tells the scheduler how the process of a worker ended: whoever started it knows at once and for
//! sure, and knows the cause.

use std::sync::Arc;
use std::time::Duration;

use oxidask_client::{Client, ClientError, Pauses};
use oxidask_comm::Credentials;
use oxidask_proto::wire;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

/// Time in which the scheduler is told; later it has noticed by itself.
const TELL_TIME_MAX: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Connects when it is first needed. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    address: String,
    credentials: Credentials,
    client: Arc<OnceCell<Client>>,
}

impl Reporter {
    /// For the scheduler at an address.
    pub(crate) fn new(address: &str, credentials: Credentials) -> Self {
        Self {
            address: address.to_owned(),
            credentials,
            client: Arc::default(),
        }
    }

    /// Says that a worker's process ended, also to a scheduler that is just being started again.
    pub(crate) async fn tell(self, request: wire::WorkerEndedRequest) {
        let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
        let telling = async {
            while let Err(error) = self.try_to_tell(request.clone()).await {
                if !error.may_pass() {
                    tracing::debug!(%error, "the scheduler was not told of a worker's end");
                    return;
                }
                sleep(pauses.next_pause()).await;
            }
        };
        let _ = timeout(TELL_TIME_MAX, telling).await;
    }

    async fn try_to_tell(&self, request: wire::WorkerEndedRequest) -> Result<(), ClientError> {
        let connecting = || Client::connect(&self.address, &self.credentials);
        let client = self.client.get_or_try_init(connecting).await?;
        client.worker_ended(request).await.map(|_| ())
    }
}

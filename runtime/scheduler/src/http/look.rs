//! How the routes get at the main loop: few at a time, and not for long.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::Refusal;
use crate::grpc::Shared;
use crate::look::Snapshot;
use crate::main_loop::MainLoop;
use crate::metrics::Metrics;

/// Looks that wait for the loop or are carried out there: HTTP never fills the loop's queue.
const LOOKS_MAX: usize = 8;

/// Time in which the loop must answer.
pub(crate) const LOOK_TIME_MAX: Duration = Duration::from_secs(3);

/// The same for a scrape, which can do with older numbers.
const SCRAPE_TIME_MAX: Duration = Duration::from_millis(500);

/// The way to the loop.
pub(crate) struct Looker {
    shared: Arc<Shared>,
    permits: Semaphore,
}

impl Looker {
    /// Nobody looks yet.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let permits = Semaphore::new(LOOKS_MAX);
        Self { shared, permits }
    }

    /// What all calls share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The counters.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Runs a function on the loop's thread.
    pub(crate) async fn look<A: Send + 'static>(
        &self,
        look: impl FnOnce(&mut MainLoop) -> A + Send + 'static,
    ) -> Result<A, Refusal> {
        if self.metrics().is_recovering() {
            return Err(recovering());
        }
        let looking = async {
            let _permit = self.permits.acquire().await.ok()?;
            self.shared.inputs.look(look).await.ok()
        };
        let looked = timeout(LOOK_TIME_MAX, looking).await.ok().flatten();
        looked.ok_or_else(busy)
    }

    /// All of the cluster.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, Refusal> {
        self.look(|main_loop| main_loop.snapshot()).await
    }

    /// Brings what metrics say of the cluster up to date, if the loop answers in time.
    pub(crate) async fn refresh_metrics(&self) {
        let looking = timeout(SCRAPE_TIME_MAX, self.snapshot());
        if let Ok(Ok(snapshot)) = looking.await {
            let waiting = self.shared.inputs.waiting();
            self.metrics().set_snapshot(Arc::new(snapshot), waiting);
        }
    }
}

fn recovering() -> Refusal {
    let message = "the journal is being read: the scheduler knows nothing yet";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).with_hint("wait until /readyz says ok")
}

fn busy() -> Refusal {
    let message = "the scheduler is too busy to answer, or is shutting down";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
        .with_hint("try again; /metrics shows what keeps it busy")
}

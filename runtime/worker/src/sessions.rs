//! One scheduler after the other.
//!
//! Owns the stream to a scheduler from the first try to reach it to its end, and what follows then:
//! everything that is held goes, because a scheduler that comes back has forgotten all of it, and
//! the worker registers again. Decides nothing about tasks.
//!
//! Invariants: one session at a time; nothing of a session, not even the folder of a run that will
//! not end, meets the next one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use oxidask_comm::BulkPool;
use oxidask_diagnostic::{Coded, Diagnostic};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::WorkerConfig;
use crate::consumed::Freer;
use crate::error::WorkerError;
use crate::event_loop::{EventLoop, Parts};
use crate::fetch::Fetcher;
use crate::http::Shown;
use crate::pieces::{Peers, Reader};
use crate::registration::{self, register};
use crate::retry::Retry;
use crate::run::Runner;

/// The sessions of a worker.
pub(crate) struct Sessions {
    config: WorkerConfig,
    shown: Arc<Shown>,
    stop: CancellationToken,
    retry: Retry,
    /// Number of the session.
    number: u32,
}

impl Sessions {
    pub(crate) fn new(config: WorkerConfig, shown: Arc<Shown>, stop: CancellationToken) -> Self {
        let retry = Retry::new(config.reconnect_time, Instant::now());
        Self {
            config,
            shown,
            stop,
            retry,
            number: 0,
        }
    }

    /// Works for schedulers until `stop`, or until no other try helps.
    pub(crate) async fn run(mut self) -> Result<(), WorkerError> {
        loop {
            let registered = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                registered = register(&self.config) => registered,
            };
            let error = match registered {
                Err(error) => error,
                Ok(session) => match self.serve(session).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
            };
            let pause = self.next_try(error)?;
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = sleep(pause) => {}
            }
        }
    }

    /// One session, from its registration to its end. All is well only if `stop` ended it.
    async fn serve(&mut self, session: registration::Session) -> Result<(), WorkerError> {
        let since = Instant::now();
        self.number = self.number.wrapping_add(1);
        self.shown.is_registered.store(true, Ordering::Relaxed);
        let outcome = self.work(session).await;
        self.shown.is_registered.store(false, Ordering::Relaxed);
        self.shown.store.clear();
        self.shown.metrics.nothing_runs();
        self.retry.session_ended(since, Instant::now());
        outcome
    }

    /// The loop has a task of its own, so its panic does not pass.
    async fn work(&self, session: registration::Session) -> Result<(), WorkerError> {
        let Shown { metrics, store, .. } = &*self.shown;
        let pool = BulkPool::new(self.config.credentials.clone());
        let peers = Arc::new(Peers::default());
        let reader = Arc::new(Reader::new(
            session.own,
            Arc::clone(store),
            Arc::clone(&peers),
            pool.clone(),
            Arc::clone(metrics),
        ));
        let runner = Runner::new(
            self.config.executors.clone(),
            Arc::clone(&reader),
            self.config.base_dir.clone(),
            self.config.scratch_dir.clone(),
            self.number,
        );
        let parts = Parts {
            runner,
            fetcher: Fetcher::new(pool.clone(), Arc::clone(&peers)),
            freer: Freer::new(reader, pool),
            peers,
            store: Arc::clone(store),
            metrics: Arc::clone(metrics),
        };
        let event_loop = EventLoop::new(session, self.config.slots, parts);
        let mut task = JoinSet::new();
        task.spawn(event_loop.run(self.stop.clone()));
        match task.join_next().await {
            Some(Ok(outcome)) => outcome,
            ended => {
                if let Some(Err(error)) = ended {
                    tracing::error!(%error, "the worker's loop panicked");
                }
                Err(WorkerError::PartEnded { part: "loop" })
            }
        }
    }

    /// How long to wait before the next try, or the error with which the worker ends.
    fn next_try(&mut self, error: WorkerError) -> Result<Duration, WorkerError> {
        let Diagnostic {
            message, causes, ..
        } = Diagnostic::from_error(&error);
        let (code, causes) = (error.code(), causes.join(": "));
        let name = &self.config.name;
        match self.retry.next_try(error, name, Instant::now()) {
            Ok(pause) => {
                if self.retry.is_news(&message, &causes) {
                    tracing::warn!(%code, %causes, "{message}; trying again");
                }
                Ok(pause)
            }
            Err(error) => {
                tracing::error!(%code, %causes, "{error}");
                Err(error)
            }
        }
    }
}

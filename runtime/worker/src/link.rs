//! The stream to the scheduler, or the way to the next one.
//!
//! Owns the open stream, the tries to open one, and what this worker is to the scheduler that it met
//! last. Decides nothing about what the worker has.
//!
//! Invariants: one stream at a time, and nothing of an old one is read once it is closed; a try
//! never outlives the link.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxidask_diagnostic::{Coded, Diagnostic};
use oxidask_proto::{fault, wire};
use tokio::sync::mpsc::Permit;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::config::WorkerConfig;
use crate::error::{Reported, WorkerError};
use crate::registration::{Met, Stream, register};
use crate::retry::Retry;

/// How long the scheduler may take to close its side when the worker has closed its own.
const CLOSE_MILLIS_MAX: u64 = 200;

/// The link.
pub(crate) struct Link {
    config: Arc<WorkerConfig>,
    retry: Retry,
    former: Option<Met>,
    stream: Option<Stream>,
    opened_at: Instant,
    dialing: JoinSet<Result<Stream, WorkerError>>,
}

/// What comes of the link.
pub(crate) enum News {
    /// A message can be sent.
    Room,
    Orders(Box<wire::WorkBatch>),
    /// There is a stream: hand it to [`Link::take`].
    Reached(Box<Stream>),
    /// The stream is over, or there was none to be had.
    Failed(WorkerError),
}

impl Link {
    /// A link that begins to look for its scheduler.
    pub(crate) fn new(config: Arc<WorkerConfig>) -> Self {
        let now = Instant::now();
        let mut link = Self {
            retry: Retry::new(config.reconnect_time, now),
            config,
            former: None,
            stream: None,
            opened_at: now,
            dialing: JoinSet::new(),
        };
        link.dial(Duration::ZERO);
        link
    }

    fn dial(&mut self, pause: Duration) {
        let (config, former) = (Arc::clone(&self.config), self.former);
        self.dialing.spawn(async move {
            sleep(pause).await;
            register(&config, former).await
        });
    }

    /// The certificates that this worker uses.
    pub(crate) fn loaded(&self) -> wire::Loaded {
        self.config.credentials.loaded()
    }

    /// Whether there is a stream.
    pub(crate) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Takes a stream into use. The first message, and whether what is held still means the same.
    pub(crate) fn take(&mut self, mut stream: Stream) -> (wire::WorkBatch, bool) {
        let first = std::mem::take(&mut stream.first);
        let continues = first.is_resumed && stream.met.continues(self.former);
        self.former = Some(stream.met);
        self.stream = Some(stream);
        self.opened_at = Instant::now();
        (first, continues)
    }

    /// Room for one message, if there is some now.
    pub(crate) fn room(&self) -> Option<Permit<'_, wire::WorkerBatch>> {
        self.stream.as_ref()?.messages.try_reserve().ok()
    }

    /// What comes next. Nothing is lost when this is dropped.
    pub(crate) async fn next(&mut self, wants_room: bool, may_read: bool) -> News {
        let Some(stream) = &mut self.stream else {
            return match self.dialing.join_next().await {
                Some(Ok(Ok(stream))) => News::Reached(Box::new(stream)),
                Some(Ok(Err(error))) => News::Failed(error),
                Some(Err(error)) => {
                    tracing::error!(%error, "a try to reach the scheduler panicked");
                    News::Failed(WorkerError::PartEnded { part: "link" })
                }
                None => std::future::pending().await,
            };
        };
        tokio::select! {
            room = stream.messages.reserve(), if wants_room => match room {
                Ok(_) => News::Room,
                // The receiving half knows why.
                Err(_) => News::Failed(match received(stream.orders.message().await) {
                    Err(error) => error,
                    Ok(_) => WorkerError::SchedulerGone { source: None },
                }),
            },
            batch = stream.orders.message(), if may_read => match received(batch) {
                Ok(batch) => News::Orders(Box::new(batch)),
                Err(error) => News::Failed(error),
            },
        }
    }

    /// Closes what is open and tries again after a pause, or says why that is no use.
    pub(crate) fn fail(&mut self, error: WorkerError) -> Result<(), WorkerError> {
        let now = Instant::now();
        if self.stream.take().is_some() {
            self.retry.session_ended(self.opened_at, now);
        }
        let Diagnostic {
            message, causes, ..
        } = Diagnostic::from_error(&error);
        let (code, causes) = (error.code(), causes.join(": "));
        let name = &self.config.name;
        match self.retry.next_try(error, name, now, chance()) {
            Ok(pause) => {
                if self.retry.is_news(&message, &causes) {
                    tracing::warn!(%code, %causes, "{message}; trying again");
                }
                self.dial(pause);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%code, %causes, "{error}");
                Err(error)
            }
        }
    }

    /// Closes the stream in good order: the scheduler hears the end after everything else.
    pub(crate) async fn close(&mut self) {
        let Some(Stream {
            messages,
            mut orders,
            ..
        }) = self.stream.take()
        else {
            return;
        };
        drop(messages);
        let rest = async { while let Ok(Some(_)) = orders.message().await {} };
        if timeout(Duration::from_millis(CLOSE_MILLIS_MAX), rest)
            .await
            .is_err()
        {
            tracing::debug!("the scheduler did not close its side in time");
        }
    }
}

fn received(
    batch: Result<Option<wire::WorkBatch>, Status>,
) -> Result<wire::WorkBatch, WorkerError> {
    let batch = match batch {
        Ok(Some(batch)) => batch,
        Ok(None) => return Err(WorkerError::SchedulerGone { source: None }),
        Err(status) => return Err(gone(fault::from_status(&status))),
    };
    match batch.refused {
        Some(fault) => Err(gone(fault.into())),
        None => Ok(batch),
    }
}

fn gone(why: Diagnostic) -> WorkerError {
    let source = Some(Reported(Box::new(why)));
    WorkerError::SchedulerGone { source }
}

/// Any number, and another one in each process and each time.
fn chance() -> u16 {
    let number = RandomState::new().build_hasher().finish();
    u16::try_from(number >> 48).unwrap_or(0)
}

//! Sessions of clients of Dask: keys that are wanted, and what becomes of them.
//!
//! Owns the connection to the service for futures: commands are numbered, kept until the scheduler
//! has them for good, and said again after a break; questions, results and uploads run beside it.
//! Never looks into a body, an argument or a value; never decides what a key means.
//!
//! Invariants: commands reach the scheduler in the order in which they were given, each once; what
//! waits is bounded in bytes; every question, result and upload is answered exactly once, also when
//! the scheduler stays away; after [`FuturesEvent::Closed`] or [`FuturesEvent::Refused`] nothing
//! more is told.

mod asking;
mod direct;
mod fetching;
mod keeping;
mod order;
mod outbox;
mod putting;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tonic::transport::Channel;

pub use fetching::{FetchSink, LargeSink};
pub use order::{CycleError, order};
pub use putting::PutSource;

use asking::Channels;
use direct::Direct;
use outbox::Outbox;

/// Events handed over at once.
pub const EVENTS_PER_BATCH_MAX: usize = 1_000;

/// Results that are read at a time: each call reads a list of them one after the other.
const FETCHES_MAX: usize = 16;

/// Uploads at a time.
const PUTS_MAX: usize = 4;

/// Time in which a session that was closed must end.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// Something that a client should know.
#[derive(Debug, Clone, PartialEq)]
pub enum FuturesEvent {
    /// The scheduler hears us, for the first time or again.
    Connected,
    /// There is no session, and there will be none.
    Refused(Diagnostic),
    /// A wanted result is there.
    Ready {
        /// Its key.
        key: String,
        /// Graph and task, for [`FuturesSession::fetch`].
        task: (u32, u32),
        /// Its size.
        bytes: u64,
        /// Kind and bytes, if it is small and was at hand: no need to fetch it.
        value: Option<(u32, Bytes)>,
    },
    /// A wanted result will not come.
    Failed {
        /// Its key.
        key: String,
        /// Why not.
        fault: wire::Fault,
    },
    /// The scheduler does not know the key any more, or its value is gone for good.
    Lost {
        /// The key.
        key: String,
    },
    /// A client cancelled the key.
    Cancelled {
        /// The key.
        key: String,
        /// In a word.
        reason: String,
        /// In a sentence.
        message: String,
    },
    /// A key that had failed is tried again.
    Retried {
        /// The key.
        key: String,
    },
    /// Something was said about a topic.
    Topic {
        /// The topic.
        topic: String,
        /// When, since 1970.
        time_micros: u64,
        /// Opaque.
        content: Bytes,
    },
    /// A line for a person.
    Notice(String),
    /// All keys were dropped because a client asked for it.
    Restarted,
    /// The connection is being made, or made again; the text says what is wrong.
    Reconnecting(String),
    /// The session is over; the text says why, and is empty if it was closed.
    Closed(String),
}

/// Whoever hears what becomes of the keys. Called on a thread of the runtime, never twice at once.
pub trait FuturesSink: Send + Sync + 'static {
    /// In order, at most [`EVENTS_PER_BATCH_MAX`] of them.
    fn take(&self, events: Vec<FuturesEvent>);
}

/// Who connects to what.
#[derive(Debug, Clone)]
pub struct FuturesConfig {
    /// `oxidask://host:port`.
    pub address: String,
    /// Of a client, or of a worker whose task is a client.
    pub credentials: Credentials,
    /// The client's name, chosen by itself.
    pub client: String,
    /// Of Python and its packages.
    pub versions: Vec<(String, String)>,
    /// How long the scheduler may stay away.
    pub reconnect_time: Duration,
}

/// How the connection is.
#[derive(Debug, Clone)]
enum Standing {
    Connecting,
    Connected(Channel),
    Over(Diagnostic),
}

struct Shared {
    config: FuturesConfig,
    outbox: Outbox,
    sink: Box<dyn FuturesSink>,
    standing: watch::Sender<Standing>,
    channels: Channels,
    fetches: Arc<Semaphore>,
    direct: Direct,
    puts: Arc<Semaphore>,
}

/// One client's session. It is over when it is closed or dropped.
pub struct FuturesSession {
    shared: Arc<Shared>,
    runtimes: Runtimes,
}

/// Where a session's work runs. A connection whose thread wakes others for each message answers
/// late, so what is told goes best over one thread, and values over several.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// For commands, news, questions.
    pub session: Handle,
    /// For values: results that are read, and what is uploaded.
    pub values: Handle,
}

impl std::fmt::Debug for FuturesSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuturesSession")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// What a question is answered with: content and values, or why there is no answer.
pub type Answered = Result<(Bytes, Vec<Bytes>), Diagnostic>;

impl FuturesSession {
    /// Connects in the background.
    pub fn start(runtimes: Runtimes, config: FuturesConfig, sink: Box<dyn FuturesSink>) -> Self {
        let direct = Direct::new(config.credentials.clone());
        let shared = Arc::new(Shared {
            config,
            outbox: Outbox::default(),
            sink,
            standing: watch::Sender::new(Standing::Connecting),
            channels: Channels::default(),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
            direct,
            puts: Arc::new(Semaphore::new(PUTS_MAX)),
        });
        runtimes.session.spawn(keeping::keep(Arc::clone(&shared)));
        Self { shared, runtimes }
    }

    /// New tasks. Waits while too many bytes are on their way; never call it on the runtime.
    pub fn submit(&self, submission: wire::Submission) -> Result<(), Diagnostic> {
        self.shared.outbox.submit(submission)
    }

    /// These keys are wanted as well.
    pub fn want(&self, keys: Vec<String>) -> Result<(), Diagnostic> {
        self.shared.outbox.want(keys)
    }

    /// These keys are no longer wanted. Many calls in a short time become one command.
    pub fn release(&self, keys: Vec<String>) {
        self.shared.outbox.release(keys);
    }

    /// Stops the tasks of these keys.
    pub fn cancel(&self, keys: wire::CancelKeys) -> Result<(), Diagnostic> {
        let command = wire::futures_command::Command::Cancel(keys);
        self.shared.outbox.push(command)
    }

    /// Runs tasks that have failed once more.
    pub fn retry(&self, keys: Vec<String>) -> Result<(), Diagnostic> {
        let command = wire::futures_command::Command::Retry(wire::Keys { keys });
        self.shared.outbox.push(command)
    }

    /// Asks; the answer comes on a thread of the runtime, or at once if there is no session.
    pub fn ask(
        &self,
        content: Bytes,
        values: Vec<Bytes>,
        answer: impl FnOnce(Answered) + Send + 'static,
    ) {
        let question = wire::Question {
            client: self.shared.config.client.clone(),
            content,
            values,
        };
        let shared = Arc::clone(&self.shared);
        match shared.channels.admit() {
            Ok(admitted) => {
                self.runtimes
                    .session
                    .spawn(async move { answer(shared.ask(question, admitted).await) });
            }
            Err(refusal) => answer(Err(refusal)),
        }
    }

    /// Reads results, by graph and task: small ones in this order, large ones as they come.
    pub fn fetch(&self, tasks: Vec<(u32, u32)>, sink: Arc<dyn FetchSink>) {
        let shared = Arc::clone(&self.shared);
        self.runtimes
            .values
            .spawn(fetching::fetch(shared, tasks, sink));
    }

    /// Sends a value, which becomes the result of its key.
    pub fn put(
        &self,
        first: wire::PutPart,
        source: Arc<dyn PutSource>,
        done: impl FnOnce(Result<(), Diagnostic>) + Send + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        self.runtimes
            .values
            .spawn(async move { done(putting::put(&shared, first, source).await) });
    }

    /// Releases all keys and ends the session, in the background.
    pub fn end(&self) {
        self.shared.outbox.close();
    }

    /// Releases all keys and ends the session. Waits until the scheduler has heard it, but not for
    /// long, and not on a thread of the runtime.
    pub fn close(&self) {
        self.shared.outbox.close();
        if Handle::try_current().is_ok() {
            return;
        }
        let mut standing = self.shared.standing.subscribe();
        let over = standing.wait_for(|standing| matches!(standing, Standing::Over(_)));
        // What could not be said in this time the scheduler finds out by itself.
        let _ = self
            .runtimes
            .session
            .block_on(async { timeout(CLOSE_TIME_MAX, over).await.map(drop) });
    }
}

impl Drop for FuturesSession {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    /// The channel, as soon as there is a session.
    async fn connected(&self) -> Result<Channel, Diagnostic> {
        let mut standing = self.standing.subscribe();
        let known = standing.wait_for(|standing| !matches!(standing, Standing::Connecting));
        match known.await.as_deref() {
            Ok(Standing::Connected(channel)) => Ok(channel.clone()),
            Ok(Standing::Over(why)) => Err(why.clone()),
            Ok(Standing::Connecting) | Err(_) => Err(closed()),
        }
    }
}

/// Why nothing more can be said.
fn closed() -> Diagnostic {
    Diagnostic::new(
        Code::SchedulerEnded,
        "the session with the scheduler is closed",
    )
}

//! Locks, semaphores, events, queues, variables, multi-locks, published data, metadata and topics of clients of Dask.
//!
//! Owns what clients coordinate by, with the meaning that `distributed` gives it, and the questions ([`Question`], JSON)
//! and answers ([`Answer`]). Never opens a value, never looks at a clock: `now` only grows.
//!
//! Invariants: every question gets exactly one `Answer` or `Fault`, at its deadline at the latest, unless its client is
//! gone or it was withdrawn; a semaphore never has more leases than its maximum; `Want` and `Release` of a key
//! alternate. When a client is gone its waits end and so do its multi-locks; leases end by time-out; items, variables
//! and published data stay.

mod answer;
pub mod bounds;
mod desk;
mod error;
mod event;
mod metadata;
mod multi_lock;
mod publish;
mod question;
mod queue;
mod semaphore;
mod topic;
mod variable;

use bytes::Bytes;
use oxidask_core::Timestamp;

pub use answer::{Answer, AskId, Refusal, Told, TopicLog};
pub use error::CoordinationError;
pub use question::{
    AllItems, Batch, EventQuestion, MetadataQuestion, MultiLockQuestion, Node, PublishQuestion,
    Question, QueueQuestion, SemaphoreQuestion, TopicQuestion, VariableQuestion,
};

use bounds::VALUE_BYTES_MAX;
use desk::{Deadline, Desk, Place, Shared};

/// All that clients coordinate by. One per scheduler; it is not kept in the journal.
#[derive(Debug)]
pub struct Coordination {
    shared: Shared,
    semaphores: semaphore::Semaphores,
    events: event::Events,
    queues: queue::Queues,
    variables: variable::Variables,
    multi_locks: multi_lock::MultiLocks,
    published: publish::Published,
    metadata: metadata::Metadata,
    topics: topic::Topics,
}

impl Coordination {
    /// Nothing yet. Events of topics carry the time since 1970: `unix_micros_at_zero` is that of `Timestamp(0)`.
    pub fn new(unix_micros_at_zero: u64) -> Self {
        Self {
            shared: Shared::default(),
            semaphores: semaphore::Semaphores::default(),
            events: event::Events::default(),
            queues: queue::Queues::default(),
            variables: variable::Variables::default(),
            multi_locks: multi_lock::MultiLocks::default(),
            published: publish::Published::default(),
            metadata: metadata::Metadata::default(),
            topics: topic::Topics::new(unix_micros_at_zero),
        }
    }

    /// Takes a question. Its answer is among what is `told` at once, or in a later call of any function here.
    pub fn ask(
        &mut self,
        client: &str,
        question: Question,
        values: Vec<Bytes>,
        now: Timestamp,
        told: &mut Vec<Told>,
    ) -> AskId {
        let ask = self.shared.number();
        let mut desk = Desk {
            shared: &mut self.shared,
            now,
            told,
            ask,
            client,
        };
        let result = if values.iter().any(|value| value.len() > VALUE_BYTES_MAX) {
            Err(CoordinationError::Full {
                what: "the bytes of one value",
                limit: VALUE_BYTES_MAX,
            })
        } else {
            match question {
                Question::Semaphore(question) => self.semaphores.ask(question, &values, &mut desk),
                Question::Event(question) => self.events.ask(question, &values, &mut desk),
                Question::Queue(question) => self.queues.ask(question, &values, &mut desk),
                Question::Variable(question) => self.variables.ask(question, &values, &mut desk),
                Question::MultiLock(question) => self.multi_locks.ask(question, &values, &mut desk),
                Question::Publish(question) => self.published.ask(question, values, &mut desk),
                Question::Metadata(question) => self.metadata.ask(question, &values, &mut desk),
                Question::Topic(question) => self.topics.ask(question, &values, &mut desk),
            }
        };
        if let Err(error) = result {
            told.push(Told::Fault { ask, error });
        }
        ask
    }

    /// Nobody waits for this answer any more: it is not given. Nothing happens if it was given.
    pub fn withdraw(&mut self, ask: AskId, now: Timestamp, told: &mut Vec<Told>) {
        self.end_wait(ask, now, told);
    }

    /// A client is gone: its waits and multi-locks end, it listens to nothing. Leases end by their own time.
    pub fn client_gone(&mut self, client: &str, now: Timestamp, told: &mut Vec<Told>) {
        for ask in self.shared.waits_of(client) {
            self.end_wait(ask, now, told);
        }
        let mut desk = Desk {
            shared: &mut self.shared,
            now,
            told,
            ask: AskId(0),
            client,
        };
        self.multi_locks.client_gone(&mut desk);
        self.topics.client_gone(client);
        desk.end_handovers();
    }

    /// Time has passed: waits, leases and handed-over keys end whose deadline is not after `now`.
    pub fn tick(&mut self, now: Timestamp, told: &mut Vec<Told>) {
        while let Some(due) = self.shared.pop_due(now) {
            match due {
                Deadline::Wait(ask) => {
                    let answer = self.shared.waits.get(&ask).map(desk::Wait::late_answer);
                    if let Some(answer) = answer {
                        self.end_wait(ask, now, told);
                        told.push(Told::Answer {
                            ask,
                            answer,
                            values: Vec::new(),
                        });
                    }
                }
                Deadline::Lease(semaphore, lease) => {
                    let mut desk = Desk {
                        shared: &mut self.shared,
                        now,
                        told,
                        ask: AskId(0),
                        client: "",
                    };
                    self.semaphores.expire(&semaphore, &lease, &mut desk);
                }
                Deadline::Key(key) => self.shared.unwant(&key, told),
                Deadline::Handover(of, key) => self.shared.end_handover(&of, &key, now),
            }
        }
    }

    /// When `tick` has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.shared.next_deadline()
    }

    /// Questions that wait.
    pub fn waiting(&self) -> usize {
        self.shared.waits.len()
    }

    fn end_wait(&mut self, ask: AskId, now: Timestamp, told: &mut Vec<Told>) {
        let Some(wait) = self.shared.take_wait(ask) else {
            return;
        };
        let client = wait.client;
        let mut desk = Desk {
            shared: &mut self.shared,
            now,
            told,
            ask,
            client: &client,
        };
        match wait.place {
            Place::Semaphore { name, .. } => self.semaphores.leave(&name, ask),
            Place::Event { name } => self.events.leave(&name, ask),
            Place::QueueGet { name } => self.queues.leave_get(&name, ask, &mut desk),
            Place::QueuePut { name } => self.queues.leave_put(&name, ask, &mut desk),
            Place::Variable { name } => self.variables.leave(&name, ask),
            Place::MultiLock { id } => self.multi_locks.leave(&id, &mut desk),
        }
    }
}

//! What clients ask, as JSON with the operation in `op` and opaque values beside it.
//!
//! ```text
//! {"op":"semaphore_register","name":N,"max_leases":2,"lease_timeout_ms":30000|null}   -> done | refused inconsistent
//! {"op":"semaphore_acquire","name":N,"lease":L,"timeout_ms":T}                        -> truth | again | refused unknown
//! {"op":"semaphore_release","name":N,"lease":L}                                       -> truth: was it held
//! {"op":"semaphore_refresh","name":N,"leases":[L]}                                    -> refreshed: those it no longer has
//! {"op":"semaphore_value","name":N}                                                   -> count
//! {"op":"semaphore_close","name":N}                                                   -> done
//! {"op":"event_wait","name":N,"timeout_ms":T} -> truth | again;  event_set, event_clear -> done;  event_is_set -> truth
//! {"op":"queue_create","name":N,"maxsize":0}                                          -> done; counts one more user
//! {"op":"queue_put","name":N,"key":K|null,"timeout_ms":T} + 1 value                   -> done | timed_out | again | refused unknown
//! {"op":"queue_get","name":N,"batch":null|"all"|3,"timeout_ms":T}                     -> items | timed_out | again | refused unknown
//! {"op":"queue_size","name":N} -> count;  queue_release -> done: one user less, without users it goes
//! {"op":"queue_future_release","name":N,"key":K}                                      -> done: the client wants it itself
//! {"op":"variable_set","name":N,"key":K|null} + 1 value                               -> done
//! {"op":"variable_get","name":N,"timeout_ms":T}                                       -> items | timed_out | again
//! {"op":"variable_future_received","name":N,"key":K} -> done;  variable_delete        -> done
//! {"op":"multi_lock_acquire","names":[N],"id":I,"count":2,"timeout_ms":T}             -> truth | again | refused invalid
//! {"op":"multi_lock_release","id":I}                                                  -> done | refused unknown
//! {"op":"publish_put","names":[N],"keys":[[K]],"is_override":false} + a value each    -> done | refused exists
//! {"op":"publish_get","names":[N]}                                                    -> datasets
//! {"op":"publish_delete","names":[N]} -> done;  {"op":"publish_list"}                 -> names
//! {"op":"metadata_set","path":[P],"node":{"leaf":0}|{"tree":{P:node}}} + a value each -> done
//! {"op":"metadata_get","path":[P]}                                                    -> metadata
//! {"op":"topic_log","topics":[N]} + 1 value                                           -> done
//! {"op":"topic_events","topic":N|null}                                                -> events
//! {"op":"topic_subscribe","topic":N}, topic_unsubscribe                               -> done
//! ```
//!
//! `timeout_ms` null: no end. All waits end after 10 minutes with `again`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::CoordinationError;

/// A question about what clients coordinate by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Of semaphores, and so of locks.
    Semaphore(SemaphoreQuestion),
    /// Of events.
    Event(EventQuestion),
    /// Of queues.
    Queue(QueueQuestion),
    /// Of variables.
    Variable(VariableQuestion),
    /// Of multi-locks.
    MultiLock(MultiLockQuestion),
    /// Of published data.
    Publish(PublishQuestion),
    /// Of metadata.
    Metadata(MetadataQuestion),
    /// Of topics.
    Topic(TopicQuestion),
}

#[derive(Deserialize)]
struct Operation<'a> {
    #[serde(borrow)]
    op: std::borrow::Cow<'a, str>,
}

impl Question {
    /// Whether a question with this `op` is one of the coordination.
    pub fn is_ours(op: &str) -> bool {
        [
            "semaphore_",
            "event_",
            "queue_",
            "variable_",
            "multi_lock_",
            "publish_",
            "metadata_",
            "topic_",
        ]
        .iter()
        .any(|prefix| op.starts_with(prefix))
    }

    /// Reads a question.
    pub fn from_json(content: &[u8]) -> Result<Self, CoordinationError> {
        let unreadable =
            |error: serde_json::Error| CoordinationError::Unreadable(error.to_string());
        let operation: Operation<'_> = serde_json::from_slice(content).map_err(unreadable)?;
        let op = operation.op.as_ref();
        let question = if op.starts_with("semaphore_") {
            serde_json::from_slice(content).map(Question::Semaphore)
        } else if op.starts_with("event_") {
            serde_json::from_slice(content).map(Question::Event)
        } else if op.starts_with("queue_") {
            serde_json::from_slice(content).map(Question::Queue)
        } else if op.starts_with("variable_") {
            serde_json::from_slice(content).map(Question::Variable)
        } else if op.starts_with("multi_lock_") {
            serde_json::from_slice(content).map(Question::MultiLock)
        } else if op.starts_with("publish_") {
            serde_json::from_slice(content).map(Question::Publish)
        } else if op.starts_with("metadata_") {
            serde_json::from_slice(content).map(Question::Metadata)
        } else {
            serde_json::from_slice(content).map(Question::Topic)
        };
        question.map_err(unreadable)
    }

    /// Writes a question, as clients do.
    pub fn to_json(&self) -> Vec<u8> {
        let written = match self {
            Question::Semaphore(question) => serde_json::to_vec(question),
            Question::Event(question) => serde_json::to_vec(question),
            Question::Queue(question) => serde_json::to_vec(question),
            Question::Variable(question) => serde_json::to_vec(question),
            Question::MultiLock(question) => serde_json::to_vec(question),
            Question::Publish(question) => serde_json::to_vec(question),
            Question::Metadata(question) => serde_json::to_vec(question),
            Question::Topic(question) => serde_json::to_vec(question),
        };
        // Strings, numbers and maps by strings always have a form in JSON.
        written.unwrap_or_default()
    }
}

/// Questions of semaphores. A lock is a semaphore with one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum SemaphoreQuestion {
    /// Makes the semaphore if there is none.
    #[serde(rename = "semaphore_register")]
    Register {
        /// Of the semaphore.
        name: String,
        /// At most so many leases at once.
        max_leases: u32,
        /// A lease that is not refreshed for so long goes; none: never.
        lease_timeout_ms: Option<u64>,
    },
    /// Takes a lease, or waits for one.
    #[serde(rename = "semaphore_acquire")]
    Acquire {
        /// Of the semaphore.
        name: String,
        /// Name of the lease, which the client chooses; asking twice takes one.
        lease: String,
        /// How long to wait; none: as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// Gives a lease back.
    #[serde(rename = "semaphore_release")]
    Release {
        /// Of the semaphore.
        name: String,
        /// Name of the lease.
        lease: String,
    },
    /// Says that leases are still in use.
    #[serde(rename = "semaphore_refresh")]
    Refresh {
        /// Of the semaphore.
        name: String,
        /// Names of leases.
        leases: Vec<String>,
    },
    /// How many leases there are.
    #[serde(rename = "semaphore_value")]
    Value {
        /// Of the semaphore.
        name: String,
    },
    /// Forgets the semaphore and its leases.
    #[serde(rename = "semaphore_close")]
    Close {
        /// Of the semaphore.
        name: String,
    },
}

/// Questions of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum EventQuestion {
    /// Waits until the event is set.
    #[serde(rename = "event_wait")]
    Wait {
        /// Of the event.
        name: String,
        /// How long to wait; none: as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// Sets the event, and ends all waits for it.
    #[serde(rename = "event_set")]
    Set {
        /// Of the event.
        name: String,
    },
    /// Clears the event.
    #[serde(rename = "event_clear")]
    Clear {
        /// Of the event.
        name: String,
    },
    /// Whether the event is set.
    #[serde(rename = "event_is_set")]
    IsSet {
        /// Of the event.
        name: String,
    },
}

/// How many items to take from a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Batch {
    /// So many, waiting for each.
    Count(u32),
    /// Those that are there now, without a wait.
    All(AllItems),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllItems {
    /// Every item that is there now.
    All,
}

/// Questions of queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum QueueQuestion {
    /// Makes the queue if there is none, and counts one more user.
    #[serde(rename = "queue_create")]
    Create {
        /// Of the queue.
        name: String,
        /// Items that it holds before a put has to wait; 0: no such bound.
        maxsize: u32,
    },
    /// Counts one user less; a queue without users goes.
    #[serde(rename = "queue_release")]
    Release {
        /// Of the queue.
        name: String,
    },
    /// Puts an item at the end, or waits for room.
    #[serde(rename = "queue_put")]
    Put {
        /// Of the queue.
        name: String,
        /// The item is the future of this key.
        key: Option<String>,
        /// How long to wait; none: as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// Takes items from the front.
    #[serde(rename = "queue_get")]
    Get {
        /// Of the queue.
        name: String,
        /// None: one.
        batch: Option<Batch>,
        /// How long to wait; none: as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// How many items there are.
    #[serde(rename = "queue_size")]
    Size {
        /// Of the queue.
        name: String,
    },
    /// The client wants a key itself that it took from a queue.
    #[serde(rename = "queue_future_release")]
    FutureRelease {
        /// Of the queue.
        name: String,
        /// Of the future.
        key: String,
    },
}

/// Questions of variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum VariableQuestion {
    /// Sets the variable.
    #[serde(rename = "variable_set")]
    Set {
        /// Of the variable.
        name: String,
        /// The value is the future of this key.
        key: Option<String>,
    },
    /// Its value, or waits until it has one.
    #[serde(rename = "variable_get")]
    Get {
        /// Of the variable.
        name: String,
        /// How long to wait; none: as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// The client wants a key itself that it got from a variable.
    #[serde(rename = "variable_future_received")]
    FutureReceived {
        /// Of the variable.
        name: String,
        /// Of the future.
        key: String,
    },
    /// Forgets the variable.
    #[serde(rename = "variable_delete")]
    Delete {
        /// Of the variable.
        name: String,
    },
}

/// Questions of multi-locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum MultiLockQuestion {
    /// Takes some of several locks together, or waits for them.
    #[serde(rename = "multi_lock_acquire")]
    Acquire {
        /// Names of the locks.
        names: Vec<String>,
        /// Of the request, which the client chooses.
        id: String,
        /// How many of the locks are needed.
        count: u32,
        /// How long to wait; none: as long as it takes.
        timeout_ms: Option<u64>,
    },
    /// Gives all locks of a request back.
    #[serde(rename = "multi_lock_release")]
    Release {
        /// Of the request.
        id: String,
    },
}

/// Questions of published data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum PublishQuestion {
    /// Publishes values, one beside the question for each name.
    #[serde(rename = "publish_put")]
    Put {
        /// Names.
        names: Vec<String>,
        /// Keys of the futures in each value.
        keys: Vec<Vec<String>>,
        /// Whether names that are taken get the new value.
        is_override: bool,
    },
    /// Published values.
    #[serde(rename = "publish_get")]
    Get {
        /// Names.
        names: Vec<String>,
    },
    /// Ends the publication of names, known or not.
    #[serde(rename = "publish_delete")]
    Delete {
        /// Names.
        names: Vec<String>,
    },
    /// All names.
    #[serde(rename = "publish_list")]
    List {},
}

/// A value of metadata: nested by keys, opaque at the leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Node {
    /// Index of a value beside the question or answer.
    Leaf(u32),
    /// Nodes by key.
    Tree(BTreeMap<String, Node>),
}

/// Questions of metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum MetadataQuestion {
    /// Sets what is at a path; levels that are missing, or are values, become levels.
    #[serde(rename = "metadata_set")]
    Set {
        /// Keys from the root, at least one.
        path: Vec<String>,
        /// What is there from now on.
        node: Node,
    },
    /// What is at a path.
    #[serde(rename = "metadata_get")]
    Get {
        /// Keys from the root.
        path: Vec<String>,
    },
}

/// Questions of topics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum TopicQuestion {
    /// Says something about topics, to those who listen and to the log.
    #[serde(rename = "topic_log")]
    Log {
        /// Names of topics.
        topics: Vec<String>,
    },
    /// The log of one topic, or of all.
    #[serde(rename = "topic_events")]
    Events {
        /// None: of all topics.
        topic: Option<String>,
    },
    /// The client listens.
    #[serde(rename = "topic_subscribe")]
    Subscribe {
        /// Name of the topic.
        topic: String,
    },
    /// The client listens no longer.
    #[serde(rename = "topic_unsubscribe")]
    Unsubscribe {
        /// Name of the topic.
        topic: String,
    },
}

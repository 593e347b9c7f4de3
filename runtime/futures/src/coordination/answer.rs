//! What clients are answered, and what the coordination asks of those around it.
//!
//! ```text
//! {"answer":"done"}   {"answer":"truth","truth":true}   {"answer":"count","count":3}
//! {"answer":"again"}: the wait is at its bound, ask again   {"answer":"timed_out"}: the wait's own time is over
//! {"answer":"refused","reason":"exists|unknown|inconsistent|invalid","message":"…"}
//! {"answer":"refreshed","unknown":[L]}
//! {"answer":"items","keys":[null,K],"is_all":true} + a value each; not all: ask again for the rest
//! {"answer":"datasets","are_found":[true,false],"is_all":true} + a value for each that is found
//! {"answer":"names","names":[N]}
//! {"answer":"metadata","node":node|null,"rest":[P]} + values; a rest: the path goes on inside the one value
//! {"answer":"events","topics":[{"topic":N,"times_micros":[1970…]}]} + a value for each time, in order
//! ```

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::CoordinationError;
use super::question::Node;

/// Number of a question that [`super::Coordination::ask`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What comes of a question, or of time. To be done in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The one and last word on a question.
    Answer {
        /// The question.
        ask: AskId,
        /// The answer.
        answer: Answer,
        /// Opaque values beside it.
        values: Vec<Bytes>,
    },
    /// The one and last word on a question that is not allowed.
    Fault {
        /// The question.
        ask: AskId,
        /// Why not.
        error: CoordinationError,
    },
    /// From now on the coordination wants this key, as a client of its own would. The key may still be unknown: what
    /// the client submits travels on another stream. Said once, however often the key is named here.
    Want {
        /// The key.
        key: String,
    },
    /// The coordination no longer wants this key.
    Release {
        /// The key.
        key: String,
    },
    /// Something was said about a topic that this client listens to.
    Topic {
        /// Who listens.
        client: String,
        /// Name of the topic.
        topic: String,
        /// Since 1970.
        time_micros: u64,
        /// What was said.
        content: Bytes,
    },
}

/// Why a question was refused; clients make their own exceptions of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The name is taken.
    Exists,
    /// There is no such name.
    Unknown,
    /// It exists otherwise than the question says.
    Inconsistent,
    /// The question contradicts itself, or comes at the wrong time.
    Invalid,
}

/// The log of one topic in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicLog {
    /// Name of the topic.
    pub topic: String,
    /// When each event was, since 1970; the events are among the values.
    pub times_micros: Vec<u64>,
}

/// An answer without its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// Yes or no.
    Truth {
        /// Yes.
        truth: bool,
    },
    /// A number.
    Count {
        /// The number.
        count: u64,
    },
    /// The wait reached its bound before its own time was over: ask again.
    Again,
    /// The time that the question gave is over.
    TimedOut,
    /// No, and what clients say as an exception.
    Refused {
        /// What kind of no.
        reason: Refusal,
        /// In words of users.
        message: String,
    },
    /// Leases were refreshed.
    Refreshed {
        /// Leases that are lost: not refreshed in time, or of a semaphore that is closed.
        unknown: Vec<String>,
    },
    /// Items of a queue, or the value of a variable.
    Items {
        /// For each value: the key if it is a future.
        keys: Vec<Option<String>>,
        /// Whether these are as many as were asked for.
        is_all: bool,
    },
    /// Published values.
    Datasets {
        /// For each name, in order: whether it is published; maybe for fewer names than were asked for.
        are_found: Vec<bool>,
        /// Whether all names are answered.
        is_all: bool,
    },
    /// Names of published data.
    Names {
        /// The names, in order.
        names: Vec<String>,
    },
    /// Metadata.
    Metadata {
        /// What is at the path; none: nothing.
        node: Option<Node>,
        /// The path goes on inside this one value, which only the client can open.
        rest: Vec<String>,
    },
    /// Logs of topics.
    Events {
        /// One for each topic with events.
        topics: Vec<TopicLog>,
    },
}

impl Answer {
    /// As it travels.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and maps by strings always have a form in JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn truth(truth: bool) -> Self {
        Answer::Truth { truth }
    }

    pub(super) fn refused(reason: Refusal, message: String) -> Self {
        Answer::Refused { reason, message }
    }
}

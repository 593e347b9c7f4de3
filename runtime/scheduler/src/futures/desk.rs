//! What clients coordinate by, and who waits for which answer.
//!
//! Owns the pure state and the way back of each question. What comes of it for keys and topics is
//! carried out by the actor.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use oxidask_core::Timestamp;
use oxidask_diagnostic::Diagnostic;
use oxidask_futures::coordination::{AskId, Coordination, Question, Told};
use oxidask_proto::wire;
use tokio::sync::oneshot;

use super::Asked;
use super::service::refusal;

/// Something that the actor has to do.
pub(super) enum Task {
    /// A key is named from now on, or no longer.
    Name(String, bool),
    /// A client is told of a topic.
    Topic(String, wire::TopicEvent),
}

/// The desk.
pub(super) struct Desk {
    coordination: Coordination,
    waiting: HashMap<AskId, oneshot::Sender<wire::Answer>>,
}

impl Desk {
    /// Nothing yet; `now` is zero.
    pub(super) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = now.unwrap_or_default().as_micros();
        Self {
            coordination: Coordination::new(u64::try_from(micros).unwrap_or(u64::MAX)),
            waiting: HashMap::new(),
        }
    }

    /// Takes a question.
    pub(super) fn ask(&mut self, asked: Asked, now: Timestamp) -> Vec<Task> {
        let question = match Question::from_json(&asked.content) {
            Ok(question) => question,
            Err(error) => {
                // An asker that has gone away needs no answer.
                let _ = asked.reply.send(refusal(&Diagnostic::from_error(&error)));
                return Vec::new();
            }
        };
        // Parts of a larger message, which would live as long.
        let values = asked.values.iter();
        let values = values.map(|value| Bytes::copy_from_slice(value)).collect();
        let mut told = Vec::new();
        let coordination = &mut self.coordination;
        let ask = coordination.ask(&asked.client, question, values, now, &mut told);
        self.waiting.insert(ask, asked.reply);
        self.carry_out(told)
    }

    /// A client will not come back.
    pub(super) fn client_gone(&mut self, client: &str, now: Timestamp) -> Vec<Task> {
        let mut told = Vec::new();
        self.coordination.client_gone(client, now, &mut told);
        self.carry_out(told)
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Task> {
        let mut told = Vec::new();
        let left = self.waiting.iter();
        let left: Vec<AskId> = left
            .filter(|(_, reply)| reply.is_closed())
            .map(|(ask, _)| *ask)
            .collect();
        for ask in left {
            self.waiting.remove(&ask);
            self.coordination.withdraw(ask, now, &mut told);
        }
        self.coordination.tick(now, &mut told);
        self.carry_out(told)
    }

    /// When `tick` has something to do.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.coordination.next_deadline()
    }

    fn carry_out(&mut self, told: Vec<Told>) -> Vec<Task> {
        let mut tasks = Vec::new();
        for told in told {
            match told {
                Told::Answer {
                    ask,
                    answer,
                    values,
                } => self.reply(
                    ask,
                    wire::Answer {
                        fault: None,
                        content: answer.to_json().into(),
                        values,
                    },
                ),
                Told::Fault { ask, error } => {
                    self.reply(ask, refusal(&Diagnostic::from_error(&error)));
                }
                Told::Want { key } => tasks.push(Task::Name(key, true)),
                Told::Release { key } => tasks.push(Task::Name(key, false)),
                Told::Topic {
                    client,
                    topic,
                    time_micros,
                    content,
                } => {
                    let event = wire::TopicEvent {
                        topic,
                        time_micros,
                        content,
                    };
                    tasks.push(Task::Topic(client, event));
                }
            }
        }
        tasks
    }

    fn reply(&mut self, ask: AskId, answer: wire::Answer) {
        if let Some(reply) = self.waiting.remove(&ask) {
            let _ = reply.send(answer);
        }
    }
}

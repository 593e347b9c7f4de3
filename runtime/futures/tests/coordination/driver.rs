//! A coordination, its clock, and what it told.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use oxidask_core::Timestamp;
use oxidask_futures::coordination::{AskId, Coordination, CoordinationError, Question, Told};
use serde_json::{Value, json};

pub(crate) const SECOND: u64 = 1_000_000;
pub(crate) const UNIX_MICROS: u64 = 1_700_000_000_000_000;

pub(crate) struct World {
    pub(crate) coordination: Coordination,
    pub(crate) now: Timestamp,
    pub(crate) answers: BTreeMap<AskId, (Value, Vec<Bytes>)>,
    pub(crate) faults: BTreeMap<AskId, CoordinationError>,
    /// Keys that are wanted now.
    pub(crate) wanted: BTreeSet<String>,
    /// Client, topic, time, content.
    pub(crate) topics: Vec<(String, String, u64, Bytes)>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            coordination: Coordination::new(UNIX_MICROS),
            now: Timestamp(0),
            answers: BTreeMap::new(),
            faults: BTreeMap::new(),
            wanted: BTreeSet::new(),
            topics: Vec::new(),
        }
    }

    pub(crate) fn ask(&mut self, client: &str, question: &Value) -> AskId {
        self.ask_with(client, question, &[])
    }

    pub(crate) fn ask_with(&mut self, client: &str, question: &Value, values: &[&[u8]]) -> AskId {
        let question = Question::from_json(question.to_string().as_bytes()).unwrap();
        let values = values
            .iter()
            .map(|value| Bytes::copy_from_slice(value))
            .collect();
        let mut told = Vec::new();
        let ask = self
            .coordination
            .ask(client, question, values, self.now, &mut told);
        self.hear(told);
        ask
    }

    /// Asks, and has the answer at once.
    pub(crate) fn at_once(&mut self, client: &str, question: &Value) -> Value {
        self.at_once_with(client, question, &[])
    }

    pub(crate) fn at_once_with(
        &mut self,
        client: &str,
        question: &Value,
        values: &[&[u8]],
    ) -> Value {
        let ask = self.ask_with(client, question, values);
        self.answer(ask)
    }

    pub(crate) fn answer(&self, ask: AskId) -> Value {
        assert!(
            !self.faults.contains_key(&ask),
            "{:?}",
            self.faults.get(&ask)
        );
        self.answers
            .get(&ask)
            .map_or_else(|| json!("none yet"), |(answer, _)| answer.clone())
    }

    pub(crate) fn values(&self, ask: AskId) -> Vec<Bytes> {
        self.answers.get(&ask).unwrap().1.clone()
    }

    pub(crate) fn gone(&mut self, client: &str) {
        let mut told = Vec::new();
        self.coordination.client_gone(client, self.now, &mut told);
        self.hear(told);
    }

    pub(crate) fn withdraw(&mut self, ask: AskId) {
        let mut told = Vec::new();
        self.coordination.withdraw(ask, self.now, &mut told);
        self.hear(told);
    }

    /// Lets time pass, with a tick at each deadline.
    pub(crate) fn pass(&mut self, micros: u64) {
        let end = self.now.plus_micros(micros);
        while let Some(next) = self
            .coordination
            .next_deadline()
            .filter(|next| *next <= end)
        {
            assert!(next >= self.now, "a deadline in the past was left");
            self.now = next;
            self.tick();
        }
        self.now = end;
        self.tick();
    }

    pub(crate) fn tick(&mut self) {
        let mut told = Vec::new();
        self.coordination.tick(self.now, &mut told);
        self.hear(told);
    }

    fn hear(&mut self, told: Vec<Told>) {
        for told in told {
            match told {
                Told::Answer {
                    ask,
                    answer,
                    values,
                } => {
                    let answer = serde_json::from_slice(&answer.to_json()).unwrap();
                    assert!(
                        self.answers.insert(ask, (answer, values)).is_none(),
                        "answered twice"
                    );
                    assert!(!self.faults.contains_key(&ask), "answered and refused");
                }
                Told::Fault { ask, error } => {
                    assert!(self.faults.insert(ask, error).is_none(), "refused twice");
                    assert!(!self.answers.contains_key(&ask), "answered and refused");
                }
                Told::Want { key } => assert!(self.wanted.insert(key), "wanted twice"),
                Told::Release { key } => assert!(self.wanted.remove(&key), "released, not wanted"),
                Told::Topic {
                    client,
                    topic,
                    time_micros,
                    content,
                } => {
                    self.topics.push((client, topic, time_micros, content));
                }
            }
        }
    }
}

pub(crate) fn done() -> Value {
    json!({"answer": "done"})
}

pub(crate) fn truth(truth: bool) -> Value {
    json!({"answer": "truth", "truth": truth})
}

pub(crate) fn count(count: u64) -> Value {
    json!({"answer": "count", "count": count})
}

//! Topics: what is said about one goes to who listens, and to a log of bounded length.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::answer::{Answer, Told, TopicLog};
use super::bounds::{
    EVENT_BYTES_MAX, EVENT_TOPICS_MAX, EVENTS_MAX, NAMES_MAX, SUBSCRIPTIONS_MAX, TOPIC_EVENTS_MAX,
};
use super::desk::{Desk, check_bound, check_name, check_values, one_value};
use super::error::CoordinationError;
use super::question::TopicQuestion;

#[derive(Debug)]
struct Logged {
    topic: String,
    time_micros: u64,
    content: Bytes,
}

#[derive(Debug, Default)]
struct Topic {
    /// Numbers of its events, the oldest first.
    log: VecDeque<u64>,
    listeners: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Topics {
    unix_micros_at_zero: u64,
    by_name: BTreeMap<String, Topic>,
    /// All events by number, the oldest first.
    events: BTreeMap<u64, Logged>,
    last_event: u64,
    bytes: usize,
    subscriptions: usize,
}

impl Topics {
    pub(super) fn new(unix_micros_at_zero: u64) -> Self {
        Self {
            unix_micros_at_zero,
            by_name: BTreeMap::new(),
            events: BTreeMap::new(),
            last_event: 0,
            bytes: 0,
            subscriptions: 0,
        }
    }

    pub(super) fn ask(
        &mut self,
        question: TopicQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        match question {
            TopicQuestion::Log { topics } => {
                let content = one_value(values)?;
                check_bound(topics.len(), EVENT_TOPICS_MAX, "topics of one event")?;
                check_bound(content.len(), EVENT_BYTES_MAX, "the bytes of an event")?;
                topics.iter().try_for_each(|topic| self.check_new(topic))?;
                for topic in topics {
                    self.log(topic, &content, desk);
                }
                desk.answer(Answer::Done);
            }
            TopicQuestion::Events { topic } => {
                check_values(values, 0)?;
                self.tell_log(topic.as_deref(), desk);
            }
            TopicQuestion::Subscribe { topic } => {
                check_values(values, 0)?;
                self.check_new(&topic)?;
                check_bound(
                    self.subscriptions + 1,
                    SUBSCRIPTIONS_MAX,
                    "clients that listen to topics",
                )?;
                let listeners = &mut self.by_name.entry(topic).or_default().listeners;
                self.subscriptions += usize::from(listeners.insert(desk.client.to_owned()));
                desk.answer(Answer::Done);
            }
            TopicQuestion::Unsubscribe { topic } => {
                check_values(values, 0)?;
                if let Some(known) = self.by_name.get_mut(&topic) {
                    self.subscriptions -= usize::from(known.listeners.remove(desk.client));
                }
                self.forget_empty(&topic);
                desk.answer(Answer::Done);
            }
        }
        Ok(())
    }

    pub(super) fn client_gone(&mut self, client: &str) {
        for topic in self.by_name.values_mut() {
            self.subscriptions -= usize::from(topic.listeners.remove(client));
        }
        self.by_name
            .retain(|_, topic| !topic.listeners.is_empty() || !topic.log.is_empty());
    }

    fn log(&mut self, topic: String, content: &Bytes, desk: &mut Desk<'_>) {
        let time_micros = self.unix_micros_at_zero.saturating_add(desk.now.0);
        self.last_event += 1;
        let known = self.by_name.entry(topic.clone()).or_default();
        known.log.push_back(self.last_event);
        for listener in &known.listeners {
            desk.told.push(Told::Topic {
                client: listener.clone(),
                topic: topic.clone(),
                time_micros,
                content: content.clone(),
            });
        }
        let too_old = if known.log.len() > TOPIC_EVENTS_MAX {
            known.log.front().copied()
        } else {
            None
        };
        self.bytes += content.len();
        self.events.insert(
            self.last_event,
            Logged {
                topic,
                time_micros,
                content: content.clone(),
            },
        );
        if let Some(number) = too_old {
            self.forget_event(number);
        }
        while self.events.len() > EVENTS_MAX || self.bytes > EVENT_BYTES_MAX {
            let Some(oldest) = self.events.keys().next().copied() else {
                break;
            };
            self.forget_event(oldest);
        }
    }

    /// Forgets the oldest event of its topic.
    fn forget_event(&mut self, number: u64) {
        let Some(event) = self.events.remove(&number) else {
            return;
        };
        self.bytes -= event.content.len();
        if let Some(topic) = self.by_name.get_mut(&event.topic) {
            topic.log.pop_front();
        }
        self.forget_empty(&event.topic);
    }

    fn tell_log(&self, topic: Option<&str>, desk: &mut Desk<'_>) {
        let (mut topics, mut values) = (Vec::new(), Vec::new());
        let asked = self
            .by_name
            .iter()
            .filter(|(name, _)| topic.is_none_or(|topic| topic == name.as_str()));
        for (name, topic) in asked.filter(|(_, topic)| !topic.log.is_empty()) {
            let mut times_micros = Vec::new();
            for event in topic
                .log
                .iter()
                .filter_map(|number| self.events.get(number))
            {
                times_micros.push(event.time_micros);
                values.push(event.content.clone());
            }
            topics.push(TopicLog {
                topic: name.clone(),
                times_micros,
            });
        }
        desk.answer_with(Answer::Events { topics }, values);
    }

    fn check_new(&self, topic: &str) -> Result<(), CoordinationError> {
        check_name(topic)?;
        let count = self.by_name.len() + usize::from(!self.by_name.contains_key(topic));
        check_bound(count, NAMES_MAX, "topics")
    }

    fn forget_empty(&mut self, topic: &str) {
        let is_empty = |topic: &Topic| topic.listeners.is_empty() && topic.log.is_empty();
        if self.by_name.get(topic).is_some_and(is_empty) {
            self.by_name.remove(topic);
        }
    }
}

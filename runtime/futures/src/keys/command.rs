//! What clients say of keys that are there: want, release, cancel, retry.

use std::collections::HashMap;
use std::sync::Arc;

use oxidask_core::{GraphChunk, TaskRef, Timestamp};

use super::event::{Cancel, Command, Connection, Effect, KeyEvent, NewChunk, Regrown};
use super::table::{Fixed, KeyId, Slot, task_ref};
use super::{AWAITED_KEYS_MAX, AWAITED_MICROS, Futures, index, state_event};

impl Futures {
    /// A command, unless it came before.
    pub(super) fn said(
        &mut self,
        (connection, number): (Connection, u64),
        command: Command,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(slot) = self.clients.of(connection) else {
            return;
        };
        let Some(client) = self.clients.get_mut(slot) else {
            return;
        };
        if number <= client.last_command {
            let number = client.acknowledged;
            if number > 0 {
                effects.push(Effect::Acknowledge { connection, number });
            }
            return;
        }
        client.last_command = number;
        match command {
            Command::Submit(submission) => self.submit(slot, &submission, effects),
            Command::Want(keys) => {
                for key in &keys {
                    self.want_key(slot, key, now, effects);
                }
            }
            Command::Release(keys) => self.release(slot, &keys, effects),
            Command::Cancel(cancel) => self.cancel(slot, &cancel, effects),
            Command::Retry(regrown) => self.retry(&regrown, effects),
            Command::Refused(error) => effects.push(Effect::HangUp { connection, error }),
        }
        // What it relies on may be in a chunk of another client that is not durable yet.
        self.unacknowledged
            .push_back((self.chunks_sent, slot, number));
        self.acknowledge(effects);
    }

    /// A client wants a key, and hears how far it is. One that is not there is waited for a moment:
    /// its submission may be on its way from another client.
    pub(super) fn want_key(
        &mut self,
        slot: Slot,
        key: &str,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(id) = self.keys.find(key) {
            self.attach(slot, id, effects);
            return;
        }
        let key: Arc<str> = Arc::from(key);
        if self.awaited.len() >= AWAITED_KEYS_MAX {
            self.tell(slot, &key, KeyEvent::Lost, effects);
            return;
        }
        let wanters = self.awaited.entry(key).or_default();
        if wanters.iter().all(|(other, _)| *other != slot) {
            wanters.push((slot, now.plus_micros(AWAITED_MICROS)));
        }
    }

    /// A client wants a key that is there, and hears how far it is.
    pub(super) fn attach(&mut self, slot: Slot, id: KeyId, effects: &mut Vec<Effect>) {
        self.keys.add_wanter(id, slot);
        if let Some(client) = self.clients.get_mut(slot) {
            client.wanted.insert(id);
        }
        if let Some(entry) = self.keys.get(id)
            && let Some(event) = state_event(&entry.state, entry.task, None)
        {
            self.tell(slot, &entry.key, event, effects);
        }
    }

    /// A key is new: with the client those want it who have waited for it.
    pub(super) fn enter(&mut self, slot: Slot, key: &str, task: TaskRef) {
        let id = self.keys.insert(key, task, slot);
        let waiting = if self.awaited.is_empty() {
            None
        } else {
            self.awaited.remove(key)
        };
        for (other, _) in waiting.into_iter().flatten() {
            self.keys.add_wanter(id, other);
            if let Some(client) = self.clients.get_mut(other) {
                client.wanted.insert(id);
            }
        }
        if let Some(client) = self.clients.get_mut(slot) {
            client.wanted.insert(id);
        }
    }

    pub(super) fn release(&mut self, slot: Slot, keys: &[String], effects: &mut Vec<Effect>) {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            match self.keys.find(key) {
                Some(id) => found.push(id),
                None if self.awaited.is_empty() => {}
                None => self.stop_awaiting(slot, key),
            }
        }
        self.drop_wants(slot, found, effects);
    }

    fn stop_awaiting(&mut self, slot: Slot, key: &str) {
        if let Some(wanters) = self.awaited.get_mut(key) {
            wanters.retain(|(other, _)| *other != slot);
            if wanters.is_empty() {
                self.awaited.remove(key);
            }
        }
    }

    /// Keys stop with what depends on them, unless another client wants them too. A key that others
    /// want goes on; the client that cancelled it does not want it any more.
    fn cancel(&mut self, slot: Slot, cancel: &Cancel, effects: &mut Vec<Effect>) {
        let asked: Vec<KeyId> = cancel
            .keys
            .iter()
            .filter_map(|key| self.keys.find(key))
            .collect();
        let goes = |futures: &Self, id: &KeyId| {
            let entry = futures.keys.get(*id);
            let is_alone = |wanters: &[Slot]| wanters.len() == 1 && wanters[0] == slot;
            cancel.is_forced || entry.is_some_and(|entry| is_alone(entry.wanters.slots()))
        };
        let dependents = cancel.dependents.iter();
        let mut going: Vec<KeyId> = dependents
            .filter_map(|task| self.keys.of_task(*task))
            .filter(|id| goes(self, id))
            .collect();
        going.extend(asked);
        going.sort_unstable();
        going.dedup();
        let reason: Arc<str> = Arc::from(cancel.reason.as_str());
        let message: Arc<str> = Arc::from(cancel.message.as_str());
        let mut of_slots: Vec<(Slot, KeyId)> = Vec::new();
        for id in going {
            let Some(entry) = self.keys.get(id) else {
                continue;
            };
            let wanters = entry.wanters.slots().iter();
            let told = wanters.filter(|other| cancel.is_forced || **other == slot);
            of_slots.extend(told.map(|other| (*other, id)));
        }
        of_slots.sort_unstable();
        for same in of_slots.chunk_by(|a, b| a.0 == b.0) {
            for (other, id) in same {
                let key = self.keys.get(*id).map(|entry| Arc::clone(&entry.key));
                let event = KeyEvent::Cancelled {
                    reason: Arc::clone(&reason),
                    message: Arc::clone(&message),
                };
                if let Some(key) = key {
                    self.tell(*other, &key, event, effects);
                }
            }
            let ids = same.iter().map(|(_, id)| *id).collect();
            self.drop_wants(same[0].0, ids, effects);
        }
    }

    /// Failed tasks are made anew, with the bodies, groups and requirements that they had.
    fn retry(&mut self, regrown: &Regrown, effects: &mut Vec<Effect>) {
        let Some(graph) = self.graph.as_mut() else {
            return;
        };
        if regrown.tasks.is_empty() || regrown.graph != Some(graph.id) {
            return;
        }
        let (id, first) = (graph.id, graph.tasks);
        let count = regrown.tasks.len();
        let mut numbers: HashMap<u32, u32, Fixed> = HashMap::default();
        let mut chunk = GraphChunk::default();
        let mut arguments = Vec::with_capacity(count);
        for (number, task) in (first..).zip(&regrown.tasks) {
            numbers.insert(task.task.0, number);
            chunk.keys.push_str(&task.key);
            chunk.key_lengths.push(index(task.key.len()).0);
            chunk.body.push(task.body);
            chunk.group.push(task.group);
            chunk.requirement.push(task.requirement);
            chunk.priority.push(task.priority);
            chunk.input_counts.push(index(task.inputs.len()).0);
            for input in &task.inputs {
                let number = numbers.get(&input.0).copied().unwrap_or(input.0);
                chunk.inputs.push(oxidask_core::TaskIndex(number));
            }
            arguments.push(task.arguments.clone());
        }
        graph.tasks = first.saturating_add(index(count).0);
        graph.edges += chunk.inputs.len() as u64;
        graph.key_bytes += chunk.keys.len() as u64;
        let number = graph.next_chunk;
        graph.next_chunk += 1;
        let mut released = Vec::new();
        let mut told = Vec::new();
        for (number, task) in (first..).zip(&regrown.tasks) {
            let old = task_ref(id, task.task.0);
            let Some(key) = self.keys.of_task(old) else {
                continue;
            };
            self.keys.move_to(key, task_ref(id, number));
            chunk.wanted.push(oxidask_core::TaskIndex(number));
            released.push(old);
            told.push(key);
        }
        self.chunks_sent += 1;
        effects.push(Effect::Chunk(Box::new(NewChunk {
            graph: id,
            number,
            chunk,
            body: None,
            arguments,
        })));
        if !released.is_empty() {
            effects.push(Effect::Release { tasks: released });
        }
        for entry in told.into_iter().filter_map(|key| self.keys.get(key)) {
            for slot in entry.wanters.slots() {
                self.tell(*slot, &entry.key, KeyEvent::Retried, effects);
            }
        }
    }
}

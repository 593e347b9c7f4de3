//! Queues of values and futures. A future that is taken stays wanted here until the client that took it wants it itself.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use super::answer::{Answer, AskId, Refusal, Told};
use super::bounds::{ANSWER_BYTES_MAX, NAMES_MAX, QUEUE_ITEMS_MAX};
use super::desk::{Desk, Place, check_bound, check_name, check_values, one_value};
use super::error::CoordinationError;
use super::question::{Batch, QueueQuestion};

/// Bytes that an item counts besides its value.
const ITEM_BYTES: usize = 64;

/// A value, or the future of a key.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) key: Option<String>,
    pub(super) value: Bytes,
}

impl Item {
    pub(super) fn bytes(&self) -> usize {
        ITEM_BYTES + self.value.len() + self.key.as_ref().map_or(0, String::len)
    }

    /// Makes room for the item, and wants its key.
    pub(super) fn keep(&self, desk: &mut Desk<'_>) -> Result<(), CoordinationError> {
        desk.take_bytes(self.bytes())?;
        let named = desk.name_keys(self.key.as_slice());
        if named.is_err() {
            desk.give_bytes(self.bytes());
        }
        named
    }

    /// Nobody gets the item any more.
    pub(super) fn drop_from(self, desk: &mut Desk<'_>) {
        desk.give_bytes(self.bytes());
        desk.unname_keys(self.key.as_slice());
    }
}

#[derive(Debug)]
struct Getter {
    count: usize,
    got: Vec<Item>,
    got_bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// 0: none.
    maxsize: usize,
    users: u64,
    items: VecDeque<Item>,
    getters: BTreeMap<AskId, Getter>,
    putters: BTreeMap<AskId, Item>,
}

impl Queue {
    fn has_room(&self) -> bool {
        self.maxsize == 0 || self.items.len() < self.maxsize
    }
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    by_name: HashMap<String, Queue>,
    item_count: usize,
}

impl Queues {
    pub(super) fn ask(
        &mut self,
        question: QueueQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        if !matches!(question, QueueQuestion::Put { .. }) {
            check_values(values, 0)?;
        }
        match question {
            QueueQuestion::Create { name, maxsize } => self.create(name, maxsize, desk)?,
            QueueQuestion::Release { name } => {
                self.release(&name, desk);
                desk.answer(Answer::Done);
            }
            QueueQuestion::Put {
                name,
                key,
                timeout_ms,
            } => {
                let item = Item {
                    key,
                    value: one_value(values)?,
                };
                self.put(name, item, timeout_ms, desk)?;
            }
            QueueQuestion::Get {
                name,
                batch,
                timeout_ms,
            } => self.get(&name, batch, timeout_ms, desk)?,
            QueueQuestion::Size { name } => {
                let answer = match self.by_name.get(&name) {
                    Some(queue) => Answer::Count {
                        count: queue.items.len() as u64,
                    },
                    None => unknown(&name),
                };
                desk.answer(answer);
            }
            QueueQuestion::FutureRelease { key, .. } => {
                desk.confirm_handover(&key);
                desk.answer(Answer::Done);
            }
        }
        Ok(())
    }

    /// What a wait had taken goes back to the front.
    pub(super) fn leave_get(&mut self, name: &str, ask: AskId, desk: &mut Desk<'_>) {
        let Some(queue) = self.by_name.get_mut(name) else {
            return;
        };
        let Some(getter) = queue.getters.remove(&ask) else {
            return;
        };
        for item in getter.got.into_iter().rev() {
            queue.items.push_front(item);
        }
        self.flow(name, desk);
    }

    /// A put ends that found no room.
    pub(super) fn leave_put(&mut self, name: &str, ask: AskId, desk: &mut Desk<'_>) {
        let item = self
            .by_name
            .get_mut(name)
            .and_then(|queue| queue.putters.remove(&ask));
        if let Some(item) = item {
            self.item_count -= 1;
            item.drop_from(desk);
        }
    }

    fn create(
        &mut self,
        name: String,
        maxsize: u32,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_name(&name)?;
        if let Some(queue) = self.by_name.get_mut(&name) {
            queue.users += 1;
        } else {
            check_bound(self.by_name.len() + 1, NAMES_MAX, "queues")?;
            let maxsize = usize::try_from(maxsize).unwrap_or(usize::MAX);
            self.by_name.insert(
                name,
                Queue {
                    maxsize,
                    users: 1,
                    ..Queue::default()
                },
            );
        }
        desk.answer(Answer::Done);
        Ok(())
    }

    fn release(&mut self, name: &str, desk: &mut Desk<'_>) {
        let Some(queue) = self.by_name.get_mut(name) else {
            return;
        };
        queue.users = queue.users.saturating_sub(1);
        if queue.users > 0 {
            return;
        }
        let Some(queue) = self.by_name.remove(name) else {
            return;
        };
        for &ask in queue.getters.keys().chain(queue.putters.keys()) {
            desk.answer_wait(ask, unknown(name));
        }
        let got = queue.getters.into_values().flat_map(|getter| getter.got);
        for item in queue
            .items
            .into_iter()
            .chain(queue.putters.into_values())
            .chain(got)
        {
            self.item_count -= 1;
            item.drop_from(desk);
        }
    }

    fn put(
        &mut self,
        name: String,
        item: Item,
        timeout_ms: Option<u64>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        let Some(queue) = self.by_name.get_mut(&name) else {
            desk.answer(unknown(&name));
            return Ok(());
        };
        check_bound(self.item_count + 1, QUEUE_ITEMS_MAX, "items of queues")?;
        if queue.has_room() && queue.putters.is_empty() {
            item.keep(desk)?;
            self.item_count += 1;
            queue.items.push_back(item);
            desk.answer(Answer::Done);
            self.flow(&name, desk);
        } else {
            item.keep(desk)?;
            let is_waiting = desk.wait(Place::QueuePut { name }, timeout_ms);
            if is_waiting == Ok(true) {
                self.item_count += 1;
                queue.putters.insert(desk.ask, item);
            } else {
                item.drop_from(desk);
            }
            return is_waiting.map(|_| ());
        }
        Ok(())
    }

    fn get(
        &mut self,
        name: &str,
        batch: Option<Batch>,
        timeout_ms: Option<u64>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        let Some(queue) = self.by_name.get_mut(name) else {
            desk.answer(unknown(name));
            return Ok(());
        };
        let count = match batch {
            None => 1,
            Some(Batch::Count(count)) => usize::try_from(count).unwrap_or(usize::MAX),
            Some(Batch::All(_)) => usize::MAX,
        };
        let mut getter = Getter {
            count,
            got: Vec::new(),
            got_bytes: 0,
        };
        if matches!(batch, Some(Batch::All(_))) {
            fill(&mut getter, &mut queue.items);
            let (is_all, client) = (queue.items.is_empty(), desk.client.to_owned());
            self.hand_out(desk.ask, &client, getter.got, is_all, desk);
            self.flow(name, desk);
            return Ok(());
        }
        // Those that wait already come first; a get without time to wait takes what is there or nothing.
        let is_there = queue.getters.is_empty() && queue.items.len() >= count;
        if is_there || count == 0 {
            fill(&mut getter, &mut queue.items);
            let (is_all, client) = (getter.got.len() == count, desk.client.to_owned());
            self.hand_out(desk.ask, &client, getter.got, is_all, desk);
        } else if desk.wait(
            Place::QueueGet {
                name: name.to_owned(),
            },
            timeout_ms,
        )? {
            queue.getters.insert(desk.ask, getter);
        }
        self.flow(name, desk);
        Ok(())
    }

    /// Moves items from puts that wait to the queue, and on to gets that wait.
    fn flow(&mut self, name: &str, desk: &mut Desk<'_>) {
        loop {
            let Some(queue) = self.by_name.get_mut(name) else {
                return;
            };
            let mut is_moved = false;
            while queue.has_room()
                && let Some((ask, item)) = queue.putters.pop_first()
            {
                queue.items.push_back(item);
                desk.answer_wait(ask, Answer::Done);
                is_moved = true;
            }
            if !queue.items.is_empty()
                && let Some(mut first) = queue.getters.first_entry()
            {
                is_moved = true;
                if fill(first.get_mut(), &mut queue.items) {
                    let (ask, getter) = first.remove_entry();
                    let is_all = getter.got.len() == getter.count;
                    let client = desk
                        .shared
                        .take_wait(ask)
                        .map(|wait| wait.client)
                        .unwrap_or_default();
                    self.hand_out(ask, &client, getter.got, is_all, desk);
                }
            }
            if !is_moved {
                return;
            }
        }
    }

    fn hand_out(
        &mut self,
        ask: AskId,
        client: &str,
        items: Vec<Item>,
        is_all: bool,
        desk: &mut Desk<'_>,
    ) {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for item in items {
            self.item_count -= 1;
            desk.give_bytes(item.bytes());
            if let Some(key) = &item.key {
                desk.hand_over(client, key);
            }
            keys.push(item.key);
            values.push(item.value);
        }
        desk.told.push(Told::Answer {
            ask,
            answer: Answer::Items { keys, is_all },
            values,
        });
    }
}

/// Takes items until there are enough, or as many as fit into an answer. True: the getter is done.
fn fill(getter: &mut Getter, items: &mut VecDeque<Item>) -> bool {
    while getter.got.len() < getter.count {
        let Some(next) = items.front().map(Item::bytes) else {
            return false;
        };
        if !getter.got.is_empty() && getter.got_bytes + next > ANSWER_BYTES_MAX {
            return true;
        }
        getter.got_bytes += next;
        getter.got.extend(items.pop_front());
    }
    true
}

fn unknown(name: &str) -> Answer {
    Answer::refused(Refusal::Unknown, name.to_owned())
}

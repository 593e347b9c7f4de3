//! Keys that somebody wants, each with its task, its state and who wants it.
//!
//! A key that nobody wants has no entry. About 100 bytes a key besides its text, whoever wants it:
//! the common case of one client costs no list.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use oxidask_core::{GraphId, TaskIndex, TaskRef};
use oxidask_diagnostic::Diagnostic;

/// No key.
const NONE: u32 = u32::MAX;

/// A hash that is the same in each run.
pub(super) type Fixed = BuildHasherDefault<DefaultHasher>;

/// A key's place in the table; reused when it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct KeyId(pub(super) u32);

/// A client's place among the clients; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u32);

/// How far a key is.
#[derive(Debug, Clone)]
pub(super) enum KeyState {
    /// Its task waits or runs.
    Pending,
    /// Its result is there, of this size.
    Ready(u64),
    /// Its task has failed.
    Failed(Arc<Diagnostic>),
}

/// Who wants a key: at least one.
#[derive(Debug, Clone)]
pub(super) enum Wanters {
    One(Slot),
    #[allow(
        clippy::box_collection,
        reason = "one pointer instead of three words a key"
    )]
    Many(Box<Vec<Slot>>),
}

impl Wanters {
    pub(super) fn slots(&self) -> &[Slot] {
        match self {
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.slots().contains(&slot)
    }

    fn add(&mut self, slot: Slot) -> bool {
        if self.contains(slot) {
            return false;
        }
        match self {
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, slot])),
            Self::Many(slots) => slots.push(slot),
        }
        true
    }

    /// False if nobody is left.
    fn remove(&mut self, slot: Slot) -> bool {
        match self {
            Self::One(first) => *first != slot,
            Self::Many(slots) => {
                slots.retain(|other| *other != slot);
                if let [last] = slots[..] {
                    *self = Self::One(last);
                }
                true
            }
        }
    }
}

/// A key that somebody wants.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) task: TaskRef,
    pub(super) state: KeyState,
    pub(super) wanters: Wanters,
}

/// All keys that somebody wants.
#[derive(Debug, Default)]
pub(super) struct KeyTable {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashMap<Arc<str>, u32, Fixed>,
    /// By the number of the task in the newest graph.
    by_task: Vec<u32>,
    newest: Option<GraphId>,
}

impl KeyTable {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn find(&self, key: &str) -> Option<KeyId> {
        self.by_key.get(key).copied().map(KeyId)
    }

    pub(super) fn of_task(&self, task: TaskRef) -> Option<KeyId> {
        if self.newest != Some(task.graph) {
            return None;
        }
        let id = self.by_task.get(task.task.0 as usize).copied()?;
        (id != NONE).then_some(KeyId(id))
    }

    pub(super) fn get(&self, id: KeyId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: KeyId) -> Option<&mut Entry> {
        self.entries.get_mut(id.0 as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (KeyId, &Entry)> {
        let numbered = (0..).zip(&self.entries);
        numbered.filter_map(|(id, entry)| Some((KeyId(id), entry.as_ref()?)))
    }

    /// Tasks of another graph from now on; entries of the one before keep their tasks, but are not
    /// found by them.
    pub(super) fn begin_graph(&mut self, graph: GraphId) {
        self.newest = Some(graph);
        self.by_task = Vec::new();
    }

    /// Takes a key in that is not there.
    pub(super) fn insert(&mut self, key: &str, task: TaskRef, slot: Slot) -> KeyId {
        let key: Arc<str> = Arc::from(key);
        let entry = Entry {
            key: Arc::clone(&key),
            task,
            state: KeyState::Pending,
            wanters: Wanters::One(slot),
        };
        let id = if let Some(id) = self.free.pop() {
            self.entries[id as usize] = Some(entry);
            id
        } else {
            self.entries.push(Some(entry));
            u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
        };
        self.by_key.insert(key, id);
        self.place(task, id);
        KeyId(id)
    }

    /// The key has another task.
    pub(super) fn move_to(&mut self, id: KeyId, task: TaskRef) {
        let Some(entry) = self.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut entry.task, task);
        entry.state = KeyState::Pending;
        self.unplace(before);
        self.place(task, id.0);
    }

    /// False if the client wanted it already.
    pub(super) fn add_wanter(&mut self, id: KeyId, slot: Slot) -> bool {
        self.get_mut(id)
            .is_some_and(|entry| entry.wanters.add(slot))
    }

    /// A client no longer wants the key. Its task if that was the last one: the key is gone.
    pub(super) fn remove_wanter(&mut self, id: KeyId, slot: Slot) -> Option<TaskRef> {
        let entry = self.get_mut(id)?;
        if entry.wanters.remove(slot) {
            return None;
        }
        let entry = self.entries[id.0 as usize].take()?;
        self.free.push(id.0);
        self.by_key.remove(&entry.key);
        self.unplace(entry.task);
        if self.by_key.is_empty() {
            // A burst of keys leaves no room behind.
            *self = Self {
                newest: self.newest,
                ..Self::default()
            };
        }
        Some(entry.task)
    }

    fn place(&mut self, task: TaskRef, id: u32) {
        if self.newest != Some(task.graph) {
            return;
        }
        let at = task.task.0 as usize;
        if self.by_task.len() <= at {
            self.by_task.resize(at + 1, NONE);
        }
        self.by_task[at] = id;
    }

    fn unplace(&mut self, task: TaskRef) {
        if self.newest == Some(task.graph)
            && let Some(id) = self.by_task.get_mut(task.task.0 as usize)
        {
            *id = NONE;
        }
    }
}

/// A task of a graph.
pub(super) fn task_ref(graph: GraphId, task: u32) -> TaskRef {
    TaskRef {
        graph,
        task: TaskIndex(task),
    }
}

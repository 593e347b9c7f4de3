//! What is stored: objects, versions, the events of watches, who owns whom, and what is due.
//!
//! One lock guards all of it. Bytes are made outside of it, at most once for each version.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fake::Options;
use crate::faults::{Faults, Verb};
use crate::kinds::{KINDS, PODS};
use crate::life::Due;
use crate::selector::Selector;

/// Events that one watch may be behind; it then ends, and its client comes again.
pub(crate) const BEHIND_MAX: usize = 1 << 15;

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) kind: usize,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One version of an object.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) version: u64,
    whole: OnceLock<Bytes>,
    partial: OnceLock<Bytes>,
}

impl Stored {
    fn new(value: Value, version: u64) -> Self {
        Self {
            value,
            version,
            whole: OnceLock::new(),
            partial: OnceLock::new(),
        }
    }

    pub(crate) fn bytes(&self, is_partial: bool) -> Bytes {
        let made = if is_partial {
            self.partial.get_or_init(|| {
                let partial = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": self.value["metadata"],
                });
                Bytes::from(partial.to_string())
            })
        } else {
            self.whole
                .get_or_init(|| Bytes::from(self.value.to_string()))
        };
        made.clone()
    }

    pub(crate) fn metadata(&self, name: &str) -> Option<&str> {
        self.value["metadata"][name].as_str()
    }

    pub(crate) fn uid(&self) -> &str {
        self.metadata("uid").unwrap_or_default()
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.metadata("deletionTimestamp").is_some()
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// An event of the watches of a kind.
#[derive(Debug)]
pub(crate) struct Event {
    change: Change,
    new: Arc<Stored>,
    old: Option<Arc<Stored>>,
    lines: [OnceLock<Bytes>; 2],
}

impl Event {
    pub(crate) fn version(&self) -> u64 {
        self.new.version
    }

    /// What it is for a watch with this selector.
    pub(crate) fn seen_by(&self, selector: &Selector) -> Option<Change> {
        if selector.is_everything() {
            return Some(self.change);
        }
        let before = self
            .old
            .as_ref()
            .is_some_and(|old| selector.matches(&old.value));
        let is_there = self.change != Change::Deleted;
        match (before, is_there && selector.matches(&self.new.value)) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }

    /// The line of a watch; watches share it.
    pub(crate) fn line(&self, change: Change, is_partial: bool) -> Bytes {
        if change != self.change {
            return line(change, &self.new, is_partial);
        }
        let made =
            self.lines[usize::from(is_partial)].get_or_init(|| line(change, &self.new, is_partial));
        made.clone()
    }
}

pub(crate) fn line(change: Change, object: &Stored, is_partial: bool) -> Bytes {
    let object = object.bytes(is_partial);
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(change.name().as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(&object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}

/// What a watch is told.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Event(Arc<Event>),
    /// Everything up to this version was told.
    Bookmark(u64),
    /// Start anew.
    Expired,
}

#[derive(Debug)]
struct Watcher {
    namespace: Option<String>,
    selector: Selector,
    sender: mpsc::Sender<Told>,
}

/// The objects of a namespace by name.
type Names = BTreeMap<String, Arc<Stored>>;

/// The objects and watches of one kind.
#[derive(Debug, Default)]
struct Table {
    objects: BTreeMap<String, Names>,
    history: VecDeque<Arc<Event>>,
    /// Watches cannot start before this version.
    oldest: u64,
    watchers: Vec<Watcher>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) options: Options,
    pub(crate) version: u64,
    tables: Vec<Table>,
    uids: HashSet<String>,
    children: HashMap<String, BTreeSet<Key>>,
    pub(crate) due: BinaryHeap<Reverse<(Instant, u64, Due)>>,
    pub(crate) faults: Faults,
    pub(crate) calls: BTreeMap<(Verb, &'static str, String), u64>,
    counted: HashMap<String, (usize, usize)>,
    numbers: u64,
}

impl Store {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            faults: Faults::new(options.seed),
            options,
            version: 1,
            tables: KINDS.iter().map(|_| Table::default()).collect(),
            uids: HashSet::new(),
            children: HashMap::new(),
            due: BinaryHeap::new(),
            calls: BTreeMap::new(),
            counted: HashMap::new(),
            numbers: 0,
        }
    }

    /// A number that was not there before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.tables[key.kind]
            .objects
            .get(&key.namespace)?
            .get(&key.name)
    }

    pub(crate) fn has_uid(&self, uid: &str) -> bool {
        self.uids.contains(uid)
    }

    pub(crate) fn children(&self, uid: &str) -> Vec<Key> {
        self.children
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// The objects that are selected after a place, up to a limit, and where to go on.
    pub(crate) fn list(
        &self,
        kind: usize,
        namespace: Option<&str>,
        selector: &Selector,
        (after, limit): (Option<(&str, &str)>, usize),
    ) -> (Vec<Arc<Stored>>, Option<(String, String)>) {
        let mut found: Vec<Arc<Stored>> = Vec::new();
        let first = after.map(|(namespace, _)| namespace).or(namespace);
        let first = first.unwrap_or_default();
        let spaces = self.tables[kind].objects.range(first.to_owned()..);
        let spaces = spaces.filter(|(space, _)| namespace.is_none_or(|wanted| *space == wanted));
        let mut last = None;
        for (space, names) in spaces {
            for (name, object) in names {
                let is_read =
                    after.is_some_and(|(read, up_to)| space == read && name.as_str() <= up_to);
                if is_read || !selector.matches(&object.value) {
                    continue;
                }
                if found.len() == limit {
                    return (found, last);
                }
                found.push(Arc::clone(object));
                last = Some((space.clone(), name.clone()));
            }
        }
        (found, None)
    }

    /// Stores a version and tells it.
    pub(crate) fn put(&mut self, key: &Key, mut value: Value) -> Arc<Stored> {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let new = Arc::new(Stored::new(value, self.version));
        let names = self.tables[key.kind].objects.entry(key.namespace.clone());
        let old = names
            .or_default()
            .insert(key.name.clone(), Arc::clone(&new));
        self.relate(key, old.as_deref(), Some(&new));
        let change = if old.is_none() {
            self.uids.insert(new.uid().to_owned());
            Change::Added
        } else {
            Change::Modified
        };
        self.count(key, old.as_deref(), Some(&new));
        self.lives(key, old.as_deref(), &new);
        self.tell(key, change, Arc::clone(&new), old);
        new
    }

    /// Removes an object and tells it.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let names = self.tables[key.kind].objects.get_mut(&key.namespace)?;
        let old = names.remove(&key.name)?;
        if names.is_empty() {
            self.tables[key.kind].objects.remove(&key.namespace);
        }
        self.version += 1;
        let mut value = old.value.clone();
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let last = Arc::new(Stored::new(value, self.version));
        self.relate(key, Some(&old), None);
        self.uids.remove(old.uid());
        self.count(key, Some(&old), None);
        self.ends(key, &old);
        self.tell(key, Change::Deleted, Arc::clone(&last), Some(old));
        Some(last)
    }

    fn relate(&mut self, key: &Key, old: Option<&Stored>, new: Option<&Stored>) {
        let (before, after) = (old.map(owners), new.map(owners));
        if before == after {
            return;
        }
        for uid in before.into_iter().flatten() {
            if let Some(children) = self.children.get_mut(uid) {
                children.remove(key);
                if children.is_empty() {
                    self.children.remove(uid);
                }
            }
        }
        for uid in after.into_iter().flatten() {
            self.children
                .entry(uid.to_owned())
                .or_default()
                .insert(key.clone());
        }
    }

    /// Counts pods that live by a label, and how many there ever were at the same time.
    fn count(&mut self, key: &Key, old: Option<&Stored>, new: Option<&Stored>) {
        if key.kind != PODS {
            return;
        }
        let lives = |it: &&Stored| !it.is_ending();
        let (before, after) = (old.filter(lives), new.filter(lives));
        if before.is_some() == after.is_some() {
            return;
        }
        let Some(one) = before.or(after) else { return };
        let value = one.value["metadata"]["labels"][self.options.counted_label].as_str();
        let Some(value) = value else { return };
        let counted = self
            .counted
            .entry(format!("{}/{value}", key.namespace))
            .or_default();
        if after.is_some() {
            counted.0 += 1;
            counted.1 = counted.1.max(counted.0);
        } else {
            counted.0 -= 1;
        }
    }

    /// How many pods with this value of the label live, and how many did at most.
    pub(crate) fn counted(&self, namespace: &str, value: &str) -> (usize, usize) {
        let counted = self.counted.get(&format!("{namespace}/{value}"));
        counted.copied().unwrap_or_default()
    }

    /// Forgets the maxima.
    pub(crate) fn forget_peaks(&mut self) {
        for (now, most) in self.counted.values_mut() {
            *most = *now;
        }
    }

    fn tell(&mut self, key: &Key, change: Change, new: Arc<Stored>, old: Option<Arc<Stored>>) {
        let event = Arc::new(Event {
            change,
            new,
            old,
            lines: [OnceLock::new(), OnceLock::new()],
        });
        let history_max = self.options.history_max;
        let table = &mut self.tables[key.kind];
        table.watchers.retain(|watcher| {
            let is_inside = watcher
                .namespace
                .as_ref()
                .is_none_or(|it| *it == key.namespace);
            if !is_inside || event.seen_by(&watcher.selector).is_none() {
                return !watcher.sender.is_closed();
            }
            watcher
                .sender
                .try_send(Told::Event(Arc::clone(&event)))
                .is_ok()
        });
        table.history.push_back(event);
        while table.history.len() > history_max {
            if let Some(lost) = table.history.pop_front() {
                table.oldest = lost.version();
            }
        }
    }

    /// Tells every watch up to where it was told.
    pub(crate) fn bookmark(&mut self) {
        let version = self.version;
        for table in &mut self.tables {
            table
                .watchers
                .retain(|it| it.sender.try_send(Told::Bookmark(version)).is_ok());
        }
    }

    /// Watches of the kind have to start anew, those that run and those that come again.
    pub(crate) fn expire(&mut self, kind: usize) {
        self.version += 1;
        let table = &mut self.tables[kind];
        table.oldest = self.version;
        table.history.clear();
        for watcher in table.watchers.drain(..) {
            let _ = watcher.sender.try_send(Told::Expired);
        }
    }

    /// Ends the watches of the kind; they may come again where they were.
    pub(crate) fn cut(&mut self, kind: usize) {
        self.tables[kind].watchers.clear();
    }

    /// Begins a watch after a version; none if that is too old. Gives what came since.
    pub(crate) fn watch(
        &mut self,
        kind: usize,
        namespace: Option<String>,
        selector: Selector,
        after: u64,
    ) -> Option<(Vec<Arc<Event>>, mpsc::Receiver<Told>)> {
        let table = &mut self.tables[kind];
        if after < table.oldest || after > self.version {
            return None;
        }
        let start = table
            .history
            .partition_point(|event| event.version() <= after);
        let missed = table.history.range(start..).filter(|event| {
            let space = event.new.metadata("namespace").unwrap_or_default();
            namespace.as_ref().is_none_or(|it| it == space) && event.seen_by(&selector).is_some()
        });
        let missed = missed.cloned().collect();
        let (sender, receiver) = mpsc::channel(BEHIND_MAX);
        table.watchers.push(Watcher {
            namespace,
            selector,
            sender,
        });
        Some((missed, receiver))
    }

    pub(crate) fn schedule(&mut self, after: Duration, due: Due) {
        let number = self.number();
        self.due
            .push(Reverse((Instant::now() + after, number, due)));
    }
}

/// The UIDs of an object's owners.
pub(crate) fn owners(object: &Stored) -> Vec<&str> {
    let references = object.value["metadata"]["ownerReferences"].as_array();
    let references = references.into_iter().flatten();
    references.filter_map(|it| it["uid"].as_str()).collect()
}

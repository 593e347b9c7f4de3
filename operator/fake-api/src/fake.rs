//! The handle by which tests hold an API server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::error::FakeError;
use crate::faults::{Fault, Verb};
use crate::selector::Selector;
use crate::store::{Key, Store};
use crate::verbs::{PatchKind, Writer};
use crate::{http, kinds, life};

/// Who writes when a test does.
const MANAGER: &str = "test";

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A kubelet that only pretends.
#[derive(Debug, Clone, Copy)]
pub struct Kubelet {
    /// From a pod's creation until it is ready.
    pub ready_after: Duration,
    /// From a pod's deletion until it is gone.
    pub vanish_after: Duration,
    /// How long pods run that are not always restarted; for ever if nothing is said.
    pub runs_for: Option<Duration>,
}

impl Default for Kubelet {
    fn default() -> Self {
        Self {
            ready_after: Duration::from_millis(20),
            vanish_after: Duration::from_millis(20),
            runs_for: None,
        }
    }
}

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// For faults by chance, and the beginning of UIDs.
    pub seed: u64,
    /// None: pods stay pending, and vanish at once when they are deleted.
    pub kubelet: Option<Kubelet>,
    /// From an object's end until its children are collected.
    pub collect_after: Duration,
    /// Events of a kind that are kept for watches that come again.
    pub history_max: usize,
    /// How often watches get a bookmark.
    pub bookmarks_every: Duration,
    /// Pods that live are counted by the value of this label.
    pub counted_label: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            seed: 1,
            kubelet: Some(Kubelet::default()),
            collect_after: Duration::from_millis(20),
            history_max: 100_000,
            bookmarks_every: Duration::from_secs(5),
            counted_label: "dask.org/workergroup-name",
        }
    }
}

/// What the tasks of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    /// Something is due.
    pub(crate) work: Notify,
    pub(crate) bookmarks_every: Duration,
}

/// How many calls there were.
#[derive(Debug, Clone, Default)]
pub struct Calls(BTreeMap<(Verb, &'static str, String), u64>);

impl Calls {
    /// All writes, Events included.
    pub fn writes(&self) -> u64 {
        self.sum(|verb, _| verb.is_write())
    }

    /// Writes of any kind but this one.
    pub fn writes_but(&self, kind: &str) -> u64 {
        self.sum(|verb, of| verb.is_write() && of != kind)
    }

    /// Calls of a verb for a kind, subresources included.
    pub fn of(&self, verb: Verb, kind: &str) -> u64 {
        self.sum(|it, of| it == verb && of == kind)
    }

    /// Each with its number, for people.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.0.iter().map(|((verb, kind, subresource), count)| {
            let slash = if subresource.is_empty() { "" } else { "/" };
            format!("{count:>7} {verb:?} {kind}{slash}{subresource}")
        });
        lines.collect()
    }

    fn sum(&self, is_meant: impl Fn(Verb, &str) -> bool) -> u64 {
        let meant = self
            .0
            .iter()
            .filter(|((verb, kind, _), _)| is_meant(*verb, kind));
        meant.map(|(_, count)| count).sum()
    }
}

/// An API server that runs until it is dropped.
#[derive(Debug)]
pub struct Fake {
    shared: Arc<Shared>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Fake {
    /// Starts one on the current runtime.
    pub async fn start(options: Options) -> Result<Self, FakeError> {
        let listen = |source| FakeError::Listen {
            address: options.address.to_string(),
            source,
        };
        let listener = TcpListener::bind(options.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let shared = Arc::new(Shared {
            work: Notify::new(),
            bookmarks_every: options.bookmarks_every,
            store: Mutex::new(Store::new(options)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(http::serve(listener, Arc::clone(&shared)));
        tasks.spawn(life::run(Arc::clone(&shared)));
        Ok(Self {
            shared,
            address,
            _tasks: tasks,
        })
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url()}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {
                "cluster": "fake", "user": "fake", "namespace": "default",
            }}],
        })
        .to_string()
    }

    /// Creates an object; its kind and its place are read from it.
    pub fn create(&self, object: Value) -> Result<Value, FakeError> {
        let kind = object["kind"].as_str().unwrap_or_default();
        let metadata = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
        let key = key(kind, metadata("namespace"), metadata("name"))?;
        let created = self.shared.lock().create(key, object, writer(""))?;
        self.shared.work.notify_one();
        Ok(created.value.clone())
    }

    /// An object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = key(kind, namespace, name).ok()?;
        self.shared.lock().get(&key).map(|it| it.value.clone())
    }

    /// The objects of a namespace, or of all, that have these labels.
    pub fn list(&self, kind: &str, namespace: Option<&str>, labels: &str) -> Vec<Value> {
        self.map(kind, namespace, labels, Value::clone)
    }

    /// How many there are.
    pub fn count(&self, kind: &str, namespace: Option<&str>, labels: &str) -> usize {
        self.map(kind, namespace, labels, |_| ()).len()
    }

    /// Something of each.
    pub fn map<T>(
        &self,
        kind: &str,
        namespace: Option<&str>,
        labels: &str,
        of: impl Fn(&Value) -> T,
    ) -> Vec<T> {
        let (Some(kind), Ok(selector)) = (kinds::named(kind), Selector::parse(labels, "")) else {
            return Vec::new();
        };
        let everything = (None, usize::MAX);
        let (found, _) = self
            .shared
            .lock()
            .list(kind, namespace, &selector, everything);
        found.iter().map(|it| of(&it.value)).collect()
    }

    /// Changes an object by a merge patch.
    pub fn merge(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, FakeError> {
        self.merge_part((kind, namespace, name), "", patch)
    }

    /// Changes a status by a merge patch.
    pub fn merge_status(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, FakeError> {
        self.merge_part((kind, namespace, name), "status", patch)
    }

    fn merge_part(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        subresource: &str,
        patch: &Value,
    ) -> Result<Value, FakeError> {
        let key = key(kind, namespace, name)?;
        let mut store = self.shared.lock();
        let (merged, _) = store.patch(&key, patch, PatchKind::Merge, writer(subresource))?;
        drop(store);
        self.shared.work.notify_one();
        Ok(merged.value.clone())
    }

    /// Deletes an object.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<(), FakeError> {
        let key = key(kind, namespace, name)?;
        self.shared.lock().delete(&key, &json!({}))?;
        self.shared.work.notify_one();
        Ok(())
    }

    /// Sets the faults, instead of those that are set.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.shared.lock().faults.set(faults);
    }

    /// How often faults struck since they were set.
    pub fn struck(&self) -> u64 {
        self.shared.lock().faults.struck()
    }

    /// The calls since the last time they were forgotten.
    pub fn calls(&self) -> Calls {
        Calls(self.shared.lock().calls.clone())
    }

    /// Counts calls from nought.
    pub fn forget_calls(&self) {
        self.shared.lock().calls.clear();
    }

    /// Watches of a kind have to start anew with a list.
    pub fn expire_watches(&self, kind: &str) {
        if let Some(kind) = kinds::named(kind) {
            self.shared.lock().expire(kind);
        }
    }

    /// Watches of a kind end, and may come again where they were.
    pub fn cut_watches(&self, kind: &str) {
        if let Some(kind) = kinds::named(kind) {
            self.shared.lock().cut(kind);
        }
    }

    /// How many pods live whose label has this value, and how many did at most at the same time.
    pub fn living(&self, namespace: &str, value: &str) -> (usize, usize) {
        self.shared.lock().counted(namespace, value)
    }

    /// Counts the most that lived at the same time from now.
    pub fn forget_peaks(&self) {
        self.shared.lock().forget_peaks();
    }

    /// The version of the last write.
    pub fn version(&self) -> u64 {
        self.shared.lock().version
    }

    /// Waits until something holds; false if it does not in time.
    pub async fn until(&self, limit: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        while !holds(self) {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

fn writer(subresource: &str) -> Writer<'_> {
    Writer {
        manager: MANAGER,
        subresource,
        is_forced: true,
    }
}

fn key(kind: &str, namespace: &str, name: &str) -> Result<Key, FakeError> {
    let place = kinds::named(kind).ok_or_else(|| FakeError::Kind {
        kind: kind.to_owned(),
    })?;
    Ok(Key {
        kind: place,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

//! What the operator knows of the API server's objects of one kind, found by cluster.
//!
//! Owns the copy that a watch keeps up to date and the index beside it. Never asks the API server.
//! Store and index change one after the other: a reader may for a moment see an object in one of
//! them only, and the change that follows wakes it again.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};

/// A kind that is watched.
pub(crate) trait Cached:
    Resource<DynamicType = ()> + Clone + fmt::Debug + Send + Sync + 'static
{
}

impl<K> Cached for K where K: Resource<DynamicType = ()> + Clone + fmt::Debug + Send + Sync + 'static
{}

/// A cluster, by the names that its objects carry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClusterKey {
    pub(crate) namespace: String,
    pub(crate) cluster: String,
}

impl ClusterKey {
    pub(crate) fn new(namespace: impl Into<String>, cluster: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            cluster: cluster.into(),
        }
    }
}

/// Of which cluster an object is.
pub(crate) type KeyOf<K> = fn(&K) -> Option<ClusterKey>;

/// The readers' side.
#[derive(Debug)]
pub(crate) struct Cache<K: Cached> {
    store: Store<K>,
    names: RwLock<HashMap<ClusterKey, BTreeSet<String>>>,
    key_of: KeyOf<K>,
}

impl<K: Cached> Cache<K> {
    /// The copy itself, as kube's controllers want it.
    pub(crate) fn store(&self) -> Store<K> {
        self.store.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }

    /// One object.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// Every object.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// The objects of a cluster, in order of their names.
    pub(crate) fn of_cluster(&self, key: &ClusterKey) -> Vec<Arc<K>> {
        let names: Vec<String> = {
            let index = self.names.read().unwrap_or_else(PoisonError::into_inner);
            index.get(key).into_iter().flatten().cloned().collect()
        };
        let found = names.iter().map(|name| self.get(&key.namespace, name));
        found.flatten().collect()
    }

    fn enter(&self, object: &K) {
        if let Some(key) = (self.key_of)(object) {
            let mut index = self.names.write().unwrap_or_else(PoisonError::into_inner);
            index.entry(key).or_default().insert(object.name_any());
        }
    }

    fn leave(&self, object: &K) {
        let Some(key) = (self.key_of)(object) else {
            return;
        };
        let mut index = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(names) = index.get_mut(&key) {
            names.remove(&object.name_any());
            if names.is_empty() {
                index.remove(&key);
            }
        }
    }

    fn enter_all_anew(&self) {
        self.names
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        for object in self.all() {
            self.enter(&object);
        }
    }
}

/// What an event of a watch changed.
#[derive(Debug)]
pub(crate) enum Change<K> {
    /// An object came or is another one now.
    Put { old: Option<Arc<K>>, new: Arc<K> },
    /// An object is gone.
    Gone(Arc<K>),
    /// The watch started anew: anything may have changed.
    Everything,
}

/// The watch's side.
pub(crate) struct Feed<K: Cached> {
    writer: Writer<K>,
    cache: Arc<Cache<K>>,
}

impl<K: Cached> Feed<K> {
    /// An empty cache and what fills it.
    pub(crate) fn new(key_of: KeyOf<K>) -> (Self, Arc<Cache<K>>) {
        let writer = Writer::default();
        let cache = Arc::new(Cache {
            store: writer.as_reader(),
            names: RwLock::default(),
            key_of,
        });
        let feed = Self {
            writer,
            cache: Arc::clone(&cache),
        };
        (feed, cache)
    }

    pub(crate) fn cache(&self) -> &Cache<K> {
        &self.cache
    }

    /// Takes an event in. None while a list is being read.
    pub(crate) fn take(&mut self, event: &Event<K>) -> Option<Change<K>> {
        let known = |object: &K| {
            let namespace = object.namespace().unwrap_or_default();
            self.cache.get(&namespace, &object.name_any())
        };
        match event {
            Event::Apply(object) => {
                let old = known(object);
                if let Some(old) = &old {
                    self.cache.leave(old);
                }
                self.writer.apply_watcher_event(event);
                self.cache.enter(object);
                let new = Arc::new(object.clone());
                Some(Change::Put { old, new })
            }
            Event::Delete(object) => {
                self.cache.leave(object);
                self.writer.apply_watcher_event(event);
                Some(Change::Gone(Arc::new(object.clone())))
            }
            Event::InitDone => {
                self.writer.apply_watcher_event(event);
                self.cache.enter_all_anew();
                Some(Change::Everything)
            }
            Event::Init | Event::InitApply(_) => {
                self.writer.apply_watcher_event(event);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn object(name: &str, cluster: Option<&str>) -> ConfigMap {
        let labels = cluster.map(|cluster| [("cluster".to_owned(), cluster.to_owned())].into());
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("n".to_owned()),
            labels,
            ..ObjectMeta::default()
        };
        ConfigMap {
            metadata,
            ..ConfigMap::default()
        }
    }

    fn key_of(object: &ConfigMap) -> Option<ClusterKey> {
        let cluster = object.labels().get("cluster")?;
        Some(ClusterKey::new(object.namespace()?, cluster))
    }

    fn names(cache: &Cache<ConfigMap>, cluster: &str) -> Vec<String> {
        let found = cache.of_cluster(&ClusterKey::new("n", cluster));
        found.iter().map(|object| object.name_any()).collect()
    }

    #[test]
    fn objects_are_found_by_cluster_and_move_with_their_label() {
        let (mut feed, cache) = Feed::new(key_of);
        feed.take(&Event::Apply(object("b", Some("x"))));
        feed.take(&Event::Apply(object("a", Some("x"))));
        feed.take(&Event::Apply(object("c", None)));
        assert_eq!(names(&cache, "x"), ["a", "b"]);
        let change = feed.take(&Event::Apply(object("a", Some("y"))));
        assert!(matches!(change, Some(Change::Put { old: Some(_), .. })));
        assert_eq!(names(&cache, "x"), ["b"]);
        assert_eq!(names(&cache, "y"), ["a"]);
        feed.take(&Event::Delete(object("a", Some("y"))));
        assert!(names(&cache, "y").is_empty());
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn a_new_list_replaces_the_old_one_when_it_is_complete() {
        let (mut feed, cache) = Feed::new(key_of);
        feed.take(&Event::Apply(object("old", Some("x"))));
        assert!(feed.take(&Event::Init).is_none());
        assert!(
            feed.take(&Event::InitApply(object("new", Some("x"))))
                .is_none()
        );
        assert_eq!(names(&cache, "x"), ["old"]);
        assert!(matches!(
            feed.take(&Event::InitDone),
            Some(Change::Everything)
        ));
        assert_eq!(names(&cache, "x"), ["new"]);
        assert!(cache.get("n", "old").is_none());
    }
}

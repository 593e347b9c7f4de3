//! What a worker knows of files: footers, and statistics made of them, kept from task to task.
//!
//! Owns which of it is shared. The engine names a file by its path inside its store, so only files
//! of this machine are shared by all tasks: one path is one file there, and its tag tells that it
//! is such a file. What is known of other files ends with its task.
//!
//! Invariant: what is shared is given only while the file on the disk has the same number, size
//! and time of change; a file that was written again, or put in its place, is read again.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::{HashMap, Result, TableReference};
use datafusion::execution::cache::cache_manager::{
    CacheManagerConfig, CachedFileMetadata, CachedFileMetadataEntry, FileMetadataCache,
    FileStatisticsCache,
};
use datafusion::execution::cache::default_cache::DefaultCache;
use datafusion::execution::cache::{Cache, CacheEntryInfo, CacheKey, CacheValue, TableScopedPath};
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::local_store::file_tag;

/// The share of a worker's memory that what is shared may take, as its divisor, for footers and
/// statistics each.
const SHARED_SHARE: u64 = 64;
/// More than this is not shared, however large the memory.
const SHARED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What all tasks of a worker share.
#[derive(Debug)]
pub(crate) struct KnownFiles {
    footers: Arc<FileMetadataCache>,
    statistics: Arc<FileStatisticsCache>,
}

impl KnownFiles {
    /// For a worker with this much memory.
    pub(crate) fn new(memory_bytes: u64) -> Self {
        let bytes = (memory_bytes / SHARED_SHARE).min(SHARED_BYTES_MAX);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self {
            footers: Arc::new(DefaultCache::<Path, CachedFileMetadataEntry>::new(bytes)),
            statistics: Arc::new(DefaultCache::<TableScopedPath, CachedFileMetadata>::new(
                bytes,
            )),
        }
    }

    /// For one task, which may know `own_bytes` more: of footers, of statistics and of folders.
    pub(crate) fn for_task(&self, own_bytes: usize) -> CacheManagerConfig {
        let config = CacheManagerConfig {
            file_statistics_cache: Some(Arc::new(TaskCache {
                shared: Arc::clone(&self.statistics),
                own: DefaultCache::new(own_bytes),
            })),
            file_statistics_cache_limit: own_bytes,
            list_files_cache_limit: own_bytes,
            ..CacheManagerConfig::default()
        };
        self.footers_for(config, own_bytes)
    }

    /// The same for the tasks of one stage: they need no statistics, and no lists of files.
    pub(crate) fn for_stage(&self, own_bytes: usize) -> CacheManagerConfig {
        let config = CacheManagerConfig {
            file_statistics_cache_limit: 0,
            list_files_cache_limit: 0,
            ..CacheManagerConfig::default()
        };
        self.footers_for(config, own_bytes)
    }

    fn footers_for(&self, config: CacheManagerConfig, own_bytes: usize) -> CacheManagerConfig {
        CacheManagerConfig {
            file_metadata_cache: Some(Arc::new(TaskCache {
                shared: Arc::clone(&self.footers),
                own: DefaultCache::new(own_bytes),
            })),
            metadata_cache_limit: own_bytes,
            ..config
        }
    }
}

/// Something known of a file.
trait OfFile: CacheValue {
    /// The file, as it was.
    fn file(&self) -> &ObjectMeta;
}

impl OfFile for CachedFileMetadataEntry {
    fn file(&self) -> &ObjectMeta {
        &self.meta
    }
}

impl OfFile for CachedFileMetadata {
    fn file(&self) -> &ObjectMeta {
        &self.meta
    }
}

/// Whether the tag is that of a file of this machine: its time of change and its size, behind its
/// number. No object store makes such tags.
fn is_local(file: &ObjectMeta) -> bool {
    let changed = file.last_modified.timestamp_micros();
    let end = format!("-{changed:x}-{:x}", file.size);
    file.e_tag.as_ref().is_some_and(|tag| tag.ends_with(&end))
}

/// Whether the file is still the one that it was.
fn is_there(file: &ObjectMeta) -> bool {
    let path = format!("/{}", file.location);
    let found = std::fs::metadata(path).ok();
    let found = found.as_ref().and_then(file_tag);
    found.is_some() && found == file.e_tag
}

/// What one task knows: its own, and what is shared.
struct TaskCache<K: CacheKey, V: CacheValue> {
    shared: Arc<dyn Cache<K, V>>,
    own: DefaultCache<K, V>,
}

impl<K, V> Cache<K, V> for TaskCache<K, V>
where
    K: CacheKey,
    V: OfFile,
{
    fn get(&self, key: &K) -> Option<V> {
        let known = self.own.get(key);
        known.or_else(|| self.shared.get(key).filter(|known| is_there(known.file())))
    }

    fn put(&self, key: &K, value: V) -> Option<V> {
        if is_local(value.file()) {
            self.shared.put(key, value)
        } else {
            self.own.put(key, value)
        }
    }

    fn remove(&self, key: &K) -> Option<V> {
        let own = self.own.remove(key);
        own.or_else(|| self.shared.remove(key))
    }

    fn contains_key(&self, key: &K) -> bool {
        self.own.contains_key(key) || self.shared.contains_key(key)
    }

    fn len(&self) -> usize {
        self.own.len()
    }

    fn clear(&self) {
        self.own.clear();
    }

    fn name(&self) -> String {
        "files of a task".to_owned()
    }

    fn cache_limit(&self) -> usize {
        self.own.cache_limit()
    }

    fn update_cache_limit(&self, limit: usize) {
        self.own.update_cache_limit(limit);
    }

    fn cache_ttl(&self) -> Option<Duration> {
        None
    }

    fn update_cache_ttl(&self, _: Option<Duration>) {}

    fn drop_table_entries(&self, table: &TableReference) -> Result<()> {
        self.own.drop_table_entries(table)
    }

    fn list_entries(&self) -> HashMap<K, CacheEntryInfo<V>> {
        self.own.list_entries()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::execution::cache::cache_manager::FileMetadata;
    use object_store::{ObjectStore, ObjectStoreExt};

    struct Footer;

    impl FileMetadata for Footer {
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }

        fn memory_size(&self) -> usize {
            100
        }

        fn extra_info(&self) -> HashMap<String, String> {
            HashMap::new()
        }
    }

    fn footers(known: &KnownFiles) -> Arc<FileMetadataCache> {
        let config = known.for_stage(1_000);
        config.file_metadata_cache.unwrap()
    }

    #[tokio::test]
    async fn files_of_this_machine_are_known_until_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.bin");
        std::fs::write(&path, "first").unwrap();
        let location = Path::from_filesystem_path(&path).unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::local::LocalFileSystem::new());
        let meta = store.head(&location).await.unwrap();
        assert!(is_local(&meta));
        let known = KnownFiles::new(1 << 30);
        let entry = CachedFileMetadataEntry::new(meta.clone(), Arc::new(Footer));
        footers(&known).put(&location, entry);
        assert!(
            footers(&known).get(&location).is_some(),
            "another task knows it"
        );
        let replaced = dir.path().join("new");
        std::fs::write(&replaced, "other").unwrap();
        std::fs::File::options()
            .write(true)
            .open(&replaced)
            .unwrap()
            .set_modified(meta.last_modified.into())
            .unwrap();
        std::fs::rename(&replaced, &path).unwrap();
        assert!(
            footers(&known).get(&location).is_none(),
            "it is another file"
        );
    }

    #[test]
    fn files_elsewhere_are_known_to_one_stage_only() {
        let meta = ObjectMeta {
            location: Path::from("a"),
            last_modified: std::time::SystemTime::UNIX_EPOCH.into(),
            size: 7,
            e_tag: Some("\"d41d8cd98f00b204e9800998ecf8427e\"".to_owned()),
            version: None,
        };
        let known = KnownFiles::new(1 << 30);
        let stage = footers(&known);
        let location = meta.location.clone();
        stage.put(
            &location,
            CachedFileMetadataEntry::new(meta, Arc::new(Footer)),
        );
        assert!(stage.get(&location).is_some());
        assert!(footers(&known).get(&location).is_none());
    }
}

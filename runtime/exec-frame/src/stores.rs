//! Object stores, made when a query first needs one.
//!
//! Owns the way from a URL to a store. Credentials, endpoints and regions come from the
//! environment or the service account (`AWS_…`, `GOOGLE_…`, `AZURE_…`), never from a text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreRegistry;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use url::Url;

use crate::freshness::ExpectedFiles;
use crate::local_store::{LocalStore, WriteFault};
use crate::read_memory::ReadMemory;
use crate::remote_store::{RemoteStore, Step, told};
use crate::remote_write::{Bucket, Writes};

/// Further tries of one request.
const RETRIES_MAX: usize = 8;

/// A request is not tried again after this time.
const RETRIES_SECONDS_MAX: u64 = 15;

/// The longest pause between two tries.
const PAUSE_SECONDS_MAX: u64 = 3;

/// The stores of one task by scheme and bucket.
#[derive(Debug)]
pub(crate) struct Stores {
    local: Arc<dyn ObjectStore>,
    remote: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    writes: Writes,
    expected: ExpectedFiles,
    memory: ReadMemory,
}

impl Stores {
    /// Failed writes to this machine's files are noted in `fault`, other writes in `writes`. Files
    /// that are `expected` must still be what they were. What is read counts in `memory`.
    pub(crate) fn new(
        fault: WriteFault,
        writes: Writes,
        expected: ExpectedFiles,
        memory: ReadMemory,
    ) -> Self {
        Self {
            local: Arc::new(LocalStore::new(fault, expected.clone(), memory.clone())),
            remote: Mutex::default(),
            writes,
            expected,
            memory,
        }
    }
}

/// Scheme and bucket.
pub(crate) fn bucket(url: &Url) -> String {
    url[url::Position::BeforeScheme..url::Position::BeforePath].to_owned()
}

/// A store that is down is told within seconds; a busy one gets some patience.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            max_backoff: Duration::from_secs(PAUSE_SECONDS_MAX),
            ..BackoffConfig::default()
        },
        max_retries: RETRIES_MAX,
        retry_timeout: Duration::from_secs(RETRIES_SECONDS_MAX),
    }
}

fn connect(url: &Url) -> Result<Bucket> {
    let made = match url.scheme() {
        "s3" | "s3a" => AmazonS3Builder::from_env()
            .with_url(url.as_str())
            .with_retry(retries())
            .build()
            .map(Bucket::new),
        "gs" => GoogleCloudStorageBuilder::from_env()
            .with_url(url.as_str())
            .with_retry(retries())
            .build()
            .map(Bucket::new),
        "az" | "adl" | "azure" | "abfs" | "abfss" => MicrosoftAzureBuilder::from_env()
            .with_url(url.as_str())
            .with_retry(retries())
            .build()
            .map(Bucket::new),
        scheme => {
            return Err(DataFusionError::Plan(format!(
                "no object store for `{scheme}://`"
            )));
        }
    };
    made.map_err(|error| told(Step::Open, bucket(url), error).into())
}

impl ObjectStoreRegistry for Stores {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        remote.insert(bucket(url), store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if url.scheme() == "file" {
            return Ok(Arc::clone(&self.local));
        }
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = remote.get(&bucket(url)) {
            return Ok(Arc::clone(store));
        }
        let (connected, root) = (connect(url)?, bucket(url));
        let (writes, expected) = (self.writes.clone(), self.expected.clone());
        let store = RemoteStore::new(connected, root, writes, expected, self.memory.clone());
        let store: Arc<dyn ObjectStore> = Arc::new(store);
        remote.insert(bucket(url), Arc::clone(&store));
        Ok(store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_made_once_for_each_bucket() {
        let stores = Stores::new(
            WriteFault::default(),
            Writes::default(),
            ExpectedFiles::default(),
            ReadMemory::new(Arc::new(oxidask_exec::OwnMemory::new(0))),
        );
        let get = |text: &str| stores.get_store(&Url::parse(text).unwrap());
        let first = get("s3://one/a").unwrap();
        assert!(Arc::ptr_eq(&first, &get("s3://one/b/c").unwrap()));
        assert!(!Arc::ptr_eq(&first, &get("s3://two/a").unwrap()));
        assert!(get("gs://three/a").is_ok());
        assert!(get("ftp://four/a").is_err());
    }
}

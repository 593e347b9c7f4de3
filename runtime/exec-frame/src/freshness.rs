//! Files as they were when a plan was made.
//!
//! Owns the comparison of a file that is opened with the file that was planned: its size and the
//! time of its last change, and its tag where the plan still knows it. Invariant: a file that
//! changed or vanished in between ends the run with its name, and is never read as if it were the
//! planned one. Files that no plan named are not compared.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, Result};

use crate::FrameError;

/// Nanoseconds of a second: object stores tell times of files in seconds.
const SECOND_NS: i64 = 1_000_000_000;

/// The files of the plans of a session.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExpectedFiles {
    /// By store and path.
    files: Arc<RwLock<HashMap<String, HashMap<Path, Expected>>>>,
    /// The first file that was another one. Some readers pass on only the words of an error.
    first_fault: Arc<OnceLock<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    bytes: u64,
    modified_ns: Option<i64>,
    e_tag: Option<String>,
}

impl Expected {
    fn of(meta: &ObjectMeta) -> Self {
        Self {
            bytes: meta.size,
            modified_ns: meta.last_modified.timestamp_nanos_opt(),
            e_tag: meta.e_tag.clone(),
        }
    }

    /// What is different, in words.
    fn difference(&self, found: &Self) -> Option<String> {
        if self.bytes != found.bytes {
            return Some(format!(
                "it had {} bytes and has {} now",
                self.bytes, found.bytes
            ));
        }
        if let (Some(planned), Some(found)) = (&self.e_tag, &found.e_tag)
            && planned != found
        {
            return Some("its content is another one now".to_owned());
        }
        let (Some(planned), Some(found)) = (self.modified_ns, found.modified_ns) else {
            return None;
        };
        // A listing may be more exact than an answer, or the other way round.
        let is_same = planned == found
            || ((planned % SECOND_NS == 0 || found % SECOND_NS == 0)
                && planned.div_euclid(SECOND_NS) == found.div_euclid(SECOND_NS));
        (!is_same).then(|| "it was written again".to_owned())
    }
}

/// A file is not the one that was planned.
#[derive(Debug)]
pub(crate) struct FileFault {
    name: String,
    change: Option<String>,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.change {
            None => write!(f, "`{name}` vanished after the query was planned"),
            Some(change) => write!(f, "`{name}` changed after the query was planned: {change}"),
        }
    }
}

impl StdError for FileFault {}

impl ExpectedFiles {
    /// Notes the files that a plan reads. `root` of a store is its URL without the slash at its end.
    pub(crate) fn note(&self, plan: &Arc<dyn ExecutionPlan>) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let walked = plan.apply(|node| {
            let scan = node
                .downcast_ref::<DataSourceExec>()
                .and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
            if let Some(scan) = scan {
                let root = scan.object_store_url.as_str().trim_end_matches('/');
                let known = files.entry(root.to_owned()).or_default();
                for file in scan.file_groups.iter().flat_map(FileGroup::iter) {
                    let meta = &file.object_meta;
                    known.insert(meta.location.clone(), Expected::of(meta));
                }
            }
            Ok(TreeNodeRecursion::Continue)
        });
        debug_assert!(walked.is_ok(), "the walk itself cannot fail");
    }

    /// Whether a plan named the file.
    pub(crate) fn knows(&self, root: &str, location: &Path) -> bool {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files
            .get(root)
            .is_some_and(|known| known.contains_key(location))
    }

    /// Whether the file that was found is the one that was planned. `name` is for the message.
    pub(crate) fn check(&self, root: &str, name: &str, found: &ObjectMeta) -> Result<()> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let planned = files.get(root).and_then(|known| known.get(&found.location));
        match planned.and_then(|planned| planned.difference(&Expected::of(found))) {
            None => Ok(()),
            change => Err(self.fault(name, change)),
        }
    }

    /// The error of a file that could not be opened: told as vanished if a plan named it.
    pub(crate) fn missing(&self, root: &str, name: &str, location: &Path, error: Error) -> Error {
        match error {
            Error::NotFound { .. } if self.knows(root, location) => self.fault(name, None),
            error => error,
        }
    }

    fn fault(&self, name: &str, change: Option<String>) -> Error {
        let fault = FileFault {
            name: name.to_owned(),
            change,
        };
        self.first_fault.get_or_init(|| fault.to_string());
        Error::Generic {
            store: "files",
            source: Box::new(fault),
        }
    }

    /// The error of a run; a file that was another one is its cause, whatever the engine says.
    pub(crate) fn explain(&self, error: FrameError) -> FrameError {
        match self.first_fault.get() {
            Some(what) if !matches!(error, FrameError::Cancelled) => {
                FrameError::Changed { what: what.clone() }
            }
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64, modified_ns: i64, e_tag: Option<&str>) -> Expected {
        Expected {
            bytes,
            modified_ns: Some(modified_ns),
            e_tag: e_tag.map(str::to_owned),
        }
    }

    #[test]
    fn files_differ_by_size_time_or_tag() {
        let planned = file(10, 5_000_000_123, Some("a"));
        let is_same = |other: &Expected| planned.difference(other).is_none();
        assert!(is_same(&planned));
        assert!(is_same(&file(10, 5_000_000_123, None)));
        // In whole seconds, as HTTP tells it.
        assert!(is_same(&file(10, 5_000_000_000, Some("a"))));
        assert!(!is_same(&file(10, 6_000_000_000, Some("a"))));
        assert!(!is_same(&file(10, 5_000_000_124, Some("a"))));
        assert!(!is_same(&file(10, 5_000_000_123, Some("b"))));
        assert_eq!(
            planned
                .difference(&file(11, 5_000_000_123, Some("a")))
                .unwrap(),
            "it had 10 bytes and has 11 now"
        );
    }
}

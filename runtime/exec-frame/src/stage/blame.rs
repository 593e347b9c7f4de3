//! The file and the line behind an error in a task's files.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::{
    CsvSource, FileGroup, FileScanConfig, JsonSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;
use tokio_util::sync::CancellationToken;

use crate::FrameError;
use crate::damage::{self, CsvForm, TableFiles};
use crate::location::Format;

/// The error, with the place if it is found again in one of the local files of the plan.
pub(super) async fn blamed(
    error: FrameError,
    plan: &Arc<dyn ExecutionPlan>,
    cancelled: &CancellationToken,
) -> FrameError {
    let (files, cancelled) = (local_files(plan), cancelled.clone());
    let found = tokio::task::spawn_blocking(move || damage::find(&files, &cancelled)).await;
    match found {
        Ok(Some(what)) => FrameError::Damaged { what },
        _ => error,
    }
}

fn local_files(plan: &Arc<dyn ExecutionPlan>) -> Vec<TableFiles> {
    let mut found = Vec::new();
    let walked = plan.apply(|node| {
        let scan = node.downcast_ref::<DataSourceExec>();
        let scan = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
        found.extend(scan.and_then(files_of));
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(walked.is_ok(), "the walk itself cannot fail");
    found
}

fn files_of(scan: &FileScanConfig) -> Option<TableFiles> {
    if !scan.object_store_url.as_str().starts_with("file://") {
        return None;
    }
    let source = scan.file_source();
    let csv = source.downcast_ref::<CsvSource>();
    let format = if csv.is_some() {
        Format::Csv
    } else if source.downcast_ref::<JsonSource>().is_some() {
        Format::Json
    } else {
        source
            .downcast_ref::<ParquetSource>()
            .map(|_| Format::Parquet)?
    };
    let files = scan.file_groups.iter().flat_map(FileGroup::iter);
    let files = files.map(|file| PathBuf::from(format!("/{}", file.object_meta.location)));
    let form = CsvForm {
        delimiter: csv.map_or(b',', CsvSource::delimiter),
        quote: csv.map_or(b'"', CsvSource::quote),
        has_header: csv.is_none_or(CsvSource::has_header),
    };
    Some(TableFiles {
        name: String::new(),
        format,
        files: files.collect(),
        is_compressed: scan.file_compression_type.is_compressed(),
        csv: form,
        schema: Some(Arc::clone(scan.file_schema())),
    })
}

//! One task's share of an output: its files, not yet seen by anybody.
//!
//! Owns how rows become files of the output's form, their names, and what the committing task is
//! told of them. Names hold the number of the task, so they are the same for every run; folders of
//! attempts hold a random word, so no two attempts meet. Invariant: an attempt that does not end
//! well leaves nothing.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::datasource::physical_plan::{FileGroup, FileOutputMode, FileSinkConfig};
use datafusion::datasource::sink::DataSinkExec;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::local::StagedFile;
use super::output::{Output, Place};
use super::output_error;
use crate::FrameError;
use crate::error::Stage;
use crate::local_store::WriteFault;
use crate::remote_write::{OpenUpload, Writes};
use crate::session::Session;
use crate::staging::{self, Room, files_below, modified_ns};

/// What a task has written, as the committing task is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenPart {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Files on this machine or a volume that it shares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) files: Vec<StagedFile>,
    /// Objects that lack their last step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) uploads: Vec<OpenUpload>,
    /// The output was in place already, so nothing was written.
    #[serde(default)]
    pub(crate) is_done: bool,
}

/// What a task writes with.
pub(crate) struct Writing {
    /// Its formats and options.
    pub(crate) state: SessionState,
    pub(crate) context: Arc<TaskContext>,
    /// Why a write to a local file failed.
    pub(crate) fault: WriteFault,
    /// What is written to object stores.
    pub(crate) writes: Writes,
}

impl Writing {
    /// With the means of a session.
    pub(crate) fn of(session: &Session) -> Self {
        Self {
            state: session.context.state(),
            context: session.context.task_ctx(),
            fault: session.write_fault.clone(),
            writes: session.writes.clone(),
        }
    }
}

/// Writes the rows of one task.
pub(crate) async fn write(
    means: &Writing,
    output: &Output,
    part: u32,
    rows: SendableRecordBatchStream,
) -> Result<WrittenPart, FrameError> {
    if let Place::Local(target) = output.place()
        && staging::is_own(&target, &output.id)
    {
        return Ok(done());
    }
    let format = output.file_format(&means.state)?;
    let rows = without_missing_values(rows, &output.partition_by);
    let writer = Writer {
        means,
        output,
        part,
        format,
    };
    let Some(rows) = writer.begun(rows).await? else {
        return Ok(WrittenPart::default());
    };
    match output.place() {
        Place::Local(target) => writer.local(&target, rows).await,
        Place::Remote(url) => writer.remote(&url, rows).await,
    }
}

/// Nothing is left to do.
fn done() -> WrittenPart {
    WrittenPart {
        is_done: true,
        ..WrittenPart::default()
    }
}

struct Writer<'a> {
    means: &'a Writing,
    output: &'a Output,
    part: u32,
    format: Arc<dyn FileFormat>,
}

impl Writer<'_> {
    fn stem(&self) -> String {
        format!("part-{:05}", self.part)
    }

    fn is_partitioned(&self) -> bool {
        !self.output.partition_by.is_empty()
    }

    fn file_name(&self) -> String {
        let ending = Output::ending(self.format.as_ref());
        format!("{}.{ending}", self.stem())
    }

    /// The same rows, unless there are none and other tasks may have some: then no file is made.
    /// The first task makes one in any case, so that an output without rows has its columns.
    async fn begun(
        &self,
        rows: SendableRecordBatchStream,
    ) -> Result<Option<SendableRecordBatchStream>, FrameError> {
        if self.part == 0 {
            return Ok(Some(rows));
        }
        let mut rows = rows;
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|error| FrameError::engine(Stage::Write, error))?;
            if batch.num_rows() > 0 {
                let schema = rows.schema();
                let all = stream::iter([Ok(batch)]).chain(rows);
                return Ok(Some(Box::pin(RecordBatchStreamAdapter::new(schema, all))));
            }
        }
        Ok(None)
    }

    async fn local(
        &self,
        target: &Path,
        rows: SendableRecordBatchStream,
    ) -> Result<WrittenPart, FrameError> {
        let room = Room::begin(target, &self.output.id, self.part)?;
        let mut url = room.path().to_string_lossy().into_owned();
        if self.is_partitioned() {
            url.push('/');
        } else {
            url = format!("{url}/{}", self.file_name());
        }
        let written = self.run(&url, rows).await;
        let rows = written.map_err(|error| self.explained(error, target))?;
        if staging::is_own(target, &self.output.id) {
            // Meanwhile another attempt did this part, and all were shown.
            return Ok(done());
        }
        let (stem, id, is_folder) = (self.stem(), self.output.id.clone(), self.output.is_folder);
        let marked = tokio::task::spawn_blocking(move || {
            let files = staged(&room, &stem, &id, is_folder)?;
            room.keep();
            Ok(files)
        });
        let files = marked.await.map_err(|_| FrameError::Cancelled)?;
        let files = files.map_err(|source| output_error(target, source))?;
        Ok(WrittenPart {
            rows,
            bytes: files.iter().map(|file| file.bytes).sum(),
            files,
            ..WrittenPart::default()
        })
    }

    /// A failed write in the output's own words; the temporary path helps nobody.
    fn explained(&self, error: FrameError, target: &Path) -> FrameError {
        match (&error, self.means.fault.get()) {
            (FrameError::Engine { .. }, Some(fault)) => output_error(target, fault),
            _ => error,
        }
    }

    async fn remote(
        &self,
        url: &str,
        rows: SendableRecordBatchStream,
    ) -> Result<WrittenPart, FrameError> {
        let writes = &self.means.writes;
        let url = if self.is_partitioned() || !self.output.is_folder {
            url.to_owned()
        } else {
            format!("{url}{}", self.file_name())
        };
        writes.name_files(self.is_partitioned().then(|| self.stem()));
        let written = self.run(&url, rows).await;
        writes.name_files(None);
        match written {
            Ok(rows) => {
                let uploads = writes.take();
                Ok(WrittenPart {
                    rows,
                    bytes: uploads.iter().map(|upload| upload.bytes).sum(),
                    uploads,
                    ..WrittenPart::default()
                })
            }
            Err(error) => {
                writes.discard().await;
                Err(error)
            }
        }
    }

    /// Writes all rows below the URL, or to it. Gives their number.
    async fn run(&self, url: &str, rows: SendableRecordBatchStream) -> Result<u64, FrameError> {
        let sink = self.sink(url, rows.schema()).await;
        let sink = sink.map_err(|error| FrameError::engine(Stage::Plan, error))?;
        let context = &self.means.context;
        let written = match sink.downcast_ref::<DataSinkExec>() {
            Some(sink) => sink.sink().write_all(rows, context).await,
            None => Err(DataFusionError::Internal("the format has no writer".into())),
        };
        written.map_err(|error| FrameError::engine(Stage::Write, error))
    }

    async fn sink(
        &self,
        url: &str,
        schema: SchemaRef,
    ) -> Result<Arc<dyn datafusion::physical_plan::ExecutionPlan>, DataFusionError> {
        let url = ListingTableUrl::parse(url)?;
        let columns = self.output.partition_by.iter();
        let config = FileSinkConfig {
            original_url: self.output.location.clone(),
            object_store_url: url.object_store(),
            table_paths: vec![url],
            file_group: FileGroup::default(),
            output_schema: Arc::clone(&schema),
            // The engine takes the types from the rows.
            table_partition_cols: columns.map(|name| (name.clone(), DataType::Null)).collect(),
            insert_op: InsertOp::Append,
            keep_partition_by_columns: self.output.keeps_partitions,
            file_extension: Output::ending(self.format.as_ref()),
            file_output_mode: if self.is_partitioned() {
                FileOutputMode::Directory
            } else {
                FileOutputMode::SingleFile
            },
        };
        let input = Arc::new(EmptyExec::new(schema));
        self.format
            .create_writer_physical_plan(input, &self.means.state, config, None)
            .await
    }
}

/// Names and marks the files in a room.
fn staged(room: &Room, stem: &str, id: &str, is_folder: bool) -> std::io::Result<Vec<StagedFile>> {
    let mut files = files_below(room.path(), usize::MAX)?;
    files.sort();
    let mut staged = Vec::with_capacity(files.len());
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let ending = name.split_once('.').map_or("", |(_, ending)| ending);
        let named = file.with_file_name(format!("{stem}.{ending}"));
        if named != file {
            std::fs::rename(&file, &named)?;
        }
        staging::mark(&named, id)?;
        let metadata = std::fs::metadata(&named)?;
        let inside = named.strip_prefix(room.path()).unwrap_or(&named);
        staged.push(StagedFile {
            staged: room.inside(&named),
            name: if is_folder {
                inside.to_string_lossy().into_owned()
            } else {
                String::new()
            },
            bytes: metadata.len(),
            modified_ns: modified_ns(&metadata)?,
        });
    }
    Ok(staged)
}

/// The engine would write a missing value of a column that names folders as if it were a zero.
fn without_missing_values(
    rows: SendableRecordBatchStream,
    columns: &[String],
) -> SendableRecordBatchStream {
    if columns.is_empty() {
        return rows;
    }
    let (schema, columns) = (rows.schema(), columns.to_vec());
    let checked = rows.and_then(move |batch: RecordBatch| {
        let missing = columns.iter().find(|name| {
            let column = batch.column_by_name(name);
            column.is_some_and(|column| column.logical_null_count() > 0)
        });
        futures::future::ready(match missing {
            None => Ok(batch),
            Some(name) => Err(DataFusionError::External(Box::new(MissingPartition {
                column: name.clone(),
            }))),
        })
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, checked))
}

/// A row has no value in a column that names folders.
#[derive(Debug, thiserror::Error)]
#[error(
    "a row has no value in `{column}`, which names the folders of the output; leave such rows \
    out, or give them a value with coalesce(…)"
)]
struct MissingPartition {
    column: String,
}

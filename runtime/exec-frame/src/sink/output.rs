//! What a write makes: where, in which form, and what it may replace.
//!
//! Owns how a `COPY` statement is understood, and the description of its output that travels with
//! the tasks that write it. Holds no secret: credentials come from each worker's environment.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::datasource::file_format::FileFormat;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::sql::parser::{CopyToStatement, Statement as Syntax};
use serde::{Deserialize, Serialize};

use crate::FrameError;
use crate::error::Stage;
use crate::location::{Format, Location, by_name};
use crate::script::check_options;
use crate::session::Session;
use crate::source::{option, put, take};
use crate::staging;

/// The output of a write, as all its tasks know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Output {
    /// Marks the write: the same for all tasks and all attempts, and for no other write.
    pub(crate) id: String,
    /// An absolute path or a URL; with a slash at the end if it is a folder.
    pub(crate) location: String,
    pub(crate) is_folder: bool,
    pub(crate) may_replace: bool,
    /// The engine's name.
    pub(crate) format: String,
    /// The engine's options of the format.
    pub(crate) options: BTreeMap<String, String>,
    /// Columns whose values become folders.
    pub(crate) partition_by: Vec<String>,
    /// Whether the files hold these columns too.
    pub(crate) keeps_partitions: bool,
}

/// Where an output is.
pub(crate) enum Place {
    Local(PathBuf),
    /// The URL, with a slash at the end if it is a folder.
    Remote(String),
}

impl Output {
    pub(crate) fn place(&self) -> Place {
        if self.location.contains("://") {
            return Place::Remote(self.location.clone());
        }
        Place::Local(PathBuf::from(
            self.location.trim_end_matches('/').to_owned(),
        ))
    }

    /// Whether it is in an object store.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.place(), Place::Remote(_))
    }

    /// The same output, as many tasks write it.
    pub(crate) fn for_many_tasks(&self) -> Self {
        Self {
            id: staging::new_id(true),
            ..self.clone()
        }
    }

    /// As messages name it.
    pub(crate) fn name(&self) -> String {
        match self.place() {
            Place::Local(path) => path.display().to_string(),
            Place::Remote(url) => url,
        }
    }

    /// The form of the files.
    pub(crate) fn file_format(
        &self,
        state: &SessionState,
    ) -> Result<Arc<dyn FileFormat>, FrameError> {
        let factory = state.get_file_format_factory(&self.format);
        let factory = factory.ok_or_else(|| FrameError::Argument {
            what: format!("there is no format `{}`", self.format),
        })?;
        let options: HashMap<String, String> = self.options.clone().into_iter().collect();
        factory
            .create(state, &options)
            .map_err(|error| FrameError::engine(Stage::Plan, error))
    }

    /// The ending of the files, with their compression, without a dot at its begin.
    pub(crate) fn ending(format: &dyn FileFormat) -> String {
        let compressed = format
            .compression_type()
            .and_then(|compression| format.get_ext_with_compression(&compression).ok());
        let ending = compressed.unwrap_or_else(|| format.get_ext());
        ending.trim_start_matches('.').to_owned()
    }
}

/// A write that has been understood and may begin.
pub(crate) struct PlannedWrite {
    pub(crate) output: Output,
    /// The whole statement; its only input gives the rows.
    pub(crate) statement: LogicalPlan,
    /// Whether an earlier attempt has put the output in place already.
    pub(crate) is_done: bool,
}

impl PlannedWrite {
    /// The query whose rows are written.
    pub(crate) fn query(&self) -> LogicalPlan {
        match &self.statement {
            LogicalPlan::Copy(copy) => copy.input.as_ref().clone(),
            other => other.clone(),
        }
    }
}

/// Understands a `COPY` statement. Fails if its output is there and must not be replaced.
pub(crate) async fn plan(
    session: &Session,
    copy: CopyToStatement,
    id: String,
) -> Result<PlannedWrite, FrameError> {
    let mut planned = understand(session, copy, id).await?;
    let output = &planned.output;
    match output.place() {
        Place::Local(path) => {
            planned.is_done = staging::is_own(&path, &output.id);
            if !planned.is_done {
                let endings = Format::parse(&output.format)?.endings();
                staging::obstacle(&path, output.may_replace, &session.base_dir, endings)?;
            }
        }
        Place::Remote(url) => super::remote::check(session, &url, output.may_replace).await?,
    }
    Ok(planned)
}

/// What a `COPY` statement would write, and the query whose rows those are. Looks at no output.
pub(crate) async fn look(
    session: &Session,
    copy: CopyToStatement,
) -> Result<(Output, LogicalPlan), FrameError> {
    let planned = understand(session, copy, staging::new_id(false)).await?;
    let query = planned.query();
    Ok((planned.output, query))
}

async fn understand(
    session: &Session,
    copy: CopyToStatement,
    id: String,
) -> Result<PlannedWrite, FrameError> {
    let mut copy = copy;
    if let Err(refused) = check_options(&copy.options) {
        return Err(FrameError::Unsupported {
            what: refused.what,
            hint: refused.hint.into(),
        });
    }
    let may_replace = take_overwrite(&mut copy)?;
    let location = Location::parse(&copy.target, &session.base_dir)?;
    if location.is_pattern() {
        return Err(FrameError::Unsupported {
            what: format!("the output `{}` is a pattern", copy.target),
            hint: "name one file, or a folder with a slash at its end".into(),
        });
    }
    let format = complete(&mut copy)?;
    let is_single = take(&mut copy.options, "single_file_output");
    let mut output = Output {
        id,
        location: String::new(),
        is_folder: is_folder(&location, &copy, is_single.as_deref()),
        may_replace,
        format: format.name().to_owned(),
        options: BTreeMap::new(),
        partition_by: copy.partitioned_by.clone(),
        keeps_partitions: false,
    };
    output.location = match &location {
        Location::Local { path, .. } => path.to_string_lossy().into_owned(),
        Location::Remote(url) => url.to_string(),
    };
    if output.is_folder && !output.location.ends_with('/') {
        output.location.push('/');
    }
    copy.target.clone_from(&output.location);
    let statement = session.plan(Syntax::CopyTo(copy)).await?;
    if let LogicalPlan::Copy(planned) = &statement {
        take_options(session, planned, &mut output);
    }
    Ok(PlannedWrite {
        output,
        statement,
        is_done: false,
    })
}

fn is_folder(location: &Location, copy: &CopyToStatement, is_single: Option<&str>) -> bool {
    let has_ending = |path: &Path| path.extension().is_some();
    let is_folder = match location {
        Location::Local { path, has_slash } => *has_slash || path.is_dir() || !has_ending(path),
        Location::Remote(url) => url.path().ends_with('/') || !has_ending(Path::new(url.path())),
    };
    !copy.partitioned_by.is_empty()
        || match is_single {
            Some("true") => false,
            Some("false") => true,
            _ => is_folder,
        }
}

/// The options as the engine has understood them.
fn take_options(session: &Session, planned: &CopyTo, output: &mut Output) {
    let config = session.context.copied_config();
    let set = planned.options.get("execution.keep_partition_by_columns");
    output.keeps_partitions = set.map_or(
        config.options().execution.keep_partition_by_columns,
        |text| text.trim() == "true",
    );
    let options = planned.options.iter();
    output.options = options
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
}

/// The option that lets a write replace what is there.
fn take_overwrite(copy: &mut CopyToStatement) -> Result<bool, FrameError> {
    match take(&mut copy.options, "overwrite")
        .map(|text| text.to_lowercase())
        .as_deref()
    {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(FrameError::Unsupported {
            what: format!("the option `overwrite` is `{other}`"),
            hint: "write OPTIONS ('overwrite' 'true') or leave the option out".into(),
        }),
    }
}

/// Says format and compression where only the name tells them.
fn complete(copy: &mut CopyToStatement) -> Result<Format, FrameError> {
    let (by_name, compression) = by_name(copy.target.trim_end_matches('/'));
    let format = match (&copy.stored_as, by_name) {
        (Some(name), _) => Format::parse(name)?,
        (None, Some(format)) => format,
        (None, None) => {
            return Err(FrameError::Unsupported {
                what: format!("the format of the output `{}` is not told", copy.target),
                hint: "add STORED AS PARQUET, CSV or JSON, or an ending such as .parquet".into(),
            });
        }
    };
    copy.stored_as = Some(format.name().to_owned());
    if let Some(compression) = compression
        && format != Format::Parquet
        && option(&copy.options, "compression").is_none()
    {
        put(&mut copy.options, "compression", compression);
    }
    Ok(format)
}

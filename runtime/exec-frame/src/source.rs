//! Tables over files.
//!
//! Owns how `CREATE EXTERNAL TABLE` and the operation `read` become a table: which files belong to
//! it, how they are compressed, whether their form is sound, and which texts stand for missing
//! values. Reads no row itself beyond what tells the types.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, ToDFSchema};
use datafusion::datasource::listing::ListingTable;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    CreateExternalTable as TablePlan, DdlStatement, Expr, LogicalPlan, LogicalPlanBuilder, cast,
    lit, when,
};
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::{CreateExternalTable, Statement as Syntax};
use datafusion::sql::sqlparser::ast::Value;
use futures::TryStreamExt;

use crate::FrameError;
use crate::csv_check::Dialect;
use crate::damage::{self, CsvForm, TableFiles};
use crate::error::Stage;
use crate::location::{COMPRESSIONS, Format, Location, by_name};
use crate::remote_table::{self, is_remote, listing_url};
use crate::script::check_options;
use crate::session::{INFERRED_ROWS, Session};

/// Files of one table.
const FILES_MAX: usize = 1_000_000;

/// Options as they stand in a statement.
pub(crate) type Options = Vec<(String, Value)>;

/// Defines a table over files.
pub(crate) async fn create(
    session: &mut Session,
    mut table: CreateExternalTable,
) -> Result<(), FrameError> {
    if let Err(refused) = check_options(&table.options) {
        return Err(FrameError::Unsupported {
            what: refused.what,
            hint: refused.hint.into(),
        });
    }
    let format = Format::parse(&table.file_type)?;
    format.name().clone_into(&mut table.file_type);
    let mut found = Vec::new();
    let mut locations = Vec::new();
    for text in &table.locations {
        let location = Location::parse(text, &session.base_dir)?;
        let listed = list(session, &location, text, format).await?;
        locations.extend(listed.locations);
        found.extend(listed.files);
        if found.len() > FILES_MAX {
            let what = format!("the table has more than {FILES_MAX} files");
            return Err(FrameError::Unsupported {
                what,
                hint: "use fewer, larger files".into(),
            });
        }
    }
    table.locations = locations;
    complete_options(&mut table.options, format, &found)?;
    let mut files = TableFiles {
        name: table.name.to_string(),
        format,
        files: local_paths(&table.locations, found),
        is_compressed: option(&table.options, "compression").is_some(),
        csv: csv_form(&table.options),
        schema: None,
    };
    if format == Format::Csv && !files.is_compressed {
        check_quotes(session, &mut table.options, &files).await?;
    }
    if format == Format::Parquet {
        check_ends(session, &files).await?;
    }
    if is_remote(&table.locations)
        && format == Format::Csv
        && option(&table.options, "newlines_in_values").is_none()
    {
        // Quotes there are not looked at beforehand, so a file is not read in parts.
        put(&mut table.options, "newlines_in_values", "true");
    }
    let has_breaks =
        option(&table.options, "newlines_in_values").is_some_and(|text| text == "true");
    let reads_whole = has_breaks && table.columns.is_empty() && !files.is_compressed;
    if reads_whole && !is_remote(&table.locations) {
        files.schema = infer_csv(&files).await?;
    }
    let nulls = take_nulls(&mut table.options, format)?;
    session.tables.push(files.clone());
    let created = register(session, table, nulls, files.schema.clone()).await;
    files.schema = session.blame(created).await?;
    if let Some(last) = session.tables.last_mut() {
        *last = files;
    }
    Ok(())
}

/// What a location holds.
struct Listed {
    /// As the engine is to read it.
    locations: Vec<String>,
    /// Paths of the files inside the store.
    files: Vec<String>,
}

/// A local location, known to be there, with a slash if it is a folder.
async fn looked_up(location: &Location, text: &str) -> Result<Location, FrameError> {
    let mut location = location.clone();
    if let Location::Local { path, has_slash } = &mut location {
        match tokio::fs::metadata(&*path).await {
            Ok(metadata) => *has_slash = metadata.is_dir(),
            Err(_) if path.to_string_lossy().contains(['*', '?', '[']) => {}
            Err(error) => {
                let what = match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        format!("`{text}` does not exist (looked for `{}`)", path.display())
                    }
                    _ => format!("`{}` cannot be read: {error}", path.display()),
                };
                return Err(FrameError::Missing { what });
            }
        }
    }
    Ok(location)
}

async fn list(
    session: &Session,
    location: &Location,
    text: &str,
    format: Format,
) -> Result<Listed, FrameError> {
    let location = looked_up(location, text).await?;
    let plan = |error| FrameError::engine(Stage::Plan, error);
    let engine_text = location.to_engine();
    let url = listing_url(&engine_text).map_err(plan)?;
    let state = session.context.state();
    let store = state.runtime_env().object_store(&url).map_err(plan)?;
    let listing = url
        .list_all_files(&state, store.as_ref(), "")
        .await
        .map_err(plan)?;
    let listed: Vec<(String, u64)> = listing
        .map_ok(|file| (file.location.to_string(), file.size))
        .try_collect()
        .await
        .map_err(|error| FrameError::engine(Stage::Run, error))?;
    // The engine would pass over it in silence; a table of no rows has bytes.
    let is_empty = |(file, size): &&(String, u64)| {
        *size == 0 && by_name(file).0 == Some(Format::Parquet) && format == Format::Parquet
    };
    if let Some((file, _)) = listed.iter().find(is_empty) {
        let what = format!("`{}` is empty and no Parquet file", location.file(file));
        return Err(FrameError::Damaged { what });
    }
    let files: Vec<String> = listed.into_iter().map(|(file, _)| file).collect();
    let is_folder = engine_text.ends_with('/') && !location.is_pattern();
    if !is_folder {
        if files.is_empty() {
            let what = match &location {
                Location::Remote(_) if !location.is_pattern() => format!("`{text}` does not exist"),
                _ => format!("no file matches `{text}`"),
            };
            return Err(FrameError::Missing { what });
        }
        return Ok(Listed {
            locations: vec![engine_text],
            files,
        });
    }
    let endings = endings_of(format, &files);
    if endings.is_empty() {
        let what = format!(
            "the folder `{text}` holds no `{}` file{}",
            format.endings()[0],
            files
                .first()
                .map_or(String::new(), |file| format!(", but `{}`", base_name(file)))
        );
        return Err(FrameError::Missing { what });
    }
    let belongs = |file: &String| {
        endings
            .iter()
            .any(|ending| file.to_lowercase().ends_with(ending))
    };
    Ok(Listed {
        locations: endings
            .iter()
            .map(|ending| format!("{engine_text}*{ending}"))
            .collect(),
        files: files.into_iter().filter(belongs).collect(),
    })
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The endings of the format's files among these, such as `.csv.gz`.
fn endings_of(format: Format, files: &[String]) -> Vec<String> {
    let compressions = std::iter::once("").chain(COMPRESSIONS.iter().map(|(ending, _)| *ending));
    let all = compressions.flat_map(|compressed| {
        format
            .endings()
            .iter()
            .map(move |ending| format!("{ending}{compressed}"))
    });
    all.filter(|ending| files.iter().any(|file| file.ends_with(ending.as_str())))
        .collect()
}

/// The paths of files on this machine; none for object stores.
fn local_paths(locations: &[String], files: Vec<String>) -> Vec<PathBuf> {
    if is_remote(locations) {
        return Vec::new();
    }
    // The store escapes some characters of a path; those files are then only not named.
    files
        .into_iter()
        .map(|file| Path::new("/").join(file))
        .filter(|path| path.exists())
        .collect()
}

/// The value of an option, with or without the prefix `format.`.
pub(crate) fn option(options: &Options, name: &str) -> Option<String> {
    options
        .iter()
        .find(|(key, _)| is_option(key, name))
        .map(|(_, value)| text_of(value))
}

fn is_option(key: &str, name: &str) -> bool {
    let key = key.to_lowercase();
    key.strip_prefix("format.").unwrap_or(&key) == name
}

pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::SingleQuotedString(text)
        | Value::DoubleQuotedString(text)
        | Value::EscapedStringLiteral(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn put(options: &mut Options, name: &str, value: &str) {
    options.push((
        format!("format.{name}"),
        Value::SingleQuotedString(value.to_owned()),
    ));
}

/// Takes an option away and gives its value.
pub(crate) fn take(options: &mut Options, name: &str) -> Option<String> {
    let index = options.iter().position(|(key, _)| is_option(key, name))?;
    Some(text_of(&options.remove(index).1))
}

/// What the files' names tell and no option says.
fn complete_options(
    options: &mut Options,
    format: Format,
    files: &[String],
) -> Result<(), FrameError> {
    if format == Format::Parquet {
        return Ok(());
    }
    let compressions: Vec<_> = files.iter().map(|file| by_name(file).1).collect();
    if option(options, "compression").is_none() {
        let first = compressions.first().copied().flatten();
        if compressions.iter().any(|compression| *compression != first) {
            return Err(FrameError::Unsupported {
                what: "the table mixes files of different compressions".to_owned(),
                hint: "name only some of them by a pattern such as 'data/*.csv.gz'".into(),
            });
        }
        if let Some(compression) = first {
            put(options, "compression", compression);
        }
    }
    if option(options, "schema_infer_max_rec").is_none() {
        put(options, "schema_infer_max_rec", &INFERRED_ROWS.to_string());
    }
    let is_tsv = |file: &String| file.to_lowercase().contains(".tsv");
    if format == Format::Csv && option(options, "delimiter").is_none() && files.iter().all(is_tsv) {
        put(options, "delimiter", "\t");
    }
    Ok(())
}

fn csv_form(options: &Options) -> CsvForm {
    let byte = |name: &str, default: u8| {
        option(options, name)
            .and_then(|text| text.bytes().next())
            .unwrap_or(default)
    };
    CsvForm {
        delimiter: byte("delimiter", b','),
        quote: byte("quote", b'"'),
        has_header: option(options, "has_header").is_none_or(|text| text != "false"),
    }
}

/// Looks at the quotes of all local files; quoted line breaks forbid reading in parts.
async fn check_quotes(
    session: &Session,
    options: &mut Options,
    table: &TableFiles,
) -> Result<(), FrameError> {
    let has_own_form = ["escape", "comment", "terminator"]
        .iter()
        .any(|name| option(options, name).is_some());
    if has_own_form {
        return Ok(());
    }
    let dialect = Dialect {
        delimiter: table.csv.delimiter,
        quote: table.csv.quote,
    };
    let (shared, cancelled) = (Arc::clone(&session.shared), session.cancelled.clone());
    let files = table.files.clone();
    let checked = tokio::task::spawn_blocking(move || {
        files.iter().try_fold(false, |has_breaks, file| {
            let checks = &shared.csv_checks;
            let has = checks.has_quoted_line_breaks(file, dialect, &cancelled)?;
            Ok::<_, FrameError>(has_breaks || has)
        })
    });
    let has_breaks = checked.await.map_err(|_| FrameError::Cancelled)??;
    if has_breaks && option(options, "newlines_in_values").is_none() {
        put(options, "newlines_in_values", "true");
    }
    Ok(())
}

/// A Parquet file that was cut is named before its reader meets bytes that it cannot bear.
async fn check_ends(session: &Session, table: &TableFiles) -> Result<(), FrameError> {
    let (tables, cancelled) = ([table.clone()], session.cancelled.clone());
    let checked = tokio::task::spawn_blocking(move || damage::find(&tables, &cancelled));
    match checked.await.map_err(|_| FrameError::Cancelled)? {
        Some(what) => Err(FrameError::Damaged { what }),
        None => Ok(()),
    }
}

/// The columns of CSV files with quoted line breaks: the engine tells types from pieces of a file
/// that end at any line break.
async fn infer_csv(table: &TableFiles) -> Result<Option<SchemaRef>, FrameError> {
    let (form, files) = (table.csv, table.files.clone());
    let inferred = tokio::task::spawn_blocking(move || {
        let format = csv::reader::Format::default()
            .with_header(form.has_header)
            .with_delimiter(form.delimiter)
            .with_quote(form.quote);
        let (mut schema, mut rows): (Option<Schema>, usize) = (None, 0);
        for file in files {
            if rows >= INFERRED_ROWS {
                break;
            }
            let reader = std::io::BufReader::new(std::fs::File::open(file)?);
            let (next, count) = format.infer_schema(reader, Some(INFERRED_ROWS - rows))?;
            rows += count;
            schema = Some(match schema {
                Some(schema) => merged(&schema, &next),
                None => next,
            });
        }
        Ok::<_, ArrowError>(schema.map(Arc::new))
    });
    let inferred = inferred.await.map_err(|_| FrameError::Cancelled)?;
    inferred.map_err(|error| FrameError::engine(Stage::Run, error.into()))
}

/// The types that hold the values of both.
fn merged(one: &Schema, other: &Schema) -> Schema {
    let fields = one.fields().iter().enumerate().map(|(index, field)| {
        let types = other
            .fields()
            .get(index)
            .map(|other| (field.data_type(), other.data_type()));
        let data_type = match types {
            None | Some((_, DataType::Null)) => field.data_type().clone(),
            Some((mine, theirs)) if mine == theirs => mine.clone(),
            Some((DataType::Null, theirs)) => theirs.clone(),
            Some((DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64)) => {
                DataType::Float64
            }
            Some(_) => DataType::Utf8,
        };
        Field::new(field.name(), data_type, true)
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// The texts that stand for a missing value. The engine knows them only for telling types.
fn take_nulls(options: &mut Options, format: Format) -> Result<Vec<String>, FrameError> {
    if take(options, "null_regex").is_some() {
        return Err(FrameError::Unsupported {
            what: "the option `null_regex` is not supported".to_owned(),
            hint: "use `null_value` with the text, or several texts separated by `|`".into(),
        });
    }
    match take(options, "null_value") {
        Some(text) if format == Format::Csv => Ok(text
            .split('|')
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .collect()),
        Some(_) => Err(FrameError::Unsupported {
            what: "the option `null_value` is for CSV files".to_owned(),
            hint: "remove it".into(),
        }),
        None => Ok(Vec::new()),
    }
}

/// Registers the table. Gives the columns that its files hold.
async fn register(
    session: &Session,
    table: CreateExternalTable,
    nulls: Vec<String>,
    known: Option<SchemaRef>,
) -> Result<Option<SchemaRef>, FrameError> {
    let plan = |error| FrameError::engine(Stage::Plan, error);
    let logical = session.plan(Syntax::CreateExternalTable(table)).await?;
    let LogicalPlan::Ddl(DdlStatement::CreateExternalTable(mut command)) = logical else {
        let what = "the definition of the table cannot be planned".to_owned();
        return Err(FrameError::Argument { what });
    };
    let context = &session.context;
    let name = command.name.clone();
    if context.table_exist(name.clone()).map_err(plan)? {
        match (command.if_not_exists, command.or_replace) {
            (true, _) => return Ok(None),
            (false, true) => drop(context.deregister_table(name.clone()).map_err(plan)?),
            (false, false) => {
                let words = format!("the table `{name}` exists already");
                return Err(plan(DataFusionError::Plan(words)));
            }
        }
    }
    if let (Some(schema), true) = (
        known,
        nulls.is_empty() && command.table_partition_cols.is_empty(),
    ) {
        command.schema = schema.as_ref().clone().to_dfschema_ref().map_err(plan)?;
    }
    let state = context.state();
    if nulls.is_empty() {
        let provider = remote_table::provider(&state, &command)
            .await
            .map_err(plan)?;
        let schema = file_schema(provider.as_ref());
        context.register_table(name, provider).map_err(plan)?;
        return Ok(schema);
    }
    let view = nulls_view(session, *command, &nulls).await.map_err(plan)?;
    context.register_table(name, Arc::new(view)).map_err(plan)?;
    Ok(None)
}

fn file_schema(provider: &dyn TableProvider) -> Option<SchemaRef> {
    let listing = provider.downcast_ref::<ListingTable>()?;
    let partitions = &listing.options().table_partition_cols;
    let schema = provider.schema();
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .filter(|field| !partitions.iter().any(|(name, _)| name == field.name()))
        .cloned()
        .collect();
    Some(Arc::new(Schema::new(fields)))
}

/// A view over the texts of the files, in which some texts are nulls and the rest have types.
async fn nulls_view(
    session: &Session,
    command: TablePlan,
    nulls: &[String],
) -> Result<ViewTable, DataFusionError> {
    let state = session.context.state();
    let mut typed = command.clone();
    typed
        .options
        .insert("format.null_regex".to_owned(), pattern_of(nulls));
    let provider = remote_table::provider(&state, &typed).await?;
    let target = provider.schema();
    let partitions: Vec<String> = provider
        .downcast_ref::<ListingTable>()
        .map(|listing| {
            listing
                .options()
                .table_partition_cols
                .iter()
                .map(|c| c.0.clone())
                .collect()
        })
        .unwrap_or_default();
    let is_partition = |field: &Field| partitions.contains(field.name());
    let raw_fields: Vec<_> = target
        .fields()
        .iter()
        .map(|field| {
            if is_partition(field) {
                field.as_ref().clone()
            } else {
                Field::new(field.name(), DataType::Utf8View, true)
            }
        })
        .collect();
    let mut raw = command.clone();
    raw.schema = Schema::new(raw_fields).to_dfschema_ref()?;
    raw.table_partition_cols.clone_from(&partitions);
    let texts = remote_table::provider(&state, &raw).await?;
    let scan = LogicalPlanBuilder::scan(command.name.clone(), provider_as_source(texts), None)?;
    let columns: Result<Vec<Expr>, DataFusionError> = target
        .fields()
        .iter()
        .map(|field| {
            let column = Expr::Column(Column::from_name(field.name()));
            if is_partition(field) {
                return Ok(column);
            }
            let texts = nulls.iter().map(|text| lit(text.as_str())).collect();
            let value = when(
                column.clone().in_list(texts, false),
                lit(ScalarValue::Utf8View(None)),
            )
            .otherwise(column)?;
            Ok(cast(value, field.data_type().clone()).alias(field.name()))
        })
        .collect();
    Ok(ViewTable::new(
        scan.project(columns?)?.build()?,
        command.definition,
    ))
}

/// A regular expression that matches exactly these texts.
fn pattern_of(texts: &[String]) -> String {
    let escaped = texts.iter().map(|text| {
        text.chars().fold(String::new(), |mut escaped, c| {
            if r"\.+*?()|[]{}^$#&-~".contains(c) {
                escaped.push('\\');
            }
            escaped.push(c);
            escaped
        })
    });
    format!("^({})?$", escaped.collect::<Vec<_>>().join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_among_files() {
        let files = ["a/x.csv", "a/y.csv.gz", "a/_SUCCESS", "a/z.parquet"].map(String::from);
        assert_eq!(endings_of(Format::Csv, &files), [".csv", ".csv.gz"]);
        assert_eq!(endings_of(Format::Parquet, &files), [".parquet"]);
        assert!(endings_of(Format::Json, &files).is_empty());
    }

    #[test]
    fn options_with_and_without_prefix() {
        let mut options: Options = Vec::new();
        put(&mut options, "delimiter", ";");
        options.push(("Has_Header".to_owned(), Value::Boolean(false)));
        assert_eq!(option(&options, "delimiter").as_deref(), Some(";"));
        assert!(!csv_form(&options).has_header);
        assert_eq!(take(&mut options, "delimiter").as_deref(), Some(";"));
        assert_eq!(option(&options, "delimiter"), None);
    }

    #[test]
    fn patterns_match_the_texts_only() {
        assert_eq!(
            pattern_of(&["NA".into(), "n/a".into(), "-".into()]),
            "^(NA|n/a|\\-)?$"
        );
    }
}

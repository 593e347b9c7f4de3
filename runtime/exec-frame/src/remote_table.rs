//! Tables over the files of an object store.
//!
//! Owns patterns in URLs: the engine's own tables know them for local paths only, and would take
//! the files of a folder that are of another format for data.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::{TableProvider, TableProviderFactory};
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl,
};
use datafusion::datasource::listing_table_factory::ListingTableFactory;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::CreateExternalTable as TablePlan;
use object_store::path::Path;
use url::Url;

/// A location as the engine lists it: a path of this machine, or a URL that may end in a pattern.
pub(crate) fn listing_url(location: &str) -> Result<ListingTableUrl> {
    let pattern_at = match location.split_once("://") {
        Some(_) => location.find(['*', '[']),
        None => None,
    };
    let folder_end = pattern_at.and_then(|at| location[..at].rfind('/'));
    let Some(folder_end) = folder_end else {
        return ListingTableUrl::parse(location);
    };
    let (folder, pattern) = location.split_at(folder_end + 1);
    let url = Url::parse(folder).map_err(|error| DataFusionError::Plan(error.to_string()))?;
    // Paths inside a store are not escaped.
    let pattern = Path::from_url_path(pattern).map_err(object_store::Error::from)?;
    ListingTableUrl::try_new(url, None)?.with_glob(pattern.as_ref())
}

/// Whether any location is a URL.
pub(crate) fn is_remote(locations: &[String]) -> bool {
    locations.iter().any(|location| location.contains("://"))
}

/// The table over files, wherever they are.
pub(crate) async fn provider(
    state: &SessionState,
    command: &TablePlan,
) -> Result<Arc<dyn TableProvider>> {
    if is_remote(&command.locations) {
        return create(state, command).await;
    }
    ListingTableFactory::new().create(state, command).await
}

async fn create(state: &SessionState, command: &TablePlan) -> Result<Arc<dyn TableProvider>> {
    let factory = state.get_file_format_factory(&command.file_type);
    let factory = factory.ok_or_else(|| {
        DataFusionError::Plan(format!("there is no format `{}`", command.file_type))
    })?;
    let format = factory.create(state, &command.options)?;
    let urls = command.locations.iter().map(|location| {
        let url = listing_url(location)?;
        Ok(url.with_table_ref(command.name.clone()))
    });
    let urls = urls.collect::<Result<Vec<_>>>()?;
    check_stores(&urls)?;
    let mut options = ListingOptions::new(format)
        .with_file_extension("")
        .with_file_sort_order(command.order_exprs.clone());
    options.table_partition_cols = partitions(state, command, &options, &urls).await?;
    for url in &urls {
        options.validate_partitions(state, url).await?;
    }
    let schema = match files_schema(command) {
        Some(schema) => schema,
        None => infer_schema(state, &options, &urls).await?,
    };
    let config = ListingTableConfig::new_with_multi_paths(urls)
        .with_listing_options(options)
        .with_schema(schema);
    let cache = state.runtime_env().cache_manager.get_file_statistic_cache();
    let table = ListingTable::try_new(config)?
        .with_cache(cache)
        .with_definition(command.definition.clone())
        .with_constraints(command.constraints.clone())
        .with_column_defaults(command.column_defaults.clone());
    Ok(Arc::new(table))
}

/// All files must be in one bucket: the engine reads all from the first one's.
fn check_stores(urls: &[ListingTableUrl]) -> Result<()> {
    let mut stores = urls.iter().map(ListingTableUrl::object_store);
    let first = stores.next();
    if stores.all(|store| Some(&store) == first.as_ref()) {
        return Ok(());
    }
    Err(DataFusionError::Plan(
        "the locations of a table must be in one bucket".to_owned(),
    ))
}

/// Columns that stand in the paths: `year=2024/`.
async fn partitions(
    state: &SessionState,
    command: &TablePlan,
    options: &ListingOptions,
    urls: &[ListingTableUrl],
) -> Result<Vec<(String, DataType)>> {
    let mut names = command.table_partition_cols.clone();
    if !command.schema.fields().is_empty() {
        let typed = names.into_iter().map(|name| {
            let field = command.schema.field_with_unqualified_name(&name)?;
            Ok((name, field.data_type().clone()))
        });
        return typed.collect();
    }
    let infers = state
        .config_options()
        .execution
        .listing_table_factory_infer_partitions;
    if let (true, true, Some(url)) = (names.is_empty(), infers, urls.first()) {
        names = options.infer_partitions(state, url).await?;
    }
    let text = || DataType::Dictionary(Box::new(DataType::UInt16), Box::new(DataType::Utf8));
    Ok(names.into_iter().map(|name| (name, text())).collect())
}

/// The columns of the files, where the statement names them.
fn files_schema(command: &TablePlan) -> Option<SchemaRef> {
    let fields = command.schema.fields();
    if fields.is_empty() {
        return None;
    }
    let held: Vec<_> = fields
        .iter()
        .filter(|field| !command.table_partition_cols.contains(field.name()))
        .cloned()
        .collect();
    Some(Arc::new(Schema::new(held)))
}

async fn infer_schema(
    state: &SessionState,
    options: &ListingOptions,
    urls: &[ListingTableUrl],
) -> Result<SchemaRef> {
    let mut first: Option<SchemaRef> = None;
    for url in urls {
        let schema = options.infer_schema(state, url).await?;
        match &first {
            None => first = Some(schema),
            Some(known) if known.fields() == schema.fields() => {}
            Some(_) => {
                return Err(DataFusionError::Plan(format!(
                    "the files of `{url}` have other columns than the first location"
                )));
            }
        }
    }
    first.ok_or_else(|| DataFusionError::Plan("the table has no location".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_urls_match_below_their_folder() {
        let url = listing_url("s3://b/some%20dir/*.parquet").unwrap();
        assert_eq!(url.prefix().as_ref(), "some dir");
        assert!(url.is_collection());
        let contains = |path: &str| url.contains(&Path::from(path), true);
        assert!(contains("some dir/a.parquet"));
        assert!(contains("some dir/year=1/a.parquet"));
        assert!(!contains("some dir/_SUCCESS"));
        let plain = listing_url("s3://b/dir/a.csv").unwrap();
        assert!(plain.get_glob().is_none() && !plain.is_collection());
    }
}

//! What a stage does, in a few words for people.

use std::sync::Arc;

use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;

/// Words of one name.
const WORDS_MAX: usize = 3;

/// `scan lineitem`, `join, aggregate`, … from the leaves up.
pub(super) fn of(plan: &Arc<dyn ExecutionPlan>) -> String {
    let mut words: Vec<String> = Vec::new();
    collect(plan, &mut words);
    if words.is_empty() {
        return "gather".to_owned();
    }
    if words.len() > WORDS_MAX {
        // Where it begins and what it comes to says most.
        words.drain(1..words.len() - (WORDS_MAX - 1));
    }
    words.join(", ")
}

fn collect(plan: &Arc<dyn ExecutionPlan>, words: &mut Vec<String>) {
    for child in plan.children() {
        collect(child, words);
    }
    let word = match plan.name() {
        "DataSourceExec" => scan(plan),
        "HashJoinExec" | "SortMergeJoinExec" | "NestedLoopJoinExec" | "CrossJoinExec" => {
            "join".to_owned()
        }
        "AggregateExec" => "aggregate".to_owned(),
        "WindowAggExec" | "BoundedWindowAggExec" => "window".to_owned(),
        "SortExec" | "SortExec(TopK)" => "sort".to_owned(),
        "SortPreservingMergeExec" => "merge".to_owned(),
        "UnionExec" | "InterleaveExec" => "union".to_owned(),
        "UnnestExec" => "unnest".to_owned(),
        _ => return,
    };
    if !words.contains(&word) {
        words.push(word);
    }
}

fn scan(plan: &Arc<dyn ExecutionPlan>) -> String {
    let scan = plan.downcast_ref::<DataSourceExec>();
    let scan = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>());
    let Some(scan) = scan else {
        return "values".to_owned();
    };
    let file = scan.file_groups.iter().flat_map(FileGroup::iter).next();
    let table = file.and_then(|file| {
        let name = file
            .table_reference
            .as_ref()
            .map(|name| name.table().to_owned());
        name.or_else(|| {
            let name = file.object_meta.location.filename()?;
            Some(name.split('.').next().unwrap_or(name).to_owned())
        })
    });
    match table {
        Some(table) => format!("scan {table}"),
        None => "scan".to_owned(),
    }
}

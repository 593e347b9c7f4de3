//! How a plan is put in words.
//!
//! Owns the description of stages and operators: what is read and what is left out while reading,
//! what is done, and what goes where. Says nothing of times: those come from a run. An outline
//! travels with the task that shows the times of a query.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::datasource::physical_plan::{FileGroup, FileScanConfig};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalExpr};
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable};
use serde::{Deserialize, Serialize};

use crate::stage::{EdgeMode, Stage, StageOutput, StagePlan, StageReadExec};

/// Characters of one operator's description.
const TEXT_CHARS_MAX: usize = 400;

/// Operators of one stage.
const OPERATORS_MAX: usize = 2_000;

/// Columns that a scan names.
const COLUMNS_MAX: usize = 12;

/// A query in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outline {
    /// One line about the whole.
    pub(crate) headline: String,
    pub(crate) stages: Vec<StageOutline>,
}

/// A stage in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StageOutline {
    pub(crate) title: String,
    pub(crate) tasks: usize,
    /// From the last one down.
    pub(crate) operators: Vec<OperatorOutline>,
    /// Where the rows go.
    pub(crate) sends: String,
}

/// An operator in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperatorOutline {
    /// The engine's name.
    pub(crate) name: String,
    pub(crate) depth: usize,
    pub(crate) text: String,
}

impl Outline {
    /// Of a query that was cut.
    pub(crate) fn of_stages(plan: &StagePlan, headline: String) -> Self {
        let stages = plan.stages.iter().enumerate();
        Self {
            headline,
            stages: stages
                .map(|(number, stage)| StageOutline {
                    title: stage.name.clone(),
                    tasks: stage.tasks,
                    operators: operators(&stage.plan, Some(stage)),
                    sends: sends(plan, number, stage),
                })
                .collect(),
        }
    }

    /// Of a query that is one task.
    pub(crate) fn of_one(plan: &Arc<dyn ExecutionPlan>, headline: String, sends: &str) -> Self {
        Self {
            headline,
            stages: vec![StageOutline {
                title: "the whole query".to_owned(),
                tasks: 1,
                operators: operators(plan, None),
                sends: sends.to_owned(),
            }],
        }
    }

    /// The lines to show.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.headline.clone()];
        for (number, stage) in self.stages.iter().enumerate() {
            lines.push(stage.heading(number));
            for operator in &stage.operators {
                lines.push(operator.line());
            }
            lines.push(format!("  {}", stage.sends));
        }
        lines
    }
}

impl StageOutline {
    pub(crate) fn heading(&self, number: usize) -> String {
        format!(
            "stage {}: {} ({})",
            number + 1,
            self.title,
            counted(self.tasks, "task")
        )
    }
}

impl OperatorOutline {
    pub(crate) fn line(&self) -> String {
        format!("    {}{}", "  ".repeat(self.depth), self.text)
    }
}

/// `1 task`, `2 tasks`.
pub(crate) fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// Bytes for people.
pub(crate) fn sized(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit, so that nothing is rounded by floats.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

fn operators(plan: &Arc<dyn ExecutionPlan>, stage: Option<&Stage>) -> Vec<OperatorOutline> {
    fn walk(
        plan: &Arc<dyn ExecutionPlan>,
        depth: usize,
        stage: Option<&Stage>,
        found: &mut Vec<OperatorOutline>,
    ) {
        if found.len() >= OPERATORS_MAX {
            return;
        }
        // It only lets others have their turn.
        let is_shown = plan.name() != "CooperativeExec";
        if is_shown {
            found.push(OperatorOutline {
                name: plan.name().to_owned(),
                depth,
                text: described(plan, stage),
            });
        }
        for child in plan.children() {
            walk(child, depth + usize::from(is_shown), stage, found);
        }
    }
    let mut found = Vec::new();
    walk(plan, 0, stage, &mut found);
    found
}

/// Where the rows of a stage go.
fn sends(plan: &StagePlan, number: usize, stage: &Stage) -> String {
    let readers = plan.stages.iter().enumerate().flat_map(|(reader, stage)| {
        let edges = stage.edges.iter().filter(|edge| edge.producer == number);
        edges.map(move |edge| (reader + 1, edge.mode))
    });
    let readers: Vec<_> = readers.collect();
    let mut numbers: Vec<String> = readers
        .iter()
        .map(|(number, _)| number.to_string())
        .collect();
    numbers.dedup();
    let to = format!(
        "stage{} {}",
        if numbers.len() == 1 { "" } else { "s" },
        numbers.join(" and ")
    );
    match &stage.output {
        StageOutput::Buckets(Partitioning::Hash(by, _)) => {
            format!("sends rows to {to} by the hash of {}", expressions(by))
        }
        StageOutput::Buckets(Partitioning::Range(range)) => {
            format!(
                "sends rows to {to} by the range of {}",
                sorted(range.ordering())
            )
        }
        StageOutput::Buckets(_) => format!("sends rows to {to}"),
        StageOutput::Whole => {
            let is_broadcast = readers.iter().any(|(_, mode)| *mode == EdgeMode::Broadcast);
            let order = stage.plan.output_ordering();
            match (is_broadcast, order) {
                (true, _) => format!("sends all rows to every task of {to}"),
                (false, Some(order)) => {
                    format!("sends all rows to {to} in the order of {}", sorted(order))
                }
                (false, None) => format!("sends all rows to {to}"),
            }
        }
        StageOutput::Table => "gives the result".to_owned(),
        StageOutput::Parts(output) => format!("writes parts of `{}`", output.name()),
        StageOutput::Nothing => "gives the result, which is not kept".to_owned(),
    }
}

fn described(plan: &Arc<dyn ExecutionPlan>, stage: Option<&Stage>) -> String {
    let text = if let Some(scan) = plan.downcast_ref::<DataSourceExec>() {
        match scan.data_source().downcast_ref::<FileScanConfig>() {
            Some(files) => scanned(files),
            None => format!("values{}", detail(plan)),
        }
    } else if let Some(read) = plan.downcast_ref::<StageReadExec>() {
        received(read, stage)
    } else if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        format!("filter {}", filter.predicate())
    } else if let Some(columns) = plan.downcast_ref::<ProjectionExec>() {
        let columns = columns.expr().iter();
        let columns = columns.map(|column| named(&column.expr, &column.alias));
        format!("columns {}", columns.collect::<Vec<_>>().join(", "))
    } else if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        aggregated(aggregate)
    } else if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        let on = join.on().iter();
        let on: Vec<_> = on
            .map(|(left, right)| format!("{left} = {right}"))
            .collect();
        let filter = join
            .filter()
            .map(|filter| format!(" and {}", filter.expression()));
        let kind = join.join_type().to_string().to_lowercase();
        format!(
            "{kind} join by hash on {}{}",
            on.join(" and "),
            filter.unwrap_or_default()
        )
    } else if let Some(sort) = plan.downcast_ref::<SortExec>() {
        format!("sort by {}{}", sorted(sort.expr()), first(sort.fetch()))
    } else if let Some(merge) = plan.downcast_ref::<SortPreservingMergeExec>() {
        format!(
            "merge in the order of {}{}",
            sorted(merge.expr()),
            first(merge.fetch())
        )
    } else {
        format!("{}{}", word(plan.name()), detail(plan))
    };
    cut(&cleaned(&text))
}

fn first(fetch: Option<usize>) -> String {
    fetch.map_or_else(String::new, |rows| {
        format!(", the first {}", counted(rows, "row"))
    })
}

/// A name for people.
fn word(name: &str) -> &str {
    match name {
        "CoalescePartitionsExec" => "gather",
        "CrossJoinExec" => "join each with each",
        "EmptyExec" => "no rows",
        "GlobalLimitExec" | "LocalLimitExec" => "limit",
        "LazyMemoryExec" => "generated rows",
        "NestedLoopJoinExec" => "join by comparing each with each",
        "PlaceholderRowExec" => "one row",
        "RepartitionExec" => "spread over threads",
        "RestampExec" => "branch",
        "ScalarSubqueryExec" => "with the values of subqueries",
        "SortMergeJoinExec" => "join by order",
        "UnionExec" | "InterleaveExec" => "union",
        "UnnestExec" => "unnest",
        "WindowAggExec" | "BoundedWindowAggExec" => "window",
        other => other.strip_suffix("Exec").unwrap_or(other),
    }
}

/// What the engine says behind the name.
fn detail(plan: &Arc<dyn ExecutionPlan>) -> String {
    let line = displayable(plan.as_ref()).one_line().to_string();
    let line = line.trim();
    match line.split_once(':') {
        Some((_, detail)) if !detail.trim().is_empty() => format!(": {}", detail.trim()),
        _ => String::new(),
    }
}

fn aggregated(aggregate: &AggregateExec) -> String {
    let mode = match aggregate.mode() {
        AggregateMode::Partial | AggregateMode::PartialReduce => " this task's rows",
        AggregateMode::Final | AggregateMode::FinalPartitioned => " what tasks have made",
        AggregateMode::Single | AggregateMode::SinglePartitioned => "",
    };
    let mut text = format!("aggregate{mode}");
    let groups = aggregate.group_expr().expr().iter();
    let groups: Vec<_> = groups
        .map(|(expression, name)| named(expression, name))
        .collect();
    if !groups.is_empty() {
        let written = write!(text, " by {}", groups.join(", "));
        debug_assert!(written.is_ok(), "writing into memory cannot fail");
    }
    let values: Vec<_> = aggregate
        .aggr_expr()
        .iter()
        .map(|value| value.name())
        .collect();
    if !values.is_empty() {
        text = format!("{text}: {}", values.join(", "));
    }
    text
}

fn received(read: &StageReadExec, stage: Option<&Stage>) -> String {
    let edge = stage.and_then(|stage| stage.edges.get(read.edge));
    let from = edge.map_or_else(String::new, |edge| format!("stage {}", edge.producer + 1));
    match read.mode {
        EdgeMode::Shuffle => format!("this task's share of {from}"),
        EdgeMode::Merge | EdgeMode::Gather | EdgeMode::Broadcast => format!("all rows of {from}"),
    }
}

/// A scan of files: which, how many, how large, and what is left out while reading.
fn scanned(scan: &FileScanConfig) -> String {
    let mut files = HashSet::new();
    let mut bytes = 0_u64;
    let mut table = None;
    for file in scan.file_groups.iter().flat_map(FileGroup::iter) {
        files.insert(&file.object_meta.location);
        bytes += match &file.range {
            Some(range) => u64::try_from(range.end - range.start).unwrap_or_default(),
            None => file.object_meta.size,
        };
        if table.is_none() {
            let name = file
                .table_reference
                .as_ref()
                .map(|name| name.table().to_owned());
            table = name.or_else(|| file.object_meta.location.filename().map(str::to_owned));
        }
    }
    let mut text = format!(
        "read {}: {}, {}",
        table.as_deref().unwrap_or("no files"),
        counted(files.len(), "file"),
        sized(bytes)
    );
    let source = scan.file_source();
    if let Some(columns) = source.projection() {
        let names: Vec<_> = columns.iter().map(|column| column.alias.as_str()).collect();
        let shown = names
            .iter()
            .take(COLUMNS_MAX)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        let more = if names.len() > COLUMNS_MAX {
            ", …"
        } else {
            ""
        };
        if !names.is_empty() {
            text = format!("{text}; columns {shown}{more}");
        }
    }
    if let Some(filter) = source.filter() {
        text = format!("{text}; only where {filter}");
    }
    if let Some(limit) = scan.limit {
        text = format!("{text}; the first {}", counted(limit, "row"));
    }
    text
}

fn named(expression: &Arc<dyn PhysicalExpr>, name: &str) -> String {
    let text = cleaned(&expression.to_string());
    if text == name {
        text
    } else {
        format!("{text} as {name}")
    }
}

fn expressions(by: &[Arc<dyn PhysicalExpr>]) -> String {
    let texts: Vec<_> = by.iter().map(|by| cleaned(&by.to_string())).collect();
    texts.join(", ")
}

fn sorted(by: &LexOrdering) -> String {
    let texts = by.iter().map(|sort| {
        let descending = if sort.options.descending {
            " descending"
        } else {
            ""
        };
        format!("{}{descending}", cleaned(&sort.expr.to_string()))
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// Without the numbers of columns, which the engine writes behind their names.
fn cleaned(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let (mut letters, mut is_quoted) = (text.chars().peekable(), false);
    while let Some(letter) = letters.next() {
        is_quoted ^= letter == '\'';
        let is_behind_name = cleaned
            .chars()
            .next_back()
            .is_some_and(|last| last.is_alphanumeric() || "_)\"".contains(last));
        if letter == '@'
            && !is_quoted
            && is_behind_name
            && letters.peek().is_some_and(char::is_ascii_digit)
        {
            while letters.next_if(char::is_ascii_digit).is_some() {}
        } else {
            cleaned.push(if letter == '\n' { ' ' } else { letter });
        }
    }
    cleaned
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_columns_are_left_out() {
        assert_eq!(
            cleaned("a@0 + sum(b)@12 > 3 AND m = 'x@y'"),
            "a + sum(b) > 3 AND m = 'x@y'"
        );
        assert_eq!(cleaned("mail@3 = 'me@1st.org'"), "mail = 'me@1st.org'");
    }

    #[test]
    fn sizes_for_people() {
        let sizes = [0, 1023, 1024, 1536, 5 << 20, 3 << 40].map(sized);
        assert_eq!(
            sizes,
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "3.0 TiB"]
        );
    }

    #[test]
    fn long_descriptions_are_cut() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"ä".repeat(1_000)).chars().count(), TEXT_CHARS_MAX + 1);
    }
}

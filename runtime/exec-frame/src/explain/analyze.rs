//! How a query ran, in words and numbers.
//!
//! Owns the operation `analyze`, which reads what the tasks of all stages counted and nothing else
//! of their results, and the rendering of it. Sums are over tasks; a stage's skew is its slowest
//! task's time over the median.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, PieceRequest, Program, TaskContext, TaskError};
use oxidask_store::Payload;
use serde::{Deserialize, Serialize};

use super::outline::{Outline, StageOutline, counted, sized};
use super::statistics::TaskStatistics;
use super::table_of;

/// The operation's name.
pub(crate) const ANALYZE: &str = "analyze";

/// Bytes of one task's statistics.
const STATISTICS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Statistics that are read together.
const READ_AT_ONCE: u32 = 256;

/// Reads of one batch of statistics: each brings at least one byte.
const READS_MAX: usize = 100_000;

/// Arguments of the operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnalyzeArguments {
    pub(crate) outline: Outline,
    /// For each stage, the slice of its tasks' results that holds the statistics.
    pub(crate) slices: Vec<u32>,
}

/// Shows how the tasks of a query ran.
pub(crate) struct AnalyzeProgram {
    arguments: AnalyzeArguments,
}

impl AnalyzeProgram {
    /// Understands a body.
    pub(crate) fn prepare(body: &Body) -> Result<Self, TaskError> {
        let arguments = serde_json::Value::Object(body.args.clone());
        let arguments = AnalyzeArguments::deserialize(arguments).map_err(|error| {
            let message = format!("the arguments of `{ANALYZE}` cannot be read: {error}");
            TaskError::permanent(Diagnostic::new(Code::OperationUnknown, message))
        })?;
        Ok(Self { arguments })
    }

    async fn table(&self, context: &TaskContext) -> Result<Payload, TaskError> {
        let mut stages = Vec::with_capacity(self.arguments.slices.len());
        let mut first = 0;
        for (stage, slice) in self
            .arguments
            .outline
            .stages
            .iter()
            .zip(&self.arguments.slices)
        {
            let tasks = u32::try_from(stage.tasks).unwrap_or(u32::MAX);
            let mut statistics = Vec::with_capacity(stage.tasks);
            for begin in (0..tasks).step_by(READ_AT_ONCE as usize) {
                let end = tasks.min(begin + READ_AT_ONCE);
                let inputs = (first + begin..first + end).map(|input| (input, *slice));
                statistics.extend(read(context, inputs.collect()).await?);
            }
            stages.push(statistics);
            first += tasks;
        }
        let lines = analyzed(&self.arguments.outline, &stages);
        table_of(&lines).map_err(|error| error.into_task_error(None))
    }
}

impl Program for AnalyzeProgram {
    fn computes(&self) -> bool {
        true
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move { self.table(&context).await }.boxed()
    }
}

/// Reads slices as statistics.
async fn read(
    context: &TaskContext,
    inputs: Vec<(u32, u32)>,
) -> Result<Vec<TaskStatistics>, TaskError> {
    let mut texts: Vec<Vec<u8>> = vec![Vec::new(); inputs.len()];
    let mut open: Vec<usize> = (0..inputs.len()).collect();
    for _ in 0..READS_MAX {
        if open.is_empty() {
            break;
        }
        let requests = open.iter().map(|index| PieceRequest {
            input: inputs[*index].0,
            slice: inputs[*index].1,
            offset: texts[*index].len() as u64,
            bytes_max: STATISTICS_BYTES_MAX,
        });
        let pieces = context.streams.read(requests.collect()).await?;
        let mut left = Vec::new();
        for (index, piece) in open.into_iter().zip(pieces) {
            for part in piece.parts {
                texts[index].extend_from_slice(&part);
            }
            let has_more = (texts[index].len() as u64) < piece.slice_bytes;
            if has_more && piece.slice_bytes <= STATISTICS_BYTES_MAX {
                left.push(index);
            }
        }
        open = left;
    }
    let statistics = texts.iter().map(|text| {
        serde_json::from_slice(text).map_err(|error| {
            let message = format!("the statistics of a task cannot be read: {error}");
            TaskError::retryable(Diagnostic::new(Code::ResultUnavailable, message))
        })
    });
    statistics.collect()
}

/// The lines to show.
pub(crate) fn analyzed(outline: &Outline, stages: &[Vec<TaskStatistics>]) -> Vec<String> {
    let mut lines = vec![outline.headline.clone()];
    for (number, (stage, tasks)) in outline.stages.iter().zip(stages).enumerate() {
        lines.push(stage.heading(number));
        lines.extend(summary(tasks));
        let counts = counts(stage, tasks);
        for (operator, count) in stage.operators.iter().zip(counts) {
            lines.push(format!("{}{}", operator.line(), count.text()));
        }
        lines.push(format!("  {}", stage.sends));
    }
    lines
}

/// Times, rows and bytes of a stage.
fn summary(tasks: &[TaskStatistics]) -> Vec<String> {
    let sum = |of: fn(&TaskStatistics) -> u64| tasks.iter().map(of).sum::<u64>();
    let mut times: Vec<(u64, usize)> = tasks
        .iter()
        .enumerate()
        .map(|(task, statistics)| (statistics.micros, task))
        .collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).map_or(0, |(micros, _)| *micros);
    let (longest, slowest) = times.last().copied().unwrap_or_default();
    let all = timed(sum(|task| task.micros));
    let mut time = format!("  time {all}");
    if tasks.len() > 1 {
        time = format!(
            "  time {all} in all, median {}, longest {} (task {slowest}), skew {}",
            timed(median),
            timed(longest),
            ratio(longest, median)
        );
    }
    let read = match sum(TaskStatistics::read_bytes) {
        0 => String::new(),
        bytes => format!(" ({} of files)", sized(bytes)),
    };
    let made = match sum(|task| task.bytes) {
        0 => String::new(),
        bytes => format!(" ({})", sized(bytes)),
    };
    let spilled = match sum(TaskStatistics::spilled_bytes) {
        0 => String::new(),
        bytes => format!(", spilled {}", sized(bytes)),
    };
    let rows = |count: u64| counted(usize::try_from(count).unwrap_or(usize::MAX), "row");
    let (rows_in, rows_out) = (
        rows(sum(TaskStatistics::read_rows)),
        rows(sum(|task| task.rows)),
    );
    vec![
        time,
        format!("  {rows_in} in{read}, {rows_out} out{made}{spilled}"),
    ]
}

/// What the tasks of a stage counted for one operator.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    rows: Option<u64>,
    nanos: Option<u64>,
    spilled_bytes: u64,
}

impl Count {
    fn text(self) -> String {
        let mut parts = Vec::new();
        if let Some(rows) = self.rows {
            parts.push(counted(usize::try_from(rows).unwrap_or(usize::MAX), "row"));
        }
        if let Some(nanos) = self.nanos.filter(|nanos| *nanos > 0) {
            parts.push(timed(nanos / 1_000));
        }
        if self.spilled_bytes > 0 {
            parts.push(format!("spilled {}", sized(self.spilled_bytes)));
        }
        if parts.is_empty() {
            return String::new();
        }
        format!("  [{}]", parts.join(", "))
    }
}

/// Adds up what tasks counted, operator by operator. A task may lack operators, as those of the
/// other branches of a UNION, but it never has them in another order.
fn counts(stage: &StageOutline, tasks: &[TaskStatistics]) -> Vec<Count> {
    let mut counts = vec![Count::default(); stage.operators.len()];
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, operator) in stage.operators.iter().enumerate() {
        places.entry(&operator.name).or_default().push(index);
    }
    for task in tasks {
        let mut next = 0;
        for operator in &task.operators {
            let known = places.get(operator.name.as_str());
            let place = known.and_then(|known| {
                known
                    .get(known.partition_point(|index| *index < next))
                    .copied()
            });
            let Some(place) = place else {
                continue;
            };
            next = place + 1;
            let count = &mut counts[place];
            if let Some(rows) = operator.rows {
                *count.rows.get_or_insert(0) += rows;
            }
            if let Some(nanos) = operator.nanos {
                *count.nanos.get_or_insert(0) += nanos;
            }
            count.spilled_bytes += operator.spilled_bytes.unwrap_or_default();
        }
    }
    counts
}

/// A time for people.
pub(crate) fn timed(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        _ => format!(
            "{}.{:02} s",
            micros / 1_000_000,
            micros % 1_000_000 / 10_000
        ),
    }
}

/// One number over another, with one decimal.
fn ratio(of: u64, to: u64) -> String {
    let tenths = u128::from(of) * 10 / u128::from(to.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::super::outline::OperatorOutline;
    use super::super::statistics::OperatorStatistics;
    use super::*;

    fn stage(names: &[&str], tasks: usize) -> StageOutline {
        let operators = names.iter().enumerate();
        StageOutline {
            title: "scan t".to_owned(),
            tasks,
            operators: operators
                .map(|(depth, name)| OperatorOutline {
                    name: (*name).to_owned(),
                    depth,
                    text: name.to_lowercase(),
                })
                .collect(),
            sends: "gives the result".to_owned(),
        }
    }

    fn task(micros: u64, operators: &[(&str, u64)]) -> TaskStatistics {
        let last = operators.len() - 1;
        let operators = operators.iter().enumerate();
        TaskStatistics {
            rows: 2,
            bytes: 2048,
            micros,
            operators: operators
                .map(|(index, (name, rows))| OperatorStatistics {
                    name: (*name).to_owned(),
                    is_leaf: index == last,
                    rows: Some(*rows),
                    nanos: Some(1_500_000),
                    spilled_bytes: Some(0),
                    read_bytes: None,
                })
                .collect(),
        }
    }

    #[test]
    fn a_stage_is_shown_with_its_skew_and_its_operators() {
        let outline = Outline {
            headline: "1 stage".to_owned(),
            stages: vec![stage(&["Filter", "Scan"], 3)],
        };
        let tasks = [(1_000, 5), (2_000, 7), (30_000, 9)];
        let tasks = tasks.map(|(micros, rows)| task(micros, &[("Filter", 2), ("Scan", rows)]));
        assert_eq!(
            analyzed(&outline, &[tasks.to_vec()]),
            [
                "1 stage",
                "stage 1: scan t (3 tasks)",
                "  time 33.0 ms in all, median 2.0 ms, longest 30.0 ms (task 2), skew 15.0",
                "  21 rows in, 6 rows out (6.0 KiB)",
                "    filter  [6 rows, 4.5 ms]",
                "      scan  [21 rows, 4.5 ms]",
                "  gives the result",
            ]
        );
    }

    #[test]
    fn tasks_of_one_branch_count_for_that_branch() {
        let stage = stage(&["Union", "Filter", "A", "Sort", "A"], 2);
        let tasks = [
            task(1, &[("Filter", 1), ("Cooperative", 1), ("A", 10)]),
            task(1, &[("Sort", 2), ("A", 20)]),
        ];
        let rows: Vec<_> = counts(&stage, &tasks)
            .iter()
            .map(|count| count.rows)
            .collect();
        assert_eq!(rows, [None, Some(1), Some(10), Some(2), Some(20)]);
    }

    #[test]
    fn times_for_people() {
        let times = [7, 1_234, 61_500_000].map(timed);
        assert_eq!(times, ["7 µs", "1.2 ms", "61.50 s"]);
    }
}

//! A SQL text as tasks.
//!
//! Owns the order in which statements run: one task per query and per write, each with the
//! definitions before it. A query waits for the last write before it; a write waits for everything
//! since the write before it, and for that write. So a statement sees exactly the data that it
//! would see if all ran one after the other.

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, catalogue};
use serde::{Deserialize, Serialize};

use super::{Statement, StatementKind};
use crate::staging::new_id;

/// Bytes of all task bodies of one text.
pub(crate) const BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;

/// One task of a SQL text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphTask {
    /// The key: `query-1`, `copy-2`, … counted together; `define-N` for definitions at the end.
    pub key: String,
    /// What it does.
    pub body: Body,
    /// Tasks before it in the list that must be done first. They only give order.
    pub inputs: Vec<usize>,
    /// Whether its result is a table to show. Writes give a number of rows, definitions null.
    pub is_table: bool,
    /// The statement's number in the text, from 1.
    pub statement: usize,
}

/// One statement in a task's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlacedText {
    /// Its number in the text.
    pub(crate) number: usize,
    /// Its line in the text.
    pub(crate) line: u64,
    /// The statement.
    pub(crate) sql: String,
}

/// How large the cluster is that a text runs on: plans are made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSize {
    /// Worker processes, at least 1.
    pub workers: u32,
    /// Slots of all of them together, at least 1.
    pub slots: u32,
    /// Bytes of memory of one worker.
    pub memory_bytes: u64,
}

impl Default for ClusterSize {
    /// One worker with one slot, and memory that nobody knows.
    fn default() -> Self {
        Self {
            workers: 1,
            slots: 1,
            memory_bytes: u64::MAX,
        }
    }
}

/// Arguments of the operation `statement`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatementArguments {
    /// The name of the text.
    pub(crate) origin: String,
    /// What runs it.
    #[serde(default)]
    pub(crate) cluster: ClusterSize,
    /// Definitions before the statement.
    #[serde(default)]
    pub(crate) preamble: Vec<PlacedText>,
    /// The query or write; none where only the definitions are to be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) statement: Option<PlacedText>,
    /// Marks the output of a write: every attempt has the same, another run of the text another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) write: Option<String>,
}

/// The tasks of a parsed text, in order of the statements. `origin` names the text in messages;
/// `cluster` is what they will run on.
pub fn to_graph(
    statements: &[Statement],
    origin: &str,
    cluster: ClusterSize,
) -> Result<Vec<GraphTask>, Diagnostic> {
    let mut tasks: Vec<GraphTask> = Vec::new();
    let mut preamble: Vec<PlacedText> = Vec::new();
    let mut last_write: Option<usize> = None;
    let mut since_write: Vec<usize> = Vec::new();
    let mut has_open_definition = false;
    let mut bytes = 0;
    for statement in statements {
        let placed = PlacedText {
            number: statement.number,
            line: statement.line,
            sql: statement.text.clone(),
        };
        bytes += preamble.iter().map(|text| text.sql.len()).sum::<usize>() + placed.sql.len();
        if bytes > BODIES_BYTES_MAX {
            let message = format!(
                "{origin}: the tasks of the SQL text pass the limit of {BODIES_BYTES_MAX} bytes"
            );
            return Err(Diagnostic::new(Code::LimitPassed, message));
        }
        let index = tasks.len();
        let (name, inputs, is_table) = match statement.kind {
            StatementKind::Define => {
                preamble.push(placed);
                has_open_definition = true;
                continue;
            }
            StatementKind::Query => {
                since_write.push(index);
                ("query", last_write.into_iter().collect(), true)
            }
            StatementKind::Write => {
                let before = last_write.replace(index).into_iter();
                ("copy", before.chain(since_write.drain(..)).collect(), false)
            }
        };
        has_open_definition = false;
        tasks.push(GraphTask {
            key: format!("{name}-{}", index + 1),
            body: body((origin, cluster), &preamble, Some(placed), name == "copy")?,
            inputs,
            is_table,
            statement: statement.number,
        });
    }
    if has_open_definition {
        let index = tasks.len();
        tasks.push(GraphTask {
            key: format!("define-{}", index + 1),
            body: body((origin, cluster), &preamble, None, false)?,
            inputs: last_write.into_iter().collect(),
            is_table: false,
            statement: statements.len(),
        });
    }
    Ok(tasks)
}

fn body(
    (origin, cluster): (&str, ClusterSize),
    preamble: &[PlacedText],
    statement: Option<PlacedText>,
    is_write: bool,
) -> Result<Body, Diagnostic> {
    let arguments = StatementArguments {
        origin: origin.to_owned(),
        cluster,
        preamble: preamble.to_vec(),
        statement,
        write: is_write.then(|| new_id(false)),
    };
    match serde_json::to_value(arguments) {
        Ok(serde_json::Value::Object(args)) => Ok(Body {
            args,
            ..Body::new(catalogue::STATEMENT)
        }),
        _ => Err(Diagnostic::new(
            Code::SqlUnsupported,
            "the statement cannot become a task",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::parse;

    #[test]
    fn queries_wait_for_writes_and_writes_for_all() {
        let text = "CREATE VIEW a AS SELECT 1; SELECT 1; SELECT 2; COPY a TO 'x.csv'; \
                    CREATE EXTERNAL TABLE x STORED AS CSV LOCATION 'x.csv'; SELECT 3; \
                    COPY x TO 'y.csv'; COPY x TO 'z.csv'; SELECT 4; CREATE VIEW b AS SELECT 2";
        let tasks = to_graph(&parse(text, "q").unwrap(), "q", ClusterSize::default()).unwrap();
        let seen: Vec<_> = tasks
            .iter()
            .map(|task| (task.key.as_str(), task.inputs.as_slice()))
            .collect();
        let expected: [(&str, &[usize]); 8] = [
            ("query-1", &[]),
            ("query-2", &[]),
            ("copy-3", &[0, 1]),
            ("query-4", &[2]),
            ("copy-5", &[2, 3]),
            ("copy-6", &[4]),
            ("query-7", &[5]),
            ("define-8", &[5]),
        ];
        assert_eq!(seen, expected);
        let is_table: Vec<_> = tasks.iter().map(|task| task.is_table).collect();
        assert_eq!(
            is_table,
            [true, true, false, true, false, false, true, false]
        );
        let lengths: Vec<_> = tasks
            .iter()
            .map(|task| task.body.args["preamble"].as_array().unwrap().len())
            .collect();
        assert_eq!(lengths, [1, 1, 1, 2, 2, 2, 2, 3]);
    }

    #[test]
    fn a_body_holds_the_statement_and_its_place() {
        let cluster = ClusterSize {
            workers: 2,
            slots: 8,
            memory_bytes: 9,
        };
        let tasks = to_graph(&parse("\n\n SELECT 1;", "q").unwrap(), "f.yaml", cluster).unwrap();
        let json = String::from_utf8(tasks[0].body.encode().to_vec()).unwrap();
        assert_eq!(
            json,
            r#"{"op":"statement","args":{"origin":"f.yaml","cluster":{"workers":2,"slots":8,"memory_bytes":9},"preamble":[],"statement":{"number":1,"line":3,"sql":"SELECT 1"}}}"#
        );
    }
}

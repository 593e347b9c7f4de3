//! `oxidask status`: workers and graphs of a running cluster.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use oxidask_client::{Client, ClientError};
use oxidask_comm::Credentials;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use serde_json::json;

use crate::arguments::{OutputForm, StatusArguments};
use crate::error::CliError;
use crate::output;
use crate::progress::{bytes, count, duration};

const THREADS: usize = 1;
/// Time for the whole answer.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// Asks and prints.
pub(crate) fn status(arguments: &StatusArguments) -> Result<(), CliError> {
    let credentials = Credentials::from_dir(&arguments.cluster.tls_dir)
        .map_err(|error| CliError::from_file(&error))?;
    let runtime = crate::service::runtime(THREADS)?;
    let address = arguments.cluster.address();
    let reply = runtime
        .block_on(async { tokio::time::timeout(ANSWER_TIME, ask(address, &credentials)).await });
    runtime.shutdown_background();
    let reply = reply.unwrap_or_else(|_| {
        let message = format!("`{address}` did not answer in {} s", ANSWER_TIME.as_secs());
        Err(CliError::failed(Diagnostic::new(
            Code::SchedulerUnreachable,
            message,
        )))
    })?;
    let text = match output::form(arguments.output) {
        OutputForm::Json => json_lines(&reply),
        OutputForm::Table => tables(&reply),
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| output::failure(&error))
}

async fn ask(address: &str, credentials: &Credentials) -> Result<wire::StatusReply, CliError> {
    let failed = |error: ClientError| CliError::failed(error.diagnostic());
    let client = Client::connect(address, credentials)
        .await
        .map_err(failed)?;
    client.status().await.map_err(failed)
}

fn json_lines(reply: &wire::StatusReply) -> String {
    let build = reply.hello.as_ref().map(|hello| hello.build.as_str());
    let mut lines = vec![json!({"kind": "scheduler", "build": build, "uptimeMs": reply.uptime_ms})];
    lines.extend(reply.workers.iter().map(|worker| {
        json!({
            "kind": "worker", "name": worker.name, "group": worker.group, "slots": worker.slots,
            "running": worker.running, "queued": worker.queued, "heldBytes": worker.held_bytes,
            "memoryBytes": worker.memory_bytes, "dataAddress": worker.data_address,
            "processId": worker.process_id,
        })
    }));
    lines.extend(reply.graphs.iter().map(|graph| {
        json!({
            "kind": "graph", "name": graph.name, "total": graph.total, "done": graph.done,
            "running": graph.running, "failed": graph.failed,
        })
    }));
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn tables(reply: &wire::StatusReply) -> String {
    let build = reply
        .hello
        .as_ref()
        .map_or("", |hello| hello.build.as_str());
    #[allow(clippy::cast_precision_loss, reason = "shown rounded")]
    let uptime = duration(reply.uptime_ms as f64 / 1_000.0);
    let mut text = format!("scheduler {build}, up {uptime}\n\n");
    let head = [
        "WORKER", "GROUP", "SLOTS", "RUNNING", "QUEUED", "HELD", "MEMORY", "PID", "ADDRESS",
    ];
    let rows = reply.workers.iter().map(|worker| {
        [
            worker.name.clone(),
            worker.group.clone(),
            worker.slots.to_string(),
            worker.running.to_string(),
            worker.queued.to_string(),
            bytes(worker.held_bytes),
            bytes(worker.memory_bytes),
            worker.process_id.to_string(),
            worker.data_address.clone(),
        ]
    });
    text.push_str(&columns(head, rows.collect()));
    text.push('\n');
    if reply.graphs.is_empty() {
        text.push_str("no graphs\n");
        return text;
    }
    let head = ["GRAPH", "TASKS", "DONE", "RUNNING", "FAILED"];
    let rows = reply.graphs.iter().map(|graph| {
        [
            graph.name.clone(),
            count(graph.total),
            count(graph.done),
            count(graph.running),
            count(graph.failed),
        ]
    });
    text.push_str(&columns(head, rows.collect()));
    text
}

/// Left-aligned columns, two blanks apart.
fn columns<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> wire::StatusReply {
        wire::StatusReply {
            uptime_ms: 65_000,
            workers: vec![wire::WorkerStatus {
                name: "default-0".to_owned(),
                group: "default".to_owned(),
                slots: 2,
                memory_bytes: 2 << 30,
                ..Default::default()
            }],
            graphs: vec![wire::GraphStatus {
                name: "flights".to_owned(),
                total: 1_234,
                done: 12,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_table_is_aligned() {
        let text = tables(&reply());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "scheduler , up 1 min 5 s");
        assert_eq!(lines[2].find("GROUP"), lines[3].find("default "));
        assert!(lines[6].starts_with("flights  1,234  12"), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        for line in json_lines(&reply()).lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value["kind"].is_string());
        }
    }
}

//! `oxidask explain KEY`: why a task of a running cluster waits, is where it is, or failed.

use std::fmt::Write as _;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use serde_json::json;

use crate::arguments::{ExplainArguments, OutputForm};
use crate::error::CliError;
use crate::look::{self, Site};
use crate::output;

/// Asks and prints.
pub(crate) fn explain_key(arguments: &ExplainArguments) -> Result<(), CliError> {
    let site = Site::new(&arguments.cluster)?;
    let key = arguments.target.to_string_lossy().into_owned();
    let request = wire::ExplainRequest {
        key: key.clone(),
        graph: arguments.graph.clone().unwrap_or_default(),
    };
    let runtime = crate::service::runtime(look::THREADS)?;
    let asking = site.ask(|client| async move { client.explain(request).await });
    let reply = runtime.block_on(asking);
    runtime.shutdown_background();
    let tasks = reply?.tasks;
    if tasks.is_empty() {
        return Err(unknown(&key, arguments.graph.as_deref()));
    }
    let form = output::form(arguments.output);
    let texts: Vec<String> = tasks
        .into_iter()
        .map(|task| match form {
            OutputForm::Json => json_line(&task),
            OutputForm::Table => told(task),
        })
        .collect();
    let between = match form {
        OutputForm::Json => "",
        OutputForm::Table => "\n",
    };
    look::print(&texts.join(between))
}

fn unknown(key: &str, graph: Option<&str>) -> CliError {
    let message = match graph {
        Some(graph) => format!("no graph `{graph}` with a task `{key}` is there"),
        None => format!("no graph that is there has a task `{key}`"),
    };
    let diagnostic = Diagnostic::new(Code::ResultUnavailable, message);
    let hint = "`oxidask status` shows the graphs; a graph is gone when its client has closed it";
    CliError::failed(diagnostic.with_hint(hint))
}

fn told(task: wire::TaskExplanation) -> String {
    let mut text = format!("`{}` of graph `{}`: {}\n", task.key, task.graph, task.state);
    for line in &task.lines {
        let _ = writeln!(text, "  {line}");
    }
    if let Some(fault) = task.fault {
        let _ = writeln!(text, "\n{}", Diagnostic::from(fault));
    }
    text
}

fn json_line(task: &wire::TaskExplanation) -> String {
    let fault = task.fault.as_ref().map(|fault| {
        json!({
            "code": fault.code, "message": fault.message, "causes": fault.causes,
            "hint": fault.hint,
        })
    });
    let line = json!({
        "graph": task.graph, "key": task.key, "state": task.state, "worker": task.worker,
        "attempts": task.attempts, "retriesLeft": task.retries_left, "crashes": task.crashes,
        "fetchFailures": task.fetch_failures, "lines": task.lines, "fault": fault,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_first_and_the_error_last() {
        let text = told(wire::TaskExplanation {
            graph: "g".to_owned(),
            key: "k".to_owned(),
            state: "failed".to_owned(),
            lines: vec!["failed: no".to_owned(), "2 workers died".to_owned()],
            fault: Some(
                Diagnostic::new(Code::TaskFailed, "no")
                    .with_hint("try")
                    .into(),
            ),
            ..Default::default()
        });
        let expected = "`k` of graph `g`: failed\n  failed: no\n  2 workers died\n\n\
                        error[OX208]: no\n\nhint: try\n";
        assert_eq!(text, expected);
    }
}

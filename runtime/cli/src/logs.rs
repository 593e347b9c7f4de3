//! `oxidask logs`: log lines of workers, of the scheduler and of programs that tasks run.

use std::fmt::Write as _;
use std::time::Duration;

use oxidask_client::ClientError;
use oxidask_proto::fault::from_status;
use oxidask_proto::wire;
use serde_json::json;
use tokio::time::sleep;

use crate::arguments::{LogsArguments, OutputForm};
use crate::error::CliError;
use crate::look::{self, Site};
use crate::output;
use crate::run::install_signals;
use crate::terminal::Terminal;

/// Time between two tries to reach a scheduler that went away while it was followed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Asks and prints; follows until it is told to stop.
pub(crate) fn logs(arguments: &LogsArguments, terminal: &Terminal) -> Result<(), CliError> {
    let site = Site::new(&arguments.cluster)?;
    let runtime = crate::service::runtime(look::THREADS)?;
    let result = runtime.block_on(async {
        let signals = install_signals()?;
        tokio::select! {
            result = show(&site, arguments, terminal) => result,
            status = signals.first() => Err(CliError::quiet(status)),
        }
    });
    runtime.shutdown_background();
    result
}

async fn show(
    site: &Site<'_>,
    arguments: &LogsArguments,
    terminal: &Terminal,
) -> Result<(), CliError> {
    let form = output::form(arguments.output);
    let mut request = request(arguments);
    let first = request.clone();
    let mut replies = site
        .ask(|client| async move { client.logs(first).await })
        .await?;
    let (mut seen, mut newest) = (0, 0);
    loop {
        match replies.message().await {
            Ok(Some(mut reply)) => {
                // After a break the kept lines come again.
                reply.lines.retain(|line| line.time_micros > seen);
                let times = reply.lines.iter().map(|line| line.time_micros);
                (seen, newest) = (0, times.fold(newest, u64::max));
                if reply.dropped > 0 {
                    let lines = crate::progress::counted(reply.dropped, "line");
                    terminal.notice(&format!("{lines} not kept any more"));
                }
                let lines = reply.lines.iter();
                let text: String = lines.map(|line| shown(line, form)).collect();
                look::print(&text)?;
            }
            Ok(None) => return Ok(()),
            Err(status) if !arguments.follow => {
                return Err(CliError::failed(from_status(&status)));
            }
            Err(_) => {
                terminal.notice("the scheduler has gone; waiting for it");
                (request.lines, seen) = (u32::MAX, newest);
                replies = loop {
                    sleep(RETRY_PAUSE).await;
                    let trying = async { site.connect().await?.logs(request.clone()).await };
                    match trying.await {
                        Ok(replies) => break replies,
                        Err(error) if error.may_pass() => {}
                        Err(error) => return Err(failed(&error)),
                    }
                };
            }
        }
    }
}

fn failed(error: &ClientError) -> CliError {
    CliError::failed(error.diagnostic())
}

fn request(arguments: &LogsArguments) -> wire::LogsRequest {
    wire::LogsRequest {
        graph: arguments.graph.clone().unwrap_or_default(),
        key: arguments.key.clone().unwrap_or_default(),
        worker: arguments.worker.clone().unwrap_or_default(),
        lines: arguments.lines,
        is_followed: arguments.follow,
    }
}

fn shown(line: &wire::LogLine, form: OutputForm) -> String {
    match form {
        OutputForm::Json => json_line(line),
        OutputForm::Table => told(line),
    }
}

fn told(line: &wire::LogLine) -> String {
    let worker = match line.worker.as_str() {
        "" => "scheduler",
        worker => worker,
    };
    let mut text = format!("{} {worker} {}", time_of_day(line.time_micros), line.level);
    if !line.key.is_empty() {
        let _ = write!(text, " [{}/{}", line.graph, line.key);
        if line.attempt > 1 {
            let _ = write!(text, " attempt {}", line.attempt);
        }
        text.push(']');
    }
    // What would command the terminal is shown as an escape.
    let printable = line.text.chars().flat_map(|c| {
        let escaped = (c.is_control() && c != '\t').then(|| c.escape_default());
        let plain = escaped.is_none().then_some(c);
        escaped.into_iter().flatten().chain(plain)
    });
    text.push(' ');
    text.extend(printable);
    text.push('\n');
    text
}

/// In UTC.
fn time_of_day(micros: u64) -> String {
    let millis = micros / 1_000;
    let seconds = millis / 1_000;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        millis % 1_000
    )
}

fn json_line(line: &wire::LogLine) -> String {
    let line = json!({
        "timeMicros": line.time_micros, "worker": line.worker, "level": line.level,
        "target": line.target, "graph": line.graph, "key": line.key, "attempt": line.attempt,
        "text": line.text,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_who_and_of_what() {
        let line = wire::LogLine {
            time_micros: (3_600 * 25 + 61) * 1_000_000 + 7_000,
            level: "ERR".to_owned(),
            text: "no\u{1b}[31m".to_owned(),
            graph: "g".to_owned(),
            key: "k".to_owned(),
            attempt: 2,
            ..Default::default()
        };
        let expected = "01:01:01.007 scheduler ERR [g/k attempt 2] no\\u{1b}[31m\n";
        assert_eq!(told(&line), expected);
        let value: serde_json::Value = serde_json::from_str(&json_line(&line)).unwrap();
        assert_eq!(value["attempt"], 2);
    }
}

//! The example with SQL: the very file that the command runs locally, data from the image.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{JOB_SECONDS_MAX, expect_rows, rows, runner_log, wait_job, wait_only_job_left};
use crate::process::{failure, finish};

pub(crate) const CASE: Case = Case {
    name: "flights_from_image",
    about: "examples/flights/flights.yaml: Successful, the same rows as locally, only the job stays",
    run,
};

const MANIFEST: &str = "examples/flights/flights.yaml";
const LOCAL: Duration = Duration::from_mins(3);

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let manifest = context.settings.root.join(MANIFEST).display().to_string();
    kubectl.run(&["apply", "-f", &manifest])?;
    wait_job(kubectl, "flights", "Successful", JOB_SECONDS_MAX)?;
    let log = runner_log(kubectl, "flights")?;
    check_progress(&log)?;
    expect_rows(&rows(&log)?, &local_rows(context, &manifest)?)?;
    let job = kubectl.get("daskjob/flights")?;
    for field in ["startTime", "endTime", "clusterName", "jobRunnerPodName"] {
        if job["status"][field].as_str().is_none() {
            return Err(failure(format!("no {field} in {}", job["status"])));
        }
    }
    wait_only_job_left(kubectl, "flights")
}

/// The log says how the work went, besides the rows.
pub(crate) fn check_progress(log: &str) -> Outcome {
    let is_shown = log.lines().any(|line| line.starts_with("done: "));
    if is_shown {
        return Ok(());
    }
    Err(failure(format!("the log shows no progress:\n{log}")))
}

/// What the command prints for the same file on this host.
pub(crate) fn local_rows(context: &Context, manifest: &str) -> Outcome<Vec<Value>> {
    let mut command = Command::new(&context.settings.oxidask);
    command.args(["run", manifest, "--output", "json", "--progress", "none"]);
    let rows = rows(&finish(&mut command, None, LOCAL)?.succeeded()?)?;
    if rows.is_empty() {
        return Err(failure(format!("`oxidask run {manifest}` prints no rows")));
    }
    Ok(rows)
}

//! A job that fails says so, and why, where people look.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    JOB_SECONDS_MAX, events, find_condition, rows, runner_log, wait_job, wait_only_job_left,
};
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "failing_job",
    about: "Failed, with the error's code in log, condition and event; finished outputs are printed",
    run,
};

const MANIFEST: &str = "examples/graphs/fails-on-purpose.yaml";
const NAME: &str = "fails-on-purpose";
const EVENT_SECONDS_MAX: u64 = 20;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let manifest = context.settings.root.join(MANIFEST).display().to_string();
    kubectl.run(&["apply", "-f", &manifest])?;
    wait_job(kubectl, NAME, "Failed", JOB_SECONDS_MAX)?;
    let log = runner_log(kubectl, NAME)?;
    for row in [
        json!({"key": "good", "value": 6}),
        json!({"key": "recovered", "value": 4}),
    ] {
        if !rows(&log)?.contains(&row) {
            return Err(failure(format!(
                "a finished output is not printed, {row}:\n{log}"
            )));
        }
    }
    let code = log
        .lines()
        .find_map(|line| line.strip_prefix("error[")?.split_once(']'))
        .map(|(code, _)| code.to_owned())
        .ok_or_else(|| failure(format!("no error with a code in the log:\n{log}")))?;
    if !log.contains("this task fails on purpose") || !log.contains("hint: ") {
        return Err(failure(format!("the log does not say what failed:\n{log}")));
    }
    let job = kubectl.get(&format!("daskjob/{NAME}"))?;
    let condition = find_condition(&job, "Failed").map(ToString::to_string);
    if !condition.as_ref().is_some_and(|text| text.contains(&code)) {
        return Err(failure(format!(
            "no {code} in the condition Failed: {}",
            job["status"]
        )));
    }
    until(
        &format!("a warning about the job with {code}"),
        EVENT_SECONDS_MAX,
        || {
            let events = events(kubectl, NAME)?;
            let is_said = |line: &String| line.starts_with("Warning") && line.contains(&code);
            done_if(events.iter().any(is_said), events.join("\n"))
        },
    )?;
    wait_only_job_left(kubectl, NAME)
}

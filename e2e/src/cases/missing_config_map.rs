//! A job that names a `ConfigMap` which comes later.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    JOB_SECONDS_MAX, READY_SECONDS_MAX, events, expect_rows, job, rows, runner_log, wait_job,
};
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "missing_config_map",
    about: "a job whose ConfigMap is not there says so, and goes on when it comes",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let graph = json!({"configMapKeyRef": {"name": "late", "key": "tasks"}});
    kubectl.apply(&job("j", 1, &graph))?;
    until(
        "an event that names the ConfigMap",
        READY_SECONDS_MAX,
        || {
            let events = events(kubectl, "j")?;
            let is_said = |line: &String| line.starts_with("Warning") && line.contains("late");
            done_if(events.iter().any(is_said), events.join("\n"))
        },
    )?;
    let tasks = r#"--from-literal=tasks={"key": "a", "op": "value", "args": {"value": 7}}"#;
    kubectl.run(&["create", "configmap", "late", tasks])?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    let wanted = json!({"key": "a", "value": 7});
    expect_rows(&rows(&runner_log(kubectl, "j")?)?, &[wanted])
}

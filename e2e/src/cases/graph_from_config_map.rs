//! Tasks in a `ConfigMap`, as a program would write them.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::cases::flights_from_image::local_rows;
use crate::dask::{JOB_SECONDS_MAX, expect_rows, job, rows, runner_log, wait_job};

pub(crate) const CASE: Case = Case {
    name: "graph_from_config_map",
    about: "a job whose tasks stand in a ConfigMap gives the same digest as locally",
    run,
};

const TASKS: &str = "examples/graphs/checksum-tree.jsonl";
const LOCAL: &str = "examples/graphs/checksum-tree.yaml";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let root = &context.settings.root;
    let source = format!("tasks.jsonl={}", root.join(TASKS).display());
    kubectl.run(&["create", "configmap", "tree", "--from-file", &source])?;
    let graph = serde_json::json!({"configMapKeyRef": {"name": "tree", "key": "tasks.jsonl"}});
    kubectl.apply(&job("tree", 2, &graph))?;
    wait_job(kubectl, "tree", "Successful", JOB_SECONDS_MAX)?;
    let found = rows(&runner_log(kubectl, "tree")?)?;
    let manifest = root.join(LOCAL).display().to_string();
    expect_rows(&found, &local_rows(context, &manifest)?)
}

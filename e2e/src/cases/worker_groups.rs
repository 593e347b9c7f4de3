//! A cluster with a second group of workers, and a task that only that group may run.

use serde_json::json;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    API_VERSION, JOB_SECONDS_MAX, expect_rows, rows, runner_log, wait_job, wait_workers,
};

pub(crate) const CASE: Case = Case {
    name: "worker_groups",
    about: "tasks that ask for a group or for a resource run where these are",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let resources =
        json!({"limits": {"memory": "512Mi"}, "requests": {"cpu": "50m", "memory": "64Mi"}});
    let manifest = json!({
        "apiVersion": API_VERSION, "kind": "DaskJob", "metadata": {"name": "j"},
        "spec": {
            "cluster": {"spec": {
                "worker": {"replicas": 1, "threads": 1, "resources": resources},
                "workerGroups": [{
                    "name": "special", "replicas": 1, "threads": 1, "resources": resources,
                    "taskResources": {"licence": 1},
                }],
            }},
            "graph": {"outputs": ["sum"], "tasks": [
                {"key": "pause", "op": "sleep", "args": {"seconds": 5}},
                {"key": "a", "op": "value", "args": {"value": 1}, "workers": ["special"]},
                {"key": "b", "op": "value", "args": {"value": 2}, "resources": {"licence": 1}},
                {"key": "c", "op": "value", "args": {"value": 4}, "workers": ["default"],
                 "inputs": ["pause"]},
                {"key": "sum", "op": "sum", "inputs": ["a", "b", "c"]},
            ]},
        },
    });
    kubectl.apply(&manifest.to_string())?;
    wait_workers(kubectl, "j", 2)?;
    kubectl.get("daskworkergroup/j-default")?;
    kubectl.get("daskworkergroup/j-special")?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    let wanted = json!({"key": "sum", "value": 7});
    expect_rows(&rows(&runner_log(kubectl, "j")?)?, &[wanted])
}

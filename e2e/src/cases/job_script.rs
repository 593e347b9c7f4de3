//! Jobs of Python programs: what they print and how they end is the job's.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{
    JOB_SECONDS_MAX, find_condition, job_with, rows, runner_log, wait_job, wait_only_job_left,
};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::python;

pub(crate) const CASE: Case = Case {
    name: "job_script",
    about: "Python programs, inline and in a ConfigMap, with arguments and environment; a failed one fails its job",
    run,
};

const SUM: &str = "\
import json, os, sys
from distributed import Client
with Client() as client:
    total = client.submit(sum, [int(word) for word in sys.argv[1:]]).result()
    print(json.dumps({'total': total, 'mode': os.environ.get('MODE'),
                      'node': bool(os.environ.get('NODE')), 'folder': os.getcwd()}))
";

/// The error is that of a task.
const FAILS: &str = "\
import sys
from distributed import Client
with Client() as client:
    try:
        client.submit(lambda: 1 / 0).result()
    except ZeroDivisionError as error:
        print('met', error, file=sys.stderr)
        sys.exit(3)
";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let environment = json!([
        {"name": "MODE", "value": "fast"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]);
    let script = json!({"source": SUM, "args": ["1", "2", "39"], "env": environment});
    succeeds(kubectl, "inline", &script, &json!("fast"), 42, true)?;

    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "programs"},
        "data": {"sum.py": SUM},
    });
    kubectl.create(&config_map.to_string())?;
    let reference = json!({"name": "programs", "key": "sum.py"});
    let script = json!({"configMapKeyRef": reference, "args": ["7"]});
    succeeds(kubectl, "from-map", &script, &Value::Null, 7, false)?;
    fails(kubectl)
}

fn succeeds(
    kubectl: &Kubectl,
    name: &str,
    script: &Value,
    mode: &Value,
    total: u64,
    has_node: bool,
) -> Outcome {
    let cluster = json!({"spec": python::image()});
    kubectl.apply(&job_with(
        name,
        1,
        json!({"cluster": cluster, "script": script}),
    ))?;
    wait_job(kubectl, name, "Successful", JOB_SECONDS_MAX)?;
    let log = runner_log(kubectl, name)?;
    let wanted = json!({"total": total, "mode": mode, "node": has_node, "folder": "/data"});
    if !rows(&log)?.contains(&wanted) {
        return Err(failure(format!("{name} does not print {wanted}:\n{log}")));
    }
    wait_only_job_left(kubectl, name)
}

fn fails(kubectl: &Kubectl) -> Outcome {
    let cluster = json!({"spec": python::image()});
    let fields = json!({"cluster": cluster, "script": {"source": FAILS}});
    kubectl.apply(&job_with("fails", 1, fields))?;
    wait_job(kubectl, "fails", "Failed", JOB_SECONDS_MAX)?;
    let log = runner_log(kubectl, "fails")?;
    if !log.contains("met division by zero") || !log.contains("error[OX354]") {
        return Err(failure(format!("the log does not say what failed:\n{log}")));
    }
    let job = kubectl.get("daskjob/fails")?;
    let condition = find_condition(&job, "Failed").map(ToString::to_string);
    let condition = condition.unwrap_or_default();
    let is_said = condition.contains("OX354") && condition.contains("exit status 3");
    if !is_said {
        return Err(failure(format!("the condition Failed says: {condition}")));
    }
    let pod = kubectl.get("pod/fails-runner")?;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    if ended["exitCode"] == 3 {
        return Ok(());
    }
    Err(failure(format!("the runner ended otherwise: {ended}")))
}

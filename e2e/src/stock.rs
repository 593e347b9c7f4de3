//! Clusters of stock Dask, as manifests of dask-kubernetes describe them, and looking into them.
//!
//! Python runs in the scheduler's pod: Dask's own client there asks the scheduler of the cluster.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;
use crate::dask::{API_VERSION, READY_SECONDS_MAX, has, name};
use crate::kubectl::Kubectl;
use crate::process::failure;
use crate::wait::{done_if, until};

/// The image of the lab with stock Dask, by the name that manifests of dask-kubernetes have.
pub(crate) const IMAGE: &str = "docker.io/dask/dask:latest";

/// How long a Python program in the scheduler's pod may take.
const PYTHON_LIMIT: Duration = Duration::from_mins(2);

/// What every program starts with.
const HEAD: &str = "from distributed import Client, wait\nimport time\n\
                    client = Client('tcp://127.0.0.1:8786', timeout=60)\n";

/// A manifest of a kind.
pub(crate) fn manifest(kind: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

/// As the client of dask-kubernetes writes it.
pub(crate) fn cluster_spec(name: &str, workers: u32) -> Value {
    let probe = |delay: u32, period: u32| {
        json!({
            "httpGet": {"port": "http-dashboard", "path": "/health"},
            "initialDelaySeconds": delay, "periodSeconds": period, "timeoutSeconds": 20,
        })
    };
    json!({
        "idleTimeout": 0,
        "worker": worker_spec(workers),
        "scheduler": {
            "spec": {"containers": [{
                "name": "scheduler", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "args": ["dask-scheduler", "--host", "0.0.0.0"],
                "env": [], "resources": {},
                "ports": [
                    {"name": "tcp-comm", "containerPort": 8786, "protocol": "TCP"},
                    {"name": "http-dashboard", "containerPort": 8787, "protocol": "TCP"},
                ],
                "readinessProbe": probe(0, 1), "livenessProbe": probe(60, 20),
            }]},
            "service": {
                "type": "ClusterIP",
                "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
                "ports": [
                    {"name": "tcp-comm", "protocol": "TCP", "port": 8786, "targetPort": "tcp-comm"},
                    {"name": "http-dashboard", "protocol": "TCP", "port": 8787,
                     "targetPort": "http-dashboard"},
                ],
            },
        },
    })
}

/// The workers of a cluster or a group.
pub(crate) fn worker_spec(workers: u32) -> Value {
    json!({
        "replicas": workers,
        "spec": {"containers": [{
            "name": "worker", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "args": ["dask-worker", "--name", "$(DASK_WORKER_NAME)", "--nthreads", "1",
                     "--dashboard", "--dashboard-address", "8788"],
            "env": [{"name": "WORKER_ENV", "value": "hello-world"}],
            "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "20m", "memory": "96Mi"}},
            "ports": [{"name": "http-dashboard", "containerPort": 8788, "protocol": "TCP"}],
        }]},
    })
}

/// Starts a cluster and waits until Dask itself has the workers.
pub(crate) fn start(kubectl: &Kubectl, cluster: &str, workers: u32) -> Outcome {
    let spec = cluster_spec(cluster, workers);
    kubectl.apply(&manifest("DaskCluster", cluster, &spec))?;
    wait_known(kubectl, cluster, workers)
}

/// Adds a group and waits until Dask has so many workers in all.
pub(crate) fn add_group(kubectl: &Kubectl, group: &str, workers: u32, all: u32) -> Outcome {
    let spec = json!({"cluster": "c", "worker": worker_spec(workers)});
    kubectl.apply(&manifest("DaskWorkerGroup", group, &spec))?;
    wait_known(kubectl, "c", all)
}

fn wait_known(kubectl: &Kubectl, cluster: &str, workers: u32) -> Outcome {
    until(
        &format!("the scheduler of {cluster} to run"),
        READY_SECONDS_MAX,
        || {
            let selector = format!("dask.org/cluster-name={cluster},dask.org/component=scheduler");
            let pods = kubectl.list("pods", &selector)?;
            let is_ready = pods.iter().any(|pod| has(pod, "Ready", "True"));
            done_if(is_ready, format!("{} pods", pods.len()))
        },
    )?;
    let program = format!("client.wait_for_workers({workers}, timeout=100)\nprint('all there')");
    python(kubectl, cluster, &program).map(drop)
}

/// Runs a Python program with a client of the cluster; what it prints.
pub(crate) fn python(kubectl: &Kubectl, cluster: &str, program: &str) -> Outcome<String> {
    let scheduler = format!("deployment/{cluster}-scheduler");
    let program = format!("{HEAD}{program}");
    let arguments = ["exec", &scheduler, "--", "python", "-c", &program];
    kubectl.call(&arguments, None, PYTHON_LIMIT)?.succeeded()
}

/// The last line that a program prints, as JSON.
pub(crate) fn python_json(kubectl: &Kubectl, cluster: &str, program: &str) -> Outcome<Value> {
    let text = python(kubectl, cluster, program)?;
    let line = text.trim().lines().next_back().unwrap_or_default();
    serde_json::from_str(line).map_err(|error| failure(format!("{error}: {text}")))
}

/// The Deployments of the workers of a group that are not being deleted.
pub(crate) fn deployments(kubectl: &Kubectl, group: &str) -> Outcome<Vec<String>> {
    let selector = format!("dask.org/workergroup-name={group},dask.org/component=worker");
    let found = kubectl.list("deployments", &selector)?;
    let live = found
        .iter()
        .filter(|it| it["metadata"]["deletionTimestamp"].is_null());
    let mut names: Vec<String> = live.map(|it| name(it).to_owned()).collect();
    names.sort();
    Ok(names)
}

/// Waits until a group has exactly so many workers.
pub(crate) fn wait_deployments(
    kubectl: &Kubectl,
    group: &str,
    count: usize,
    seconds: u64,
) -> Outcome<Vec<String>> {
    until(
        &format!("group {group} to have {count} workers"),
        seconds,
        || {
            let found = deployments(kubectl, group)?;
            done_if(found.len() == count, format!("{found:?}"))
        },
    )?;
    deployments(kubectl, group)
}

/// `kubectl scale` of a group.
pub(crate) fn scale(kubectl: &Kubectl, group: &str, workers: u32) -> Outcome {
    let replicas = format!("--replicas={workers}");
    kubectl
        .run(&["scale", "daskworkergroup", group, &replicas])
        .map(drop)
}

/// Leaves results in the cluster: `{name}` is ten megabytes that only that worker holds.
pub(crate) fn hold(kubectl: &Kubectl, worker: &str, result: &str) -> Outcome {
    let program = format!(
        "future = client.submit(lambda: b'{result}' * 1000000, key='{result}', pure=False, \
         workers=['{worker}'])\nwait(future, timeout=60)\n\
         client.publish_dataset(future, name='{result}')\nprint('held')"
    );
    python(kubectl, "c", &program).map(drop)
}

/// Fails unless the result is there as it was, and nobody computed it again.
pub(crate) fn expect_held(kubectl: &Kubectl, result: &str) -> Outcome {
    let program = format!(
        "import json\nfuture = client.get_dataset('{result}')\nvalue = future.result(timeout=60)\n\
         count = client.run_on_scheduler(lambda dask_scheduler: sum(1 for t in \
         dask_scheduler.transition_log if t[0] == '{result}' and t[2] == 'processing'))\n\
         print(json.dumps([len(value), count]))"
    );
    let found = python_json(kubectl, "c", &program)?;
    let bytes = result.len() * 1_000_000;
    if found == json!([bytes, 1]) {
        return Ok(());
    }
    Err(failure(format!(
        "{result}: bytes and computations are {found} instead of [{bytes}, 1]"
    )))
}

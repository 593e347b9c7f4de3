//! Manifests as dask-kubernetes has them are accepted, and what is not operated is said.

use serde_json::{Value, json};

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{API_VERSION, find_condition, has};
use crate::process::failure;
use crate::wait::{done_if, until};

pub(crate) const CASE: Case = Case {
    name: "upstream_manifests",
    about: "all four kinds as dask-kubernetes writes them are accepted; Stalled says what is not run",
    run,
};

const STALLED_SECONDS_MAX: u64 = 60;
const IMAGE: &str = "docker.io/dask/dask:latest";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    for (kind, name, spec) in [
        ("DaskCluster", "upstream", cluster_spec("upstream")),
        (
            "DaskWorkerGroup",
            "upstream-more",
            json!({"cluster": "upstream", "worker": worker()}),
        ),
        (
            "DaskAutoscaler",
            "upstream",
            json!({"cluster": "upstream", "minimum": 1, "maximum": 3}),
        ),
        (
            "DaskJob",
            "upstream-job",
            json!({"job": {"spec": runner()}, "cluster": {"spec": cluster_spec("upstream-job")}}),
        ),
    ] {
        let manifest = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec,
        });
        kubectl.apply(&manifest.to_string())?;
    }
    for object in ["daskcluster/upstream", "daskjob/upstream-job"] {
        let what = format!("{object} to be Stalled with a code");
        until(&what, STALLED_SECONDS_MAX, || {
            let found = kubectl.get(object)?;
            let text = find_condition(&found, "Stalled").map(ToString::to_string);
            let has_code = text.is_some_and(|text| text.contains("OX5"));
            done_if(
                has(&found, "Stalled", "True") && has_code,
                found["status"].to_string(),
            )
        })?;
    }
    let job = kubectl.get("daskjob/upstream-job")?;
    if job["status"]["jobStatus"] == "Failed" {
        return Err(failure(format!("the job failed: {}", job["status"])));
    }
    let pods = kubectl.list("pods", "")?;
    if !pods.is_empty() {
        return Err(failure(format!("{} pods were made", pods.len())));
    }
    Ok(())
}

fn cluster_spec(name: &str) -> Value {
    let probe = |delay: u32, period: u32| {
        json!({
            "httpGet": {"port": "http-dashboard", "path": "/health"},
            "initialDelaySeconds": delay, "periodSeconds": period,
        })
    };
    json!({
        "idleTimeout": 0,
        "worker": worker(),
        "scheduler": {
            "spec": {"containers": [{
                "name": "scheduler", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "args": ["dask-scheduler", "--host", "0.0.0.0"],
                "env": [], "resources": {},
                "ports": [
                    {"name": "tcp-comm", "containerPort": 8786, "protocol": "TCP"},
                    {"name": "http-dashboard", "containerPort": 8787, "protocol": "TCP"},
                ],
                "readinessProbe": probe(0, 1), "livenessProbe": probe(15, 20),
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

fn worker() -> Value {
    json!({
        "replicas": 2,
        "spec": {"containers": [{
            "name": "worker", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "args": ["dask-worker", "--name", "$(DASK_WORKER_NAME)", "--dashboard",
                     "--dashboard-address", "8788"],
            "env": [{"name": "WORKER_ENV", "value": "hello-world"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
            "ports": [{"name": "http-dashboard", "containerPort": 8788, "protocol": "TCP"}],
        }]},
    })
}

fn runner() -> Value {
    json!({"containers": [{
        "name": "job", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "args": ["python", "-c", "from dask.distributed import Client; Client()"],
    }]})
}

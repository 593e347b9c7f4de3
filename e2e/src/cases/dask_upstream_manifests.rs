//! All four kinds as dask-kubernetes writes them.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{JOB_SECONDS_MAX, wait_job};
use crate::process::failure;
use crate::stock::{
    IMAGE, add_group, cluster_spec, manifest, python_json, start, wait_deployments,
};
use serde_json::json;

pub(crate) const CASE: Case = Case {
    name: "dask_upstream_manifests",
    about: "manifests of dask-kubernetes run as they are: cluster, group, autoscaler, job, scaling",
    run,
};

const SCALED_SECONDS_MAX: u64 = 60;

const PROGRAM: &str = "from distributed import Client; c = Client(timeout=100); \
                       assert c.submit(sum, [1, 2]).result(timeout=100) == 3";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 2)?;
    let cluster = kubectl.get("daskcluster/c")?;
    if cluster["status"]["phase"] != "Running" {
        return Err(failure(format!("the cluster is {}", cluster["status"])));
    }
    let total = python_json(
        kubectl,
        "c",
        "print(sum(client.gather(client.map(abs, range(10)))))",
    )?;
    if total != 45 {
        return Err(failure(format!("the sum is {total}")));
    }
    for count in [3, 1] {
        let replicas = format!("--replicas={count}");
        kubectl.run(&["scale", "daskcluster", "c", &replicas])?;
        wait_deployments(kubectl, "c-default", count, SCALED_SECONDS_MAX)?;
    }
    add_group(kubectl, "c-more", 1, 2)?;
    let bounds = json!({"cluster": "c", "minimum": 2, "maximum": 3});
    kubectl.apply(&manifest("DaskAutoscaler", "c", &bounds))?;
    wait_deployments(kubectl, "c-default", 2, SCALED_SECONDS_MAX)?;
    kubectl.run(&["delete", "daskautoscaler", "c"])?;
    let runner = json!({"containers": [{
        "name": "job", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "args": ["python", "-c", PROGRAM],
    }]});
    let spec = json!({"job": {"spec": runner}, "cluster": {"spec": cluster_spec("j", 1)}});
    kubectl.apply(&manifest("DaskJob", "j", &spec))?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    let job = kubectl.get("daskjob/j")?;
    let keys = job["status"]
        .as_object()
        .map(|status| status.keys().cloned().collect());
    let wanted = [
        "clusterName",
        "endTime",
        "jobRunnerPodName",
        "jobStatus",
        "startTime",
    ];
    if keys != Some(wanted.map(str::to_owned).to_vec()) {
        return Err(failure(format!("the status is {}", job["status"])));
    }
    Ok(())
}

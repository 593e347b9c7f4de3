//! A worker's pod is evicted. With dask-kubernetes it ends within a second, and what it held is computed
//! again.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{name, wait_workers};
use crate::process::failure;
use crate::stock::{deployments, expect_held, hold, start};
use serde_json::json;

pub(crate) const CASE: Case = Case {
    name: "dask_evicted_worker",
    about: "an evicted worker hands over what it holds before it ends",
    run,
};

const GONE_SECONDS_MAX: u64 = 90;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 2)?;
    let workers = deployments(kubectl, "c-default")?;
    let first = workers.first().ok_or_else(|| failure("no workers"))?;
    hold(kubectl, first, "unique")?;
    let pods = wait_workers(kubectl, "c", 2)?;
    let pod = pods
        .iter()
        .map(name)
        .find(|pod| pod.starts_with(first.as_str()));
    let pod = pod.ok_or_else(|| failure(format!("{first} has no pod")))?;
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": kubectl.namespace()},
    });
    let path = format!(
        "/api/v1/namespaces/{}/pods/{pod}/eviction",
        kubectl.namespace()
    );
    let arguments = ["create", "--raw", path.as_str(), "-f", "-"];
    let limit = std::time::Duration::from_secs(30);
    kubectl
        .call(&arguments, Some(&eviction.to_string()), limit)?
        .succeeded()?;
    let gone = format!("pod/{pod}");
    kubectl.run_long(&["wait", "--for=delete", gone.as_str()], GONE_SECONDS_MAX)?;
    expect_held(kubectl, "unique")?;
    wait_workers(kubectl, "c", 2).map(drop)
}

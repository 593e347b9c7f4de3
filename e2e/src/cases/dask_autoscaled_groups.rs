//! Bounds for each group. dask-kubernetes scales only the default group, by the load of all.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::process::failure;
use crate::stock::{deployments, manifest, python, start, wait_deployments, worker_spec};
use serde_json::json;

pub(crate) const CASE: Case = Case {
    name: "dask_autoscaled_groups",
    about: "of two groups only the one with the load grows, within its bounds",
    run,
};

const SCALED_SECONDS_MAX: u64 = 120;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 1)?;
    let mut worker = worker_spec(1);
    worker["autoscale"] = json!({"minimum": 1, "maximum": 3});
    let spec = json!({"cluster": "c", "worker": worker});
    kubectl.apply(&manifest("DaskWorkerGroup", "c-other", &spec))?;
    let first = wait_deployments(kubectl, "c-other", 1, SCALED_SECONDS_MAX)?;
    python(kubectl, "c", "client.wait_for_workers(2, timeout=60)")?;
    let tasks = format!(
        "fs = [client.submit(time.sleep, 1, key=f'nap-{{i}}', workers={first:?}, pure=False) \
         for i in range(60)]\nclient.publish_dataset(fs, name='naps')\ntime.sleep(1)"
    );
    python(kubectl, "c", &tasks)?;
    wait_deployments(kubectl, "c-other", 3, SCALED_SECONDS_MAX)?;
    let default = deployments(kubectl, "c-default")?;
    if default.len() != 1 {
        return Err(failure(format!("the default group has {default:?}")));
    }
    python(kubectl, "c", "client.unpublish_dataset('naps')")?;
    wait_deployments(kubectl, "c-other", 1, SCALED_SECONDS_MAX).map(drop)
}

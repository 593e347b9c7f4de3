//! A job that always fails. With dask-kubernetes its runner starts again for ever.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{JOB_SECONDS_MAX, wait_job};
use crate::stock::{IMAGE, cluster_spec, manifest};
use serde_json::json;

pub(crate) const CASE: Case = Case {
    name: "dask_failing_job",
    about: "a program that always fails ends the job after its attempts",
    run,
};

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let runner = json!({"containers": [{
        "name": "job", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "args": ["python", "-c", "raise SystemExit(3)"],
    }]});
    let spec = json!({
        "backoffLimit": 1,
        "job": {"spec": runner}, "cluster": {"spec": cluster_spec("j", 1)},
    });
    kubectl.apply(&manifest("DaskJob", "j", &spec))?;
    wait_job(kubectl, "j", "Failed", JOB_SECONDS_MAX)
}

//! The operator ends at the end of a job. With dask-kubernetes an error between deleting the cluster and
//! writing the status leaves the job `Running` for ever.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::dask::{GONE_SECONDS_MAX, JOB_SECONDS_MAX, READY_SECONDS_MAX, wait_job};
use crate::helm;
use crate::kubectl::Kubectl;
use crate::stock::{IMAGE, cluster_spec, manifest};
use crate::wait::{done_if, until};
use serde_json::json;

pub(crate) const CASE: Case = Case {
    name: "dask_job_end",
    about: "the operator ends while a job does: the job is Successful and its cluster gone",
    run,
};

const PROGRAM: &str = "from distributed import Client; c = Client(timeout=100); \
                       assert c.submit(sum, [1, 2]).result(timeout=100) == 3";

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    let runner = json!({"containers": [{
        "name": "job", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "args": ["python", "-c", PROGRAM],
    }]});
    let spec = json!({"job": {"spec": runner}, "cluster": {"spec": cluster_spec("j", 1)}});
    kubectl.apply(&manifest("DaskJob", "j", &spec))?;
    until("the runner to end", JOB_SECONDS_MAX, || {
        let pod = kubectl.get("pod/j-runner")?;
        let phase = pod["status"]["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        done_if(phase == "Succeeded", phase)
    })?;
    let operator = Kubectl::new(&context.settings, helm::NAMESPACE);
    operator.run_long(
        &["delete", "pods", "--all", "--grace-period=1"],
        READY_SECONDS_MAX,
    )?;
    wait_job(kubectl, "j", "Successful", JOB_SECONDS_MAX)?;
    until("the cluster to be gone", GONE_SECONDS_MAX, || {
        done_if(kubectl.find("daskcluster/j")?.is_none(), "it is there")
    })?;
    operator
        .run_long(
            &["rollout", "status", "deployment/oxidask-operator"],
            READY_SECONDS_MAX,
        )
        .map(drop)
}

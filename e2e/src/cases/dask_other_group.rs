//! Two groups, of which one is busy. dask-kubernetes retires a worker of the other one, which then
//! stays short for ever.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::process::failure;
use crate::stock::{add_group, deployments, python, scale, start, wait_deployments};

pub(crate) const CASE: Case = Case {
    name: "dask_other_group",
    about: "scaling a busy group down does not touch the idle group beside it",
    run,
};

const SCALED_SECONDS_MAX: u64 = 90;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 2)?;
    add_group(kubectl, "c-other", 2, 4)?;
    let other = deployments(kubectl, "c-other")?;
    let busy = deployments(kubectl, "c-default")?;
    let tasks = format!(
        "fs = [client.submit(time.sleep, 15, key=f'nap-{{w}}', workers=[w], pure=False) \
         for w in {busy:?}]\nclient.publish_dataset(fs, name='naps')\ntime.sleep(1)"
    );
    python(kubectl, "c", &tasks)?;
    scale(kubectl, "c-default", 1)?;
    wait_deployments(kubectl, "c-default", 1, SCALED_SECONDS_MAX)?;
    let after = deployments(kubectl, "c-other")?;
    if after != other {
        return Err(failure(format!(
            "the other group was {other:?} and is {after:?}"
        )));
    }
    python(kubectl, "c", "client.wait_for_workers(3, timeout=30)").map(drop)
}

//! Scale-down while every worker works. dask-kubernetes retires one within a moment, and its task runs
//! again from the start.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::process::failure;
use crate::stock::{deployments, python, python_json, scale, start, wait_deployments};

pub(crate) const CASE: Case = Case {
    name: "dask_busy_worker",
    about: "a worker that is to go ends its task first; nothing runs twice",
    run,
};

const SCALED_SECONDS_MAX: u64 = 90;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 2)?;
    let workers = deployments(kubectl, "c-default")?;
    let tasks = format!(
        "fs = [client.submit(time.sleep, 12, key=f'nap-{{w}}', workers=[w], \
         allow_other_workers=True, pure=False) for w in {workers:?}]\n\
         client.publish_dataset(fs, name='naps')\ntime.sleep(1)"
    );
    python(kubectl, "c", &tasks)?;
    scale(kubectl, "c-default", 1)?;
    wait_deployments(kubectl, "c-default", 1, SCALED_SECONDS_MAX)?;
    let counted = python_json(
        kubectl,
        "c",
        "wait(client.get_dataset('naps'), timeout=60)\n\
         print(client.run_on_scheduler(lambda dask_scheduler: sum(1 for t in \
         dask_scheduler.transition_log if t[0].startswith('nap-') and t[2] == 'processing')))",
    )?;
    if counted != 2 {
        return Err(failure(format!("two tasks were started {counted} times")));
    }
    Ok(())
}

//! Scale-down with the configuration that Dask comes with. dask-kubernetes retires one worker there
//! and deletes another one, that which holds the data.

use std::time::Duration;

use crate::Outcome;
use crate::case::{Case, Context};
use crate::process::failure;
use crate::stock::{deployments, expect_held, hold, scale, start, wait_deployments};

pub(crate) const CASE: Case = Case {
    name: "dask_scale_down",
    about: "of four workers the one without data goes, and the retired one is the deleted one",
    run,
};

const SCALED_SECONDS_MAX: u64 = 60;
/// The operator asks Dask's scheduler every 5 s what workers hold. A worker that has got its first result
/// since would be drained as well, but not left alone.
const ASKED_AGAIN: Duration = Duration::from_secs(7);

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 4)?;
    let before = deployments(kubectl, "c-default")?;
    let (free, holders) = before.split_last().ok_or_else(|| failure("no workers"))?;
    for (index, worker) in holders.iter().enumerate() {
        hold(kubectl, worker, &format!("unique-{index}"))?;
    }
    std::thread::sleep(ASKED_AGAIN);
    scale(kubectl, "c-default", 3)?;
    let after = wait_deployments(kubectl, "c-default", 3, SCALED_SECONDS_MAX)?;
    if after.contains(free) {
        return Err(failure(format!("{free} holds nothing and is still there")));
    }
    scale(kubectl, "c-default", 1)?;
    wait_deployments(kubectl, "c-default", 1, SCALED_SECONDS_MAX)?;
    (0..holders.len()).try_for_each(|index| expect_held(kubectl, &format!("unique-{index}")))
}

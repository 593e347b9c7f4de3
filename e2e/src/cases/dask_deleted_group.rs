//! A group that holds data is deleted. With dask-kubernetes the data is gone with it.

use crate::Outcome;
use crate::case::{Case, Context};
use crate::process::failure;
use crate::stock::{add_group, deployments, expect_held, hold, start};

pub(crate) const CASE: Case = Case {
    name: "dask_deleted_group",
    about: "a deleted group hands over what it holds before it goes",
    run,
};

const GONE_SECONDS_MAX: u64 = 90;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    start(kubectl, "c", 1)?;
    add_group(kubectl, "c-other", 1, 2)?;
    let other = deployments(kubectl, "c-other")?;
    hold(
        kubectl,
        other.first().ok_or_else(|| failure("no worker"))?,
        "unique",
    )?;
    kubectl.run_long(&["delete", "daskworkergroup", "c-other"], GONE_SECONDS_MAX)?;
    expect_held(kubectl, "unique")
}

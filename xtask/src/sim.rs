//! `cargo xtask sim`: builds the simulator with overflow checks and debug assertions, and runs it.

use std::path::Path;

use crate::Failure;
use crate::process::{cargo, run as run_command};

/// Passes `--seeds N [--from K]`, `--replay CONFIG` or `--makespan` on to the simulator.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let arguments = ["run", "--quiet", "--package", "oxidask-sim", "--"];
    run_command(cargo(root, &arguments).args(words))
}

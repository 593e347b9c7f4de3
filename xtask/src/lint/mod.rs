//! Everything that is wrong with the text of the code, without running it.

mod dependencies;
mod sources;

use std::path::Path;

use crate::packages::FAMILIES;
use crate::process::{cargo, run as run_command};
use crate::{Failure, packages, say};

/// Runs all lints; the cheap ones first.
pub(crate) fn run(root: &Path) -> Result<(), Failure> {
    let mut findings = sources::check(root)?;
    findings.extend(dependencies::check(root)?);
    findings.extend(packages::check(root)?);
    for finding in &findings {
        say!("lint: {finding}");
    }
    run_command(&mut cargo(root, &["fmt", "--all", "--check"]))?;
    for family in FAMILIES {
        let arguments = ["clippy", "--release", "--all-targets"];
        let mut clippy = family.cargo_with_all_tests(root, &arguments);
        run_command(clippy.args(["--", "-D", "warnings"]))?;
    }
    if findings.is_empty() {
        Ok(())
    } else {
        Err(format!("{} findings", findings.len()).into())
    }
}

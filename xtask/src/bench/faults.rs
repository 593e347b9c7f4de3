//! `cargo xtask bench faults`: what goes wrong, and how long until all is well again.
//!
//! Builds what is measured and hands the rest of the command line to the bench program.

use std::path::Path;
use std::process::Command;

use super::measured::Options;
use crate::Failure;
use crate::packages::RUNTIME;
use crate::process::{binaries_dir, run as run_command};

/// Options that the bench program takes as they are.
const PASSED_ON: &[&str] = &["--runs", "--only"];

/// Builds, and measures.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let options = parse(words)?;
    // The whole family: a part of it would be built with other features, and so a second time.
    run_command(&mut RUNTIME.cargo(root, &["build", "--release"]))?;
    let binaries = binaries_dir(root, "release")?;
    let mut bench = Command::new(binaries.join("oxidask-bench"));
    bench.current_dir(root).arg("faults");
    bench.arg("--oxidask").arg(binaries.join("oxidask"));
    options.hand_to(&mut bench, root, "faults.md")?;
    run_command(&mut bench)
}

fn parse<'a>(words: &[&'a str]) -> Result<Options<'a>, Failure> {
    Options::parse(words, PASSED_ON, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_on_and_unknown_ones_refused() {
        let words = ["--only", "drain,size", "--record", "--runs", "2"];
        let passed_on = vec!["--only", "drain,size", "--runs", "2"];
        let expected = Options {
            passed_on,
            is_recorded: true,
        };
        assert_eq!(parse(&words).unwrap(), expected);
        assert!(parse(&["--runs"]).is_err());
        assert!(parse(&["--what", "x"]).is_err());
    }
}

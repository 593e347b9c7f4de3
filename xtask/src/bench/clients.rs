//! `cargo xtask bench python`: stock Dask code on oxidask, beside Dask's own cluster.
//!
//! Builds the program and an environment with the wheel, and hands the rest of the command line to
//! the measuring program in `python/bench`.

use std::path::Path;

use super::measured::Options;
use crate::Failure;
use crate::packages::RUNTIME;
use crate::process::{binaries_dir, run as run_command};
use crate::wheel::environment;

/// What the loads need besides the wheel.
const PACKAGES: &[&str] = &["dask[array,dataframe,distributed]==2026.8.0"];

/// Options with a value that the measuring program takes as they are.
const PASSED_ON: &[&str] = &["--repetitions", "--only"];

/// Builds, and measures.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let options = parse(words)?;
    run_command(&mut RUNTIME.cargo_release(root, &["build"]))?;
    let program = binaries_dir(root, "release")?.join("oxidask");
    let mut bench = environment(root, PACKAGES)?.command();
    bench.arg(root.join("python/bench/figures.py"));
    // The module is the wheel's, not that of the checkout, which has no Rust half.
    bench.env("PYTHONSAFEPATH", "1");
    bench.env("OXIDASK_PROGRAM", program);
    options.hand_to(&mut bench, root, "python.md")?;
    run_command(&mut bench)
}

fn parse<'a>(words: &[&'a str]) -> Result<Options<'a>, Failure> {
    Options::parse(words, PASSED_ON, &["--small"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_on_and_unknown_ones_refused() {
        let words = ["--small", "--only", "chain", "--record"];
        let passed_on = vec!["--small", "--only", "chain"];
        let expected = Options {
            passed_on,
            is_recorded: true,
        };
        assert_eq!(parse(&words).unwrap(), expected);
        assert!(parse(&["--repetitions"]).is_err());
        assert!(parse(&["--what", "x"]).is_err());
    }
}

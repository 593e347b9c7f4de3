//! `cargo xtask test`: stages in order of how soon they can fail, and a summary.

use std::path::Path;
use std::time::Instant;

use crate::process::{cargo, run as run_command};
use crate::{Failure, generate, lint, say};

/// Tested in the dev profile: overflow checks and debug assertions are on there.
const PURE: &[&str] = &[
    "oxidask-diagnostic",
    "oxidask-core",
    "oxidask-store",
    "oxidask-operator-api",
    "xtask",
];

struct Stage {
    name: &'static str,
    run: fn(&Path) -> Result<(), Failure>,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "generated files",
        run: generate::check,
    },
    Stage {
        name: "pure crates",
        run: pure_crates,
    },
    Stage {
        name: "build",
        run: build,
    },
    Stage {
        name: "crates and processes",
        run: other_crates,
    },
    Stage {
        name: "lint",
        run: lint::run,
    },
    Stage {
        name: "documentation of the code",
        run: rustdoc,
    },
];

/// Runs the stages whose name contains `filter`, all of them even after a failure.
pub(crate) fn run(root: &Path, filter: Option<&str>) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    for stage in STAGES
        .iter()
        .filter(|stage| filter.is_none_or(|text| stage.name.contains(text)))
    {
        say!("\n== {}", stage.name);
        let start = Instant::now();
        let outcome = (stage.run)(root);
        if let Err(error) = &outcome {
            say!("== {} failed: {error}", stage.name);
        }
        outcomes.push((stage.name, start.elapsed().as_secs(), outcome.is_ok()));
    }
    summary(&outcomes)
}

fn summary(outcomes: &[(&str, u64, bool)]) -> Result<(), Failure> {
    say!("");
    for (name, seconds, is_ok) in outcomes {
        say!(
            "{:<28} {:>5} s  {}",
            name,
            seconds,
            if *is_ok { "passed" } else { "FAILED" }
        );
    }
    let failed = outcomes.iter().filter(|(_, _, is_ok)| !is_ok).count();
    say!("nothing was skipped");
    say!(
        "stages: {} passed, {failed} failed",
        outcomes.len() - failed
    );
    match (outcomes.len(), failed) {
        (0, _) => Err("no stage has this name".into()),
        (_, 0) => Ok(()),
        _ => Err("tests failed".into()),
    }
}

fn pure_crates(root: &Path) -> Result<(), Failure> {
    let mut command = cargo(root, &["test", "--quiet"]);
    for package in PURE {
        command.args(["--package", package]);
    }
    run_command(&mut command)
}

fn build(root: &Path) -> Result<(), Failure> {
    run_command(&mut cargo(
        root,
        &["build", "--release", "--workspace", "--exclude", "xtask"],
    ))
}

fn other_crates(root: &Path) -> Result<(), Failure> {
    let mut command = cargo(
        root,
        &["test", "--release", "--workspace", "--no-fail-fast"],
    );
    for package in PURE {
        command.args(["--exclude", package]);
    }
    run_command(&mut command)
}

fn rustdoc(root: &Path) -> Result<(), Failure> {
    let arguments = [
        "doc",
        "--release",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    run_command(cargo(root, &arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

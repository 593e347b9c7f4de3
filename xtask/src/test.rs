//! `cargo xtask test`: stages in order of how soon they can fail, and a summary.

use std::path::Path;
use std::time::Instant;

use crate::bench::python;
use crate::packages::{FAMILIES, OPERATOR, RUNTIME};
use crate::process::run as run_command;
use crate::{Failure, alerts, charts, dask, e2e, generate, gitops, images, lab, lint, say, wheel};

struct Stage {
    name: &'static str,
    /// Why this machine cannot run it, if it cannot.
    missing: fn() -> Option<String>,
    run: fn(&Path) -> Result<(), Failure>,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "pure crates",
        missing: nothing,
        run: pure_crates,
    },
    Stage {
        name: "generated files",
        missing: nothing,
        run: generate::check,
    },
    Stage {
        name: "runtime build",
        missing: nothing,
        run: runtime_build,
    },
    Stage {
        name: "runtime and its processes",
        missing: nothing,
        run: runtime_tests,
    },
    Stage {
        name: "operator",
        missing: nothing,
        run: operator_tests,
    },
    Stage {
        name: "operator and stock Dask",
        missing: python::missing,
        run: dask::stage,
    },
    Stage {
        name: "python",
        missing: wheel::missing,
        run: wheel::stage,
    },
    Stage {
        name: "lint",
        missing: nothing,
        run: lint::run,
    },
    Stage {
        name: "documentation of the code",
        missing: nothing,
        run: rustdoc,
    },
    Stage {
        name: "lab",
        missing: lab::missing,
        run: lab::check,
    },
    Stage {
        name: "charts",
        missing: lab::missing_for_charts,
        run: charts_check,
    },
    Stage {
        name: "images",
        missing: || images::missing_for_check().map(str::to_owned),
        run: images::check_dockerfiles,
    },
    Stage {
        name: "kubernetes",
        missing: lab::missing,
        run: e2e::stage,
    },
];

/// How a stage ended.
enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// Runs the stages whose name contains `filter`, all of them even after a failure.
pub(crate) fn run(root: &Path, filter: Option<&str>) -> Result<(), Failure> {
    // A machine that tests what is submitted must be able to test all of it.
    let may_skip = std::env::var_os("CI").is_none_or(|value| value != "true");
    let mut outcomes = Vec::new();
    for stage in STAGES
        .iter()
        .filter(|stage| filter.is_none_or(|text| stage.name.contains(text)))
    {
        say!("\n== {}", stage.name);
        let start = Instant::now();
        let outcome = match (stage.missing)() {
            Some(reason) if may_skip => Outcome::Skipped(reason),
            Some(reason) => {
                say!("== {} cannot run here: {reason}", stage.name);
                Outcome::Failed
            }
            None => match (stage.run)(root) {
                Ok(()) => Outcome::Passed,
                Err(error) => {
                    say!("== {} failed: {error}", stage.name);
                    Outcome::Failed
                }
            },
        };
        outcomes.push((stage.name, start.elapsed().as_secs(), outcome));
    }
    summary(&outcomes)
}

fn summary(outcomes: &[(&str, u64, Outcome)]) -> Result<(), Failure> {
    say!("");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, seconds, outcome) in outcomes {
        let word = match outcome {
            Outcome::Passed => {
                passed += 1;
                "passed".to_owned()
            }
            Outcome::Failed => {
                failed += 1;
                "FAILED".to_owned()
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                format!("skipped: {reason}")
            }
        };
        say!("{name:<28} {seconds:>5} s  {word}");
    }
    if skipped == 0 {
        say!("nothing was skipped");
    }
    say!("stages: {passed} passed, {failed} failed, {skipped} skipped");
    match (outcomes.len(), failed) {
        (0, _) => Err("no stage has this name".into()),
        (_, 0) => Ok(()),
        _ => Err("tests failed".into()),
    }
}

fn nothing() -> Option<String> {
    None
}

fn pure_crates(root: &Path) -> Result<(), Failure> {
    for family in FAMILIES {
        if let Some(mut test) = family.cargo_pure(root, &["test", "--quiet"]) {
            run_command(&mut test)?;
        }
    }
    Ok(())
}

fn runtime_build(root: &Path) -> Result<(), Failure> {
    run_command(&mut RUNTIME.cargo_release(root, &["build"]))
}

fn runtime_tests(root: &Path) -> Result<(), Failure> {
    run_command(&mut RUNTIME.cargo_release(root, &["test", "--no-fail-fast"]))
}

fn operator_tests(root: &Path) -> Result<(), Failure> {
    run_command(&mut OPERATOR.cargo_release(root, &["test", "--no-fail-fast"]))
}

fn rustdoc(root: &Path) -> Result<(), Failure> {
    for family in FAMILIES {
        let arguments = ["doc", "--release", "--no-deps", "--document-private-items"];
        run_command(
            family
                .cargo(root, &arguments)
                .env("RUSTDOCFLAGS", "-D warnings"),
        )?;
    }
    Ok(())
}

fn charts_check(root: &Path) -> Result<(), Failure> {
    let helm = lab::helm(root)?;
    charts::check(root, &helm)?;
    alerts::check(root, &lab::promtool(root)?)?;
    gitops::check(root, &helm)
}

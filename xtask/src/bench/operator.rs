//! `cargo xtask bench operator`: the operator's process against an API server in memory, or with
//! `--lab` against a real one.
//!
//! Builds what is measured, starts a lab if one is needed and hands the rest of the command line to
//! the bench program.

use std::path::Path;
use std::process::Command;

use super::measured::Options;
use crate::e2e::Guard;
use crate::packages::OPERATOR;
use crate::process::{binaries_dir, run as run_command};
use crate::{Failure, lab};

/// Options with a value that the bench program takes as they are.
const PASSED_ON: &[&str] = &["--runs", "--only"];

/// Measures on a real API server, and only that.
const LAB: &str = "--lab";

/// Builds, and measures.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let is_in_lab = words.contains(&LAB);
    let words: Vec<&str> = words.iter().copied().filter(|word| *word != LAB).collect();
    let options = parse(&words)?;
    // The whole family: a part of it would be built with other features, and so a second time.
    run_command(&mut OPERATOR.cargo(root, &["build", "--release"]))?;
    let binaries = binaries_dir(root, "release")?;
    let mut bench = Command::new(binaries.join("oxidask-operator-bench"));
    bench.current_dir(root);
    bench
        .arg("--operator")
        .arg(binaries.join("oxidask-operator"));
    if is_in_lab {
        options.hand_to(&mut bench, root, "operator-lab.md")?;
        return beside_lab(root, &mut bench);
    }
    options.hand_to(&mut bench, root, "operator.md")?;
    run_command(&mut bench)
}

/// Runs the program while there is a lab that knows our kinds.
fn beside_lab(root: &Path, bench: &mut Command) -> Result<(), Failure> {
    if let Some(reason) = lab::missing() {
        return Err(format!("this machine cannot run a lab: {reason}").into());
    }
    let program = lab::programs(root)?.lab;
    let name = format!("bench-{}", std::process::id());
    let guard = Guard::start(&program, &name)?;
    let kubeconfig = lab::kubeconfig(&name);
    let measured =
        run_command(Command::new(&program).args(["up", "--nodes", "1", "--name", &name]))
            .and_then(|()| {
                let mut apply = Command::new("kubectl");
                apply.current_dir(root).env("KUBECONFIG", &kubeconfig);
                run_command(apply.args(["apply", "--server-side", "--kustomize", "crds"]))
            })
            .and_then(|()| run_command(bench.arg("--kubeconfig").arg(&kubeconfig)));
    let down = guard.down(&name);
    measured.and(down)
}

fn parse<'a>(words: &[&'a str]) -> Result<Options<'a>, Failure> {
    Options::parse(words, PASSED_ON, &["--small"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_passed_on_and_unknown_ones_refused() {
        let words = ["--small", "--only", "cost", "--record"];
        let passed_on = vec!["--small", "--only", "cost"];
        let expected = Options {
            passed_on,
            is_recorded: true,
        };
        assert_eq!(parse(&words).unwrap(), expected);
        assert!(parse(&["--runs"]).is_err());
        assert!(parse(&["--what", "x"]).is_err());
    }
}

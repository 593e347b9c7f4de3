//! `cargo xtask e2e`: a lab, the images in it, the charts, the cases; then the lab is gone again.
//!
//! Owns the order of these steps and that the lab ends whatever happens: a guard beside this process
//! takes it down when the process is gone, by Ctrl-C or otherwise. What is tested stands in
//! `oxidask-e2e`; what a lab is stands in `e2e/lab`.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::process::{binaries_dir, cargo, run as run_command};
use crate::{Failure, images, lab, say};

const NODES: &str = "2";

/// Takes the lab down unless it is told that this was done. Signals of the terminal do not reach it.
const GUARD: &str =
    r#"trap '' INT TERM HUP; read -r word; [ "$word" = done ] || exec "$0" down --name "$1""#;

/// Words of the command line.
struct Options<'a> {
    keep: bool,
    /// Passed on to the program with the cases.
    rest: Vec<&'a str>,
}

/// Runs the cases, all or those whose name contains a filter.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let options = Options {
        keep: words.contains(&"--keep"),
        rest: words
            .iter()
            .copied()
            .filter(|word| *word != "--keep")
            .collect(),
    };
    in_lab(root, &options)
}

/// All cases, as a stage of `cargo xtask test`.
pub(crate) fn stage(root: &Path) -> Result<(), Failure> {
    run(root, &[])
}

/// Measures how long people wait: for a cluster, for a job's first task, for a job.
pub(crate) fn figures(root: &Path, words: &[&str]) -> Result<(), Failure> {
    run(root, &[words, &["figures"]].concat())
}

fn in_lab(root: &Path, options: &Options<'_>) -> Result<(), Failure> {
    let name = format!("e2e-{}", std::process::id());
    let tools = Tools::build(root)?;
    let guard = if options.keep {
        None
    } else {
        Some(Guard::start(&tools.lab, &name)?)
    };
    let outcome = Stand::up(tools, &name).and_then(|stand| {
        let cases = timed("charts and cases", || {
            run_command(stand.cases(root).args(&options.rest))
        });
        if options.keep {
            say!(
                "the lab stays: export KUBECONFIG={}",
                stand.kubeconfig.display()
            );
            say!("end it with: cargo xtask lab down --name {name}");
        }
        cases
    });
    match guard {
        None => outcome,
        Some(guard) => {
            let down = timed("lab down", || guard.down(&name));
            outcome.and(down)
        }
    }
}

/// Everything that is built before a lab can be used.
pub(crate) struct Tools {
    lab: PathBuf,
    helm: PathBuf,
    argocd: PathBuf,
    prometheus: PathBuf,
    images: Vec<PathBuf>,
    binaries: PathBuf,
}

impl Tools {
    /// Builds what is missing, and says how long each step took.
    pub(crate) fn build(root: &Path) -> Result<Self, Failure> {
        if let Some(reason) = lab::missing() {
            return Err(format!("this machine cannot run a lab: {reason}").into());
        }
        let programs = timed("programs of the lab", || lab::programs(root))?;
        let archives = timed("images", || images::build(root))?;
        timed("program with the cases", || {
            let arguments = ["build", "--release", "--package", "oxidask-e2e"];
            run_command(&mut cargo(root, &arguments))
        })?;
        let dask = timed("image with stock Dask", images::dask::build)?;
        let paths = archives.into_iter().map(|image| image.path);
        Ok(Self {
            lab: programs.lab,
            helm: programs.helm,
            images: paths.chain([dask]).collect(),
            argocd: programs.argocd,
            prometheus: programs.prometheus,
            binaries: binaries_dir(root, "release")?,
        })
    }
}

/// A running lab that has the images.
pub(crate) struct Stand {
    tools: Tools,
    name: String,
    /// How to reach it.
    pub(crate) kubeconfig: PathBuf,
}

impl Stand {
    /// Starts the lab, unless it runs, and loads the images.
    pub(crate) fn up(tools: Tools, name: &str) -> Result<Self, Failure> {
        timed("lab up", || {
            run_command(Command::new(&tools.lab).args(["up", "--name", name, "--nodes", NODES]))
        })?;
        timed("load images", || {
            let mut load = Command::new(&tools.lab);
            run_command(load.args(["load", "--name", name]).args(&tools.images))
        })?;
        let kubeconfig = lab::kubeconfig(name);
        Ok(Self {
            tools,
            name: name.to_owned(),
            kubeconfig,
        })
    }

    /// The program with the cases, for this lab.
    pub(crate) fn cases(&self, root: &Path) -> Command {
        let binaries = &self.tools.binaries;
        let mut command = Command::new(binaries.join("oxidask-e2e"));
        command
            .arg("--root")
            .arg(root)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--helm")
            .arg(&self.tools.helm)
            .arg("--lab")
            .arg(&self.tools.lab)
            .arg("--lab-name")
            .arg(&self.name)
            .arg("--oxidask")
            .arg(binaries.join("oxidask"))
            .arg("--artifacts")
            .arg(artifacts(binaries))
            .env("OXIDASK_E2E_ARGOCD", &self.tools.argocd)
            .env("OXIDASK_E2E_PROMETHEUS", &self.tools.prometheus);
        command
    }

    /// `kubectl` for this lab.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        command
    }
}

/// Beside the folder of the target triple.
fn artifacts(binaries: &Path) -> PathBuf {
    let target = binaries.ancestors().nth(2).unwrap_or(binaries);
    target.join("e2e")
}

/// A process of its own that ends the lab when this one is gone.
pub(crate) struct Guard {
    process: Child,
    lab: PathBuf,
}

impl Guard {
    pub(crate) fn start(lab: &Path, name: &str) -> Result<Self, Failure> {
        let process = Command::new("sh")
            .args(["-c", GUARD])
            .arg(lab)
            .arg(name)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let lab = lab.to_owned();
        Ok(Self { process, lab })
    }

    /// Takes the lab down; if that fails, the guard tries again.
    pub(crate) fn down(mut self, name: &str) -> Result<(), Failure> {
        let down = run_command(Command::new(&self.lab).args(["down", "--name", name]));
        if let Some(mut stdin) = self.process.stdin.take()
            && down.is_ok()
        {
            writeln!(stdin, "done")?;
        }
        self.process.wait()?;
        down
    }
}

/// Says how long a step took.
pub(crate) fn timed<T>(
    what: &str,
    step: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let start = Instant::now();
    let outcome = step();
    let seconds = start.elapsed().as_secs_f64();
    let verdict = if outcome.is_ok() { "" } else { "  FAILED" };
    say!("-- {what}: {seconds:.1} s{verdict}");
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for the lab's program that writes down how it was called.
    fn stand_in(folder: &Path) -> (PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;
        let (program, calls) = (folder.join("lab"), folder.join("calls"));
        let text = format!("#!/bin/sh\necho \"$@\" >> {}\n", calls.display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (program, calls)
    }

    #[test]
    fn the_guard_ends_the_lab_of_a_process_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (lab, calls) = stand_in(folder.path());
        let mut guard = Guard::start(&lab, "x").unwrap();
        // What the kernel does for a process that dies.
        drop(guard.process.stdin.take());
        guard.process.wait().unwrap();
        assert_eq!(std::fs::read_to_string(calls).unwrap(), "down --name x\n");
    }

    #[test]
    fn the_guard_does_nothing_after_an_ordinary_end() {
        let folder = tempfile::tempdir().unwrap();
        let (lab, calls) = stand_in(folder.path());
        Guard::start(&lab, "x").unwrap().down("x").unwrap();
        assert_eq!(std::fs::read_to_string(calls).unwrap(), "down --name x\n");
    }
}

//! The arguments.

use std::path::{Path, PathBuf};

use crate::{Failure, Outcome};

const USAGE: &str = "\
usage: oxidask-e2e [OPTIONS] [FILTER]   install the charts, run the cases whose name contains FILTER,
                                        or one of several between commas
       oxidask-e2e [OPTIONS] list       name the cases
       oxidask-e2e [OPTIONS] install    only install the charts
       oxidask-e2e [OPTIONS] figures    install the charts, measure times

  --kubeconfig FILE   the cluster                                [default: KUBECONFIG]
  --kubectl FILE      the program                                [default: kubectl]
  --helm FILE|none    the program, version 4; none: the operator is there already, leave it alone
                                                                 [default: helm]
  --oxidask FILE      the command, for comparison on this host   [default: oxidask]
  --artifacts DIR     where a failed case leaves what it saw     [default: oxidask-e2e in the temporary folder]
  --lab FILE          the lab's program, if the cluster is a lab: cases that cut a node's link need it
  --lab-name NAME     which lab
  --root DIR          the checkout, for charts and examples      [default: as it was built]
  --jobs N            cases side by side                         [default: 6]
  --runs N            of each figure                             [default: 5]";

const JOBS_DEFAULT: usize = 6;
const JOBS_MAX: usize = 64;
const RUNS_DEFAULT: usize = 5;
const RUNS_MAX: usize = 1_000;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Run the cases.
    Cases,
    /// Name the cases.
    List,
    /// Install the charts.
    Install,
    /// Measure times.
    Figures,
}

/// The arguments, with defaults filled in.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What is asked for.
    pub(crate) task: Task,
    /// Only cases whose name contains this, or one of these between commas.
    pub(crate) filter: String,
    /// The cluster.
    pub(crate) kubeconfig: PathBuf,
    /// The program that cases drive.
    pub(crate) kubectl: PathBuf,
    /// The program that installs the charts.
    pub(crate) helm: PathBuf,
    /// The command on this host.
    pub(crate) oxidask: PathBuf,
    /// Where failed cases leave what they saw.
    pub(crate) artifacts: PathBuf,
    /// The lab's program; empty if the cluster is none.
    pub(crate) lab: PathBuf,
    /// Which lab.
    pub(crate) lab_name: String,
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Cases side by side.
    pub(crate) jobs: usize,
    /// Runs of each figure.
    pub(crate) runs: usize,
}

impl Settings {
    /// Whether the charts are this program's to install and uninstall.
    pub(crate) fn has_helm(&self) -> bool {
        self.helm.as_os_str() != "none"
    }

    /// Reads the arguments, without the program's name.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut settings = Self::new();
        let mut is_named = false;
        while let Some(word) = words.next() {
            if !word.starts_with("--") {
                if is_named {
                    return Err(USAGE.into());
                }
                is_named = true;
                settings.name(word);
                continue;
            }
            let value = words.next().ok_or(USAGE)?;
            settings.set(&word, &value)?;
        }
        if settings.task != Task::List && settings.kubeconfig.as_os_str().is_empty() {
            return Err(format!("no cluster is named\n{USAGE}").into());
        }
        Ok(settings)
    }

    fn new() -> Self {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = crate_dir.parent().unwrap_or(crate_dir).to_owned();
        Self {
            task: Task::Cases,
            filter: String::new(),
            kubeconfig: std::env::var_os("KUBECONFIG").unwrap_or_default().into(),
            kubectl: "kubectl".into(),
            helm: "helm".into(),
            oxidask: "oxidask".into(),
            artifacts: std::env::temp_dir().join("oxidask-e2e"),
            lab: PathBuf::new(),
            lab_name: String::new(),
            root,
            jobs: JOBS_DEFAULT,
            runs: RUNS_DEFAULT,
        }
    }

    fn name(&mut self, word: String) {
        match word.as_str() {
            "list" => self.task = Task::List,
            "install" => self.task = Task::Install,
            "figures" => self.task = Task::Figures,
            _ => self.filter = word,
        }
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), Failure> {
        match option {
            "--kubeconfig" => self.kubeconfig = value.into(),
            "--kubectl" => self.kubectl = value.into(),
            "--helm" => self.helm = value.into(),
            "--oxidask" => self.oxidask = value.into(),
            "--artifacts" => self.artifacts = value.into(),
            "--lab" => self.lab = value.into(),
            "--lab-name" => value.clone_into(&mut self.lab_name),
            "--root" => self.root = value.into(),
            "--jobs" => self.jobs = number(value, JOBS_MAX)?,
            "--runs" => self.runs = number(value, RUNS_MAX)?,
            _ => return Err(format!("unknown option `{option}`\n{USAGE}").into()),
        }
        Ok(())
    }
}

fn number(text: &str, max: usize) -> Result<usize, Failure> {
    let number: usize = text.parse()?;
    if (1..=max).contains(&number) {
        return Ok(number);
    }
    Err(format!("`{text}` is not between 1 and {max}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Outcome<Settings> {
        Settings::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn words_are_a_task_or_a_filter() {
        let settings = parse("--kubeconfig k --jobs 2 flights").unwrap();
        assert_eq!(settings.task, Task::Cases);
        assert_eq!(settings.filter, "flights");
        assert_eq!(settings.jobs, 2);
        assert_eq!(parse("list").unwrap().task, Task::List);
        let figures = parse("--runs 3 figures --kubeconfig k").unwrap();
        assert_eq!((figures.task, figures.runs), (Task::Figures, 3));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--what x", "--jobs 0", "--jobs", "a b", "--runs many"] {
            assert!(parse(&format!("--kubeconfig k {line}")).is_err(), "{line}");
        }
    }
}

//! Work of kind `script`: a Python program in which `Client()` finds the cluster.
//!
//! Owns the program's process: its start, its signals, its end. What it prints on standard output is
//! the output of the job, byte by byte; its exit status is that of the command. Never reads what it
//! prints.
//!
//! Invariants: the program does not outlive this process, whatever ends it; while it runs, nothing
//! but what it and the cluster have to say is written to the terminal.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_operator_api::{
    ClusterPlan, GroupPlan, JobPlan, LOCAL_NAMESPACE, ScriptSource, ScriptWork, Work, name_problem,
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::arguments::ScriptHostArguments;
use crate::error::{CliError, STATUS_FAILED};
use crate::local::deaths::{self, MemoryKills, MemoryVerdict};
use crate::python::{PATH_VARIABLE, Python};
use crate::service;
use crate::session::Site;

/// Time that a program has to end after it is asked to.
const TIDY_END: Duration = Duration::from_secs(5);
/// The file name of a program that stands in a manifest, which its tracebacks show.
const FILE_NAME: &str = "script.py";
/// The name of a job whose file has a name that no job can have.
const NAME: &str = "script";
/// Letters of a name that is made from a file's.
const NAME_CHARS_MAX: usize = 40;
/// The status with which shells say that a signal ended a program, less the signal.
const STATUS_SIGNALLED: i32 = 128;
/// The status after Ctrl-C.
const STATUS_INTERRUPTED: u8 = 130;

/// Whether the file is a Python program and no manifest.
pub(crate) fn is_program(file: &Path) -> bool {
    let extension = file.extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("py"))
}

/// The job of a program without a manifest: one worker with all processors, started here.
pub(crate) fn job(file: &Path) -> Result<JobPlan, CliError> {
    let readable = std::fs::File::open(file).and_then(|file| file.metadata());
    let problem = match readable {
        Ok(metadata) if metadata.is_dir() => Some("it is a folder".to_owned()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        let message = format!("cannot read `{}`", file.display());
        let diagnostic = Diagnostic::new(Code::ManifestUnreadable, message);
        return Err(CliError::usage(diagnostic.with_cause(problem)));
    }
    Ok(JobPlan {
        cluster: ClusterPlan {
            namespace: LOCAL_NAMESPACE.to_owned(),
            name: name(file),
            groups: vec![GroupPlan {
                name: "default".to_owned(),
                replicas: 1,
                slots: service::machine::processors(),
                memory_bytes: None,
                resources: Vec::new(),
                environment: Vec::new(),
            }],
            ignored: Vec::new(),
        },
        work: Work::Script(ScriptWork {
            source: ScriptSource::File(file.to_owned()),
            arguments: Vec::new(),
            environment: Vec::new(),
            python: None,
        }),
        base_dir: PathBuf::from("."),
        active_deadline_seconds: None,
    })
}

fn name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let lower = stem.to_lowercase();
    let letters = lower.chars().map(|letter| match letter {
        'a'..='z' | '0'..='9' => letter,
        _ => '-',
    });
    let name: String = letters.take(NAME_CHARS_MAX).collect();
    let name = name.trim_matches('-').to_owned();
    if name_problem(&name).is_some() {
        return NAME.to_owned();
    }
    name
}

/// A program that is ready to run.
pub(crate) struct Program {
    python: Python,
    work: ScriptWork,
    /// Where it runs.
    folder: PathBuf,
}

impl Program {
    /// Checks that there is a Python for it. `arguments` stand for the manifest's if there are any.
    pub(crate) fn prepare(
        mut work: ScriptWork,
        arguments: &[String],
        python: Option<&str>,
        folder: &Path,
    ) -> Result<Self, CliError> {
        let python = Python::choose(python, work.python.as_deref());
        python.check()?;
        if !arguments.is_empty() {
            work.arguments = arguments.to_vec();
        }
        let failed = |error: io::Error| {
            let message = format!("`{}` is not a folder that can be used", folder.display());
            let diagnostic = Diagnostic::new(Code::ManifestUnreadable, message);
            CliError::usage(diagnostic.with_cause(error.to_string()))
        };
        // As it was given: links are followed by Python in its own way.
        if let ScriptSource::File(path) = &mut work.source {
            *path = std::path::absolute(&path).map_err(failed)?;
        }
        Ok(Self {
            python,
            work,
            folder: std::fs::canonicalize(folder).map_err(failed)?,
        })
    }

    /// Lets the workers of a local cluster use the same Python and find the same modules.
    pub(crate) fn tell_workers(&self, cluster: &mut ClusterPlan) {
        for group in &mut cluster.groups {
            let present = variable(&group.environment, PATH_VARIABLE);
            let path = self.python.path(&self.modules(), present);
            let path = path.and_then(|path| path.into_string().ok());
            if let Some(path) = path {
                group.environment.retain(|(name, _)| name != PATH_VARIABLE);
                group.environment.push((PATH_VARIABLE.to_owned(), path));
            }
        }
        use_python(cluster, &self.python.program);
    }

    /// Runs it to its end, which the end of the cluster or a signal may bring about. `private` is a
    /// folder that goes with the run.
    pub(crate) async fn run(
        &self,
        site: &mut Site<'_>,
        tls_dir: &Path,
        private: &Path,
    ) -> Result<(), CliError> {
        let mut kills = MemoryKills::new();
        let file = self.file(private)?;
        let mut child = self.start(&file, site.address, tls_dir)?;
        match site.guarded(child.wait()).await {
            Ok(status) => {
                let memory = if deaths::was_killed(&status) {
                    kills.look()
                } else {
                    MemoryVerdict::No
                };
                self.verdict(&status, memory)
            }
            Err(failure) => {
                end(&mut child, failure.status).await;
                Err(failure)
            }
        }
    }

    /// Modules beside the program are found by it and by tasks: Python itself looks in the folder
    /// of the file.
    fn modules(&self) -> Vec<&Path> {
        match &self.work.source {
            ScriptSource::File(path) => path.parent().into_iter().collect(),
            ScriptSource::Text { .. } => vec![&self.folder],
        }
    }

    /// The file with the program.
    fn file(&self, private: &Path) -> Result<PathBuf, CliError> {
        match &self.work.source {
            ScriptSource::File(path) => Ok(path.clone()),
            ScriptSource::Text { text, .. } => {
                let path = private.join(FILE_NAME);
                let written = std::fs::write(&path, text);
                written.map_err(|error| CliError::start("the program cannot be kept", &error))?;
                Ok(path)
            }
        }
    }

    fn start(&self, file: &Path, address: &str, tls_dir: &Path) -> Result<Child, CliError> {
        let failed = |error: io::Error| CliError::start("the program cannot be started", &error);
        let tls_dir = std::fs::canonicalize(tls_dir).map_err(failed)?;
        // This program comes between, so that the other one ends with us.
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .arg("script-host")
            .arg(format!("--parent-pid={}", std::process::id()))
            .arg("--")
            .arg(&self.python.program)
            .arg(file)
            .args(&self.work.arguments)
            .current_dir(&self.folder)
            .env("OXIDASK_SCHEDULER", address)
            .env("DASK_SCHEDULER_ADDRESS", address)
            .env("OXIDASK_TLS_DIR", tls_dir)
            .env("OXIDASK_PYTHON", &self.python.program)
            .envs(
                self.work
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            // Ctrl-C comes from us, once.
            .process_group(0)
            .kill_on_drop(true);
        if std::env::var_os("PYTHONUNBUFFERED").is_none() {
            command.env("PYTHONUNBUFFERED", "1");
        }
        let present = variable(&self.work.environment, PATH_VARIABLE);
        if let Some(path) = self.python.path(&self.modules(), present) {
            command.env(PATH_VARIABLE, path);
        }
        // In a process group of its own it may not read from the terminal.
        if io::stdin().is_terminal() {
            command.stdin(Stdio::null());
        }
        command.spawn().map_err(failed)
    }

    fn verdict(
        &self,
        status: &io::Result<ExitStatus>,
        memory: MemoryVerdict,
    ) -> Result<(), CliError> {
        if status.as_ref().is_ok_and(ExitStatus::success) {
            return Ok(());
        }
        let how = deaths::describe(status, memory);
        let was_signalled = status.as_ref().is_ok_and(|status| status.code().is_none());
        let verb = if was_signalled {
            "was ended by"
        } else {
            "ended with"
        };
        let message = format!("the Python program {} {verb} {how}", self.title());
        let mut diagnostic = Diagnostic::new(Code::ScriptFailed, message);
        if was_signalled {
            diagnostic = diagnostic.with_hint(
                "a signal ends a program from outside, or after a fault in a library that is not \
                 Python; did it need more memory than there is?",
            );
        }
        let mut error = CliError::failed(diagnostic);
        error.status = status
            .as_ref()
            .map_or(STATUS_FAILED, |status| status_of(*status));
        Err(error)
    }

    fn title(&self) -> String {
        match &self.work.source {
            ScriptSource::File(path) => format!("`{}`", path.display()),
            ScriptSource::Text { origin, .. } => format!("in {origin}"),
        }
    }
}

/// Lets the workers of a local cluster use this Python.
pub(crate) fn use_python(cluster: &mut ClusterPlan, program: &str) {
    const VARIABLE: &str = "OXIDASK_PYTHON";
    for group in &mut cluster.groups {
        if variable(&group.environment, VARIABLE).is_none() {
            let program = (VARIABLE.to_owned(), program.to_owned());
            group.environment.push(program);
        }
    }
}

fn variable<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut named = environment.iter().rev().filter(|(other, _)| other == name);
    named.next().map(|(_, value)| value.as_str())
}

/// The status that the command ends with: the program's own, or what a shell says of a signal.
fn status_of(status: ExitStatus) -> u8 {
    let signalled = || status.signal().map(|signal| STATUS_SIGNALLED + signal);
    let code = status.code().or_else(signalled);
    code.and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != 0)
        .unwrap_or(STATUS_FAILED)
}

/// Asks the program and all that it has started to end, and kills what does not.
async fn end(child: &mut Child, status: u8) {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    let Some(group) = id.and_then(Pid::from_raw) else {
        return;
    };
    // A program that catches Ctrl-C is asked in the same way.
    let signal = if status == STATUS_INTERRUPTED {
        Signal::INT
    } else {
        Signal::TERM
    };
    // Both fail only if nothing is left.
    let _ = kill_process_group(group, signal);
    let _ = tokio::time::timeout(TIDY_END, child.wait()).await;
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait().await;
}

/// `oxidask script-host`: becomes the program, bound to the life of the parent.
pub(crate) fn host(arguments: &ScriptHostArguments) -> Result<(), CliError> {
    service::end_with_parent(Some(arguments.parent_pid))?;
    let empty = OsString::new();
    let (program, words) = match arguments.command.as_slice() {
        [program, words @ ..] => (program, words),
        [] => (&empty, [].as_slice()),
    };
    let error = std::process::Command::new(program).args(words).exec();
    let program = OsStr::to_string_lossy(program);
    let message = format!("`{program}` cannot be used as Python");
    let diagnostic = Diagnostic::new(Code::PythonMissing, message);
    Err(CliError::usage(diagnostic.with_cause(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_names_and_name_their_jobs() {
        assert!(is_program(Path::new("a/b.py")) && is_program(Path::new("B.PY")));
        assert!(!is_program(Path::new("job.yaml")) && !is_program(Path::new("py")));
        for (file, expected) in [
            ("a/monte_carlo.py", "monte-carlo"),
            ("2024.py", "2024"),
            ("__main__.py", "main"),
            ("\u{e4}.py", "script"),
            ("_.py", "script"),
        ] {
            let name = name(Path::new(file));
            assert_eq!(name_problem(&name), None, "{name}");
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn the_status_is_the_programs_own() {
        let status = |raw| status_of(ExitStatus::from_raw(raw));
        assert_eq!((status(3 << 8), status(255 << 8)), (3, 255));
        assert_eq!((status(11), status(9)), (139, 137));
    }

    #[test]
    fn workers_find_what_the_program_finds() {
        let program = Program {
            python: Python {
                program: "python3.12".to_owned(),
                package: Some(PathBuf::from("/p")),
            },
            work: ScriptWork {
                source: ScriptSource::File(std::env::temp_dir().join("a.py")),
                arguments: Vec::new(),
                environment: Vec::new(),
                python: None,
            },
            folder: PathBuf::from("/"),
        };
        let mut cluster = ClusterPlan {
            namespace: LOCAL_NAMESPACE.to_owned(),
            name: "a".to_owned(),
            groups: vec![GroupPlan {
                name: "default".to_owned(),
                replicas: 1,
                slots: 1,
                memory_bytes: None,
                resources: Vec::new(),
                environment: vec![(PATH_VARIABLE.to_owned(), "/mine".to_owned())],
            }],
            ignored: Vec::new(),
        };
        program.tell_workers(&mut cluster);
        let environment = &cluster.groups[0].environment;
        let path = format!("{}:/p:/mine", std::env::temp_dir().display());
        assert_eq!(variable(environment, PATH_VARIABLE), Some(path.as_str()));
        assert_eq!(variable(environment, "OXIDASK_PYTHON"), Some("python3.12"));
        assert_eq!(environment.len(), 2);
    }
}

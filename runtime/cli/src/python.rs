//! The Python that runs programs and tasks.
//!
//! Owns which one it is, what it must have, and where it finds the package `oxidask` when that came
//! with this program instead of by pip. Never runs anything of the user's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use oxidask_diagnostic::{Code, Diagnostic};
use serde::Deserialize;

use crate::error::CliError;

/// The program unless somebody names another.
pub(crate) const DEFAULT_PROGRAM: &str = "python3";
/// Where a Python looks for packages first.
pub(crate) const PATH_VARIABLE: &str = "PYTHONPATH";
/// The oldest Python that works.
const VERSION_MIN: (u32, u32) = (3, 11);
/// The folder with the package in an image of ours.
const PACKAGE_IN_IMAGE: &str = "/opt/oxidask/python";
/// Time that a Python has to say what it has.
const QUESTION_TIME: Duration = Duration::from_secs(30);
/// Pause between two looks whether it has said so.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// Characters of an error that are passed on.
const ERROR_CHARS_MAX: usize = 400;

/// Looks for the packages without importing them. A folder that is only called as a package has no
/// origin.
const QUESTION: &str = "\
import importlib.util, json, sys
def is_missing(name):
    spec = importlib.util.find_spec(name)
    return spec is None or spec.origin is None
names = [name for name in ('dask', 'distributed', 'oxidask') if is_missing(name)]
print(json.dumps({'version': list(sys.version_info[:3]), 'missing': names}))
";

/// What a Python says of itself.
#[derive(Debug, Deserialize)]
struct Answer {
    version: (u32, u32, u32),
    missing: Vec<String>,
}

/// A Python.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    /// The program.
    pub(crate) program: String,
    /// The folder with the package that came with this program.
    pub(crate) package: Option<PathBuf>,
}

impl Python {
    /// The one that the command line names, else the manifest, else the usual one.
    pub(crate) fn choose(asked: Option<&str>, in_manifest: Option<&str>) -> Self {
        Self {
            program: asked.or(in_manifest).unwrap_or(DEFAULT_PROGRAM).to_owned(),
            package: package(),
        }
    }

    /// Fails if it cannot run programs that use the cluster.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        let answer = self.ask().map_err(|error| self.refused(error))?;
        let (major, minor, patch) = answer.version;
        let version = format!("Python {major}.{minor}.{patch}");
        if (major, minor) < VERSION_MIN {
            let (major, minor) = VERSION_MIN;
            let message = format!(
                "`{}` is {version}, but {major}.{minor} is the oldest that works",
                self.program
            );
            return Err(missing(message));
        }
        if answer.missing.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = answer
            .missing
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let packages = if names.len() == 1 {
            "package"
        } else {
            "packages"
        };
        let message = format!(
            "`{}` ({version}) does not have the {packages} {}",
            self.program,
            names.join(" and ")
        );
        let hint = format!(
            "install with `{} -m pip install {}`, or name another Python with --python; in pods, \
             give the workers an image that has Python and dask",
            self.program,
            answer.missing.join(" ")
        );
        let diagnostic = Diagnostic::new(Code::PythonMissing, message);
        Err(CliError::usage(diagnostic.with_hint(hint)))
    }

    /// The value of [`PATH_VARIABLE`]: these folders, the package that came with this program, and
    /// what `present` says, or else this process's environment.
    pub(crate) fn path(&self, folders: &[&Path], present: Option<&str>) -> Option<OsString> {
        let inherited = || std::env::var_os(PATH_VARIABLE);
        let present = present.map(OsString::from).or_else(inherited);
        let present = present.filter(|present| !present.is_empty());
        let given = present.iter().flat_map(std::env::split_paths);
        let own = folders.iter().map(|folder| (*folder).to_owned());
        let mut paths: Vec<PathBuf> = Vec::new();
        for path in own.chain(self.package.clone()).chain(given) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        // A folder with a colon in its name cannot be said.
        let joined = std::env::join_paths(&paths).ok().or(present);
        joined.filter(|joined| !joined.is_empty())
    }

    fn ask(&self) -> Result<Answer, String> {
        let mut command = Command::new(&self.program);
        command
            .args(["-c", QUESTION])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(path) = self.path(&[], None) {
            command.env(PATH_VARIABLE, path);
        }
        let output = output(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line).ok());
        answer.ok_or_else(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            let line = error
                .trim()
                .lines()
                .next_back()
                .unwrap_or("it said nothing");
            line.chars().take(ERROR_CHARS_MAX).collect()
        })
    }

    fn refused(&self, cause: String) -> CliError {
        let message = format!("`{}` cannot be used as Python", self.program);
        let diagnostic = Diagnostic::new(Code::PythonMissing, message);
        CliError::usage(diagnostic.with_cause(cause))
    }
}

/// What a program says, within a bounded time. It says little, so it never waits for a reader.
fn output(command: &mut Command) -> Result<Output, String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return child.wait_with_output().map_err(|error| error.to_string()),
            Ok(None) if start.elapsed() < QUESTION_TIME => std::thread::sleep(LOOK_PAUSE),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it said nothing for {} s", QUESTION_TIME.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The folder with the package: beside this program, where an init container puts both, or where
/// an image of ours has it.
pub(crate) fn package() -> Option<PathBuf> {
    let program = std::env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.join("python")));
    let known = Some(PathBuf::from(PACKAGE_IN_IMAGE));
    let mut folders = beside.into_iter().chain(known);
    folders.find(|folder| folder.join("oxidask").join("__init__.py").is_file())
}

fn missing(message: String) -> CliError {
    CliError::usage(Diagnostic::new(Code::PythonMissing, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: CliError) -> (u8, String) {
        let diagnostic = error.diagnostic.map(|diagnostic| diagnostic.to_string());
        (error.status, diagnostic.unwrap_or_default())
    }

    fn python(folder: &Path, script: &str) -> Python {
        use std::os::unix::fs::PermissionsExt as _;
        let program = folder.join("python");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Python {
            program: program.display().to_string(),
            package: None,
        }
    }

    #[test]
    fn what_is_no_python_is_said_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let check = |script: &str, words: &str| {
            let python = python(folder.path(), script);
            let (status, text) = message(python.check().unwrap_err());
            assert_eq!(status, 2);
            assert!(
                text.contains("error[OX355]") && text.contains(words),
                "{text}"
            );
            assert!(text.contains(&python.program), "{text}");
        };
        check("echo no such thing >&2; exit 1", "no such thing");
        check("exit 0", "it said nothing");
        check(
            r#"echo '{"version": [3, 9, 2], "missing": []}'"#,
            "is Python 3.9.2, but 3.11 is the oldest",
        );
        check(
            r#"echo noise; echo '{"version": [3, 12, 1], "missing": ["dask", "oxidask"]}'"#,
            "(Python 3.12.1) does not have the packages `dask` and `oxidask`",
        );
        let good = python(
            folder.path(),
            r#"echo '{"version": [3, 11, 0], "missing": []}'"#,
        );
        assert!(good.check().is_ok());
        let absent = Python::choose(Some("/nowhere/python"), None);
        let (_, text) = message(absent.check().unwrap_err());
        assert!(text.contains("`/nowhere/python` cannot be used"), "{text}");
    }

    #[test]
    fn packages_that_came_along_come_first_and_once() {
        let python = Python {
            program: String::new(),
            package: Some(PathBuf::from("/p")),
        };
        let path = |folders: &[&Path], present| {
            let path = python.path(folders, present).unwrap();
            path.to_str().unwrap().to_owned()
        };
        assert_eq!(path(&[Path::new("/a")], Some("/b:/p")), "/a:/p:/b");
        assert_eq!(path(&[], Some("")), "/p");
    }

    #[test]
    fn the_command_line_goes_before_the_manifest() {
        assert_eq!(Python::choose(Some("a"), Some("b")).program, "a");
        assert_eq!(Python::choose(None, Some("b")).program, "b");
        assert_eq!(Python::choose(None, None).program, DEFAULT_PROGRAM);
    }
}

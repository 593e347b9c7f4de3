//! The Python package as a wheel of this machine, and environments that have it.
//!
//! Owns the cache: a wheel is named by all that it is made from, an environment by its wheel and by
//! the packages beside it. Both are whole or not there. pip builds the wheel exactly as it does for
//! a user, with the build backend of the package.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::bench::python::cache_dir;
use crate::packages::RUNTIME;
use crate::process::{binaries_dir, cargo, output, run as run_command};
use crate::{Failure, say};

/// Wheels and environments that are kept, each.
const KEPT: usize = 3;

/// What the tests of the package need besides the wheel.
const TEST_PACKAGES: &[&str] = &[
    "dask[array,bag,dataframe,delayed]==2026.8.*",
    "dask-ml",
    "joblib",
    "kubernetes",
    "pytest",
    "pytest-timeout",
    "scikit-learn",
    "xarray",
];

/// Files besides those of the packages that the wheel is made from.
const SOURCES: &[&str] = &["Cargo.toml", "Cargo.lock", ".cargo/config.toml"];

/// `cargo xtask wheel [--output DIR]`.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let output = match words {
        [] => None,
        ["--output", dir] => Some(PathBuf::from(dir)),
        _ => return Err("usage: cargo xtask wheel [--output DIR]".into()),
    };
    let wheel = built(root)?;
    let shown = match output {
        Some(dir) => {
            std::fs::create_dir_all(&dir)?;
            let copy = dir.join(wheel.file_name().unwrap_or_default());
            std::fs::copy(&wheel, &copy)?;
            copy
        }
        None => wheel,
    };
    say!("{}", shown.display());
    Ok(())
}

/// Everything about Python: the package by itself, tasks in processes, scripts on a real cluster.
pub(crate) fn stage(root: &Path) -> Result<(), Failure> {
    let environment = environment(root, TEST_PACKAGES)?;
    tests(root, &environment, "tests/unit")?;
    // Tasks in processes; the name is that of the file with these tests.
    let mut processes = RUNTIME.cargo_release(root, &["test", "--test", "python"]);
    run_command(processes.env("OXIDASK_PYTHON", &environment.python))?;
    run_command(&mut RUNTIME.cargo_release(root, &["build"]))?;
    tests(root, &environment, "tests/acceptance")
}

fn tests(root: &Path, environment: &Environment, folder: &str) -> Result<(), Failure> {
    // The package is the wheel's, not that of the checkout, which has no Rust half.
    let arguments = ["-m", "pytest", "-q", "--import-mode=importlib", folder];
    let program = binaries_dir(root, "release")?.join("oxidask");
    run_command(
        environment
            .command()
            .current_dir(root.join("python"))
            .env("PYTHONSAFEPATH", "1")
            .env("OXIDASK_PROGRAM", program)
            .args(arguments),
    )
}

/// Why no wheel can be built on this machine.
pub(crate) fn missing() -> Option<String> {
    let check = "import sys; sys.exit(sys.version_info < (3, 11))";
    let found = Command::new("python3").args(["-c", check]).status();
    let is_there = found.is_ok_and(|status| status.success());
    (!is_there).then(|| "Python 3.11 or later is not installed".to_owned())
}

/// The wheel, which is built if need be.
pub(crate) fn built(root: &Path) -> Result<PathBuf, Failure> {
    let cache = cache_dir()?;
    let folder = cache.join(format!("wheel-{}", key(root)?));
    if !folder.is_dir() {
        std::fs::create_dir_all(&cache)?;
        let _lock = locked(&cache)?;
        if !folder.is_dir() {
            build(root, &cache, &folder)?;
            prune(&cache, "wheel-", &folder)?;
        }
    }
    only_wheel(&folder)
}

fn build(root: &Path, cache: &Path, folder: &Path) -> Result<(), Failure> {
    say!("building the wheel of the Python package: about 2 minutes on 2 cores the first time");
    let began = Instant::now();
    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-wheel-")
        .tempdir_in(cache)?;
    let arguments = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--wheel-dir",
    ];
    run_command(
        Command::new("python3")
            .current_dir(root)
            .args(arguments)
            .arg(unfinished.path())
            .arg("./python"),
    )?;
    only_wheel(unfinished.path())?;
    std::fs::rename(unfinished.keep(), folder)?;
    say!("built in {} s", began.elapsed().as_secs());
    Ok(())
}

/// Python with packages, and ours beside them: the packages change seldom and take long to install.
pub(crate) struct Environment {
    /// The interpreter.
    pub(crate) python: PathBuf,
    /// The folder with our package.
    package: PathBuf,
}

impl Environment {
    /// Starts the interpreter, with our package.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.env("PYTHONPATH", &self.package);
        command
    }
}

/// An environment with the wheel and these packages, as pip names them.
pub(crate) fn environment(root: &Path, packages: &[&str]) -> Result<Environment, Failure> {
    let wheel = built(root)?;
    let cache = cache_dir()?;
    let mut digest = Sha256::new();
    digest.update(output(Command::new("python3").arg("--version"))?);
    for package in packages {
        digest.update(format!("\n{package}"));
    }
    let folder = cache.join(format!("wheelenv-{}", short(digest)?));
    let python = folder.join("bin/python");
    let package = wheel.with_file_name("installed");
    let _lock = locked(&cache)?;
    if !folder.join("complete").exists() {
        say!("installing packages into {} …", folder.display());
        // An environment names its own folder, so it cannot be made elsewhere and renamed.
        let venv = ["-m", "venv", "--clear"];
        run_command(Command::new("python3").args(venv).arg(&folder))?;
        run_command(pip_install(&python).args(packages))?;
        std::fs::write(folder.join("complete"), packages.join("\n"))?;
        prune(&cache, "wheelenv-", &folder)?;
    }
    if !package.exists() {
        let unfinished = tempfile::Builder::new()
            .prefix("unfinished-wheel-")
            .tempdir_in(&cache)?;
        let arguments = ["--no-deps", "--target"];
        let mut install = pip_install(&python);
        run_command(install.args(arguments).arg(unfinished.path()).arg(&wheel))?;
        std::fs::rename(unfinished.keep(), &package)?;
    }
    Ok(Environment { python, package })
}

fn pip_install(python: &Path) -> Command {
    let mut install = Command::new(python);
    let arguments = ["-m", "pip", "install", "--quiet"];
    install.args(arguments).arg("--disable-pip-version-check");
    install
}

/// Names the wheel by all that it is made from.
fn key(root: &Path) -> Result<String, Failure> {
    let mut digest = Sha256::new();
    digest.update(output(Command::new("rustc").arg("-vV"))?);
    digest.update(output(Command::new("python3").arg("--version"))?);
    let mut folders = workspace_folders(root)?;
    folders.sort();
    let listing = output(
        Command::new("git")
            .current_dir(root)
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .arg("--")
            .args(SOURCES)
            .args(&folders),
    )?;
    let mut files: Vec<&str> = listing.lines().filter(|file| is_source(file)).collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        // One that was deleted is listed until that is committed.
        let Ok(content) = std::fs::read(root.join(file)) else {
            continue;
        };
        digest.update(format!("{file} {}\n", content.len()));
        digest.update(content);
    }
    short(digest)
}

/// Tests are no part of the wheel.
fn is_source(file: &str) -> bool {
    !file.contains("/tests/") && !file.contains("/examples/")
}

/// The folders of the packages of this workspace below the Python package, with its own.
fn workspace_folders(root: &Path) -> Result<Vec<String>, Failure> {
    let arguments = [
        "tree",
        "--package",
        "oxidask-python",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ];
    let tree = output(&mut cargo(root, &arguments))?;
    let mut folders: Vec<String> = tree
        .lines()
        .filter_map(|line| folder_in(line, root))
        .collect();
    folders.sort();
    folders.dedup();
    Ok(folders)
}

/// The folder in a line of `cargo tree`, such as `oxidask-core v0.1.0 (/src/runtime/core) (*)`.
fn folder_in(line: &str, root: &Path) -> Option<String> {
    let (_, rest) = line.split_once(" (/")?;
    let (path, _) = rest.split_once(')')?;
    let path = Path::new("/").join(path);
    let folder = path.strip_prefix(root).ok()?;
    Some(folder.to_string_lossy().into_owned())
}

fn only_wheel(folder: &Path) -> Result<PathBuf, Failure> {
    let mut wheels = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            wheels.push(path);
        }
    }
    match wheels.pop() {
        Some(wheel) if wheels.is_empty() => Ok(wheel),
        _ => Err(format!("`{}` does not hold one wheel", folder.display()).into()),
    }
}

fn short(digest: Sha256) -> Result<String, Failure> {
    let first: [u8; 8] = digest.finalize()[..8].try_into()?;
    Ok(format!("{:016x}", u64::from_be_bytes(first)))
}

/// Released with the file, also if this process is killed.
fn locked(cache: &Path) -> Result<File, Failure> {
    let lock = File::create(cache.join("wheel.lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// Removes all but the latest folders. The caller holds the lock.
fn prune(cache: &Path, prefix: &str, current: &Path) -> Result<(), Failure> {
    let mut others: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        let is_one = entry.file_name().to_string_lossy().starts_with(prefix);
        if is_one && entry.path() != current {
            others.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(KEPT);
    for (_, folder) in others.into_iter().take(surplus) {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_of_the_workspace_are_found() {
        let root = Path::new("/src/ox");
        let found = |line: &str| folder_in(line, root);
        let line = "oxidask-core v0.1.0 (/src/ox/runtime/core) (*)";
        assert_eq!(found(line).as_deref(), Some("runtime/core"));
        assert_eq!(found("bytes v1.10.0"), None);
        assert_eq!(found("pyo3-macros v0.30.1 (proc-macro)"), None);
    }

    #[test]
    fn tests_are_no_sources() {
        assert!(is_source("runtime/core/src/lib.rs"));
        assert!(is_source("python/oxidask/_comm.py"));
        assert!(!is_source("python/tests/unit/test_a.py"));
        assert!(!is_source("runtime/comm/tests/tls.rs"));
    }

    #[test]
    fn the_oldest_go() {
        let cache = tempfile::tempdir().unwrap();
        for name in ["wheel-1", "wheel-2", "wheel-3", "wheel-4", "wheelenv-1"] {
            std::fs::create_dir(cache.path().join(name)).unwrap();
            let folder = File::open(cache.path().join(name)).unwrap();
            let number = name.chars().last().and_then(|digit| digit.to_digit(10));
            let time = SystemTime::UNIX_EPOCH
                + std::time::Duration::from_secs(number.unwrap_or_default().into());
            folder.set_modified(time).unwrap();
        }
        prune(cache.path(), "wheel-", &cache.path().join("wheel-1")).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(cache.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["wheel-1", "wheel-3", "wheel-4", "wheelenv-1"]);
    }
}

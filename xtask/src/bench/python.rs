//! The Python environment of the peers: made once, in the user's folder for caches.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::process::run as run_command;
use crate::{Failure, say};

/// The peers' packages, as measured against, and what they need.
const PACKAGES: &[&str] = &[
    "dask[dataframe]==2026.8.0",
    "distributed==2026.8.0",
    "duckdb==2.0.0",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "polars==2.1.0",
    "pyarrow==26.0.1",
];

/// The environment's Python. Another list of packages gets an environment of its own.
pub(crate) fn environment() -> Result<PathBuf, Failure> {
    let folder = cache_dir()?.join(folder_name(PACKAGES));
    let python = folder.join("bin/python");
    let marker = folder.join("complete");
    if marker.exists() {
        return Ok(python);
    }
    say!("installing the peers into {} …", folder.display());
    // An environment names its own folder, so it cannot be made elsewhere and renamed.
    run_command(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    run_command(Command::new(&python).args(install).args(PACKAGES))?;
    std::fs::write(marker, PACKAGES.join("\n"))?;
    Ok(python)
}

/// Why there can be no environment on this machine.
pub(crate) fn missing() -> Option<String> {
    let found = Command::new("python3")
        .args(["-m", "venv", "--help"])
        .output();
    let is_there = found.is_ok_and(|output| output.status.success());
    (!is_there).then(|| "python3 with venv is not installed".to_owned())
}

fn folder_name(packages: &[&str]) -> String {
    let digest = Sha256::digest(packages.join("\n"));
    let digest = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
    format!("peers-{}", digest.collect::<String>())
}

pub(crate) fn cache_dir() -> Result<PathBuf, Failure> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(Path::new(&cache).join("oxidask"));
    }
    let home = std::env::var_os("HOME").ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/oxidask"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_packages_have_another_folder() {
        let name = folder_name(&["a==1"]);
        assert_eq!(name, folder_name(&["a==1"]));
        assert_ne!(name, folder_name(&["a==2"]));
        assert!(name.starts_with("peers-") && name.len() == "peers-".len() + 12);
    }
}

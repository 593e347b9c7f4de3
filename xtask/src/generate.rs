//! Generated files.
//!
//! Owns how each generated file is made; a file that differs from what is made here is stale.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::process::{cargo, output};
use crate::{Failure, charts, say};

/// Writes what is stale.
pub(crate) fn write(root: &Path) -> Result<(), Failure> {
    for (path, content) in stale(root)? {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, content)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// Fails if a file is stale.
pub(crate) fn check(root: &Path) -> Result<(), Failure> {
    let stale = stale(root)?;
    if stale.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = stale
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    Err(format!("stale, run `cargo xtask gen`: {}", names.join(", ")).into())
}

fn stale(root: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let mut stale = Vec::new();
    let mut files = vec![proto(root)?];
    files.extend(kubernetes(root)?);
    files.extend(charts::readmes(root)?);
    for (path, content) in files {
        if std::fs::read_to_string(&path).unwrap_or_default() != content {
            stale.push((path, content));
        }
    }
    Ok(stale)
}

/// Rust for the messages and services. Checked in, so that a build needs no Protobuf compiler.
fn proto(root: &Path) -> Result<(PathBuf, String), Failure> {
    let folder = root.join("runtime/proto/proto");
    let descriptors = protox::compile([folder.join("oxidask.proto")], [&folder])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    let code = std::fs::read_to_string(out.path().join("oxidask.v1.rs"))?;
    let header = "// Made by `cargo xtask gen` from proto/oxidask.proto. Do not edit.\n\n";
    Ok((
        root.join("runtime/proto/src/generated.rs"),
        format!("{header}{code}"),
    ))
}

/// The custom resource definitions, alone and in their chart, and the reference of their fields.
/// The program that knows the types prints them, so that this one builds without them.
fn kubernetes(root: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let mut program = cargo(
        root,
        &[
            "run",
            "--quiet",
            "--package",
            "oxidask-operator-api",
            "--features",
            "kubernetes",
            "--example",
            "generate",
        ],
    );
    let files: BTreeMap<String, String> = serde_json::from_str(&output(&mut program)?)?;
    Ok(files
        .into_iter()
        .map(|(path, content)| (root.join(path), content))
        .collect())
}

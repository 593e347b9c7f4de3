//! Generated files.
//!
//! Owns how each generated file is made; a file that differs from what is made here is stale.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::process::{cargo, output};
use crate::{Failure, charts, gitops, lab, say};

/// Writes what is stale. The bases for kustomize are rendered by Helm, which not every machine can
/// build.
pub(crate) fn write(root: &Path) -> Result<(), Failure> {
    let mut files = stale(root)?;
    match lab::missing_for_build() {
        None => files.extend(changed(gitops::kustomize(root, &lab::helm(root)?)?)),
        Some(reason) => say!("deploy/kustomize is left as it is: {reason}"),
    }
    for (path, content) in files {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, content)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// Fails if a file is stale. The bases for kustomize are checked with the charts.
pub(crate) fn check(root: &Path) -> Result<(), Failure> {
    refuse(&stale(root)?)
}

/// Fails if one of these is not as it should be.
pub(crate) fn refuse(stale: &[(PathBuf, String)]) -> Result<(), Failure> {
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
    let mut files = vec![
        proto(root, "oxidask", "oxidask.v1", "generated")?,
        proto(root, "externalscaler", "externalscaler", "generated_keda")?,
    ];
    files.extend(kubernetes(root)?);
    files.extend(charts::readmes(root)?);
    files.push(gitops::argocd(root)?);
    Ok(changed(files))
}

/// Those files that are not as they should be.
pub(crate) fn changed(files: Vec<(PathBuf, String)>) -> Vec<(PathBuf, String)> {
    let is_stale = |(path, content): &(PathBuf, String)| {
        std::fs::read_to_string(path).unwrap_or_default() != *content
    };
    files.into_iter().filter(is_stale).collect()
}

/// Rust for the messages and services of one file. Checked in, so that a build needs no Protobuf
/// compiler.
fn proto(
    root: &Path,
    file: &str,
    package: &str,
    module: &str,
) -> Result<(PathBuf, String), Failure> {
    let folder = root.join("runtime/proto/proto");
    let descriptors = protox::compile([folder.join(format!("{file}.proto"))], [&folder])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    let code = std::fs::read_to_string(out.path().join(format!("{package}.rs")))?;
    let header = format!("// Made by `cargo xtask gen` from proto/{file}.proto. Do not edit.\n\n");
    Ok((
        root.join(format!("runtime/proto/src/{module}.rs")),
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

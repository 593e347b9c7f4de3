//! Which crate may depend on which: purity, bans, second versions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::Failure;
use crate::process::{cargo, output};

/// Crates that decide everything hard: no runtime, no network, no engine, no randomness.
const PURE: &[&str] = &[
    "oxidask-diagnostic",
    "oxidask-identity",
    "oxidask-core",
    "oxidask-store",
    "oxidask-journal",
    "oxidask-worker-machine",
    "oxidask-sim",
    "oxidask-operator-api",
    "oxidask-operator-plan",
];

/// Never below a pure crate.
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "hyper",
    "rustls",
    "kube-client",
    "kube-runtime",
    "datafusion",
    "rand",
    "getrandom",
    "mio",
    "socket2",
];

/// Crates that must stay small: the engine is never below them.
const WITHOUT_ENGINE: &[&str] = &[
    "oxidask-proto",
    "oxidask-comm",
    "oxidask-exec",
    "oxidask-scheduler",
    "oxidask-worker",
    "oxidask-client",
    "oxidask-pki",
    "oxidask-operator",
];

/// Never anywhere.
const BANNED: &[&str] = &[
    "openssl",
    "openssl-sys",
    "aws-lc-rs",
    "aws-lc-sys",
    "native-tls",
];

/// One version each: they are slow to build, or two versions do not fit together.
const ONE_VERSION: &[&str] = &[
    "arrow",
    "datafusion",
    "h2",
    "hyper",
    "k8s-openapi",
    "kube-core",
    "object_store",
    "parquet",
    "prost",
    "ring",
    "rustls",
    "serde",
    "tokio",
    "tokio-rustls",
    "tonic",
];

/// What is wrong with the dependency graph, a line each.
pub(super) fn check(root: &Path) -> Result<Vec<String>, Failure> {
    let mut findings = Vec::new();
    for package in PURE {
        forbid(root, package, IMPURE, &mut findings)?;
    }
    for package in WITHOUT_ENGINE {
        forbid(root, package, &["datafusion"], &mut findings)?;
    }
    let versions = locked_versions(root)?;
    for name in BANNED.iter().filter(|name| versions.contains_key(**name)) {
        findings.push(format!("`{name}` is banned but in Cargo.lock"));
    }
    for name in ONE_VERSION {
        let found = versions.get(*name).map_or(0, BTreeSet::len);
        if found != 1 {
            findings.push(format!(
                "`{name}` must be in Cargo.lock in one version, found {found}"
            ));
        }
    }
    Ok(findings)
}

fn forbid(
    root: &Path,
    package: &str,
    forbidden: &[&str],
    findings: &mut Vec<String>,
) -> Result<(), Failure> {
    let arguments = [
        "tree",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--package",
        package,
    ];
    let tree = output(&mut cargo(root, &arguments))?;
    let below: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for name in forbidden.iter().filter(|name| below.contains(**name)) {
        findings.push(format!("`{package}` must not depend on `{name}`"));
    }
    Ok(())
}

fn locked_versions(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>, Failure> {
    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in lock.lines() {
        if let Some(value) = quoted(line, "name = ") {
            name = value;
        } else if let Some(value) = quoted(line, "version = ") {
            versions.entry(name.clone()).or_default().insert(value);
        }
    }
    Ok(versions)
}

fn quoted(line: &str, key: &str) -> Option<String> {
    Some(line.strip_prefix(key)?.trim_matches('"').to_owned())
}

//! Which packages are built by one call of cargo.
//!
//! cargo unites the features of all that one call builds. The operator's packages ask more of shared
//! crates than the runtime's: built together, the engine would be built a second time with features
//! that nobody needs. So no call builds the whole workspace; the families below do.

use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::process::{cargo, output};

/// Packages that are built, tested and linted together.
pub(crate) struct Family {
    /// All of its packages.
    packages: &'static [&'static str],
    /// Those that are tested in the dev profile, where overflow checks and debug assertions are on.
    pure: &'static [&'static str],
    features: &'static [&'static str],
    /// What tests are behind that have a stage of their own.
    test_features: &'static [&'static str],
}

/// Scheduler, workers, client, command line, and what the task runner itself needs.
pub(crate) const RUNTIME: Family = Family {
    packages: &[
        "oxidask-diagnostic",
        "oxidask-logbook",
        "oxidask-identity",
        "oxidask-core",
        "oxidask-store",
        "oxidask-journal",
        "oxidask-operator-api",
        "oxidask-pki",
        "oxidask-proto",
        "oxidask-comm",
        "oxidask-exec",
        "oxidask-exec-frame",
        "oxidask-exec-python",
        "oxidask-futures",
        "oxidask-tpch",
        "oxidask-scheduler",
        "oxidask-worker-machine",
        "oxidask-worker",
        "oxidask-client",
        "oxidask",
        "oxidask-sim",
        "oxidask-bench",
        "xtask",
    ],
    pure: &[
        "oxidask-diagnostic",
        "oxidask-identity",
        "oxidask-core",
        "oxidask-store",
        "oxidask-journal",
        "oxidask-worker-machine",
        "oxidask-futures",
        "oxidask-sim",
        "oxidask-operator-api",
        "xtask",
    ],
    features: &[],
    test_features: &[],
};

/// The operator, and the cases on a real Kubernetes.
pub(crate) const OPERATOR: Family = Family {
    packages: &[
        "oxidask-operator-api",
        "oxidask-operator-plan",
        "oxidask-operator",
        "oxidask-fake-api",
        "oxidask-operator-bench",
        "oxidask-e2e",
    ],
    pure: &["oxidask-operator-api", "oxidask-operator-plan"],
    features: &["oxidask-operator-api/kubernetes"],
    test_features: &["oxidask-operator/real-dask"],
};

/// The Rust half of the Python package. Its tests are those of the wheel, which is built with flags
/// of its own; see [`crate::wheel`].
pub(crate) const PYTHON: Family = Family {
    packages: &["oxidask-python"],
    pure: &[],
    features: &[],
    test_features: &[],
};

/// All packages are in one of these.
pub(crate) const FAMILIES: [&Family; 3] = [&RUNTIME, &OPERATOR, &PYTHON];

impl Family {
    /// A call of cargo for all packages of the family.
    pub(crate) fn cargo(&self, root: &Path, arguments: &[&str]) -> Command {
        self.select(root, arguments, self.packages.iter())
    }

    /// A call of cargo for the pure packages only, in the dev profile, if there are any: a call that
    /// names no package would be for others.
    pub(crate) fn cargo_pure(&self, root: &Path, arguments: &[&str]) -> Option<Command> {
        (!self.pure.is_empty()).then(|| self.select(root, arguments, self.pure.iter()))
    }

    /// A call of cargo for the packages that are tested in the release profile.
    pub(crate) fn cargo_release(&self, root: &Path, arguments: &[&str]) -> Command {
        let others = self
            .packages
            .iter()
            .filter(|name| !self.pure.contains(name));
        let mut command = self.select(root, arguments, others);
        command.arg("--release");
        command
    }

    /// A call of cargo for all packages of the family, with all of their tests.
    pub(crate) fn cargo_with_all_tests(&self, root: &Path, arguments: &[&str]) -> Command {
        let mut command = self.cargo(root, arguments);
        for feature in self.test_features {
            command.args(["--features", feature]);
        }
        command
    }

    fn select<'a>(
        &self,
        root: &Path,
        arguments: &[&str],
        packages: impl Iterator<Item = &'a &'static str>,
    ) -> Command {
        let mut command = cargo(root, arguments);
        for package in packages {
            command.args(["--package", package]);
        }
        for feature in self.features {
            command.args(["--features", feature]);
        }
        command
    }
}

/// What is wrong with the families: a package of the workspace that is in none would never be
/// tested.
pub(crate) fn check(root: &Path) -> Result<Vec<String>, Failure> {
    let metadata = ["metadata", "--no-deps", "--format-version", "1"];
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut cargo(root, &metadata))?)?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or("cargo names no packages")?;
    let is_known = |name: &str| {
        FAMILIES
            .iter()
            .any(|family| family.packages.contains(&name))
    };
    Ok(packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .filter(|name| !is_known(name))
        .map(|name| format!("`{name}` is in no family of xtask/src/packages.rs"))
        .collect())
}

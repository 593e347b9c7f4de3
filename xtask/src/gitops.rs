//! What tools that deploy from git are given: bases for kustomize, and Argo CD's settings for our kinds.
//!
//! Owns how both are made from the charts and from the scripts in `deploy/argocd`. The bases are what
//! Helm renders, without the labels by which Helm knows its own objects.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::charts::{read, rendered};
use crate::generate::{changed, refuse};
use crate::process::output;
use crate::{Failure, say};

const HEADER: &str = "# Made by `cargo xtask gen` from the charts. Do not edit: write a patch of your own instead.\n";
const NAMESPACE: &str = "oxidask";
/// Lines that would make Helm or Argo CD take the objects for those of a release.
const HELM_LINES: &[&str] = &["app.kubernetes.io/managed-by: Helm", "helm.sh/chart: "];
/// Folder, arguments for Helm.
const BASES: &[(&str, &[&str])] = &[
    ("cluster", &[]),
    ("namespaced", &["--set", "rbac.cluster=false"]),
];
const SCRIPTS: &str = "deploy/argocd/resource_customizations/kubernetes.dask.org";
const GROUP: &str = "kubernetes.dask.org";

/// The bases, as they should be.
pub(crate) fn kustomize(root: &Path, helm: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let folder = root.join("deploy/kustomize");
    let (operator, definitions) = (
        root.join("charts/oxidask-operator"),
        root.join("charts/oxidask-crds"),
    );
    let mut files = Vec::new();
    for (name, arguments) in BASES {
        let text = rendered(helm, &operator, "oxidask", NAMESPACE, arguments)?;
        files.push((folder.join(name).join("operator.yaml"), plain(&text)));
    }
    let only_roles = ["--show-only", "templates/roles.yaml"];
    let roles = rendered(helm, &definitions, "oxidask-crds", NAMESPACE, &only_roles)?;
    files.push((folder.join("crds/roles.yaml"), plain(&roles)));
    Ok(files)
}

fn plain(rendered: &str) -> String {
    let is_helms = |line: &str| {
        HELM_LINES
            .iter()
            .any(|start| line.trim_start().starts_with(start))
    };
    let lines = rendered
        .lines()
        .filter(|line| !is_helms(line) && !line.starts_with("# Source: "));
    let mut text = HEADER.to_owned();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Settings to be merged into those of Argo CD.
pub(crate) fn argocd(root: &Path) -> Result<(PathBuf, String), Failure> {
    let mut text = String::from(
        "# Made by `cargo xtask gen` from resource_customizations. To add it to an Argo CD:\n\
         # kubectl --namespace argocd patch configmap argocd-cm --patch-file deploy/argocd/argocd-cm.yaml\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: argocd-cm\n  namespace: argocd\n  labels:\n    \
         app.kubernetes.io/name: argocd-cm\n    app.kubernetes.io/part-of: argocd\ndata:\n",
    );
    for kind in folders(&root.join(SCRIPTS))? {
        let folder = root.join(SCRIPTS).join(&kind);
        writeln!(text, "  resource.customizations.health.{GROUP}_{kind}: |")?;
        indented(&mut text, &read(&folder.join("health.lua"))?, 4)?;
        let actions = folder.join("actions");
        if !actions.is_dir() {
            continue;
        }
        writeln!(text, "  resource.customizations.actions.{GROUP}_{kind}: |")?;
        writeln!(text, "    discovery.lua: |")?;
        indented(&mut text, &read(&actions.join("discovery.lua"))?, 6)?;
        writeln!(text, "    definitions:")?;
        for action in folders(&actions)? {
            let Ok(script) = read(&actions.join(&action).join("action.lua")) else {
                continue;
            };
            writeln!(text, "      - name: {action}\n        action.lua: |")?;
            indented(&mut text, &script, 10)?;
        }
    }
    Ok((root.join("deploy/argocd/argocd-cm.yaml"), text))
}

fn indented(text: &mut String, script: &str, spaces: usize) -> Result<(), Failure> {
    for line in script.lines() {
        if line.is_empty() {
            text.push('\n');
        } else {
            writeln!(text, "{:spaces$}{line}", "")?;
        }
    }
    Ok(())
}

/// The names of the folders in a folder, in order.
fn folders(folder: &Path) -> Result<Vec<String>, Failure> {
    let entries = std::fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The bases are what the charts render, and kustomize can build them for a namespace of its own.
pub(crate) fn check(root: &Path, helm: &Path) -> Result<(), Failure> {
    refuse(&changed(kustomize(root, helm)?))?;
    for (name, expected) in [
        (
            "crds",
            &["kind: CustomResourceDefinition", "name: oxidask-crds-edit"][..],
        ),
        (
            "cluster",
            &["kind: ClusterRole", "kind: Deployment", "kind: Namespace"],
        ),
        (
            "namespaced",
            &["kind: RoleBinding", "OXIDASK_OPERATOR_NAMESPACE"],
        ),
    ] {
        let folder = root.join("deploy/kustomize").join(name);
        let built = output(Command::new("kubectl").arg("kustomize").arg(&folder))?;
        for text in expected {
            if !built.contains(text) {
                return Err(format!("deploy/kustomize/{name} builds no `{text}`").into());
            }
        }
        if name == "namespaced" && built.contains("kind: Cluster") {
            return Err("deploy/kustomize/namespaced builds something cluster-wide".into());
        }
    }
    say!("kustomize: {} bases built", BASES.len() + 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_helm_stays_in_a_base() {
        let text = plain(
            "---\n# Source: a\n    helm.sh/chart: a-1\n    app.kubernetes.io/managed-by: Helm\n    a: b\n",
        );
        assert_eq!(text, format!("{HEADER}---\n    a: b\n"));
    }

    #[test]
    fn argo_cd_is_told_of_the_health_of_every_kind() {
        let (_, text) = argocd(&crate::root().unwrap()).unwrap();
        for kind in [
            "DaskAutoscaler",
            "DaskCluster",
            "DaskJob",
            "DaskWorkerGroup",
        ] {
            let key = format!(
                "  resource.customizations.health.{GROUP}_{kind}: |\n    -- Health of a {kind}"
            );
            assert!(text.contains(&key), "{kind}");
        }
        assert!(text.contains(
            "      - name: suspend\n        action.lua: |\n          obj.spec.suspend = true"
        ));
    }
}

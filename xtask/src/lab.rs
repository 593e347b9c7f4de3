//! `cargo xtask lab`: a real Kubernetes on this machine, and Helm beside it.
//!
//! Owns the building of both from their Go modules, once for each content of their files, into a
//! cache outside the checkout; and the words by which a developer starts and ends a lab. What a lab
//! is, and how it leaves nothing behind, is known to the program `e2e/lab` alone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use sha2::{Digest as _, Sha256};

use crate::process::{output, run as run_command};
use crate::{Failure, say};

/// Where labs live, one folder each.
const STATE: &str = "/var/lib/oxidask-lab";
const NAME_DEFAULT: &str = "lab";
/// Builds kept for each kind: checkouts at different commits do not take turns in building.
const BUILDS_KEPT: usize = 3;

const USAGE: &str = "\
usage: cargo xtask lab COMMAND

  up   [--nodes N] [--name NAME]    a Kubernetes of N nodes (default 2); prints its kubeconfig
  down [--name NAME | --all]        ends it and leaves nothing behind, also after a crash
  list                              what is running
  load [--name NAME] IMAGE.tar…     imports OCI archives into every node
  logs [--name NAME]                where the logs are
  enter [--name NAME] PLACE WORD…   runs a command in the network of `hub`, `node-1`, …
  argocd     [--name NAME] up|down  Argo CD in the lab, with a git server
  prometheus [--name NAME] up|down  Prometheus in the lab, with the alerts of the chart";

const PACKAGES_HINT: &str = "hint: apt-get install containerd runc containernetworking-plugins \
                             iptables conntrack iproute2 util-linux git redis-server";

/// The alerts that a Prometheus in a lab is given.
const ALERTS: &str = "charts/oxidask-operator/files/alerts.yaml";

/// The programs that tests on a real Kubernetes need.
pub(crate) struct LabPrograms {
    /// Starts and ends labs; is all of Kubernetes as well.
    pub(crate) lab: PathBuf,
    pub(crate) helm: PathBuf,
    /// The folder of Argo CD and its definitions.
    pub(crate) argocd: PathBuf,
    /// The folder of Prometheus and promtool.
    pub(crate) prometheus: PathBuf,
}

/// Builds what is not yet built, and says where it is.
pub(crate) fn programs(root: &Path) -> Result<LabPrograms, Failure> {
    Ok(LabPrograms {
        lab: built(root, &LAB)?.join("oxidask-lab"),
        helm: helm(root)?,
        argocd: built(root, &ARGOCD)?,
        prometheus: built(root, &PROMETHEUS)?,
    })
}

/// Helm alone, which works on machines that cannot run a lab.
pub(crate) fn helm(root: &Path) -> Result<PathBuf, Failure> {
    Ok(built(root, &HELM)?.join("helm"))
}

/// promtool alone, which checks rules and metrics.
pub(crate) fn promtool(root: &Path) -> Result<PathBuf, Failure> {
    Ok(built(root, &PROMETHEUS)?.join("promtool"))
}

/// The file that leads to a running lab.
pub(crate) fn kubeconfig(name: &str) -> PathBuf {
    Path::new(STATE).join(name).join("kubeconfig")
}

/// Runs a command of the developer.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    let [verb, rest @ ..] = words else {
        return Err(USAGE.into());
    };
    let verbs = [
        "up",
        "down",
        "list",
        "load",
        "logs",
        "enter",
        "argocd",
        "prometheus",
    ];
    if !verbs.contains(verb) {
        return Err(USAGE.into());
    }
    if let Some(reason) = missing() {
        return Err(format!("this machine cannot run a lab: {reason}").into());
    }
    let lab = built(root, &LAB)?.join("oxidask-lab");
    let mut command = Command::new(&lab);
    command.args([verb, "--state", STATE]);
    match *verb {
        "argocd" => {
            command.arg("--programs").arg(built(root, &ARGOCD)?);
            command.arg("--helm").arg(helm(root)?);
        }
        "prometheus" => {
            command.arg("--programs").arg(built(root, &PROMETHEUS)?);
            command.arg("--rules").arg(root.join(ALERTS));
        }
        _ => {}
    }
    run_command(command.args(rest))?;
    if *verb == "up" {
        let name = name_in(rest);
        say!("export KUBECONFIG={}", kubeconfig(name).display());
        say!("helm is {}", helm(root)?.display());
    }
    Ok(())
}

/// Builds the programs and tests what is ours. Only our own packages: to check all that they
/// import, which is Kubernetes, would take as long as to build it.
pub(crate) fn check(root: &Path) -> Result<(), Failure> {
    programs(root)?;
    let module = root.join(LAB.module);
    run_command(go(&module).args(["vet", "./internal/...", "./pause"]))?;
    run_command(go(&module).args(["test", "./internal/..."]))?;
    // With the settings of the build, whose packages are compiled already.
    let scripts = ["test", "-trimpath", "-vet=off", "./customizations"];
    run_command(go(&root.join(ARGOCD.module)).args(scripts))
}

/// The lab that a command line speaks of.
fn name_in<'a>(words: &[&'a str]) -> &'a str {
    let mut name = NAME_DEFAULT;
    for (index, word) in words.iter().enumerate() {
        if let Some(value) = word.strip_prefix("--name=") {
            name = value;
        } else if let ("--name", Some(value)) = (*word, words.get(index + 1)) {
            name = value;
        }
    }
    name
}

/// Why this machine cannot run a lab, if so.
pub(crate) fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("it is not Linux".to_owned());
    }
    if !is_root() {
        return Some("root is needed for namespaces and mounts".to_owned());
    }
    if let Some(reason) = missing_for_build() {
        return Some(reason);
    }
    let needed = [
        "git",
        "redis-server",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
        "iptables",
        "ip",
        "nsenter",
        "unshare",
    ];
    let mut missing: Vec<&str> = needed
        .into_iter()
        .filter(|name| find(name).is_none())
        .collect();
    let cni = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
    if !cni.iter().any(|dir| Path::new(dir).join("ptp").exists()) {
        missing.push("CNI plugins");
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Some(format!("not installed: {missing}\n{PACKAGES_HINT}"));
    }
    // Not of Debian, and so not in the hint above.
    missing_kubectl().or_else(may_not_unshare)
}

/// Why this machine cannot build Helm or the lab, if so.
pub(crate) fn missing_for_build() -> Option<String> {
    let hint = "hint: https://go.dev/dl, at least version 1.26";
    let is_missing = find("go").is_none();
    is_missing.then(|| format!("`go` is not installed\n{hint}"))
}

/// Why this machine cannot check the charts and what is made from them, if so.
pub(crate) fn missing_for_charts() -> Option<String> {
    missing_for_build().or_else(missing_kubectl)
}

fn missing_kubectl() -> Option<String> {
    let hint = "hint: https://kubernetes.io/docs/tasks/tools";
    let is_missing = find("kubectl").is_none();
    is_missing.then(|| format!("`kubectl` is not installed\n{hint}"))
}

/// Root inside a container often may do less than root.
fn may_not_unshare() -> Option<String> {
    output(Command::new("unshare").args(["--mount", "--net", "true"]))
        .err()
        .map(|error| format!("namespaces are refused: {error}"))
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// A program, also in the folders that only root has on its path.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Something that is built from a Go module and kept.
struct Build {
    /// First part of the cache folder's name.
    kind: &'static str,
    /// The module's folder.
    module: &'static str,
    /// Folders inside it that are modules of their own.
    excluded: &'static [&'static str],
    what: &'static str,
    /// Build tags, separated by commas.
    tags: &'static str,
    /// What to build, and the linker's settings: output, package, flags.
    targets: &'static [(&'static str, &'static str, &'static str)],
    /// Files of another module that are kept beside: module, paths.
    files: Option<(&'static str, &'static [&'static str])>,
}

const LAB: Build = Build {
    kind: "lab",
    module: "e2e/lab",
    excluded: &["helm", "argocd", "prometheus"],
    what: "Kubernetes, etcd and CoreDNS: about 9 minutes on 2 cores the first time",
    tags: "",
    targets: &[
        (
            "oxidask-lab",
            ".",
            "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
             -X k8s.io/component-base/version.gitMajor=1 \
             -X k8s.io/component-base/version.gitMinor=36 \
             -X k8s.io/component-base/version.gitTreeState=clean",
        ),
        ("pause", "./pause", "-s -w"),
    ],
    files: None,
};

const HELM: Build = Build {
    kind: "helm",
    module: "e2e/lab/helm",
    excluded: &[],
    what: "Helm: about 4 minutes on 2 cores the first time",
    tags: "",
    targets: &[(
        "helm",
        "helm.sh/helm/v4/cmd/helm",
        "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    )],
    files: None,
};

const ARGOCD: Build = Build {
    kind: "argocd",
    module: "e2e/lab/argocd",
    excluded: &["customizations"],
    what: "Argo CD: about 7 minutes on 2 cores the first time",
    tags: "",
    targets: &[(
        "argocd",
        ".",
        "-s -w -X github.com/argoproj/argo-cd/v3/common.version=v3.2.11",
    )],
    files: Some((
        "github.com/argoproj/argo-cd/v3",
        &[
            "manifests/crds/application-crd.yaml",
            "manifests/crds/appproject-crd.yaml",
        ],
    )),
};

const PROMETHEUS: Build = Build {
    kind: "prometheus",
    module: "e2e/lab/prometheus",
    excluded: &[],
    what: "Prometheus: about 5 minutes on 2 cores the first time",
    // Of all that can tell where pods are, only Kubernetes.
    tags: "remove_all_sd,enable_kubernetes_sd",
    targets: &[
        (
            "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
            "-s -w",
        ),
        (
            "promtool",
            "github.com/prometheus/prometheus/cmd/promtool",
            "-s -w",
        ),
    ],
    files: None,
};

/// The folder with the programs of a build, which is made if need be.
fn built(root: &Path, build: &Build) -> Result<PathBuf, Failure> {
    let cache = cache_dir()?;
    let module = root.join(build.module);
    let key = key(&module, build)?;
    let folder = cache.join(format!("{}-{key}", build.kind));
    if folder.is_dir() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&cache)?;
    // Released with the file, also if this process is killed.
    let lock = File::create(cache.join(format!("{}.lock", build.kind)))?;
    lock.lock()?;
    if folder.is_dir() {
        return Ok(folder);
    }
    say!("building {} …", build.what);
    let began = Instant::now();
    // Complete or not there at all: an interrupted build leaves no folder of that name.
    let unfinished = tempfile::Builder::new()
        .prefix(&format!("{}.unfinished-", build.kind))
        .tempdir_in(&cache)?;
    for (program, package, flags) in build.targets {
        let target = unfinished.path().join(program);
        run_command(
            go(&module)
                .args(["build", "-trimpath", "-buildvcs=false", "-tags", build.tags])
                .args(["-ldflags", flags])
                .arg("-o")
                .arg(target)
                .arg(package),
        )?;
    }
    if let Some((other, paths)) = build.files {
        let list = ["list", "-m", "-f", "{{.Dir}}", other];
        let dir = PathBuf::from(output(go(&module).args(list))?.trim());
        for path in paths {
            let name = Path::new(path).file_name().unwrap_or_default();
            // Written anew, because the files of a module may not be changed.
            std::fs::write(unfinished.path().join(name), std::fs::read(dir.join(path))?)?;
        }
    }
    std::fs::rename(unfinished.keep(), &folder)?;
    say!("built in {} s", began.elapsed().as_secs());
    prune(&cache, build.kind, &folder)?;
    Ok(folder)
}

/// Go with settings that do not depend on the developer's own.
fn go(module: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "");
    command
}

fn cache_dir() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = set("OXIDASK_CACHE_DIR") {
        return Ok(dir.into());
    }
    if let Some(dir) = set("XDG_CACHE_HOME") {
        return Ok(Path::new(&dir).join("oxidask"));
    }
    let home = set("HOME").ok_or("neither OXIDASK_CACHE_DIR nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/oxidask"))
}

/// Names the programs by all that they are made from.
fn key(module: &Path, build: &Build) -> Result<String, Failure> {
    let mut digest = Sha256::new();
    digest.update(output(go(module).arg("version"))?);
    for target in build.targets {
        digest.update(format!("{target:?}"));
    }
    if build.files.is_some() || !build.tags.is_empty() {
        digest.update(format!("{:?} {}", build.files, build.tags));
    }
    for file in sources(module, build.excluded)? {
        let name = file.strip_prefix(module)?.to_string_lossy().into_owned();
        let content = std::fs::read(&file)?;
        digest.update(format!("{name} {}\n", content.len()));
        digest.update(content);
    }
    let first: [u8; 8] = digest.finalize()[..8].try_into()?;
    Ok(format!("{:016x}", u64::from_be_bytes(first)))
}

/// The Go files of a module, in a fixed order. Tests are no part of what is built.
fn sources(module: &Path, excluded: &[&str]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    let mut folders = vec![module.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .map_err(|error| format!("cannot list `{}`: {error}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_go = Path::new(&*name).extension().is_some_and(|it| it == "go");
            if path.is_dir() {
                if excluded.iter().all(|name| path != module.join(name)) {
                    folders.push(path);
                }
            } else if (is_go && !name.ends_with("_test.go")) || name == "go.mod" || name == "go.sum"
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Removes all but the latest builds, and what interrupted ones left. The caller holds the lock.
fn prune(cache: &Path, kind: &str, current: &Path) -> Result<(), Failure> {
    let (finished, unfinished) = (format!("{kind}-"), format!("{kind}.unfinished-"));
    let mut builds: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&unfinished) {
            std::fs::remove_dir_all(entry.path())?;
        } else if name.starts_with(&finished) && entry.path() != current {
            builds.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    builds.sort();
    let surplus = (builds.len() + 1).saturating_sub(BUILDS_KEPT);
    for (_, folder) in builds.into_iter().take(surplus) {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    #[test]
    fn only_what_is_built_counts_as_a_source() {
        let module = tempfile::tempdir().unwrap();
        for name in [
            "go.mod",
            "go.sum",
            "main.go",
            "inner/part.go",
            "inner/part_test.go",
            "README.md",
            "helm/tools.go",
        ] {
            write(module.path(), name, name);
        }
        let names: Vec<_> = sources(module.path(), &["helm"])
            .unwrap()
            .iter()
            .map(|file| {
                let name = file.strip_prefix(module.path()).unwrap();
                name.to_string_lossy().into_owned()
            })
            .collect();
        assert_eq!(names, ["go.mod", "go.sum", "inner/part.go", "main.go"]);
    }

    #[test]
    fn old_and_unfinished_builds_are_removed_and_other_kinds_are_not() {
        let cache = tempfile::tempdir().unwrap();
        for (age, name) in ["lab-4", "lab-3", "lab-2", "lab-1", "lab.unfinished-x"]
            .iter()
            .enumerate()
        {
            write(cache.path(), &format!("{name}/program"), "");
            let time = SystemTime::now() - std::time::Duration::from_secs(60 * age as u64);
            let folder = File::open(cache.path().join(name)).unwrap();
            folder.set_modified(time).unwrap();
        }
        write(cache.path(), "helm-1/helm", "");
        prune(cache.path(), "lab", &cache.path().join("lab-1")).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(cache.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["helm-1", "lab-1", "lab-3", "lab-4"]);
    }

    #[test]
    fn the_lab_is_the_one_that_is_named() {
        assert_eq!(name_in(&[]), "lab");
        assert_eq!(name_in(&["--nodes", "3", "--name", "one"]), "one");
        assert_eq!(name_in(&["--name=two"]), "two");
    }
}

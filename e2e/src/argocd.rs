//! Argo CD in a lab, and the git repository that it reads.
//!
//! Owns both for as long as the value lives. Applications stay in the cluster, where their case
//! deletes them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::kubectl::Kubectl;
use crate::process::{Finished, failure, finish};
use crate::settings::Settings;
use crate::wait::{Seen, until};
use crate::{Outcome, say};

/// Where the repository is for Argo CD.
pub(crate) const REPOSITORY: &str = "git://127.0.0.1:9418/dask";
const NAMESPACE: &str = "argocd";
/// Names the folder of the build of Argo CD; set by `cargo xtask e2e`.
const PROGRAMS: &str = "OXIDASK_E2E_ARGOCD";
const START: Duration = Duration::from_mins(2);
const GIT: Duration = Duration::from_secs(20);

/// What is between the checkout and the bare repository, and a running Argo CD.
#[derive(Debug)]
pub(crate) struct ArgoCd<'a> {
    settings: &'a Settings,
    /// `kubectl` in its namespace.
    pub(crate) kubectl: Kubectl,
    work: tempfile::TempDir,
    bare: PathBuf,
}

impl<'a> ArgoCd<'a> {
    /// Starts it, with our health checks, and with an empty repository.
    pub(crate) fn start(settings: &'a Settings) -> Outcome<Self> {
        let programs = std::env::var_os(PROGRAMS).ok_or_else(|| {
            failure(format!(
                "there is no Argo CD: `{PROGRAMS}` names the folder of its build"
            ))
        })?;
        let mut command = lab(settings);
        command.arg("--programs").arg(programs);
        command.arg("--helm").arg(&settings.helm).arg("up");
        finish(&mut command, None, START)?.succeeded()?;
        let state = settings
            .kubeconfig
            .parent()
            .unwrap_or_else(|| Path::new("/"));
        let argocd = Self {
            settings,
            kubectl: Kubectl::new(settings, NAMESPACE),
            work: tempfile::tempdir()?,
            bare: state.join("argocd/git/dask"),
        };
        for file in ["argocd-cm.yaml", "argocd-cm-applications.yaml"] {
            let file = settings.root.join("deploy/argocd").join(file);
            let file = file.display().to_string();
            let patch = ["patch", "configmap", "argocd-cm", "--patch-file", &file];
            argocd.kubectl.run(&patch)?;
        }
        let bare = argocd.bare.display().to_string();
        argocd.git(&["init", "--quiet", "--bare", "--initial-branch=main", &bare])?;
        argocd.git(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(argocd)
    }

    fn git(&self, arguments: &[&str]) -> Outcome<String> {
        let mut command = Command::new("git");
        command
            .current_dir(self.work.path())
            .env("HOME", self.work.path())
            .args(["-c", "user.name=e2e", "-c", "user.email=e2e@example.org"])
            .args(arguments);
        finish(&mut command, None, GIT)?.succeeded()
    }

    /// Puts a file into the checkout.
    pub(crate) fn write(&self, path: &str, text: &str) -> Outcome {
        let file = self.work.path().join(path);
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        Ok(std::fs::write(file, text)?)
    }

    /// Takes a file out of the checkout.
    pub(crate) fn remove(&self, path: &str) -> Outcome {
        Ok(std::fs::remove_file(self.work.path().join(path))?)
    }

    /// Puts a folder of ours into the checkout, with its texts changed.
    pub(crate) fn copy(&self, path: &str, change: &dyn Fn(&str) -> String) -> Outcome {
        let mut folders = vec![PathBuf::from(path)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(self.settings.root.join(&folder))? {
                let entry = entry?;
                let below = folder.join(entry.file_name());
                if entry.path().is_dir() {
                    folders.push(below);
                } else {
                    let text = std::fs::read_to_string(entry.path())?;
                    self.write(&below.to_string_lossy(), &change(&text))?;
                }
            }
        }
        Ok(())
    }

    /// Publishes the checkout.
    pub(crate) fn push(&self, message: &str) -> Outcome {
        let bare = self.bare.display().to_string();
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", message])?;
        self.git(&["push", "--quiet", &bare, "HEAD:main"]).map(drop)
    }

    /// Lets an application look at the repository now.
    pub(crate) fn refresh(&self, application: &str) -> Outcome {
        let object = format!("application/{application}");
        let mark = "argocd.argoproj.io/refresh=hard";
        self.kubectl
            .run(&["annotate", "--overwrite", &object, mark])
            .map(drop)
    }

    /// An application, with what Argo CD says about it.
    pub(crate) fn application(&self, name: &str) -> Outcome<Value> {
        self.kubectl.get(&format!("application/{name}"))
    }

    /// Waits until an application is as the repository says, and this healthy.
    pub(crate) fn wait(&self, name: &str, health: &str, seconds: u64) -> Outcome<Value> {
        let what = format!("application {name} to be Synced and {health}");
        until(&what, seconds, || {
            let found = self.application(name)?;
            let status = &found["status"];
            if status["sync"]["status"] == "Synced" && status["health"]["status"] == health {
                return Ok(Seen::Done(found));
            }
            Ok(Seen::NotYet(summary(&found)))
        })
    }

    /// Waits until an application is at the newest commit as well.
    pub(crate) fn wait_newest(&self, name: &str, health: &str, seconds: u64) -> Outcome<Value> {
        let head = self.git(&["rev-parse", "HEAD"])?;
        self.refresh(name)?;
        let what = format!("application {name} to be at the newest commit");
        until(&what, seconds, || {
            let found = self.application(name)?;
            let revision = found["status"]["sync"]["revision"].as_str();
            Ok(if revision == Some(head.trim()) {
                Seen::Done(())
            } else {
                Seen::NotYet(summary(&found))
            })
        })?;
        self.wait(name, health, seconds)
    }
}

/// What Argo CD says, in short.
pub(crate) fn summary(application: &Value) -> String {
    let status = &application["status"];
    format!(
        "{} {} {} {}",
        status["sync"]["status"],
        status["health"],
        status["operationState"]["message"],
        status["resources"]
    )
}

/// What Argo CD says about one object of an application.
pub(crate) fn resource<'a>(application: &'a Value, kind: &str) -> Option<&'a Value> {
    let resources = application["status"]["resources"].as_array()?;
    resources.iter().find(|found| found["kind"] == kind)
}

fn lab(settings: &Settings) -> Command {
    let mut command = Command::new(&settings.lab);
    command.args(["argocd", "--name", &settings.lab_name]);
    command
}

impl Drop for ArgoCd<'_> {
    fn drop(&mut self) {
        let mut command = lab(self.settings);
        let down = finish(command.arg("down"), None, START).and_then(Finished::succeeded);
        if let Err(error) = down {
            say!("Argo CD stays in the lab: {error}");
        }
    }
}

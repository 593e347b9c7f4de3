//! A volume on this host for the journal of a scheduler.
//!
//! Owns the folder, the object and the namespace's leave to use folders of a node. Only a cluster
//! whose nodes are on this host can use it. Invariant: gone when the value is dropped.

use std::os::unix::fs::chown;

use serde_json::json;
use tempfile::TempDir;

use crate::kubectl::Kubectl;
use crate::{Outcome, namespace};

/// Who runs in the pods.
const USER: u32 = 65_532;

/// A volume for one claim.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    kubectl: &'a Kubectl,
    /// Its name, and that of its class.
    pub(crate) name: String,
    // Removed after the object.
    _folder: TempDir,
}

impl<'a> Volume<'a> {
    /// Makes it for the namespace.
    pub(crate) fn create(kubectl: &'a Kubectl) -> Outcome<Self> {
        namespace::allow_host_folders(kubectl)?;
        let folder = tempfile::tempdir()?;
        chown(folder.path(), Some(USER), Some(USER))?;
        // A name and a class of its own: no other claim takes it.
        let name = format!("journal-{}", kubectl.namespace());
        let volume = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": name,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": folder.path(), "type": "Directory"},
            },
        });
        kubectl.create(&volume.to_string())?;
        Ok(Self {
            kubectl,
            name,
            _folder: folder,
        })
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        let arguments = ["delete", "persistentvolume", &self.name, "--wait=false"];
        // The lab ends anyway; elsewhere the name says whose it was.
        let _ = self.kubectl.run(&arguments);
    }
}

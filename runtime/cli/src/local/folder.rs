//! The private folder of one local cluster: certificates, journal and scratch space.
//!
//! Owns its creation, its lock and its removal. A folder without a living owner (its lock is free)
//! is what a killed run left behind; the next start removes it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oxidask_identity::Role;
use oxidask_pki::Authority;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::tokens;
use crate::error::CliError;

const PREFIX: &str = "oxidask-local-";
const LOCK: &str = "lock";
/// What clients of Python read; see `python/oxidask/_finding.py`.
const CLUSTER: &str = "cluster.json";
/// Certificates of a local cluster end with it, or after this long.
const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// Folders looked at when stale ones are removed; the rest waits for the next start.
const STALE_MAX: usize = 1_024;

/// The folder, mode 0700; removed when dropped.
#[derive(Debug)]
pub(crate) struct RunFolder {
    folder: TempDir,
    // Held until the folder is gone.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder with certificates for all roles, and removes stale ones of others.
    pub(crate) fn create(cluster: &str) -> Result<Self, CliError> {
        remove_stale(&std::env::temp_dir());
        let folder = Self::create_empty()
            .map_err(|error| CliError::start("the temporary folder cannot be made", &error))?;
        folder.write_certificates(cluster)?;
        tokens::create(folder.path())
            .map_err(|error| CliError::start("the tokens for HTTP cannot be made", &error))?;
        Ok(folder)
    }

    fn create_empty() -> io::Result<Self> {
        let owner_only = Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(owner_only)
            .tempdir()?;
        // Locked before it gets its name: whoever sees the name sees the lock.
        let draft = folder.path().join("lock.new");
        let lock = File::create(&draft)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        fs::rename(&draft, folder.path().join(LOCK))?;
        fs::create_dir(folder.path().join("scratch"))?;
        fs::create_dir(folder.path().join("journal"))?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    fn write_certificates(&self, cluster: &str) -> Result<(), CliError> {
        let failed = |error: oxidask_pki::PkiError| CliError::from_failure(&error);
        let authority = Authority::new("local", cluster).map_err(failed)?;
        for role in [Role::Scheduler, Role::Worker, Role::Client] {
            let folder = self.certificates(role);
            fs::create_dir(&folder)
                .map_err(|error| CliError::start("the temporary folder cannot be used", &error))?;
            authority
                .write_dir(&folder, role, CERTIFICATE_LIFETIME)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Says where the cluster is, for clients of the same user on this machine. It goes with the
    /// folder.
    pub(crate) fn announce(&self, address: &str) -> io::Result<()> {
        let tls_dir = self.certificates(Role::Client).display().to_string();
        let text = serde_json::json!({"address": address, "tls_dir": tls_dir}).to_string();
        // Whole or not there at all: others may be looking.
        let draft = self.path().join("cluster.json.new");
        fs::write(&draft, text)?;
        fs::set_permissions(&draft, Permissions::from_mode(0o600))?;
        fs::rename(draft, self.path().join(CLUSTER))
    }

    /// The folder with the certificates of a role.
    pub(crate) fn certificates(&self, role: Role) -> PathBuf {
        self.path().join(role.to_string())
    }

    /// Where the scheduler keeps its journal, from one start to the next.
    pub(crate) fn journal(&self) -> PathBuf {
        self.path().join("journal")
    }

    /// An empty scratch folder for a worker.
    pub(crate) fn scratch(&self, worker: &str) -> io::Result<PathBuf> {
        let path = self.path().join("scratch").join(worker);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&path)?,
        }
        Ok(path)
    }
}

/// Removes folders whose owner has ended without doing so.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let ours = entries.flatten().filter(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX))
    });
    for entry in ours.take(STALE_MAX) {
        // Another user's folder cannot be opened, one that is just being made has no lock yet.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_without_an_owner_are_stale() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = parent.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&folder).unwrap();
            (File::create(folder.join(LOCK)).unwrap(), folder)
        };
        let (lock, alive) = make("alive");
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let (_, dead) = make("dead");
        let begun = parent.path().join(format!("{PREFIX}begun"));
        fs::create_dir(&begun).unwrap();
        remove_stale(parent.path());
        assert!(alive.exists());
        assert!(begun.exists());
        assert!(!dead.exists());
    }

    #[test]
    fn clients_find_address_and_certificates() {
        let folder = RunFolder::create_empty().unwrap();
        folder.announce("oxidask://127.0.0.1:1").unwrap();
        let file = folder.path().join(CLUSTER);
        let said: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(said["address"], "oxidask://127.0.0.1:1");
        let tls_dir = folder.certificates(Role::Client);
        assert_eq!(said["tls_dir"].as_str(), tls_dir.to_str());
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_folder_is_private() {
        let folder = RunFolder::create_empty().unwrap();
        let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}

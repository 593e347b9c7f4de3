//! The files of a folder that a process is given with `--tls-dir`.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use oxidask_identity::Role;

use crate::{Authority, Lifetime, PkiError};

/// The bundle of authorities that are trusted.
pub const AUTHORITY_FILE: &str = "ca.crt";
/// The process's own certificate.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// Its private key.
pub const KEY_FILE: &str = "tls.key";

const FOLDER_MODE: u32 = 0o700;
const KEY_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;

impl Authority {
    /// Issues a certificate and writes it with its key and the bundle into `dir`, which is made
    /// if it is not there. Existing files are replaced.
    pub fn write_dir(
        &self,
        dir: &Path,
        role: Role,
        lifetime: impl Into<Lifetime>,
    ) -> Result<(), PkiError> {
        let leaf = self.issue(role, lifetime)?;
        if !dir.is_dir() {
            fs::create_dir_all(dir).map_err(|source| failed(dir, source))?;
            let permissions = Permissions::from_mode(FOLDER_MODE);
            fs::set_permissions(dir, permissions).map_err(|source| failed(dir, source))?;
        }
        write(&dir.join(AUTHORITY_FILE), &self.ca_pem(), PUBLIC_MODE)?;
        write(&dir.join(CERTIFICATE_FILE), &leaf.cert_pem, PUBLIC_MODE)?;
        write(&dir.join(KEY_FILE), &leaf.key_pem, KEY_MODE)
    }
}

// Removed first: the mode of a file that exists would stay as it is.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed(path, source));
        }
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: std::io::Error) -> PkiError {
    PkiError::Write {
        path: path.display().to_string(),
        source,
    }
}

//! The build context of an image: a folder with exactly what its Dockerfile copies.
//!
//! Owns the files beside the binary: licence, root certificates, `/tmp`, sample data. Modes are set
//! here, whatever the developer's umask is.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Definition, at};
use crate::Failure;

const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
const PROGRAM_MODE: u32 = 0o755;
const TEMPORARY_MODE: u32 = 0o1777;

/// Characters in a line of a PEM file.
const PEM_COLUMNS: usize = 64;

/// Makes the context anew.
pub(super) fn write(
    root: &Path,
    definition: &Definition,
    binary: &Path,
    context: &Path,
) -> Result<(), Failure> {
    if context.exists() {
        std::fs::remove_dir_all(context).map_err(at(context))?;
    }
    folder(context, FOLDER_MODE)?;
    let system = context.join("system");
    folder(&system, FOLDER_MODE)?;
    folder(&system.join("tmp"), TEMPORARY_MODE)?;
    file(&root.join("LICENSE"), &system.join("LICENSE"), FILE_MODE)?;
    if definition.has_certificates {
        certificates(&system)?;
    }
    if let Some(data) = definition.data {
        sample(&root.join(data), &context.join("data"))?;
    }
    file(binary, &context.join(definition.binary), PROGRAM_MODE)
}

/// The root certificates of Mozilla, where every TLS library looks first on Debian.
///
/// From the crate that `Cargo.lock` pins, not from the building machine: the same on every machine.
fn certificates(system: &Path) -> Result<(), Failure> {
    let mut path = system.to_owned();
    for part in ["etc", "ssl", "certs"] {
        path.push(part);
        folder(&path, FOLDER_MODE)?;
    }
    let mut bundle = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let encoded = STANDARD.encode(certificate);
        bundle.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in encoded.as_bytes().chunks(PEM_COLUMNS) {
            writeln!(bundle, "{}", std::str::from_utf8(line)?)?;
        }
        bundle.push_str("-----END CERTIFICATE-----\n");
    }
    let path = path.join("ca-certificates.crt");
    std::fs::write(&path, bundle).map_err(at(&path))?;
    set_mode(&path, FILE_MODE)
}

fn sample(source: &Path, target: &Path) -> Result<(), Failure> {
    folder(target, FOLDER_MODE)?;
    for entry in std::fs::read_dir(source).map_err(at(source))? {
        let entry = entry.map_err(at(source))?;
        file(&entry.path(), &target.join(entry.file_name()), FILE_MODE)?;
    }
    Ok(())
}

fn folder(path: &Path, mode: u32) -> Result<(), Failure> {
    std::fs::create_dir_all(path).map_err(at(path))?;
    set_mode(path, mode)
}

fn file(source: &Path, target: &Path, mode: u32) -> Result<(), Failure> {
    std::fs::copy(source, target).map_err(at(source))?;
    set_mode(target, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_holds_every_root_certificate_once() {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path()).unwrap();
        let bundle = folder.path().join("etc/ssl/certs/ca-certificates.crt");
        let text = std::fs::read_to_string(bundle).unwrap();
        let blocks: Vec<&str> = text
            .split_inclusive("-----END CERTIFICATE-----\n")
            .collect();
        let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
        assert_eq!(blocks.len(), roots.len());
        assert!(roots.len() > 100);
        for (block, root) in blocks.iter().zip(roots) {
            let lines: String = block
                .lines()
                .filter(|line| !line.starts_with("-----"))
                .collect();
            assert_eq!(STANDARD.decode(lines).unwrap(), root.as_ref());
        }
    }
}

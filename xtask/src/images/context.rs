//! The build context of an image: a folder with exactly what its Dockerfile copies.
//!
//! Owns the files beside the binary: licence, root certificates, `/tmp`, sample data, the unpacked
//! wheel of the Python package. Modes are set here, whatever the developer's umask is.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Definition, at};
use crate::Failure;
use crate::process::run as run_command;

const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
const PROGRAM_MODE: u32 = 0o755;
const TEMPORARY_MODE: u32 = 0o1777;

/// Characters in a line of a PEM file.
const PEM_COLUMNS: usize = 64;

/// What was built for an image.
pub(super) struct Parts<'a> {
    /// Its program.
    pub(super) binary: &'a Path,
    /// The Python package.
    pub(super) wheel: Option<&'a Path>,
}

/// Makes the context anew.
pub(super) fn write(
    root: &Path,
    definition: &Definition,
    parts: &Parts<'_>,
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
    if let Some(wheel) = parts.wheel {
        let target = context.join("python");
        folder(&target, FOLDER_MODE)?;
        unpack(wheel, &target)?;
        set_modes(&target)?;
    }
    file(parts.binary, &context.join(definition.binary), PROGRAM_MODE)
}

/// A wheel is an archive that Python can unpack; nothing in ours has to be moved.
fn unpack(wheel: &Path, target: &Path) -> Result<(), Failure> {
    let mut command = Command::new("python3");
    command.args(["-m", "zipfile", "-e"]).arg(wheel).arg(target);
    run_command(&mut command)
}

fn set_modes(path: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(path).map_err(at(path))? {
        let entry = entry.map_err(at(path))?;
        if entry.file_type().map_err(at(path))?.is_dir() {
            set_mode(&entry.path(), FOLDER_MODE)?;
            set_modes(&entry.path())?;
        } else {
            set_mode(&entry.path(), FILE_MODE)?;
        }
    }
    Ok(())
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
pub(super) mod tests {
    use super::*;

    /// A wheel with a package and a program of its own.
    pub(in crate::images) fn pack_wheel(wheel: &Path) {
        let program = "import sys, zipfile\n\
            archive = zipfile.ZipFile(sys.argv[1], 'w')\n\
            archive.writestr('oxidask/__init__.py', 'a = 1\\n')\n\
            archive.writestr('oxidask-0.dist-info/entry_points.txt', '[a]\\n')\n\
            archive.close()\n";
        let mut command = Command::new("python3");
        run_command(command.args(["-c", program]).arg(wheel)).unwrap();
    }

    #[test]
    fn a_wheel_is_unpacked_with_modes_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("oxidask-0-py3-none-any.whl");
        pack_wheel(&wheel);
        let target = folder.path().join("python");
        std::fs::create_dir(&target).unwrap();
        unpack(&wheel, &target).unwrap();
        set_modes(&target).unwrap();
        let mode = |path: &str| {
            let metadata = std::fs::metadata(target.join(path)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!(mode("oxidask"), FOLDER_MODE);
        assert_eq!(mode("oxidask/__init__.py"), FILE_MODE);
        assert_eq!(mode("oxidask-0.dist-info/entry_points.txt"), FILE_MODE);
    }

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

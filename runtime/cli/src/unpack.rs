//! `oxidask unpack`: this program and its Python package, copied into a folder.
//!
//! Owns the copy. An init container of the runtime's image, which has no shell and no `cp`, runs it
//! to bring both into a pod whose image is the user's own.

use std::fs;
use std::io;
use std::path::Path;

use oxidask_diagnostic::{Code, Diagnostic};

use crate::arguments::UnpackArguments;
use crate::error::CliError;
use crate::python;

/// Folders below each other in the package.
const DEPTH_MAX: usize = 32;

/// Copies, over what an earlier start of the container may have left.
pub(crate) fn unpack(arguments: &UnpackArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    let failed = |error: io::Error| {
        let message = format!("`{}` cannot be filled", folder.display());
        CliError::failed(Diagnostic::new(Code::WorkerDisk, message).with_cause(error.to_string()))
    };
    fs::create_dir_all(folder).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    // In one step: nobody ever sees a part of it.
    let draft = folder.join("oxidask.new");
    fs::copy(program, &draft).map_err(failed)?;
    fs::rename(&draft, folder.join("oxidask")).map_err(failed)?;
    match python::package() {
        Some(package) => copy(&package, &folder.join("python"), DEPTH_MAX).map_err(failed),
        None => Ok(()),
    }
}

fn copy(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("the folders are too deep"));
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, depth - 1)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_copied_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a").join("b");
        let arguments = UnpackArguments {
            folder: target.clone(),
        };
        for _ in 0..2 {
            unpack(&arguments).unwrap();
            let own = std::env::current_exe().unwrap();
            let copied = fs::metadata(target.join("oxidask")).unwrap();
            assert_eq!(copied.len(), fs::metadata(own).unwrap().len());
            assert!(!target.join("oxidask.new").exists());
        }
    }

    #[test]
    fn a_package_is_copied_with_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("oxidask/_executor")).unwrap();
        fs::write(from.join("oxidask/_executor/a.py"), "a = 1").unwrap();
        copy(&from, &to, DEPTH_MAX).unwrap();
        let copied = fs::read_to_string(to.join("oxidask/_executor/a.py")).unwrap();
        assert_eq!(copied, "a = 1");
        assert!(copy(&from, &to, 1).is_err());
    }
}

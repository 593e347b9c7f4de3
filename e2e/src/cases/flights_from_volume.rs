//! The example that writes: data from a folder of the nodes, results into it.

use std::os::unix::fs::chown;
use std::path::Path;

use crate::case::{Case, Context};
use crate::cases::flights_from_image::{check_progress, local_rows};
use crate::dask::{JOB_SECONDS_MAX, expect_rows, rows, runner_log, wait_job};
use crate::process::failure;
use crate::{Outcome, namespace};

pub(crate) const CASE: Case = Case {
    name: "flights_from_volume",
    about: "examples/flights/clean.yaml with its data on a hostPath volume, where its results are",
    run,
};

const FOLDER: &str = "examples/flights";
const FILE: &str = "clean.yaml";
const NAME: &str = "flights-clean";
/// Who runs in the pods.
const USER: u32 = 65_532;

fn run(context: &Context) -> Outcome {
    let kubectl = &context.kubectl;
    namespace::allow_host_folders(kubectl)?;
    let example = context.settings.root.join(FOLDER);
    // Nodes of a lab are on this host and see its folders.
    let scratch = tempfile::tempdir()?;
    let volume = scratch.path().join("volume");
    copy(&example.join("data"), &volume.join("data"))?;
    std::fs::create_dir_all(volume.join("out"))?;
    own(&volume)?;
    let manifest = std::fs::read_to_string(example.join(FILE))?;
    kubectl.apply(&on_host(&manifest, &volume)?)?;
    wait_job(kubectl, NAME, "Successful", JOB_SECONDS_MAX)?;
    let log = runner_log(kubectl, NAME)?;
    check_progress(&log)?;
    let written = std::fs::read_dir(volume.join("out"))?.count();
    if written == 0 {
        return Err(failure("nothing was written to the volume"));
    }
    // The same file, locally, in a folder of its own: it writes beside itself.
    let local = scratch.path().join("local");
    copy(&example.join("data"), &local.join("data"))?;
    std::fs::write(local.join(FILE), &manifest)?;
    let local = local.join(FILE).display().to_string();
    expect_rows(&rows(&log)?, &local_rows(context, &local)?)
}

/// The manifest with its hostPath at another folder.
fn on_host(manifest: &str, folder: &Path) -> Outcome<String> {
    const KEY: &str = "path: ";
    let place = manifest
        .find("hostPath:")
        .and_then(|at| Some(at + manifest[at..].find(KEY)? + KEY.len()))
        .ok_or_else(|| failure("the manifest has no hostPath"))?;
    let rest = &manifest[place..];
    let end = rest.find([',', '}', '\n', ' ']).unwrap_or(rest.len());
    Ok(format!(
        "{}{}{}",
        &manifest[..place],
        folder.display(),
        &rest[end..]
    ))
}

fn copy(from: &Path, to: &Path) -> Outcome {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn own(path: &Path) -> Outcome {
    chown(path, Some(USER), Some(USER))?;
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            own(&entry?.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_changes() {
        let folder = Path::new("/tmp/x");
        for (before, after) in [
            (
                "a: {hostPath: {path: /data}, b: c}",
                "a: {hostPath: {path: /tmp/x}, b: c}",
            ),
            (
                "hostPath:\n  path: /data # here\n  type: Directory",
                "hostPath:\n  path: /tmp/x # here\n  type: Directory",
            ),
        ] {
            assert_eq!(on_host(before, folder).unwrap(), after);
        }
        assert!(on_host("path: /data", folder).is_err());
    }
}

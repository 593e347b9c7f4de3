//! Has buildah carry out the Dockerfiles and compares its images with ours.
//!
//! Owns the comparison: every file with mode, owner and content, and the configuration. Times are
//! left out: only ours are fixed. Our archives are loaded by buildah too, which proves that another
//! program can read them. Buildah's storage is a temporary folder that is gone afterwards.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{DEFINITIONS, Definition, ImageArchive, VERSION, at, build, context_dir, layer};
use crate::process::output;
use crate::{Failure, say};

/// More differences than these say nothing more.
const DIFFERENCES_MAX: usize = 20;

/// What buildah adds on its own.
const LABEL_OF_BUILDAH: &str = "io.buildah.version";

/// Why the check cannot run on this machine, if it cannot.
pub(crate) fn missing_for_check() -> Option<&'static str> {
    let has_buildah = Command::new("buildah").arg("--version").output().is_ok();
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    match (has_buildah, is_root) {
        (false, _) => Some("buildah is not installed"),
        (true, false) => Some("buildah needs root here"),
        (true, true) => None,
    }
}

/// Builds each image from its Dockerfile by buildah; fails unless it is the same image as ours.
pub(crate) fn check_dockerfiles(root: &Path) -> Result<(), Failure> {
    for archive in build(root)? {
        let definition = DEFINITIONS
            .iter()
            .find(|definition| definition.name == archive.name);
        let definition = definition.ok_or("an archive has no definition")?;
        let folder = archive.path.parent().ok_or("an archive has no folder")?;
        let storage = Storage::new(folder)?;
        let differences = compare(root, definition, &archive, folder, &storage);
        storage.clear()?;
        let differences = differences?;
        if !differences.is_empty() {
            let shown = &differences[..differences.len().min(DIFFERENCES_MAX)];
            let shown = shown.join("\n  ");
            return Err(format!("{} differs from its Dockerfile:\n  {shown}", archive.name).into());
        }
        say!("{} is what buildah makes of its Dockerfile", archive.name);
    }
    Ok(())
}

fn compare(
    root: &Path,
    definition: &Definition,
    archive: &ImageArchive,
    folder: &Path,
    storage: &Storage,
) -> Result<Vec<String>, Failure> {
    let dockerfile = definition.dockerfile(root);
    let version = format!("VERSION={VERSION}");
    output(
        storage
            .buildah()
            .args(["bud", "--isolation", "chroot", "--tag", "localhost/theirs"])
            .args(["--build-arg", "BASE=scratch", "--build-arg", &version])
            .arg("--file")
            .arg(dockerfile)
            .arg(context_dir(folder, definition)),
    )?;
    let source = format!("oci-archive:{}", archive.path.display());
    let ours = output(storage.buildah().args(["pull", "--quiet", &source]))?;
    let theirs = storage.describe("localhost/theirs")?;
    let ours = storage.describe(ours.trim())?;
    Ok(differences(&ours, &theirs))
}

/// Lines that only one of the two has, or has otherwise.
fn differences(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) -> Vec<String> {
    let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    names.sort();
    names.dedup();
    let text = |side: &BTreeMap<String, String>, name: &String| {
        side.get(name)
            .cloned()
            .unwrap_or_else(|| "nothing".to_owned())
    };
    names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            format!(
                "{name}: {} here, {} there",
                text(ours, name),
                text(theirs, name)
            )
        })
        .collect()
}

/// Images and containers of buildah, apart from those of the machine.
struct Storage {
    folder: TempDir,
}

impl Storage {
    fn new(parent: &Path) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("buildah-")
            .tempdir_in(parent);
        Ok(Self {
            folder: folder.map_err(at(parent))?,
        })
    }

    /// `vfs` copies instead of mounting: it works everywhere and leaves no mount behind.
    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(self.folder.path().join("root"))
            .arg("--runroot")
            .arg(self.folder.path().join("run"))
            .args(["--storage-driver", "vfs"]);
        command
    }

    /// Every file and every part of the configuration, as text.
    fn describe(&self, image: &str) -> Result<BTreeMap<String, String>, Failure> {
        let inspected = output(self.buildah().args(["inspect", "--type", "image", image]))?;
        let inspected: Value = serde_json::from_str(&inspected)?;
        let mut lines = configuration(&inspected["OCIv1"]);
        let container = output(self.buildah().args(["from", "--pull-never", image]))?;
        let mounted = output(self.buildah().args(["mount", container.trim()]))?;
        files(&PathBuf::from(mounted.trim()), "", &mut lines)?;
        output(self.buildah().args(["rm", container.trim()]))?;
        Ok(lines)
    }

    fn clear(self) -> Result<(), Failure> {
        output(self.buildah().args(["rm", "--all"]))?;
        let path = self.folder.path().to_owned();
        self.folder.close().map_err(at(&path))
    }
}

fn configuration(image: &Value) -> BTreeMap<String, String> {
    let config = &image["config"];
    let mut labels = config["Labels"].clone();
    if let Some(labels) = labels.as_object_mut() {
        labels.remove(LABEL_OF_BUILDAH);
        labels.sort_keys();
    }
    let mut lines = BTreeMap::from([
        ("config Labels".to_owned(), labels.to_string()),
        ("architecture".to_owned(), image["architecture"].to_string()),
        ("os".to_owned(), image["os"].to_string()),
    ]);
    for name in [
        "User",
        "Env",
        "Entrypoint",
        "Cmd",
        "WorkingDir",
        "ExposedPorts",
        "Volumes",
    ] {
        // Builders leave out what is empty, or write it as null.
        let value = if config[name].is_null() {
            json!([])
        } else {
            config[name].clone()
        };
        lines.insert(format!("config {name}"), value.to_string());
    }
    lines
}

fn files(folder: &Path, above: &str, lines: &mut BTreeMap<String, String>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let name = format!(
            "{above}/{}",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        let metadata = std::fs::symlink_metadata(&path).map_err(at(&path))?;
        let kind = if metadata.is_dir() {
            files(&path, &name, lines)?;
            "folder".to_owned()
        } else if metadata.is_file() {
            layer::digest(&std::fs::read(&path).map_err(at(&path))?)
        } else {
            "neither file nor folder".to_owned()
        };
        let mode = metadata.permissions().mode() & 0o7777;
        let owner = format!("{}:{}", metadata.uid(), metadata.gid());
        lines.insert(name, format!("{kind} {mode:04o} {owner}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_on_either_side_is_told() {
        let side = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect()
        };
        let ours = side(&[("/a", "1"), ("/b", "2"), ("/same", "3")]);
        let theirs = side(&[("/b", "4"), ("/c", "5"), ("/same", "3")]);
        assert_eq!(
            differences(&ours, &theirs),
            [
                "/a: 1 here, nothing there",
                "/b: 2 here, 4 there",
                "/c: nothing here, 5 there",
            ]
        );
    }
}

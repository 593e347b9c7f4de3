//! The image with stock Dask that the lab's cases run: Debian's Python and Dask's own packages. It is
//! both what clusters of stock Dask run and an image of a user's into which the runtime brings its
//! program: nothing of ours is in it.
//!
//! Owns what is in it. Made once for each list of packages, in the user's folder for caches. Only
//! for tests: people use the images of the Dask project, whose name it carries in the lab.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::archive::{self, Image};
use super::at;
use super::dockerfile::{Recipe, Step};
use super::layer::Layer;
use crate::bench::python;
use crate::process::run as run_command;
use crate::{Failure, say};

/// As manifests of dask-kubernetes have it.
const REFERENCE: &str = "docker.io/dask/dask:latest";

/// The release of Debian; its Python is that of [`SITE`].
const SUITE: &str = "bookworm";

/// Where Debian's Python looks for packages that are not Debian's.
const SITE: &str = "usr/local/lib/python3.11/dist-packages";

/// Its packages.
const PACKAGES: &[&str] = &["dask==2026.8.0", "distributed==2026.8.0", "numpy==2.4.6"];

/// Seconds that one step may take.
const STEP_SECONDS_MAX: &str = "600";

/// The programs that manifests call, with the modules that they are.
const PROGRAMS: [(&str, &str); 3] = [
    ("dask", "dask.cli import run_cli as main"),
    (
        "dask-scheduler",
        "distributed.cli.dask_scheduler import main",
    ),
    ("dask-worker", "distributed.cli.dask_worker import main"),
];

/// Changes with this recipe.
const RECIPE: &str = "2";

/// Why this machine cannot make it.
pub(crate) fn missing() -> Option<String> {
    let is_there = |program: &str| {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    let programs = ["mmdebstrap", "python3", "tar"];
    let missing = programs.into_iter().find(|program| !is_there(program));
    missing.map(|program| format!("{program} is not installed"))
}

/// The archive.
pub(crate) fn build() -> Result<PathBuf, Failure> {
    let folder = python::cache_dir()?.join(folder_name());
    let archive = folder.join("dask.tar");
    if archive.exists() {
        return Ok(archive);
    }
    if let Some(reason) = missing() {
        return Err(format!("the image with stock Dask cannot be made: {reason}").into());
    }
    say!("making the image with stock Dask in {} …", folder.display());
    std::fs::create_dir_all(&folder).map_err(at(&folder))?;
    // On the same disk, and gone at the end whatever happens.
    let work = tempfile::tempdir_in(&folder)?;
    let root = work.path().join("root");
    file_system(&root)?;
    let packed = work.path().join("layer.tar");
    pack(&root, &packed)?;
    let layer = Layer::packed(&std::fs::read(&packed).map_err(at(&packed))?)?;
    let image = Image {
        reference: REFERENCE.to_owned(),
        architecture: architecture()?,
        recipe: Recipe {
            working_dir: "/".to_owned(),
            history: vec![Step {
                text: format!("Debian {SUITE}, {}", PACKAGES.join(", ")),
                has_layer: true,
            }],
            ..Recipe::default()
        },
        layers: vec![layer],
    };
    Ok(archive::write("dask", &image, &folder)?.path)
}

fn folder_name() -> String {
    let text = format!("{RECIPE} {SUITE} {}", PACKAGES.join(" "));
    let digest = Sha256::digest(text.as_bytes());
    let digest = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
    format!("dask-image-{}", digest.collect::<String>())
}

fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args([STEP_SECONDS_MAX, program]);
    command
}

fn file_system(root: &Path) -> Result<(), Failure> {
    let mut debian = bounded("mmdebstrap");
    debian.args(["--quiet", "--variant=minbase", "--include=python3"]);
    for folder in ["doc", "man", "locale"] {
        debian.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    run_command(debian.arg(SUITE).arg(root))?;
    let mut pip = bounded("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-compile"]);
    pip.args(["--disable-pip-version-check", "--root-user-action=ignore"]);
    // For the image's Python, whatever runs pip.
    pip.args([
        "--python-version",
        "3.11",
        "--only-binary=:all:",
        "--target",
    ]);
    run_command(pip.arg(root.join(SITE)).args(PACKAGES))?;
    std::os::unix::fs::symlink("python3", root.join("usr/bin/python"))?;
    for (program, main) in PROGRAMS {
        let path = root.join("usr/local/bin").join(program);
        // Guarded, because processes that these start read the program as a module first.
        let text =
            format!("#!/usr/bin/python3\nfrom {main}\nif __name__ == \"__main__\":\n    main()\n");
        std::fs::write(&path, text).map_err(at(&path))?;
        run_command(Command::new("chmod").arg("755").arg(&path))?;
    }
    Ok(())
}

fn pack(root: &Path, packed: &Path) -> Result<(), Failure> {
    let mut tar = bounded("tar");
    tar.args(["--sort=name", "--mtime=@0", "--numeric-owner"]);
    for left_out in [
        "./dev/*",
        "./var/cache/*",
        "./var/lib/apt/lists/*",
        "./var/log/*",
    ] {
        tar.arg(format!("--exclude={left_out}"));
    }
    run_command(tar.arg("-cf").arg(packed).arg("-C").arg(root).arg("."))
}

fn architecture() -> Result<&'static str, Failure> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(format!("no image can be made for `{other}`").into()),
    }
}

//! `cargo xtask images`: the two images as OCI archives, without Docker and without a registry.
//!
//! Owns the list of the images and what lies in each build context. What an image is made of stands
//! in `images/*/Dockerfile` alone: this module carries out the few instructions used there. The same
//! binaries, data and Dockerfile give the same digest, on every machine.

mod archive;
mod check;
mod context;
pub(crate) mod dask;
mod dockerfile;
mod filesystem;
mod layer;
mod tar;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{binaries_dir, cargo, run as run_command};
use crate::{Failure, dist, say, wheel};

pub(crate) use check::{check_dockerfiles, missing_for_check};

/// The version of every crate of the workspace, and of the images.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The registry and folder that manifests and charts name by default.
const DEFAULT_PREFIX: &str = "docker.io/oxidask";

/// One image: which binary it holds and what else lies in its build context.
struct Definition {
    /// Its name, and that of its archive and context.
    name: &'static str,
    /// The folder of the Dockerfile below `images/`.
    folder: &'static str,
    /// The cargo package that builds the binary.
    package: &'static str,
    binary: &'static str,
    /// Whether it speaks to servers outside the cluster.
    has_certificates: bool,
    /// A folder of the checkout that becomes `data/` of the context.
    data: Option<&'static str>,
    /// Whether the Python package lies in it, as `python/` of the context.
    has_python: bool,
}

const DEFINITIONS: &[Definition] = &[
    Definition {
        name: "oxidask-operator",
        folder: "operator",
        package: "oxidask-operator",
        binary: "oxidask-operator",
        has_certificates: false,
        data: None,
        has_python: false,
    },
    Definition {
        name: "oxidask-runtime",
        folder: "runtime",
        package: "oxidask",
        binary: "oxidask",
        has_certificates: true,
        data: Some("examples/flights/data"),
        has_python: true,
    },
];

impl Definition {
    fn dockerfile(&self, root: &Path) -> PathBuf {
        root.join("images").join(self.folder).join("Dockerfile")
    }
}

/// An image that lies on disk as an OCI archive.
pub(crate) struct ImageArchive {
    /// `oxidask-runtime` or `oxidask-operator`.
    pub(crate) name: &'static str,
    /// The whole reference that the archive carries, with registry and tag.
    pub(crate) reference: String,
    /// The digest of the manifest, `sha256:…`.
    pub(crate) digest: String,
    /// The archive.
    pub(crate) path: PathBuf,
    /// What a registry stores and a node loads.
    pub(crate) bytes_compressed: u64,
    /// What a node keeps on disk.
    pub(crate) bytes_unpacked: u64,
}

struct Options<'a> {
    output: Option<PathBuf>,
    profile: &'a str,
    push: Option<&'a str>,
}

/// Builds, and prints each image with digest and sizes; with `--push` also copies them to a registry.
/// With `--dask` alone, makes the image with stock Dask that the lab runs.
/// With `--check` alone, compares them with what buildah makes of the Dockerfiles.
pub(crate) fn run(root: &Path, words: &[&str]) -> Result<(), Failure> {
    if words == ["--check"] {
        return match missing_for_check() {
            Some(reason) => Err(reason.into()),
            None => check_dockerfiles(root),
        };
    }
    if words == ["--dask"] {
        say!("{}", dask::build()?.display());
        return Ok(());
    }
    let options = options(words)?;
    let archives = build_with(root, options.profile, options.output.as_deref())?;
    for image in &archives {
        say!("{}", image.reference);
        say!("  digest      {}", image.digest);
        say!(
            "  compressed  {:>6.1} MB",
            megabytes(image.bytes_compressed)
        );
        say!("  unpacked    {:>6.1} MB", megabytes(image.bytes_unpacked));
        say!("  archive     {}", image.path.display());
    }
    match options.push {
        Some(prefix) => archives.iter().try_for_each(|image| push(image, prefix)),
        None => Ok(()),
    }
}

/// Builds both images from release binaries, into `images` of the target folder.
pub(crate) fn build(root: &Path) -> Result<Vec<ImageArchive>, Failure> {
    build_with(root, "release", None)
}

fn options<'a>(words: &[&'a str]) -> Result<Options<'a>, Failure> {
    let mut options = Options {
        output: None,
        profile: "release",
        push: None,
    };
    let mut rest = words;
    loop {
        rest = match rest {
            [] => return Ok(options),
            ["--output", folder, rest @ ..] => {
                options.output = Some(std::path::absolute(folder)?);
                rest
            }
            ["--profile", profile @ ("release" | "dist"), rest @ ..] => {
                options.profile = profile;
                rest
            }
            ["--push", prefix, rest @ ..] => {
                options.push = Some(prefix.trim_end_matches('/'));
                rest
            }
            _ => {
                return Err(
                    "usage: cargo xtask images [--output DIR] [--profile release|dist] \
                     [--push REGISTRY/FOLDER]\n       cargo xtask images --check\n       cargo xtask images --dask"
                        .into(),
                );
            }
        };
    }
}

fn build_with(
    root: &Path,
    profile: &str,
    output: Option<&Path>,
) -> Result<Vec<ImageArchive>, Failure> {
    let binaries = binaries_dir(root, profile)?;
    let output = match output {
        Some(folder) => folder.to_owned(),
        None => default_output(&binaries)?,
    };
    let architecture = architecture(&binaries)?;
    // Two calls in one checkout would write the same files. Released with the file.
    std::fs::create_dir_all(&output).map_err(at(&output))?;
    let lock = File::create(output.join(".lock")).map_err(at(&output))?;
    lock.lock().map_err(at(&output))?;
    let mut archives = Vec::new();
    let mut layers_used = Vec::new();
    for definition in DEFINITIONS {
        // One call each: together, cargo would unite the features of both and build the engine anew.
        run_command(&mut cargo(
            root,
            &[
                "build",
                "--profile",
                profile,
                "--package",
                definition.package,
            ],
        ))?;
        let binary = binaries.join(definition.binary);
        if dist::has_interpreter(&binary)? {
            return Err(format!("{} is not static: it asks for a loader", binary.display()).into());
        }
        let context = context_dir(&output, definition);
        let wheel = if definition.has_python {
            Some(wheel::built(root)?)
        } else {
            None
        };
        let parts = context::Parts {
            binary: &binary,
            wheel: wheel.as_deref(),
        };
        context::write(root, definition, &parts, &context)?;
        let image = make(root, definition, &context, &output, architecture)?;
        layers_used.extend(image.layers.iter().map(layer::Layer::cache_name));
        archives.push(archive::write(definition.name, &image, &output)?);
    }
    layer::prune(&output, &layers_used)?;
    Ok(archives)
}

/// Carries out the Dockerfile of an image in a context that is there.
fn make(
    root: &Path,
    definition: &Definition,
    context: &Path,
    output: &Path,
    architecture: &'static str,
) -> Result<archive::Image, Failure> {
    let path = definition.dockerfile(root);
    let text = std::fs::read_to_string(&path).map_err(at(&path))?;
    let in_file = |error: Failure| -> Failure { format!("{}: {error}", path.display()).into() };
    let recipe = dockerfile::parse(&text, &arguments()).map_err(in_file)?;
    let trees = filesystem::layers(&recipe, context).map_err(in_file)?;
    let layers = trees
        .iter()
        .map(|tree| layer::Layer::of(tree, output))
        .collect::<Result<_, _>>()?;
    Ok(archive::Image {
        reference: format!("{DEFAULT_PREFIX}/{}:{VERSION}", definition.name),
        architecture,
        recipe,
        layers,
    })
}

/// The values of `ARG` that differ from the Dockerfile's defaults.
fn arguments() -> BTreeMap<String, String> {
    BTreeMap::from([("VERSION".to_owned(), VERSION.to_owned())])
}

fn context_dir(output: &Path, definition: &Definition) -> PathBuf {
    output.join("context").join(definition.name)
}

/// `images` beside the folder of the target triple.
fn default_output(binaries: &Path) -> Result<PathBuf, Failure> {
    let target = binaries.ancestors().nth(2);
    Ok(target
        .ok_or("the target folder has no parent")?
        .join("images"))
}

/// What OCI calls the machine that the binaries are for.
fn architecture(binaries: &Path) -> Result<&'static str, Failure> {
    let triple = binaries.parent().and_then(Path::file_name);
    let triple = triple.unwrap_or_default().to_string_lossy();
    match triple.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => Err(format!("no image can be made for `{triple}`").into()),
    }
}

fn push(image: &ImageArchive, prefix: &str) -> Result<(), Failure> {
    let source = format!("oci-archive:{}", image.path.display());
    let target = format!("docker://{prefix}/{}:{VERSION}", image.name);
    run_command(Command::new("skopeo").args(["copy", &source, &target]))
}

/// Turns an error of the file system into one that names the file.
fn at(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| format!("{}: {error}", path.display()).into()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a size for people, to one decimal"
)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_000_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_others_are_refused() {
        let read = options(&["--profile", "dist", "--push", "registry.example.com/team/"]).unwrap();
        assert_eq!(
            (read.profile, read.push),
            ("dist", Some("registry.example.com/team"))
        );
        assert!(options(&["--profile", "dev"]).is_err());
        assert!(options(&["--output"]).is_err());
    }

    #[test]
    fn the_architecture_is_that_of_the_target_triple() {
        let of = |triple: &str| architecture(&Path::new("/target").join(triple).join("release"));
        assert_eq!(of("x86_64-unknown-linux-gnu").unwrap(), "amd64");
        assert_eq!(of("aarch64-unknown-linux-gnu").unwrap(), "arm64");
        assert!(of("riscv64gc-unknown-linux-gnu").is_err());
    }

    /// The Dockerfiles of the checkout, with stand-ins for the binaries.
    fn make_all(output: &Path) -> Vec<ImageArchive> {
        let root = crate::root().unwrap();
        let binary = output.join("stand-in");
        std::fs::write(&binary, "not a program").unwrap();
        let wheel = output.join("oxidask-0-py3-none-any.whl");
        context::tests::pack_wheel(&wheel);
        let made = DEFINITIONS.iter().map(|definition| {
            let context = context_dir(output, definition);
            let wheel = definition.has_python.then_some(wheel.as_path());
            let parts = context::Parts {
                binary: &binary,
                wheel,
            };
            context::write(&root, definition, &parts, &context).unwrap();
            let image = make(&root, definition, &context, output, "amd64").unwrap();
            archive::write(definition.name, &image, output).unwrap()
        });
        made.collect()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (one, other) in make_all(first.path()).iter().zip(&make_all(second.path())) {
            assert_eq!(one.digest, other.digest);
            assert_eq!(
                std::fs::read(&one.path).unwrap(),
                std::fs::read(&other.path).unwrap(),
                "{}",
                one.name
            );
        }
    }

    #[test]
    fn every_digest_is_that_of_its_bytes_from_the_index_to_the_files() {
        let folder = tempfile::tempdir().unwrap();
        for image in make_all(folder.path()) {
            let blobs = tar::read(&std::fs::read(&image.path).unwrap()).unwrap();
            let json = |path: &str| -> serde_json::Value {
                serde_json::from_slice(&blobs[path].content).unwrap()
            };
            let blob = |descriptor: &serde_json::Value| -> Vec<u8> {
                let digest = descriptor["digest"].as_str().unwrap();
                let path = format!("blobs/{}", digest.replace(':', "/"));
                let content = blobs[&path].content.clone();
                assert_eq!(layer::digest(&content), digest);
                assert_eq!(descriptor["size"], content.len());
                content
            };
            assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
            let entry = json("index.json")["manifests"][0].clone();
            assert_eq!(entry["digest"], image.digest.as_str());
            assert_eq!(
                entry["annotations"]["io.containerd.image.name"],
                image.reference.as_str()
            );
            let manifest: serde_json::Value = serde_json::from_slice(&blob(&entry)).unwrap();
            let config: serde_json::Value =
                serde_json::from_slice(&blob(&manifest["config"])).unwrap();
            assert_eq!(config["config"]["User"], "65532:65532");
            let layers = manifest["layers"].as_array().unwrap();
            let unpacked: Vec<_> = layers
                .iter()
                .map(|layer| layer::decompress(&blob(layer)).unwrap())
                .collect();
            let ids: Vec<_> = unpacked.iter().map(|layer| layer::digest(layer)).collect();
            assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(ids));
            let paths: Vec<_> = unpacked
                .iter()
                .flat_map(|layer| tar::read(layer).unwrap().into_keys())
                .collect();
            let program = config["config"]["Entrypoint"][0].as_str().unwrap();
            assert!(
                paths.contains(&program.trim_start_matches('/').to_owned()),
                "{paths:?}"
            );
            assert!(paths.contains(&"LICENSE".to_owned()));
        }
    }
}

//! The OCI archive: an image layout in one tar file.
//!
//! Owns configuration, manifest and index. Also writes the `manifest.json` that `docker load` of
//! older versions asks for; it names the same blobs.

use std::path::Path;

use serde_json::{Value, json};

use super::dockerfile::Recipe;
use super::layer::{Layer, digest};
use super::tar::Writer;
use super::{ImageArchive, at};
use crate::Failure;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// No clock: the same input gives the same digest.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What other builders set for an empty base.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image in memory.
pub(super) struct Image {
    pub(super) reference: String,
    pub(super) architecture: &'static str,
    pub(super) recipe: Recipe,
    pub(super) layers: Vec<Layer>,
}

/// Writes `{name}.tar` into `output`.
pub(super) fn write(
    name: &'static str,
    image: &Image,
    output: &Path,
) -> Result<ImageArchive, Failure> {
    let config = serde_json::to_vec(&config(image))?;
    let manifest = serde_json::to_vec(&manifest(image, &config))?;
    let bytes = pack(image, &config, &manifest)?;
    let path = output.join(format!("{name}.tar"));
    let beside = output.join(format!(".{name}.tar.part"));
    std::fs::create_dir_all(output).map_err(at(output))?;
    std::fs::write(&beside, bytes).map_err(at(&beside))?;
    std::fs::rename(&beside, &path).map_err(at(&path))?;
    let compressed = |layer: &Layer| layer.content.len();
    let blobs = config.len() + manifest.len() + image.layers.iter().map(compressed).sum::<usize>();
    Ok(ImageArchive {
        name,
        reference: image.reference.clone(),
        digest: digest(&manifest),
        path,
        bytes_compressed: blobs.try_into()?,
        bytes_unpacked: image.layers.iter().map(|layer| layer.bytes_unpacked).sum(),
    })
}

fn config(image: &Image) -> Value {
    let recipe = &image.recipe;
    let own = recipe
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let has_path = recipe.environment.iter().any(|(name, _)| name == "PATH");
    let default = (!has_path).then(|| DEFAULT_PATH.to_owned());
    let environment: Vec<String> = default.into_iter().chain(own).collect();
    let diff_ids: Vec<&str> = image
        .layers
        .iter()
        .map(|layer| layer.diff_id.as_str())
        .collect();
    let step = |step: &super::dockerfile::Step| {
        let mut step_json = json!({"created": CREATED, "created_by": step.text});
        if !step.has_layer {
            step_json["empty_layer"] = json!(true);
        }
        step_json
    };
    json!({
        "created": CREATED,
        "architecture": image.architecture,
        "os": "linux",
        "config": {
            "User": recipe.user,
            "Env": environment,
            "Entrypoint": recipe.entrypoint,
            "WorkingDir": recipe.working_dir,
            "Labels": recipe.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": recipe.history.iter().map(step).collect::<Vec<_>>(),
    })
}

fn manifest(image: &Image, config: &[u8]) -> Value {
    let layer = |layer: &Layer| json!({"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.content.len()});
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest(config), "size": config.len()},
        "layers": image.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

fn pack(image: &Image, config: &[u8], manifest: &[u8]) -> Result<Vec<u8>, Failure> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "digest": digest(manifest),
            "size": manifest.len(),
            "platform": {"architecture": image.architecture, "os": "linux"},
            // The first is read by containerd, the second by everything else.
            "annotations": {
                "io.containerd.image.name": image.reference,
                "org.opencontainers.image.ref.name": image.reference,
            },
        }],
    });
    let layer_paths: Vec<String> = image
        .layers
        .iter()
        .map(|layer| blob(&layer.digest))
        .collect();
    let for_docker = json!([{
        "Config": blob(&digest(config)),
        "RepoTags": [image.reference],
        "Layers": layer_paths,
    }]);
    let mut blobs: Vec<(String, &[u8])> = vec![
        (blob(&digest(config)), config),
        (blob(&digest(manifest)), manifest),
    ];
    for layer in &image.layers {
        blobs.push((blob(&layer.digest), &layer.content));
    }
    blobs.sort();
    blobs.dedup();

    let mut writer = Writer::default();
    writer.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    writer.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
    writer.file("manifest.json", 0o644, &serde_json::to_vec(&for_docker)?)?;
    writer.folder("blobs", 0o755)?;
    writer.folder("blobs/sha256", 0o755)?;
    for (path, content) in blobs {
        writer.file(&path, 0o644, content)?;
    }
    Ok(writer.finish())
}

/// Where a layout keeps the bytes of a digest.
fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

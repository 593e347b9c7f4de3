//! The runtime's program in an image of the user's own.
//!
//! Owns how it gets there: an init container of the runtime's image copies the program, which is
//! static, and the Python package beside it into a folder of the pod. So any image with Python and
//! the user's packages runs tasks and scripts, and is not built anew for each version of ours.
//!
//! Invariant: an image whose name is that of the runtime's image, whatever its registry and its
//! version, has the program already, and its version is what the user asked for.

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, PodSpec, Volume};

use super::pod::{self, variable};
use crate::Settings;

/// The folder with the program and the Python package.
const FOLDER: &str = "/opt/oxidask";
/// The same folder while it is filled: the runtime's image has files of its own at the other place.
const FILLED_AT: &str = "/brought";
/// The volume with it.
const VOLUME: &str = "oxidask-program";
/// The container that fills it.
const CONTAINER: &str = "oxidask-program";
/// Where a program finds a folder that it may write to; users of an image have no home.
const HOME: &str = "/tmp";

/// Whether an image has the program.
pub(crate) fn is_in(image: &str, settings: &Settings) -> bool {
    name(image) == name(&settings.runtime_image)
}

/// The last part of an image's name, without registry, tag and digest.
fn name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last)
}

/// Brings the program into the container of this name, unless its image has it.
pub(crate) fn bring(spec: &mut PodSpec, container: &str, settings: &Settings) {
    let Some(main) = pod::main_container(spec, container) else {
        return;
    };
    if main
        .image
        .as_deref()
        .is_none_or(|image| is_in(image, settings))
    {
        return;
    }
    main.command = Some(vec![format!("{FOLDER}/oxidask")]);
    let mounts = main.volume_mounts.get_or_insert_default();
    mounts.retain(|mount| mount.mount_path != FOLDER && mount.name != VOLUME);
    mounts.push(pod::mount(VOLUME, FOLDER, true));
    let variables = vec![
        variable("HOME", HOME),
        variable("PYTHONDONTWRITEBYTECODE", "1"),
        variable("PYTHONPATH", format!("{FOLDER}/python")),
    ];
    pod::append_environment(main, variables);
    let bringing = Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.runtime_image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        args: Some(vec!["unpack".to_owned(), FILLED_AT.to_owned()]),
        volume_mounts: Some(vec![pod::mount(VOLUME, FILLED_AT, false)]),
        // What it has needs no more room in a quota: the two never run at the same time.
        resources: main.resources.clone(),
        security_context: Some(pod::restricted()),
        ..Container::default()
    };
    let first = spec.init_containers.get_or_insert_default();
    first.retain(|other| other.name != CONTAINER);
    first.insert(0, bringing);
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|volume| volume.name != VOLUME);
    volumes.push(Volume {
        name: VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_name() {
        let settings = Settings::new("docker.io/oxidask/oxidask-runtime:0.1.0");
        for image in [
            "oxidask-runtime",
            "oxidask/oxidask-runtime:0.2.0",
            "registry.example.com:5000/team/oxidask-runtime@sha256:0123",
            "registry.example.com:5000/team/oxidask-runtime:1@sha256:0123",
        ] {
            assert!(is_in(image, &settings), "{image}");
        }
        for image in [
            "docker.io/dask/dask:latest",
            "localhost:5000/python",
            "oxidask-runtime-python:0.1.0",
            "oxidask-runtime/other",
            "",
        ] {
            assert!(!is_in(image, &settings), "{image}");
        }
    }
}

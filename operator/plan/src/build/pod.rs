//! A pod of the runtime: the manifest's template and, laid onto it, what the runtime needs.
//!
//! Owns the merge. What a user gives comes first and stays; ours is added where it is absent. Only
//! the program is always ours. Pods run without root, without privileges, without a token of the
//! API server, and on a read-only root file system.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction, PodSpec,
    Probe, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::template::Template;
use crate::{PlanError, Settings};

/// Where the certificate of a pod's role is mounted: the default of the program's `--tls-dir`.
const TLS_DIR: &str = "/etc/oxidask/tls";
/// The volume with it.
const TLS_VOLUME: &str = "oxidask-tls";
/// The volume for temporary files.
const TEMPORARY_VOLUME: &str = "oxidask-tmp";
/// The name of the port for health and metrics.
pub(crate) const HTTP_PORT: &str = "http-dashboard";
/// The user and group of the runtime's image.
const USER: i64 = 65532;
/// Seconds between being told to end and being killed.
const GRACE_SECONDS: i64 = 5;
/// Failed looks, one a second, after which a pod does not answer.
const READINESS_FAILURES: i32 = 3;
/// Looks, one a second, within which a program has to come up.
const STARTUP_FAILURES: i32 = 120;

/// How a program is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probes {
    /// It ends by itself and answers nobody.
    None,
    /// It may take its time to become ready, such as a worker without a scheduler.
    WithoutStartup,
    /// It has to be ready soon after its start.
    WithStartup,
}

/// What a part of a cluster needs in its pod.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// The name of its container.
    pub(crate) container: &'static str,
    /// The program's arguments.
    pub(crate) arguments: Vec<String>,
    /// The Secret with its certificate.
    pub(crate) certificate: String,
    /// Its ports, by name.
    pub(crate) ports: &'a [(&'static str, i32)],
    /// How it is looked after on [`HTTP_PORT`].
    pub(crate) probes: Probes,
}

/// The pod spec of the part. The environment is added by [`append_environment`], once the limits
/// of the container are known.
pub(crate) fn pod_spec(
    template: &Template<'_>,
    part: Part<'_>,
    settings: &Settings,
) -> Result<PodSpec, PlanError> {
    let mut spec: PodSpec = match template.spec {
        Some(spec) => template.read("spec", spec)?,
        None => PodSpec::default(),
    };
    lay_pod_fields(&mut spec, template)?;
    let volume = Volume {
        name: TLS_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(part.certificate.clone()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|present| present.name != TLS_VOLUME);
    volumes.push(volume);
    let position = spec
        .containers
        .iter()
        .position(|container| container.name == part.container);
    let position = position.unwrap_or_default();
    if spec.containers.is_empty() {
        spec.containers.push(Container {
            name: part.container.to_owned(),
            ..Container::default()
        });
    }
    let has_tmp;
    {
        let container = &mut spec.containers[position];
        lay_container_fields(container, template, settings)?;
        lay_program(container, part);
        let mounts = container.volume_mounts.get_or_insert_default();
        has_tmp = mounts.iter().any(|mount| mount.mount_path == "/tmp");
        if !has_tmp {
            mounts.push(mount(TEMPORARY_VOLUME, "/tmp", false));
        }
    }
    if !has_tmp {
        spec.volumes.get_or_insert_default().push(Volume {
            name: TEMPORARY_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
    }
    harden_pod(&mut spec);
    Ok(spec)
}

/// The container that runs the part's program.
pub(crate) fn main_container<'a>(spec: &'a mut PodSpec, name: &str) -> Option<&'a mut Container> {
    let position = spec
        .containers
        .iter()
        .position(|container| container.name == name);
    spec.containers.get_mut(position.unwrap_or_default())
}

/// Adds variables whose names are not there yet.
pub(crate) fn append_environment(container: &mut Container, variables: Vec<EnvVar>) {
    let present = container.env.get_or_insert_default();
    for variable in variables {
        if !present.iter().any(|other| other.name == variable.name) {
            present.push(variable);
        }
    }
}

/// A variable with a plain value.
pub(crate) fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.into()),
        value_from: None,
    }
}

/// A volume mount.
pub(crate) fn mount(volume: &str, path: &str, is_read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: is_read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn lay_pod_fields(spec: &mut PodSpec, template: &Template<'_>) -> Result<(), PlanError> {
    let volumes: Vec<Volume> = template.read_all("volumes", template.volumes)?;
    let present = spec.volumes.get_or_insert_default();
    present.retain(|volume| !volumes.iter().any(|own| own.name == volume.name));
    present.extend(volumes);
    if let Some(selector) = template
        .node_selector
        .filter(|selector| !selector.is_empty())
    {
        let present = spec.node_selector.get_or_insert_default();
        present.extend(selector.clone());
    }
    if !template.tolerations.is_empty() {
        let tolerations = template.read_all("tolerations", template.tolerations)?;
        spec.tolerations.get_or_insert_default().extend(tolerations);
    }
    if let Some(affinity) = template.affinity {
        spec.affinity = Some(template.read("affinity", affinity)?);
    }
    if let Some(account) = template.service_account_name {
        spec.service_account_name = Some(account.to_owned());
    }
    if !template.image_pull_secrets.is_empty() {
        let secrets = template.read_all("imagePullSecrets", template.image_pull_secrets)?;
        spec.image_pull_secrets
            .get_or_insert_default()
            .extend(secrets);
    }
    Ok(())
}

fn lay_container_fields(
    container: &mut Container,
    template: &Template<'_>,
    settings: &Settings,
) -> Result<(), PlanError> {
    if let Some(image) = template.image {
        container.image = Some(image.to_owned());
    }
    container
        .image
        .get_or_insert_with(|| settings.runtime_image.clone());
    if container.image_pull_policy.is_none() {
        container
            .image_pull_policy
            .clone_from(&settings.image_pull_policy);
    }
    let own = template.environment()?;
    let present = container.env.get_or_insert_default();
    present.retain(|variable| !own.iter().any(|other| other.name == variable.name));
    present.extend(own);
    if !template.env_from.is_empty() {
        let sources = template.read_all("envFrom", template.env_from)?;
        container.env_from.get_or_insert_default().extend(sources);
    }
    let mounts: Vec<VolumeMount> = template.read_all("volumeMounts", template.volume_mounts)?;
    let present = container.volume_mounts.get_or_insert_default();
    present.retain(|mount| !mounts.iter().any(|own| own.mount_path == mount.mount_path));
    present.extend(mounts);
    if let Some(requirements) = template.requirements()? {
        container.resources = Some(requirements);
    }
    if let Some(folder) = template.working_dir {
        container.working_dir = Some(folder.to_owned());
    }
    Ok(())
}

// The image's entry point is the program, so a template's `command` would start another one.
fn lay_program(container: &mut Container, part: Part<'_>) {
    container.command = None;
    container.args = Some(part.arguments);
    let ports = container.ports.get_or_insert_default();
    for (name, number) in part.ports {
        ports.retain(|port| port.container_port != *number && port.name.as_deref() != Some(*name));
        ports.push(ContainerPort {
            name: Some((*name).to_owned()),
            container_port: *number,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        });
    }
    container.ports.take_if(|ports| ports.is_empty());
    let mounts = container.volume_mounts.get_or_insert_default();
    mounts.retain(|mount| mount.mount_path != TLS_DIR && mount.name != TLS_VOLUME);
    mounts.push(mount(TLS_VOLUME, TLS_DIR, true));
    if part.probes == Probes::WithStartup {
        container
            .startup_probe
            .get_or_insert_with(|| probe("/readyz", STARTUP_FAILURES));
    }
    if part.probes != Probes::None {
        container
            .readiness_probe
            .get_or_insert_with(|| probe("/readyz", READINESS_FAILURES));
        container.liveness_probe.get_or_insert_with(|| Probe {
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            ..probe("/livez", READINESS_FAILURES)
        });
    }
    container.security_context.get_or_insert_with(restricted);
}

/// What a container of ours may do: nothing that the strictest policy of Kubernetes forbids.
pub(crate) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        ..SecurityContext::default()
    }
}

fn probe(path: &str, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(HTTP_PORT.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(1),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// What a template does not say about security is said here, field by field.
fn harden_pod(spec: &mut PodSpec) {
    let has_own = spec.security_context.is_some();
    let context = spec.security_context.get_or_insert_default();
    if !has_own {
        context.run_as_user = Some(USER);
        context.run_as_group = Some(USER);
    }
    // A template that asks for root gets it, if the namespace's policies allow it.
    let is_root = context.run_as_user == Some(0);
    context.run_as_non_root.get_or_insert(!is_root);
    context
        .seccomp_profile
        .get_or_insert_with(|| SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        });
    // The group that the files of the Secret belong to: without it nobody but root reads the key.
    context.fs_group.get_or_insert(USER);
    spec.automount_service_account_token.get_or_insert(false);
    spec.enable_service_links.get_or_insert(false);
    spec.termination_grace_period_seconds
        .get_or_insert(GRACE_SECONDS);
}

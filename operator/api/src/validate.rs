//! Checks that a type alone cannot make: ranges, names, and fields that exclude each other.
//!
//! Owns the limits. Reports the first fault; the tree gives its place in the file.

use std::collections::HashSet;

use crate::cluster::{ClusterSpec, Metadata, Resources, Runtime, Worker};
use crate::document::Node;
use crate::error::ManifestError;
use crate::job::{JobSpec, KeyReference};

/// Bytes of a cluster's or job's name: 63, less `-scheduler`.
pub const CLUSTER_NAME_BYTES_MAX: usize = 53;

/// Bytes of a namespace's or group's name.
pub(crate) const LABEL_BYTES_MAX: usize = 63;

/// Workers of one group.
pub const REPLICAS_MAX: u32 = 10_000;

/// Slots of one worker.
pub const THREADS_MAX: u32 = 4096;

/// Groups of one cluster besides `default`.
pub const GROUPS_MAX: usize = 256;

/// Memory below this cannot hold a worker.
pub(crate) const MEMORY_BYTES_MIN: u64 = 1 << 20;

/// Where faults are looked up.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) origin: &'a str,
    pub(crate) root: &'a Node,
}

impl Site<'_> {
    /// A fault of the value at the path; without one there, of the nearest value around it.
    pub(crate) fn value(self, path: &str, problem: impl Into<String>) -> ManifestError {
        let (origin, place) = (self.origin.to_owned(), self.place(path));
        ManifestError::Value {
            origin,
            path: path.to_owned(),
            place,
            problem: problem.into(),
        }
    }

    /// A fault of the work.
    pub(crate) fn work(self, path: &str, problem: impl Into<String>) -> ManifestError {
        let (origin, place) = (self.origin.to_owned(), self.place(path));
        ManifestError::Work {
            origin,
            place,
            problem: problem.into(),
        }
    }

    fn place(self, path: &str) -> Option<crate::Place> {
        let mut path = path;
        loop {
            if let Some(node) = self.root.at(path) {
                return Some(node.place);
            }
            path = path.rsplit_once('.')?.0;
        }
    }

    /// The path and its place, for messages about a source elsewhere.
    pub(crate) fn origin_of(self, path: &str) -> String {
        match self.place(path) {
            Some(place) => format!("{}:{place}: {path}", self.origin),
            None => format!("{}: {path}", self.origin),
        }
    }
}

/// The name of an object, checked.
pub(crate) fn object_name(site: Site<'_>, metadata: &Metadata) -> Result<String, ManifestError> {
    if let Some(namespace) = &metadata.namespace {
        dns_label(site, "metadata.namespace", namespace, LABEL_BYTES_MAX)?;
    }
    let (path, name) = match (&metadata.name, &metadata.generate_name) {
        (Some(name), _) => ("metadata.name", name.as_str()),
        (None, Some(start)) => ("metadata.generateName", start.trim_end_matches('-')),
        (None, None) => return Err(site.value("metadata.name", "is missing")),
    };
    dns_label(site, path, name, CLUSTER_NAME_BYTES_MAX)?;
    Ok(name.to_owned())
}

fn dns_label(
    site: Site<'_>,
    path: &str,
    name: &str,
    bytes_max: usize,
) -> Result<(), ManifestError> {
    match label_problem(name, bytes_max) {
        None => Ok(()),
        Some(problem) => Err(site.value(path, problem)),
    }
}

/// Why the name fits no cluster or job; none for a good name. Local runs refuse a bad one, the
/// operator reports it in the object's status.
pub fn name_problem(name: &str) -> Option<String> {
    label_problem(name, CLUSTER_NAME_BYTES_MAX)
}

fn label_problem(name: &str, bytes_max: usize) -> Option<String> {
    if name.len() > bytes_max {
        return Some(format!(
            "is {} bytes long, but at most {bytes_max} fit",
            name.len()
        ));
    }
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let has_good_ends = !name.is_empty() && !name.starts_with('-') && !name.ends_with('-');
    if has_good_ends && name.bytes().all(is_inner) {
        return None;
    }
    Some(format!(
        "is `{name}`, but a name has only lower-case letters, digits and `-`, and starts and ends \
         with a letter or digit"
    ))
}

/// Checks a cluster's spec, which stands at `path`.
pub(crate) fn cluster(site: Site<'_>, path: &str, spec: &ClusterSpec) -> Result<(), ManifestError> {
    worker(site, &format!("{path}.worker"), &spec.worker)?;
    if let Some(scheduler) = &spec.scheduler {
        resources(
            site,
            &format!("{path}.scheduler"),
            scheduler.resources.as_ref(),
        )?;
    }
    if spec.worker_groups.len() > GROUPS_MAX {
        let problem = format!(
            "has {} groups, but at most {GROUPS_MAX}",
            spec.worker_groups.len()
        );
        return Err(site.value(&format!("{path}.workerGroups"), problem + " are allowed"));
    }
    let mut names = HashSet::from(["default"]);
    for (index, group) in spec.worker_groups.iter().enumerate() {
        let path = format!("{path}.workerGroups[{index}]");
        let name_path = format!("{path}.name");
        if group.name.is_empty() {
            return Err(site.value(&path, "lacks the field `name`"));
        }
        dns_label(site, &name_path, &group.name, LABEL_BYTES_MAX)?;
        if group.name == "default" {
            return Err(site.value(&name_path, "is `default`, which names `spec.worker`"));
        }
        if !names.insert(&group.name) {
            let problem = format!("is `{}`, as another group is named already", group.name);
            return Err(site.value(&name_path, problem));
        }
        worker(site, &path, &group.to_worker())?;
    }
    if spec.runtime == Some(Runtime::Dask) && spec.worker.spec.is_none() {
        let problem = "is `Dask`, which runs pods as `worker.spec` gives them, but there is none";
        return Err(site.value(&format!("{path}.runtime"), problem));
    }
    Ok(())
}

fn worker(site: Site<'_>, path: &str, worker: &Worker) -> Result<(), ManifestError> {
    let at = |field: &str| format!("{path}.{field}");
    if let Some(replicas) = worker.replicas.filter(|replicas| *replicas > REPLICAS_MAX) {
        let problem = format!("is `{replicas}`, but a group has at most {REPLICAS_MAX} workers");
        return Err(site.value(&at("replicas"), problem));
    }
    if let Some(threads) = worker
        .threads
        .filter(|threads| !(1..=THREADS_MAX).contains(threads))
    {
        let problem = format!("is `{threads}`, but must be from 1 to {THREADS_MAX}");
        return Err(site.value(&at("threads"), problem));
    }
    if let Some(autoscale) = worker.autoscale {
        let path = at("autoscale");
        if autoscale.minimum > autoscale.maximum {
            let problem = format!(
                "has the minimum {} above the maximum {}",
                autoscale.minimum, autoscale.maximum
            );
            return Err(site.value(&path, problem));
        }
        if !(1..=REPLICAS_MAX).contains(&autoscale.maximum) {
            let problem = format!(
                "is `{}`, but must be from 1 to {REPLICAS_MAX}",
                autoscale.maximum
            );
            return Err(site.value(&format!("{path}.maximum"), problem));
        }
    }
    for name in worker.task_resources.keys() {
        if name.is_empty() {
            return Err(site.value(&at("taskResources"), "has an amount without a name"));
        }
    }
    resources(site, path, worker.resources.as_ref())
}

fn resources(
    site: Site<'_>,
    path: &str,
    resources: Option<&Resources>,
) -> Result<(), ManifestError> {
    let Some(resources) = resources else {
        return Ok(());
    };
    for (block, amounts) in [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ] {
        let path = format!("{path}.resources.{block}");
        if let Some(cpu) = amounts.get("cpu") {
            let cores = cpu.rounded_up();
            if cores == 0 || cores > u64::from(THREADS_MAX) {
                let problem = format!("is `{cpu}`, but must be from `1m` to `{THREADS_MAX}` cores");
                return Err(site.value(&format!("{path}.cpu"), problem));
            }
        }
        if let Some(memory) = amounts.get("memory")
            && memory.rounded_up() < MEMORY_BYTES_MIN
        {
            let mut problem = format!("is `{memory}`, which is less than `1Mi`");
            if memory.is_fractional() || memory.as_str().ends_with('m') {
                problem.push_str("; `m` means a thousandth, `M` a million");
            }
            return Err(site.value(&format!("{path}.memory"), problem));
        }
    }
    for (name, limit) in &resources.limits {
        let Some(request) = resources.requests.get(name) else {
            continue;
        };
        if request.rounded_up() > limit.rounded_up() {
            let problem = format!("is `{request}`, which is above the limit `{limit}`");
            return Err(site.value(&format!("{path}.resources.requests.{name}"), problem));
        }
    }
    Ok(())
}

/// Checks that there is exactly one kind of work from exactly one source.
pub(crate) fn work(site: Site<'_>, spec: &JobSpec) -> Result<(), ManifestError> {
    let kinds: Vec<&str> = [
        ("sql", spec.sql.is_some()),
        ("graph", spec.graph.is_some()),
        ("script", spec.script.is_some()),
        ("job", spec.job.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, is_given)| is_given.then_some(name))
    .collect();
    let kind = match kinds.as_slice() {
        [] => return Err(site.work("spec", "the job has no work")),
        [kind] => *kind,
        [.., last] => {
            let problem = format!(
                "the job has {} kinds of work: {}",
                kinds.len(),
                named(&kinds)
            );
            return Err(site.work(&format!("spec.{last}"), problem));
        }
    };
    if kind != "job" && spec.cluster.spec.runtime == Some(Runtime::Dask) {
        let problem = format!("is `Dask`, which cannot run work of kind `{kind}`");
        return Err(site.value("spec.cluster.spec.runtime", problem));
    }
    if spec.active_deadline_seconds == Some(0) {
        let problem = "is `0`, but must be a whole number, 1 or more";
        return Err(site.value("spec.activeDeadlineSeconds", problem));
    }
    if let Some(sql) = &spec.sql {
        let inline = ("statements", sql.statements.is_some());
        sources(
            site,
            "spec.sql",
            inline,
            sql.config_map_key_ref.as_ref(),
            sql.file.as_ref(),
        )?;
    }
    if let Some(graph) = &spec.graph {
        let inline = ("tasks", graph.tasks.is_some());
        let reference = graph.config_map_key_ref.as_ref();
        sources(site, "spec.graph", inline, reference, graph.file.as_ref())?;
    }
    if let Some(script) = &spec.script {
        let inline = ("source", script.source.is_some());
        let reference = script.config_map_key_ref.as_ref();
        sources(site, "spec.script", inline, reference, script.file.as_ref())?;
    }
    Ok(())
}

fn named(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.join(", "),
    }
}

fn sources(
    site: Site<'_>,
    path: &str,
    inline: (&str, bool),
    reference: Option<&KeyReference>,
    file: Option<&String>,
) -> Result<(), ManifestError> {
    let given = [
        inline,
        ("configMapKeyRef", reference.is_some()),
        ("file", file.is_some()),
    ];
    let names: Vec<&str> = given
        .into_iter()
        .filter(|(_, is)| *is)
        .map(|(name, _)| name)
        .collect();
    match names.as_slice() {
        [_] => Ok(()),
        [] => {
            let (inline, _) = inline;
            let problem =
                format!("`{path}` has no source: give `{inline}`, `configMapKeyRef` or `file`");
            Err(site.work(path, problem))
        }
        [.., last] => {
            let problem = format!("`{path}` has {} sources: {}", names.len(), named(&names));
            Err(site.work(&format!("{path}.{last}"), problem))
        }
    }
}

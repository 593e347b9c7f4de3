//! Checks that a type alone cannot make: ranges, names, and fields that exclude each other.
//!
//! Owns the limits. Reports the first fault; the tree gives its place in the file.

mod work;

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{
    Autoscale, ClusterSpec, Metadata, Resources, Runtime, Tls, UpdateStrategy, Worker,
};
use crate::document::Node;
use crate::error::ManifestError;

pub(crate) use work::work;

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

/// The shortest lifetime of a certificate: kubelet hands on a changed Secret within two minutes.
pub const CERTIFICATE_LIFETIME_MIN: Duration = Duration::from_mins(5);

/// The lifetime of a certificate if none is given.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(90 * 24);

/// The least time before its end at which a certificate is renewed.
pub(crate) const RENEWAL_MIN: Duration = Duration::from_mins(1);

/// The longest: an authority ends after ten years.
pub const CERTIFICATE_LIFETIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// The shortest lifetime that cert-manager gives.
pub(crate) const ISSUED_LIFETIME_MIN: Duration = Duration::from_hours(1);
/// Seconds of a window of an autoscaler, or of work that a worker should have: a day.
pub(crate) const WINDOW_SECONDS_MAX: u32 = 86_400;

/// Seconds that a worker gets to hand over its work: a week.
pub(crate) const DRAIN_SECONDS_MAX: u32 = 7 * 86_400;

/// Characters of a percentage.
pub(crate) const PERCENTAGE_CHARS_MAX: usize = 6;

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
    if let Some(tls) = &spec.tls
        && let Some((field, problem)) = tls_problem(tls)
    {
        return Err(site.value(&format!("{path}.tls{field}"), problem));
    }
    if let Some(strategy) = &spec.update_strategy {
        update_strategy(site, &format!("{path}.updateStrategy"), strategy)?;
    }
    if spec.runtime == Some(Runtime::Dask) && spec.worker.spec.is_none() {
        let problem = "is `Dask`, which runs pods as `worker.spec` gives them, but there is none";
        return Err(site.value(&format!("{path}.runtime"), problem));
    }
    Ok(())
}

/// What is wrong with `tls`: the field, with a dot before it, and the problem. The rules of the
/// custom resources cannot compute with spans, so the operator asks this too.
pub fn tls_problem(tls: &Tls) -> Option<(&'static str, String)> {
    const LIFETIME: &str = ".certificateLifetime";
    const RENEWAL: &str = ".renewBefore";
    if tls.ca_secret_ref.is_some() && tls.issuer_ref.is_some() {
        let problem = "has both `caSecretRef` and `issuerRef`; give one of them";
        return Some(("", problem.to_owned()));
    }
    if tls.ca_secret_ref.is_some() && tls.authority_secret().is_none_or(str::is_empty) {
        return Some((".caSecretRef", "lacks the field `name`".to_owned()));
    }
    if tls.issuer_ref.is_some() && tls.issuer().is_none_or(|issuer| issuer.name.is_empty()) {
        return Some((".issuerRef", "lacks the field `name`".to_owned()));
    }
    let no_span = |given: &str| {
        format!("is `{given}`, which is not a span of time such as `90d`, `24h` or `1h30m`")
    };
    if let Some(given) = &tls.certificate_lifetime {
        let Some(lifetime) = tls.lifetime() else {
            return Some((LIFETIME, no_span(given)));
        };
        let minimum = match tls.issuer_ref {
            Some(_) => ISSUED_LIFETIME_MIN,
            None => CERTIFICATE_LIFETIME_MIN,
        };
        if !(minimum..=CERTIFICATE_LIFETIME_MAX).contains(&lifetime) {
            let minutes = minimum.as_secs() / 60;
            let problem = format!("is `{given}`, but must be from `{minutes}m` to `3650d`");
            return Some((LIFETIME, problem));
        }
    }
    let given = tls.renew_before.as_ref()?;
    let Some(renewal) = tls.renewal() else {
        return Some((RENEWAL, no_span(given)));
    };
    let lifetime = tls.lifetime().unwrap_or(CERTIFICATE_LIFETIME);
    if renewal < RENEWAL_MIN || renewal * 2 > lifetime {
        let problem = format!(
            "is `{given}`, but must be from `1m` to half of the lifetime, {} minutes",
            lifetime.as_secs() / 120
        );
        return Some((RENEWAL, problem));
    }
    None
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
    if let Some(bounds) = worker.autoscale {
        autoscale(site, &at("autoscale"), bounds)?;
    }
    for name in worker.task_resources.keys() {
        if name.is_empty() {
            return Err(site.value(&at("taskResources"), "has an amount without a name"));
        }
    }
    resources(site, path, worker.resources.as_ref())
}

fn autoscale(site: Site<'_>, path: &str, autoscale: Autoscale) -> Result<(), ManifestError> {
    let Autoscale {
        minimum, maximum, ..
    } = autoscale;
    if minimum > maximum {
        let problem = format!("has the minimum {minimum} above the maximum {maximum}");
        return Err(site.value(path, problem));
    }
    if !(1..=REPLICAS_MAX).contains(&maximum) {
        let problem = format!("is `{maximum}`, but must be from 1 to {REPLICAS_MAX}");
        return Err(site.value(&format!("{path}.maximum"), problem));
    }
    let (window, target) = (
        autoscale.scale_down_window_seconds,
        autoscale.target_seconds,
    );
    for (field, given, least) in [
        ("scaleDownWindowSeconds", window, 0),
        ("targetSeconds", target, 1),
    ] {
        if let Some(seconds) = given
            && !(least..=WINDOW_SECONDS_MAX).contains(&seconds)
        {
            let problem =
                format!("is `{seconds}`, but must be from {least} to {WINDOW_SECONDS_MAX}");
            return Err(site.value(&format!("{path}.{field}"), problem));
        }
    }
    Ok(())
}

fn update_strategy(
    site: Site<'_>,
    path: &str,
    strategy: &UpdateStrategy,
) -> Result<(), ManifestError> {
    let mut are_nothing = [false; 2];
    let given = [
        ("maxSurge", &strategy.max_surge),
        ("maxUnavailable", &strategy.max_unavailable),
    ];
    for ((field, value), is_nothing) in given.into_iter().zip(&mut are_nothing) {
        let Some(value) = value else {
            *is_nothing = field == "maxUnavailable";
            continue;
        };
        let Some(amount) = PodAmount::read(value) else {
            let problem = format!(
                "is `{value}`, but must be a number, 0 or more, or a percentage such as `25%`"
            );
            return Err(site.value(&format!("{path}.{field}"), problem));
        };
        *is_nothing = amount.is_nothing();
    }
    if are_nothing == [true, true] {
        let problem = "lets no pod be replaced: `maxSurge` or `maxUnavailable` must be 1 or more";
        return Err(site.value(path, problem));
    }
    if let Some(seconds) = strategy.drain_timeout_seconds
        && seconds > DRAIN_SECONDS_MAX
    {
        let problem = format!("is `{seconds}`, but must be from 0 to {DRAIN_SECONDS_MAX}");
        return Err(site.value(&format!("{path}.drainTimeoutSeconds"), problem));
    }
    Ok(())
}

/// A number of pods of a group, or a part of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodAmount {
    /// So many.
    Number(u32),
    /// So many of a hundred.
    Percentage(u32),
}

impl PodAmount {
    /// The amount of `maxSurge` or `maxUnavailable`; none if it is neither form.
    pub fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => {
                let number = number.as_u64()?;
                u32::try_from(number).ok().map(Self::Number)
            }
            Value::String(text) if text.len() <= PERCENTAGE_CHARS_MAX => {
                let digits = text.strip_suffix('%')?;
                let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
                digits
                    .parse()
                    .ok()
                    .filter(|_| is_number)
                    .map(Self::Percentage)
            }
            _ => None,
        }
    }

    /// Whether it is none, whatever the group's size.
    pub fn is_nothing(self) -> bool {
        matches!(self, Self::Number(0) | Self::Percentage(0))
    }

    /// So many pods of that many, and what is left over as one pod if it is rounded up.
    pub fn of(self, all: u32, is_rounded_up: bool) -> u32 {
        let pods = match self {
            Self::Number(number) => return number,
            Self::Percentage(percentage) => u64::from(percentage) * u64::from(all),
        };
        let pods = if is_rounded_up {
            pods.div_ceil(100)
        } else {
            pods / 100
        };
        u32::try_from(pods).unwrap_or(u32::MAX)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_of_pods_are_numbers_or_percentages() {
        assert_eq!(PodAmount::read(&json!(3)), Some(PodAmount::Number(3)));
        let quarter = PodAmount::read(&json!("25%")).unwrap();
        assert_eq!((quarter.of(10, true), quarter.of(10, false)), (3, 2));
        assert_eq!(PodAmount::Number(7).of(1, true), 7);
        assert!(PodAmount::read(&json!("0%")).unwrap().is_nothing());
        for wrong in [
            json!(-1),
            json!("3"),
            json!("%"),
            json!("+5%"),
            json!(1.5),
            json!(null),
        ] {
            assert_eq!(PodAmount::read(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_strategy_that_replaces_no_pod_is_refused() {
        let root = &crate::document::parse("spec: {updateStrategy: {}}", "f").unwrap()[0];
        let site = Site { origin: "f", root };
        let check = |value: Value| {
            let strategy = serde_json::from_value(value).unwrap();
            let checked = update_strategy(site, "spec.updateStrategy", &strategy);
            checked.map_err(|error| error.to_string())
        };
        for good in [json!({}), json!({"maxSurge": 0, "maxUnavailable": "10%"})] {
            assert_eq!(check(good), Ok(()));
        }
        let nothing = check(json!({"maxSurge": 0})).unwrap_err();
        assert!(nothing.contains("lets no pod be replaced"), "{nothing}");
        let wrong = check(json!({"maxSurge": "many"})).unwrap_err();
        assert!(wrong.contains("such as `25%`"), "{wrong}");
    }
}

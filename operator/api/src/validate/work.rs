//! Checks of what a job does: one kind of work from one source, words that a process can be given.

use super::Site;
use crate::cluster::Runtime;
use crate::error::ManifestError;
use crate::job::{JobSpec, KeyReference, Script};

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
    schedule(site, spec)?;
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
        script_words(site, script)?;
    }
    Ok(())
}

/// What a process can be given: words without a zero byte, and variables that have names.
fn script_words(site: Site<'_>, script: &Script) -> Result<(), ManifestError> {
    let python = script.python.as_ref();
    if python.is_some_and(|program| program.trim().is_empty()) {
        return Err(site.value("spec.script.python", "is empty, but must name a program"));
    }
    let arguments = script.args.iter().enumerate();
    let arguments = arguments.map(|(index, word)| (format!("spec.script.args[{index}]"), word));
    let python = python.map(|word| ("spec.script.python".to_owned(), word));
    let numbered = || script.env.iter().enumerate();
    let values = numbered().filter_map(|(index, variable)| {
        let value = variable.value.as_ref()?;
        Some((format!("spec.script.env[{index}].value"), value))
    });
    for (path, word) in arguments.chain(python).chain(values) {
        if word.contains('\0') {
            return Err(site.value(&path, "has a zero byte, which no program can be given"));
        }
    }
    for (index, variable) in numbered() {
        let name = &variable.name;
        if name.is_empty() || name.contains(['=', '\0']) {
            let problem = format!("is `{name}`, but must be a name without `=`");
            return Err(site.value(&format!("spec.script.env[{index}].name"), problem));
        }
    }
    Ok(())
}

/// The cron line itself is read by the operator only.
fn schedule(site: Site<'_>, spec: &JobSpec) -> Result<(), ManifestError> {
    let fields = [
        ("timeZone", spec.time_zone.is_some()),
        ("concurrencyPolicy", spec.concurrency_policy.is_some()),
        (
            "startingDeadlineSeconds",
            spec.starting_deadline_seconds.is_some(),
        ),
        (
            "successfulJobsHistoryLimit",
            spec.successful_jobs_history_limit.is_some(),
        ),
        (
            "failedJobsHistoryLimit",
            spec.failed_jobs_history_limit.is_some(),
        ),
    ];
    let mut given = fields.into_iter().filter(|(_, is_given)| *is_given);
    match given.next() {
        Some((field, _)) if spec.schedule.is_none() => {
            Err(site.value(&format!("spec.{field}"), "needs `spec.schedule`"))
        }
        _ => Ok(()),
    }
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

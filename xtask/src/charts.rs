//! The Helm charts: their READMEs, and what is checked of them.
//!
//! Owns the reader of `values.yaml`, which asks for a `# --` comment before each value. It reads
//! lines, not YAML: a value stands on the line of its key, lists and maps in brackets. Files of
//! values below `ci/` and `tests/bad/` say in comments what is expected of them; Helm does the rest.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use crate::process::{output, run as run_command};
use crate::{Failure, say};

const CHARTS: &[&str] = &["oxidask-crds", "oxidask-operator"];
/// The release and the namespace that the expectations are written for.
const RELEASE: &str = "test";
/// Bytes of a packed chart. Helm keeps a release, which holds the chart and what was rendered from
/// it, in one Secret of at most 1 MiB; a chart of this size takes about 700 KiB there.
const PACKAGE_BYTES_MAX: u64 = 200 << 10;

/// The README of each chart, as it should be.
pub(crate) fn readmes(root: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let folders = CHARTS.iter().map(|name| root.join("charts").join(name));
    folders
        .map(|folder| Ok((folder.join("README.md"), readme(&folder)?)))
        .collect()
}

/// Renders the charts with good values, sees bad ones refused, and looks at what came out.
pub(crate) fn check(root: &Path, helm: &Path) -> Result<(), Failure> {
    let home = tempfile::tempdir()?;
    let helm = Helm {
        program: helm,
        home: home.path(),
    };
    let mut problems = Vec::new();
    for name in CHARTS {
        let chart = root.join("charts").join(name);
        problems.extend(static_problems(&chart)?);
        run_command(
            helm.command("lint")
                .arg("--strict")
                .arg("--quiet")
                .arg(&chart),
        )?;
        problems.extend(package_problems(&helm, &chart)?);
        let (good, bad) = (files(&chart.join("ci"))?, files(&chart.join("tests/bad"))?);
        for values in &good {
            problems.extend(rendering_problems(&helm, &chart, values)?);
        }
        for values in &bad {
            problems.extend(acceptance_problems(&helm, &chart, values)?);
        }
        say!(
            "{name}: {} files of values rendered, {} refused",
            good.len(),
            bad.len()
        );
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(problems.join("\n").into())
}

/// Helm with empty folders of its own, so that nobody's settings or clusters count.
struct Helm<'a> {
    program: &'a Path,
    home: &'a Path,
}

impl Helm<'_> {
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HELM_") {
                command.env_remove(name);
            }
        }
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.home.join(name));
        }
        command.env("KUBECONFIG", self.home.join("no-cluster"));
        command.arg(verb);
        command
    }

    fn template(&self, chart: &Path, values: &Path) -> Result<String, Failure> {
        let mut command = self.command("template");
        command.arg(RELEASE).arg(chart);
        command.args(["--namespace", RELEASE]).arg("--values");
        output(command.arg(values))
    }
}

/// What a chart renders with these settings, for somebody who installs without Helm.
pub(crate) fn rendered(
    program: &Path,
    chart: &Path,
    release: &str,
    namespace: &str,
    arguments: &[&str],
) -> Result<String, Failure> {
    let home = tempfile::tempdir()?;
    let home = home.path();
    let mut command = Helm { program, home }.command("template");
    command.arg(release).arg(chart);
    output(command.args(["--namespace", namespace]).args(arguments))
}

/// What can be said without Helm: versions, and that schema and values know the same keys.
fn static_problems(chart: &Path) -> Result<Vec<String>, Failure> {
    let mut problems = Vec::new();
    let facts = read(&chart.join("Chart.yaml"))?;
    for key in ["version", "appVersion"] {
        let found = field(&facts, key)?;
        if found != env!("CARGO_PKG_VERSION") {
            problems.push(format!("{}: {key} is {found}", chart.display()));
        }
    }
    let schema: Json = serde_json::from_str(&read(&chart.join("values.schema.json"))?)?;
    let mut in_schema = BTreeSet::new();
    collect(&schema, &schema, "", &mut in_schema);
    // Helm itself adds this one when the chart is a part of another.
    in_schema.remove("global");
    let in_values: BTreeSet<String> = values(&read(&chart.join("values.yaml"))?)?
        .into_iter()
        .map(|value| value.key)
        .collect();
    for key in in_schema.symmetric_difference(&in_values) {
        problems.push(format!(
            "{}: `{key}` is not in both values.yaml and the schema",
            chart.display()
        ));
    }
    Ok(problems)
}

/// The keys of a schema that are no groups of other keys.
fn collect(schema: &Json, part: &Json, path: &str, keys: &mut BTreeSet<String>) {
    let reference = part["$ref"]
        .as_str()
        .and_then(|text| text.strip_prefix('#'));
    let part = reference
        .and_then(|pointer| schema.pointer(pointer))
        .unwrap_or(part);
    let is_free = EXAMPLES_ONLY.contains(&path);
    match part["properties"].as_object().filter(|_| !is_free) {
        Some(properties) => {
            for (name, property) in properties {
                let dot = if path.is_empty() { "" } else { "." };
                collect(schema, property, &format!("{path}{dot}{name}"), keys);
            }
        }
        None => {
            keys.insert(path.to_owned());
        }
    }
}

/// Objects whose fields have no defaults, so that they are one value.
const EXAMPLES_ONLY: &[&str] = &[
    "metrics.scheduler.podMonitor.namespaceSelector",
    "metrics.worker.podMonitor.namespaceSelector",
];

/// A package holds what a user needs and no tests.
fn package_problems(helm: &Helm<'_>, chart: &Path) -> Result<Vec<String>, Failure> {
    let folder = tempfile::tempdir()?;
    let mut package = helm.command("package");
    output(package.arg(chart).arg("--destination").arg(folder.path()))?;
    let mut problems = Vec::new();
    for archive in files(folder.path())? {
        let listing = output(Command::new("tar").arg("-tzf").arg(&archive))?;
        let extra = ["/tests/", "/ci/", "/introduction.md"];
        for line in listing.lines() {
            if extra.iter().any(|part| line.contains(part)) {
                problems.push(format!("the package holds {line}"));
            }
        }
        if !listing.contains("/values.schema.json") || !listing.contains("/README.md") {
            problems.push(format!(
                "{}: schema or README is missing",
                archive.display()
            ));
        }
        let bytes = std::fs::metadata(&archive)?.len();
        if bytes > PACKAGE_BYTES_MAX {
            let name = archive.display();
            problems.push(format!("{name}: {bytes} bytes are too many"));
        }
    }
    Ok(problems)
}

fn rendering_problems(
    helm: &Helm<'_>,
    chart: &Path,
    values: &Path,
) -> Result<Vec<String>, Failure> {
    let wanted = read(values)?;
    let rendered = helm.template(chart, values)?;
    let mut problems = Vec::new();
    let mut kinds: Vec<&str> = expectations(&wanted, "renders").flat_map(words).collect();
    let mut found: Vec<&str> = rendered
        .lines()
        .filter_map(|line| line.strip_prefix("kind: "))
        .collect();
    kinds.sort_unstable();
    found.sort_unstable();
    if kinds != found {
        problems.push(format!("renders {found:?} instead of {kinds:?}"));
    }
    for text in expectations(&wanted, "contains") {
        if !rendered.contains(text) {
            problems.push(format!("does not render `{text}`"));
        }
    }
    for text in expectations(&wanted, "lacks") {
        if rendered.contains(text) {
            problems.push(format!("renders `{text}`"));
        }
    }
    for line in wildcards(&rendered) {
        problems.push(format!("a role holds a wildcard: {line}"));
    }
    Ok(problems
        .into_iter()
        .map(|problem| format!("{}: {problem}", values.display()))
        .collect())
}

fn acceptance_problems(
    helm: &Helm<'_>,
    chart: &Path,
    values: &Path,
) -> Result<Vec<String>, Failure> {
    let text = read(values)?;
    let wanted = expectations(&text, "refused").next();
    let wanted = wanted.ok_or_else(|| format!("{} expects nothing", values.display()))?;
    Ok(match helm.template(chart, values) {
        Ok(_) => vec![format!("{} was not refused", values.display())],
        Err(error) if error.to_string().contains(wanted) => Vec::new(),
        Err(error) => vec![format!("{}: {error}", values.display())],
    })
}

/// The texts of comments `# name: text`.
fn expectations<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter_map(move |line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(", ").filter(|word| !word.is_empty())
}

/// Lines of roles that grant everything of something.
fn wildcards(rendered: &str) -> Vec<&str> {
    rendered
        .split("\n---\n")
        .filter(|object| {
            let mut lines = object.lines();
            lines.any(|line| line == "kind: Role" || line == "kind: ClusterRole")
        })
        .flat_map(str::lines)
        .filter(|line| !line.trim_start().starts_with('#') && line.contains('*'))
        .collect()
}

/// The files of a folder by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder)
        .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

fn readme(folder: &Path) -> Result<String, Failure> {
    let facts = read(&folder.join("Chart.yaml"))?;
    let introduction = read(&folder.join("introduction.md"))?;
    let mut text = format!(
        "<!-- Made by `cargo xtask gen` from Chart.yaml, introduction.md and values.yaml. -->\n\
         # {}\n\n{}.\n\nVersion {}, for Kubernetes {}.\n\n{introduction}\n## Values\n\n\
         | key | type | default | meaning |\n|---|---|---|---|\n",
        field(&facts, "name")?,
        field(&facts, "description")?,
        field(&facts, "version")?,
        field(&facts, "kubeVersion")?
            .trim_matches('"')
            .replace("-0", ""),
    );
    for value in values(&read(&folder.join("values.yaml"))?)? {
        writeln!(
            text,
            "| `{}` | {} | `{}` | {} |",
            value.key,
            value.kind,
            value.default.replace('|', "\\|"),
            value.meaning.replace('|', "\\|")
        )?;
    }
    Ok(text)
}

/// A field at the top of a YAML file.
fn field<'a>(text: &'a str, key: &str) -> Result<&'a str, Failure> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    Ok(line.ok_or_else(|| format!("Chart.yaml has no `{key}`"))?)
}

/// A value that a user may set.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    key: String,
    kind: &'static str,
    default: String,
    meaning: String,
}

/// The values in the order of their file.
fn values(text: &str) -> Result<Vec<Value>, Failure> {
    let mut values = Vec::new();
    let mut groups: Vec<(usize, &str)> = Vec::new();
    let mut meaning: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let refuse = |what: &str| format!("values.yaml, line {}: {what}", index + 1);
        if let Some(comment) = trimmed.strip_prefix('#') {
            if let Some(start) = comment.strip_prefix(" -- ") {
                meaning = Some(start.to_owned());
            } else if let Some(more) = &mut meaning {
                write!(more, " {}", comment.trim())?;
            }
            continue;
        }
        if trimmed.is_empty() {
            continue;
        }
        let (name, default) = trimmed
            .split_once(':')
            .filter(|_| !trimmed.starts_with("- "))
            .ok_or_else(|| refuse("a key and its value belong on one line"))?;
        let depth = line.len() - trimmed.len();
        groups.retain(|(outer, _)| *outer < depth);
        let default = default.trim();
        match (default.is_empty(), meaning.take()) {
            (true, None) => groups.push((depth, name)),
            (true, Some(_)) => return Err(refuse("a group has no meaning of its own").into()),
            (false, None) => return Err(refuse("the comment `# -- …` is missing").into()),
            (false, Some(meaning)) => values.push(Value {
                key: path(&groups, name),
                kind: kind(default),
                default: default.to_owned(),
                meaning,
            }),
        }
    }
    Ok(values)
}

fn path(groups: &[(usize, &str)], name: &str) -> String {
    let names = groups.iter().map(|(_, group)| *group);
    names.chain([name]).collect::<Vec<_>>().join(".")
}

fn kind(default: &str) -> &'static str {
    match default.chars().next() {
        Some('{') => "map",
        Some('[') => "list",
        _ if default == "true" || default == "false" => "true or false",
        _ if default.parse::<i64>().is_ok() => "number",
        _ => "text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
image:
  # -- Where it is.
  repository: docker.io/a|b

# An ordinary comment.
metrics:
  worker:
    # -- How often,
    # in seconds.
    interval: 15
    # -- Labels.
    labels: {a: b}
# -- On?
enabled: true
";

    #[test]
    fn values_are_read_with_their_paths_and_comments() {
        let values = values(SAMPLE).unwrap();
        let short: Vec<_> = values
            .iter()
            .map(|value| (value.key.as_str(), value.kind, value.meaning.as_str()))
            .collect();
        assert_eq!(
            short,
            [
                ("image.repository", "text", "Where it is."),
                (
                    "metrics.worker.interval",
                    "number",
                    "How often, in seconds."
                ),
                ("metrics.worker.labels", "map", "Labels."),
                ("enabled", "true or false", "On?"),
            ]
        );
        assert_eq!(values[2].default, "{a: b}");
    }

    #[test]
    fn a_value_without_a_comment_or_over_several_lines_is_refused() {
        for (text, part) in [
            ("a: 1\n", "line 1: the comment"),
            ("# -- A.\na:\n  b: 1\n", "line 2: a group"),
            ("a:\n  - b\n", "line 2: a key"),
        ] {
            let error = values(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_charts_are_of_this_version_and_their_schemas_know_their_values() {
        let root = crate::root().unwrap();
        for name in CHARTS {
            let problems = static_problems(&root.join("charts").join(name)).unwrap();
            assert!(problems.is_empty(), "{problems:#?}");
        }
    }

    #[test]
    fn every_object_of_a_schema_is_closed_or_free_on_purpose() {
        let root = crate::root().unwrap();
        for name in CHARTS {
            let path = root.join("charts").join(name).join("values.schema.json");
            let schema: Json = serde_json::from_str(&read(&path).unwrap()).unwrap();
            let mut pending = vec![&schema];
            while let Some(part) = pending.pop() {
                if part.get("properties").is_some_and(Json::is_object) {
                    assert_eq!(part["additionalProperties"], false, "{name}: {part}");
                }
                match part {
                    Json::Object(fields) => pending.extend(fields.values()),
                    Json::Array(items) => pending.extend(items),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_readme_has_a_row_for_each_value() {
        let root = crate::root().unwrap();
        for (path, text) in readmes(&root).unwrap() {
            let values = values(&read(&path.with_file_name("values.yaml")).unwrap()).unwrap();
            assert!(!values.is_empty());
            for value in values {
                assert!(text.contains(&format!("| `{}` | ", value.key)), "{value:?}");
            }
        }
    }

    #[test]
    fn wildcards_in_roles_are_found_and_comments_are_not() {
        let role = "---\nkind: ClusterRole\nrules:\n  # all *\n  - verbs: ['*']\n";
        let other = "---\nkind: ConfigMap\ndata: {a: '*'}\n";
        assert_eq!(wildcards(&format!("\n{role}{other}")), ["  - verbs: ['*']"]);
        assert!(wildcards(&format!("\n{other}")).is_empty());
    }
}

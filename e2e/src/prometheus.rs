//! Prometheus in a lab.
//!
//! Owns it for as long as the value lives, and how it is asked. It finds pods by itself, as one in a
//! cluster does.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, failure, finish};
use crate::settings::Settings;
use crate::wait::{Seen, until};
use crate::{Outcome, say};

const ADDRESS: &str = "http://127.0.0.1:9090";
const START: Duration = Duration::from_mins(1);
const ASK: Duration = Duration::from_secs(10);
/// Names the folder of the build of Prometheus; set by `cargo xtask e2e`.
const PROGRAMS: &str = "OXIDASK_E2E_PROMETHEUS";

/// A running Prometheus.
#[derive(Debug)]
pub(crate) struct Prometheus<'a> {
    settings: &'a Settings,
}

impl<'a> Prometheus<'a> {
    /// Starts it with these rules.
    pub(crate) fn start(settings: &'a Settings, rules: &str) -> Outcome<Self> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), rules)?;
        let mut command = lab(settings, "prometheus");
        command.arg("--programs").arg(programs()?);
        command.arg("--rules").arg(file.path()).arg("up");
        finish(&mut command, None, START)?.succeeded()?;
        Ok(Self { settings })
    }

    /// The series that an expression gives now.
    pub(crate) fn query(&self, expression: &str) -> Outcome<Vec<Value>> {
        let mut command = lab(self.settings, "enter");
        command.arg("hub").arg(programs()?.join("promtool"));
        command.args(["query", "instant", "--format=json", ADDRESS, expression]);
        let text = finish(&mut command, None, ASK)?.succeeded()?;
        match serde_json::from_str(&text)? {
            Value::Array(series) => Ok(series),
            Value::Null => Ok(Vec::new()),
            other => Err(failure(format!("`{expression}` gives {other}"))),
        }
    }

    /// Waits until an expression gives so many series, and returns them.
    pub(crate) fn wait(&self, expression: &str, count: usize, seconds: u64) -> Outcome<Vec<Value>> {
        let what = format!("{count} series of `{expression}`");
        until(&what, seconds, || {
            let found = self.query(expression)?;
            if found.len() == count {
                return Ok(Seen::Done(found));
            }
            Ok(Seen::NotYet(format!("{found:?}")))
        })
    }
}

fn programs() -> Outcome<PathBuf> {
    let folder = std::env::var_os(PROGRAMS).map(PathBuf::from);
    folder.ok_or_else(|| {
        failure(format!(
            "there is no Prometheus: `{PROGRAMS}` names the folder of its build"
        ))
    })
}

/// What `promtool` finds wrong with metrics, as a scraper sees them.
pub(crate) fn check_metrics(exposition: &str) -> Outcome {
    let mut command = Command::new(programs()?.join("promtool"));
    command.args(["check", "metrics"]);
    finish(&mut command, Some(&plain(exposition)), ASK)?
        .succeeded()
        .map(drop)
}

/// `OpenMetrics` in the older form, which is the only one that `promtool check metrics` reads: there
/// the suffix belongs to the name of a family.
fn plain(exposition: &str) -> String {
    let types = exposition.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name, kind))
    });
    let types: std::collections::BTreeMap<&str, &str> = types.collect();
    let full = |name: &str| match types.get(name) {
        Some(&"counter") => format!("{name}_total"),
        Some(&"info") => format!("{name}_info"),
        _ => name.to_owned(),
    };
    let mut text = String::new();
    for line in exposition.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let line = match words.as_slice() {
            ["#", "EOF" | "UNIT", ..] => continue,
            ["#", "TYPE", name, kind] => {
                let kind = match *kind {
                    "info" => "gauge",
                    "unknown" => "untyped",
                    kind => kind,
                };
                format!("# TYPE {} {kind}", full(name))
            }
            ["#", "HELP", name, help] => format!("# HELP {} {help}", full(name)),
            _ => line.to_owned(),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn lab(settings: &Settings, verb: &str) -> Command {
    let mut command = Command::new(&settings.lab);
    command.args([verb, "--name", &settings.lab_name]);
    command
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let mut command = lab(self.settings, "prometheus");
        let down = finish(command.arg("down"), None, START).and_then(Finished::succeeded);
        if let Err(error) = down {
            say!("Prometheus stays in the lab: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_get_the_names_of_their_samples() {
        let text = "# HELP a_rounds Rounds of it.\n# TYPE a_rounds counter\na_rounds_total 1\n\
                    # HELP a_build The build.\n# TYPE a_build info\na_build_info{v=\"1\"} 1\n\
                    # HELP a_s Time.\n# TYPE a_s histogram\n# UNIT a_s seconds\n\
                    a_s_bucket{le=\"+Inf\"} 0\n# EOF\n";
        assert_eq!(
            plain(text),
            "# HELP a_rounds_total Rounds of it.\n# TYPE a_rounds_total counter\n\
             a_rounds_total 1\n# HELP a_build_info The build.\n# TYPE a_build_info gauge\n\
             a_build_info{v=\"1\"} 1\n# HELP a_s Time.\n# TYPE a_s histogram\n\
             a_s_bucket{le=\"+Inf\"} 0\n"
        );
    }
}

//! The settings under which plans are made and stages run.
//!
//! Owns the options `oxidask.*` of a SQL text, the settings that a plan for many tasks needs, and
//! which options travel with a stage. What would make the tasks of a stage wait for each other is
//! off; everything else stays as the text set it.

use std::any::Any;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use datafusion::common::{DataFusionError, Result};
use datafusion::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::prelude::SessionConfig;
use oxidask_diagnostic::nearest;

/// Tasks of one stage at most.
pub(super) const WIDTH_MAX: usize = 100_000;

/// The build side of a join up to this size is read by every task of the join.
const BROADCAST_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// Rows of a build side of unknown size that count as small, for each MiB of the limit.
const BROADCAST_ROWS_PER_MIB: u64 = 16 * 1024;

/// Files below this size are read by one task.
const SPLIT_BYTES_MIN: usize = 4 * 1024 * 1024;

/// When a query becomes stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StagesOption {
    /// When it is worth it.
    #[default]
    Auto,
    /// Whenever it can.
    Always,
    /// Never.
    Never,
}

/// The options `oxidask.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OxidaskOptions {
    /// `oxidask.stages`.
    pub(crate) stages: StagesOption,
    /// `oxidask.width`: tasks of a stage; 0: as many as fit the cluster and the data.
    pub(crate) width: usize,
    /// `oxidask.broadcast_bytes`.
    pub(crate) broadcast_bytes: u64,
}

impl Default for OxidaskOptions {
    fn default() -> Self {
        Self {
            stages: StagesOption::default(),
            width: 0,
            broadcast_bytes: BROADCAST_BYTES_DEFAULT,
        }
    }
}

impl OxidaskOptions {
    /// Those of a session.
    pub(crate) fn of(options: &ConfigOptions) -> Self {
        options
            .extensions
            .get::<Self>()
            .cloned()
            .unwrap_or_default()
    }
}

const NAMES: [&str; 3] = ["stages", "width", "broadcast_bytes"];

impl ConfigExtension for OxidaskOptions {
    const PREFIX: &'static str = "oxidask";
}

fn refused(message: String) -> DataFusionError {
    DataFusionError::Configuration(message)
}

fn number<T: FromStr>(name: &str, value: &str, what: &str) -> Result<T> {
    value
        .trim()
        .parse()
        .map_err(|_| refused(format!("`oxidask.{name}` is {what}, not `{value}`")))
}

impl ExtensionOptions for OxidaskOptions {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "stages" => {
                self.stages = match value.to_ascii_lowercase().as_str() {
                    "auto" => StagesOption::Auto,
                    "always" => StagesOption::Always,
                    "never" => StagesOption::Never,
                    _ => {
                        return Err(refused(format!(
                            "`oxidask.stages` is `auto`, `always` or `never`, not `{value}`"
                        )));
                    }
                };
            }
            "width" => {
                let width = number(key, value, "a number of tasks, 0 for as many as fit")?;
                if width > WIDTH_MAX {
                    let what = format!("`oxidask.width` is at most {WIDTH_MAX}, not `{value}`");
                    return Err(refused(what));
                }
                self.width = width;
            }
            "broadcast_bytes" => {
                self.broadcast_bytes = number(key, value, "a number of bytes")?;
            }
            _ => {
                let names = NAMES.map(|name| format!("`oxidask.{name}`")).join(", ");
                let message = match nearest(key, NAMES) {
                    Some(name) => format!("`oxidask.{key}` is no option: `oxidask.{name}` is"),
                    None => format!("`oxidask.{key}` is no option; there are {names}"),
                };
                return Err(refused(message));
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let stages = match self.stages {
            StagesOption::Auto => "auto",
            StagesOption::Always => "always",
            StagesOption::Never => "never",
        };
        let entry = |key: &str, value: String, description| ConfigEntry {
            key: format!("{}.{key}", Self::PREFIX),
            value: Some(value),
            description,
        };
        vec![
            entry(
                "stages",
                stages.to_owned(),
                "whether a query becomes many tasks: auto, always, never",
            ),
            entry(
                "width",
                self.width.to_string(),
                "tasks of a stage; 0: as many as fit the cluster and the data",
            ),
            entry(
                "broadcast_bytes",
                self.broadcast_bytes.to_string(),
                "build sides of joins up to this size are read by every task of the join",
            ),
        ]
    }
}

/// The settings for a plan that is cut into stages of `width` tasks.
pub(super) fn for_width(base: &SessionConfig, width: usize) -> SessionConfig {
    let ours = OxidaskOptions::of(base.options());
    let mut config = base.clone();
    let options = config.options_mut();
    options.execution.target_partitions = width;
    options.execution.collect_statistics = true;
    // Rows must not depend on which task is faster, and no task may wait for another of its stage.
    options.execution.enable_file_stream_work_stealing = false;
    options.execution.hash_join_buffering_capacity = 0;
    let optimizer = &mut options.optimizer;
    optimizer.enable_round_robin_repartition = false;
    // Each of them: the umbrella alone changes nothing.
    optimizer.enable_dynamic_filter_pushdown = false;
    optimizer.enable_join_dynamic_filter_pushdown = false;
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // Subqueries that give one value are stages of their own. As joins they would be wrong for
    // more than one row.
    optimizer.enable_physical_uncorrelated_scalar_subquery = true;
    optimizer.prefer_hash_join = true;
    let bytes = usize::try_from(ours.broadcast_bytes).unwrap_or(usize::MAX);
    optimizer.hash_join_single_partition_threshold = bytes;
    let rows = (ours.broadcast_bytes >> 20).saturating_mul(BROADCAST_ROWS_PER_MIB);
    optimizer.hash_join_single_partition_threshold_rows =
        usize::try_from(rows).unwrap_or(usize::MAX);
    // A width that somebody asked for is taken by its word.
    optimizer.repartition_file_min_size = if ours.width > 0 { 1 } else { SPLIT_BYTES_MIN };
    config
}

static DEFAULTS: LazyLock<Vec<ConfigEntry>> = LazyLock::new(|| ConfigOptions::new().entries());

/// The options of a query that differ from the engine's defaults. Fails if they cannot be set
/// again: then the query stays where it was planned.
pub(super) fn travelling(options: &ConfigOptions) -> Result<Vec<(String, String)>> {
    let mut travelling = Vec::new();
    for entry in options.entries() {
        let default = DEFAULTS.iter().find(|default| default.key == entry.key);
        let Some(default) = default else {
            // Options of ours matter for planning only.
            continue;
        };
        if default.value == entry.value {
            continue;
        }
        let Some(value) = entry.value else {
            let what = format!("`{}` cannot be unset in tasks", entry.key);
            return Err(DataFusionError::NotImplemented(what));
        };
        travelling.push((entry.key, value));
    }
    Ok(travelling)
}

/// The configuration of a stage's tasks: one thread each.
pub(super) fn of_stage<'a>(
    options: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<SessionConfig> {
    let mut config = ConfigOptions::new();
    for (name, value) in options {
        config.set(name, value)?;
    }
    config.execution.target_partitions = 1;
    Ok(SessionConfig::from(config))
}

/// The options as they are shared.
pub(super) fn shared(config: &SessionConfig) -> Arc<ConfigOptions> {
    Arc::clone(config.options())
}

//! The arguments of each operation that has any, as executors read them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Arguments of `value`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueArguments {
    /// The result.
    pub value: Value,
}

/// Arguments of `bytes`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytesArguments {
    /// Bytes of the result.
    pub len: u64,
    /// Chooses the content.
    #[serde(default)]
    pub seed: u64,
}

/// Arguments of `sleep` and `spin`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecondsArguments {
    /// How long.
    pub seconds: f64,
}

/// Arguments of `fail`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailArguments {
    /// The message of the failure.
    pub message: Option<String>,
    /// How many attempts fail; all of them if absent.
    pub attempts: Option<u32>,
}

/// Arguments of `exec`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecArguments {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the worker's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// After this time the program is ended.
    #[serde(rename = "timeoutSeconds")]
    pub timeout_seconds: Option<f64>,
}

/// Arguments of `read`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadArguments {
    /// A file, a folder, a pattern or an object-store URL.
    pub location: String,
    /// One of [`super::FORMATS`]; told from the location if absent.
    pub format: Option<String>,
    /// Options of the format.
    #[serde(default)]
    pub options: Map<String, Value>,
}

/// Arguments of `sql`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlArguments {
    /// One query.
    pub query: String,
    /// Names of the inputs in the query, in order.
    #[serde(default, rename = "as")]
    pub names: Vec<String>,
}

/// Arguments of `write`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteArguments {
    /// A file, a folder or an object-store URL.
    pub location: String,
    /// One of [`super::FORMATS`]; told from the location if absent.
    pub format: Option<String>,
    /// Columns whose values become folders.
    #[serde(default, rename = "partitionBy")]
    pub partition_by: Vec<String>,
}

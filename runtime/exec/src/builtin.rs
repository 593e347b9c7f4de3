//! The executor of all operations that need no table engine.

use std::fmt;
use std::io;
use std::sync::Arc;

use oxidask_diagnostic::Diagnostic;
use oxidask_store::Payload;

use crate::catalogue::{self, OperationError};
use crate::guard::{Guard, GuardCommand};
use crate::operations::aggregate::{Aggregate, AggregateKind};
use crate::operations::bytes::PseudoRandom;
use crate::operations::concat::Concat;
use crate::operations::constant::Constant;
use crate::operations::digest::Digest;
use crate::operations::exec::Exec;
use crate::operations::fail::Fail;
use crate::operations::wait::{Sleep, Spin};
use crate::{Body, Executor, Program, TaskError};

/// Writes a table for the programs of `exec` tasks; given by whoever knows tables.
pub trait TableToCsv: Send + Sync {
    /// Writes all rows below a line of column names. May block.
    fn write_csv(&self, table: &Payload, to: &mut dyn io::Write) -> Result<(), Diagnostic>;
}

/// Runs `noop`, `value`, `sum`, `min`, `max`, `count`, `concat`, `bytes`, `sha256`, `sleep`,
/// `spin`, `fail` and `exec`.
#[derive(Clone, Default)]
pub struct Builtin {
    tables: Option<Arc<dyn TableToCsv>>,
    guard: Arc<Guard>,
}

impl Builtin {
    /// Without tables as inputs of `exec`, and without a guard for its programs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `exec` tasks have tables as inputs.
    #[must_use]
    pub fn with_tables(mut self, tables: Arc<dyn TableToCsv>) -> Self {
        self.tables = Some(tables);
        self
    }

    /// How to start the guard that ends the programs of `exec` tasks should this process be
    /// killed. It is started with the first such task.
    #[must_use]
    pub fn with_guard(mut self, command: GuardCommand) -> Self {
        self.guard = Arc::new(Guard::new(command));
        self
    }

    fn program(&self, body: &Body) -> Result<Arc<dyn Program>, OperationError> {
        catalogue::check(&body.op, &body.args)?;
        let aggregate = |kind| -> Arc<dyn Program> { Arc::new(Aggregate::new(kind)) };
        Ok(match body.op.as_str() {
            "noop" => Arc::new(Constant::null()),
            "value" => Arc::new(Constant::new(&arguments(body)?)),
            "sum" => aggregate(AggregateKind::Sum),
            "min" => aggregate(AggregateKind::Min),
            "max" => aggregate(AggregateKind::Max),
            "count" => aggregate(AggregateKind::Count),
            "concat" => Arc::new(Concat),
            "bytes" => Arc::new(PseudoRandom::new(&arguments(body)?)),
            "sha256" => Arc::new(Digest),
            "sleep" => Arc::new(Sleep::new(&arguments(body)?)),
            "spin" => Arc::new(Spin::new(&arguments(body)?)),
            "fail" => Arc::new(Fail::new(arguments(body)?)),
            "exec" => Arc::new(Exec::new(
                arguments(body)?,
                self.tables.clone(),
                Arc::clone(&self.guard),
            )),
            _ => {
                return Err(OperationError::UnknownOperation {
                    op: body.op.clone(),
                    nearest: None,
                });
            }
        })
    }
}

fn arguments<T: serde::de::DeserializeOwned>(body: &Body) -> Result<T, OperationError> {
    catalogue::arguments(&body.op, &body.args)
}

impl Executor for Builtin {
    fn operations(&self) -> &'static [&'static str] {
        &[
            "noop", "value", "sum", "min", "max", "count", "concat", "bytes", "sha256", "sleep",
            "spin", "fail", "exec",
        ]
    }

    fn prepare(&self, body: &Body) -> Result<Arc<dyn Program>, TaskError> {
        self.program(body)
            .map_err(|error| TaskError::permanent(Diagnostic::from_error(&error)))
    }
}

impl fmt::Debug for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builtin")
            .field("knows_tables", &self.tables.is_some())
            .field("guard", &self.guard)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prepares_each_of_its_operations_and_no_other() {
        let builtin = Builtin::new();
        for op in builtin.operations() {
            let body = match *op {
                "value" => Body::new(*op).with("value", json!(null)),
                "bytes" => Body::new(*op).with("len", 1),
                "sleep" | "spin" => Body::new(*op).with("seconds", 0),
                "exec" => Body::new(*op).with("command", json!(["true"])),
                _ => Body::new(*op),
            };
            assert!(builtin.prepare(&body).is_ok(), "{op}");
        }
        assert!(
            builtin
                .prepare(&Body::new("sql").with("query", "SELECT 1"))
                .is_err()
        );
        let error = builtin
            .prepare(&Body::new("bytes").with("len", -1))
            .err()
            .unwrap();
        assert!(!error.is_retryable);
        assert_eq!(
            error.diagnostic.message,
            "argument `len` of operation `bytes` must be an integer from 0 on, not `-1`"
        );
    }
}

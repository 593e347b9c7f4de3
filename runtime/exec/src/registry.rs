//! Which executor runs which operation.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use oxidask_diagnostic::{Code, Diagnostic, nearest};

use crate::{Body, Executor, Program, TaskError};

/// The executors of a worker by operation.
pub struct Registry {
    executors: HashMap<&'static str, Arc<dyn Executor>>,
}

impl Registry {
    /// Where two executors run the same operation, the later one does.
    pub fn new(executors: Vec<Arc<dyn Executor>>) -> Self {
        let mut by_operation = HashMap::new();
        for executor in executors {
            for operation in executor.operations() {
                by_operation.insert(*operation, Arc::clone(&executor));
            }
        }
        Self {
            executors: by_operation,
        }
    }

    /// Understands an encoded body.
    pub fn prepare(&self, body: &[u8]) -> Result<Arc<dyn Program>, TaskError> {
        let body = Body::decode(body)
            .map_err(|error| TaskError::permanent(Diagnostic::from_error(&error)))?;
        match self.executors.get(body.op.as_str()) {
            Some(executor) => executor.prepare(&body),
            None => Err(TaskError::permanent(self.unknown(&body.op))),
        }
    }

    /// The executor of an operation.
    pub fn executor(&self, op: &str) -> Result<&Arc<dyn Executor>, Diagnostic> {
        self.executors.get(op).ok_or_else(|| self.unknown(op))
    }

    fn unknown(&self, op: &str) -> Diagnostic {
        let diagnostic = Diagnostic::new(
            Code::OperationUnknown,
            format!("this worker has no operation `{op}`"),
        );
        let mut names: Vec<_> = self.executors.keys().copied().collect();
        names.sort_unstable();
        match nearest(op, names) {
            Some(name) => diagnostic.with_hint(format!("did you mean `{name}`?")),
            None => diagnostic.with_hint("run workers and clients of the same version"),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.executors.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Builtin;

    #[test]
    fn prepares_known_operations_and_names_unknown_ones() {
        let registry = Registry::new(vec![Arc::new(Builtin::new())]);
        assert!(registry.prepare(br#"{"op":"noop"}"#).is_ok());
        let refused = registry.prepare(br#"{"op":"cuont"}"#).err().unwrap();
        assert!(!refused.is_retryable);
        assert_eq!(refused.diagnostic.code, Code::OperationUnknown);
        assert_eq!(
            refused.diagnostic.message,
            "this worker has no operation `cuont`"
        );
        assert_eq!(refused.diagnostic.hint, "did you mean `count`?");
        let refused = registry.prepare(b"\x00\xff").err().unwrap();
        assert_eq!(
            refused.diagnostic.message,
            "the body of a task cannot be read: it names no operation"
        );
        let refused = registry.prepare(br#"{"op":"bytes"}"#).err().unwrap();
        assert_eq!(refused.diagnostic.code, Code::OperationUnknown);
    }
}

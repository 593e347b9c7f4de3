//! The built-in operations, one module for each family.
//!
//! Owns what they share: how a result that only takes computing is run, and how inputs are read.
//! Invariant: nothing here blocks the worker's own threads for longer than a small input takes.

pub(crate) mod aggregate;
pub(crate) mod bytes;
pub(crate) mod concat;
pub(crate) mod constant;
pub(crate) mod digest;
pub(crate) mod exec;
pub(crate) mod fail;
mod output;
mod process;
pub(crate) mod wait;

use std::sync::Arc;

use ::bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::{Payload, PayloadKind};

use crate::{Program, TaskContext, TaskError};

/// Work on less than this is done at once, on the worker's own thread.
pub(crate) const SMALL_BYTES: u64 = 64 * 1024;

/// An operation that only computes: no waiting, no files.
pub(crate) trait Compute: Send + Sync + 'static {
    /// The result.
    fn compute(&self, inputs: &[Payload], context: &TaskContext) -> Result<Payload, TaskError>;

    /// See [`Program::reads_inputs`].
    fn reads_inputs(&self) -> bool {
        true
    }

    /// Bytes that are read or made; decides where it runs.
    fn work_bytes(&self, inputs: &[Payload]) -> u64 {
        inputs.iter().map(Payload::len).sum()
    }
}

impl<C: Compute> Program for C {
    fn reads_inputs(&self) -> bool {
        Compute::reads_inputs(self)
    }

    fn run_now(
        &self,
        inputs: &[Payload],
        context: &TaskContext,
    ) -> Option<Result<Payload, TaskError>> {
        (self.work_bytes(inputs) < SMALL_BYTES).then(|| self.compute(inputs, context))
    }

    fn run(
        self: Arc<Self>,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        blocking(move || self.compute(&inputs, &context)).boxed()
    }
}

/// Runs on a thread that may block. A panic there goes on here, where the worker catches it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(cancelled()),
        },
    }
}

/// What a result is, for messages.
pub(crate) fn noun(kind: PayloadKind) -> &'static str {
    match kind {
        PayloadKind::Value => "a value",
        PayloadKind::Bytes => "bytes",
        PayloadKind::Table => "a table",
        PayloadKind::Slices => "the output of a stage",
        PayloadKind::Graph => "a plan",
        PayloadKind::Python => "a value of Python",
    }
}

/// A failure that another attempt would only repeat.
pub(crate) fn refused(message: impl Into<String>) -> TaskError {
    TaskError::permanent(Diagnostic::new(Code::TaskFailed, message))
}

/// The outcome of an attempt that nobody waits for any more.
pub(crate) fn cancelled() -> TaskError {
    TaskError::retryable(Diagnostic::new(
        Code::GraphCancelled,
        "the attempt was cancelled",
    ))
}

/// All bytes of a payload in one piece; copies only if there are several parts.
pub(crate) fn contiguous(payload: &Payload) -> Bytes {
    match payload.parts.as_slice() {
        [] => Bytes::new(),
        [part] => part.clone(),
        parts => {
            let mut joined =
                BytesMut::with_capacity(usize::try_from(payload.len()).unwrap_or_default());
            for part in parts {
                joined.extend_from_slice(part);
            }
            joined.freeze()
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::{Body, Builtin, Executor};
    use oxidask_store::PayloadKind;
    use serde_json::Value;

    pub(crate) fn context() -> TaskContext {
        TaskContext::alone(1 << 40, std::env::temp_dir(), std::env::temp_dir())
    }

    pub(crate) fn value(json: &str) -> Payload {
        Payload::new(PayloadKind::Value, json.to_owned())
    }

    pub(crate) fn bytes(content: &'static [u8]) -> Payload {
        Payload::new(PayloadKind::Bytes, content)
    }

    pub(crate) fn table() -> Payload {
        Payload::new(PayloadKind::Table, &b"arrow"[..])
    }

    /// Runs as the worker does: at once if it can be, else as a future.
    pub(crate) async fn run_with(
        body: Body,
        inputs: Vec<Payload>,
        context: TaskContext,
    ) -> Result<Payload, TaskError> {
        let program = Builtin::new().prepare(&body)?;
        match program.run_now(&inputs, &context) {
            Some(outcome) => outcome,
            None => program.run(inputs, context).await,
        }
    }

    /// Both ways must give the same.
    pub(crate) async fn run(body: Body, inputs: &[Payload]) -> Result<Payload, TaskError> {
        let program = Builtin::new().prepare(&body)?;
        let now = program.run_now(inputs, &context());
        let later = program.run(inputs.to_vec(), context()).await;
        if let Some(now) = now {
            match (&now, &later) {
                (Ok(now), Ok(later)) => assert_eq!(now, later),
                (Err(now), Err(later)) => assert_eq!(now.diagnostic, later.diagnostic),
                _ => panic!("run_now and run differ"),
            }
        }
        later
    }

    /// The JSON text of a result.
    pub(crate) async fn text(op: &str, inputs: &[&str]) -> String {
        let inputs: Vec<_> = inputs.iter().map(|json| value(json)).collect();
        let result = run(Body::new(op), &inputs).await.unwrap();
        assert_eq!(result.kind, PayloadKind::Value);
        let text = String::from_utf8(contiguous(&result).to_vec()).unwrap();
        serde_json::from_str::<Value>(&text).expect("the result is JSON");
        text
    }

    /// The message of a failure.
    pub(crate) async fn failure(op: &str, inputs: &[Payload]) -> String {
        run(Body::new(op), inputs)
            .await
            .expect_err("must fail")
            .diagnostic
            .message
    }
}

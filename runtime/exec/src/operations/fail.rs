//! `fail`: fails on purpose, to try out retries and messages.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::Payload;

use crate::catalogue::FailArguments;
use crate::{Program, TaskContext, TaskError};

/// Fails the first attempts, or all of them.
pub(crate) struct Fail {
    arguments: FailArguments,
}

impl Fail {
    pub(crate) fn new(arguments: FailArguments) -> Self {
        Self { arguments }
    }

    fn outcome(&self, attempt: u32) -> Result<Payload, TaskError> {
        if self
            .arguments
            .attempts
            .is_some_and(|failing| attempt > failing)
        {
            return Ok(Payload::null());
        }
        let message = self
            .arguments
            .message
            .as_deref()
            .filter(|message| !message.is_empty());
        Err(TaskError::retryable(Diagnostic::new(
            Code::TaskFailed,
            message.unwrap_or("the task failed on purpose"),
        )))
    }
}

impl Program for Fail {
    fn reads_inputs(&self) -> bool {
        false
    }

    fn run_now(&self, _: &[Payload], context: &TaskContext) -> Option<Result<Payload, TaskError>> {
        Some(self.outcome(context.attempt))
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        futures::future::ready(self.outcome(context.attempt)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use crate::Body;
    use crate::operations::testing::{context, run_with};
    use oxidask_store::Payload;

    #[tokio::test]
    async fn fails_the_first_attempts_only() {
        for attempt in 1..=4 {
            let mut context = context();
            context.attempt = attempt;
            let body = Body::new("fail")
                .with("message", "not yet")
                .with("attempts", 2);
            match run_with(body, vec![], context).await {
                Ok(result) => {
                    assert!(attempt > 2);
                    assert_eq!(result, Payload::null());
                }
                Err(error) => {
                    assert!(attempt <= 2);
                    assert!(error.is_retryable);
                    assert_eq!(error.diagnostic.message, "not yet");
                }
            }
        }
    }

    #[tokio::test]
    async fn fails_always_without_a_number() {
        let mut context = context();
        context.attempt = u32::MAX;
        let error = run_with(Body::new("fail"), vec![], context)
            .await
            .unwrap_err();
        assert_eq!(error.diagnostic.message, "the task failed on purpose");
    }
}

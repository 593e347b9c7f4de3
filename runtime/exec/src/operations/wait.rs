//! `sleep` and `spin`: a slot held for some time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_store::Payload;

use super::{blocking, cancelled};
use crate::catalogue::SecondsArguments;
use crate::{Program, TaskContext, TaskError};

/// Turns between two looks at the clock, some microseconds.
const TURNS: u32 = 1_000;

/// Checked arguments are within the bounds of a duration.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Holds the slot asleep.
pub(crate) struct Sleep {
    duration: Duration,
}

impl Sleep {
    pub(crate) fn new(arguments: &SecondsArguments) -> Self {
        Self {
            duration: duration(arguments.seconds),
        }
    }
}

impl Program for Sleep {
    fn reads_inputs(&self) -> bool {
        false
    }

    fn run_now(&self, _: &[Payload], _: &TaskContext) -> Option<Result<Payload, TaskError>> {
        self.duration.is_zero().then(|| Ok(Payload::null()))
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        async move {
            tokio::select! {
                () = tokio::time::sleep(self.duration) => Ok(Payload::null()),
                () = context.cancelled.cancelled() => Err(cancelled()),
            }
        }
        .boxed()
    }
}

/// Burns one core.
pub(crate) struct Spin {
    duration: Duration,
}

impl Spin {
    pub(crate) fn new(arguments: &SecondsArguments) -> Self {
        Self {
            duration: duration(arguments.seconds),
        }
    }
}

impl Program for Spin {
    fn reads_inputs(&self) -> bool {
        false
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        context: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        blocking(move || {
            let start = Instant::now();
            while start.elapsed() < self.duration {
                if context.cancelled.is_cancelled() {
                    return Err(cancelled());
                }
                for _ in 0..TURNS {
                    std::hint::spin_loop();
                }
            }
            Ok(Payload::null())
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Body;
    use crate::operations::testing::{bytes, context, run_with};
    use oxidask_diagnostic::Code;

    #[tokio::test]
    async fn take_their_time_and_give_null() {
        for op in ["sleep", "spin"] {
            let start = Instant::now();
            let body = Body::new(op).with("seconds", 0.05);
            let result = run_with(body, vec![bytes(b"only order")], context())
                .await
                .unwrap();
            assert_eq!(result, Payload::null());
            assert!(start.elapsed() >= Duration::from_millis(50), "{op}");
            let body = Body::new(op).with("seconds", 0);
            assert_eq!(
                run_with(body, vec![], context()).await.unwrap(),
                Payload::null()
            );
        }
    }

    #[tokio::test]
    async fn end_soon_when_cancelled() {
        for op in ["sleep", "spin"] {
            let context = context();
            let canceller = context.cancelled.clone();
            let start = Instant::now();
            let body = Body::new(op).with("seconds", 300_000_000);
            let run = tokio::spawn(run_with(body, vec![], context));
            tokio::time::sleep(Duration::from_millis(20)).await;
            canceller.cancel();
            let error = run.await.unwrap().unwrap_err();
            assert_eq!(error.diagnostic.code, Code::GraphCancelled);
            assert!(start.elapsed() < Duration::from_secs(10), "{op}");
        }
    }
}

//! An executor that does what commands say, and tells tasks what was done.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Body, Command, Executor, Program, TaskContext, TaskError};
use oxidask_store::{Payload, PayloadKind};

/// Of operation `done`. A task's result is the list of what has been done.
#[derive(Default, Clone)]
pub(crate) struct Doer {
    done: Arc<Mutex<Vec<String>>>,
}

impl Executor for Doer {
    fn operations(&self) -> &'static [&'static str] {
        &["done"]
    }

    fn prepare(&self, _: &Body) -> Result<Arc<dyn Program>, TaskError> {
        Ok(Arc::new(self.clone()))
    }

    fn command(&self, command: Command) -> BoxFuture<'static, Result<Bytes, Diagnostic>> {
        let done = Arc::clone(&self.done);
        async move {
            let text = String::from_utf8(command.content.to_vec()).unwrap();
            let (what, rest) = text.split_once(' ').unwrap_or((&text, ""));
            let number = || rest.parse::<u64>().unwrap();
            match what {
                "fail" => return Err(Diagnostic::new(Code::TaskFailed, rest)),
                "panic" => panic!("{rest}"),
                "large" => return Ok(vec![7; usize::try_from(number()).unwrap()].into()),
                "sleep" => tokio::time::sleep(Duration::from_millis(number())).await,
                _ => {}
            }
            let note = format!("{text}{}", if command.is_standing { "!" } else { "" });
            done.lock().unwrap().push(note);
            Ok(Bytes::copy_from_slice(text.as_bytes()))
        }
        .boxed()
    }

    fn forget_commands(&self) {
        self.done.lock().unwrap().push("forget".to_owned());
    }
}

impl Program for Doer {
    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        _: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        let done = self.done.lock().unwrap().join(",");
        async move { Ok(Payload::new(PayloadKind::Bytes, done.into_bytes())) }.boxed()
    }
}

//! `noop` and `value`: a result that is known beforehand.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use oxidask_store::{Payload, PayloadKind};

use crate::catalogue::ValueArguments;
use crate::{Program, TaskContext, TaskError};

/// Gives the same value each time, whatever the inputs. Its bytes are shared by all results.
pub(crate) struct Constant {
    result: Payload,
    reads_inputs: bool,
}

impl Constant {
    /// `null`. It takes its inputs, so that it stands for an operation that costs nothing itself.
    pub(crate) fn null() -> Self {
        Self {
            result: Payload::null(),
            reads_inputs: true,
        }
    }

    /// A JSON value in compact form.
    pub(crate) fn new(arguments: &ValueArguments) -> Self {
        Self {
            result: Payload::new(PayloadKind::Value, arguments.value.to_string()),
            reads_inputs: false,
        }
    }
}

impl Program for Constant {
    fn reads_inputs(&self) -> bool {
        self.reads_inputs
    }

    fn run_now(&self, _: &[Payload], _: &TaskContext) -> Option<Result<Payload, TaskError>> {
        Some(Ok(self.result.clone()))
    }

    fn run(
        self: Arc<Self>,
        _: Vec<Payload>,
        _: TaskContext,
    ) -> BoxFuture<'static, Result<Payload, TaskError>> {
        futures::future::ready(Ok(self.result.clone())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use crate::Body;
    use crate::operations::testing::{bytes, run, table, value};
    use oxidask_store::Payload;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn noop_is_null_whatever_the_inputs() {
        for inputs in [vec![], vec![value("1"), bytes(b"\xff"), table()]] {
            assert_eq!(
                run(Body::new("noop"), &inputs).await.unwrap(),
                Payload::null()
            );
        }
    }

    #[tokio::test]
    async fn value_is_compact_json_with_its_order_and_its_characters() {
        let text = r#"{"z":1,"a":[null,true,1.0,1e-7,18446744073709551615,"grün\n"]}"#;
        for (given, expected) in [
            (serde_json::from_str::<Value>(text).unwrap(), text),
            (json!(null), "null"),
            (json!("ü"), "\"ü\""),
            (json!([]), "[]"),
        ] {
            let body = Body::new("value").with("value", given);
            assert_eq!(run(body, &[bytes(b"x")]).await.unwrap(), value(expected));
        }
    }

    #[test]
    fn shares_the_bytes_of_its_results() {
        use crate::{Builtin, Executor};
        let program = Builtin::new()
            .prepare(&Body::new("value").with("value", "x".repeat(100)))
            .unwrap();
        let context = crate::operations::testing::context();
        let one = program.run_now(&[], &context).unwrap().unwrap();
        let two = program.run_now(&[], &context).unwrap().unwrap();
        assert_eq!(one.parts[0].as_ptr(), two.parts[0].as_ptr());
    }
}

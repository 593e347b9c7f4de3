//! `concat`: lists joined to a list, or bytes joined to bytes.

use bytes::Bytes;
use oxidask_store::{Payload, PayloadKind};

use super::{Compute, contiguous, noun, refused};
use crate::{TaskContext, TaskError};

/// More parts than this are copied into one if they are small, so that no result has a million.
const PARTS_MAX: usize = 1_024;

/// Parts of at least this many bytes on average are always shared.
const LARGE_PART_BYTES: u64 = 64 * 1024;

/// Joins its inputs in order.
pub(crate) struct Concat;

impl Compute for Concat {
    fn compute(&self, inputs: &[Payload], _: &TaskContext) -> Result<Payload, TaskError> {
        if let Some(position) = inputs
            .iter()
            .position(|input| !matches!(input.kind, PayloadKind::Value | PayloadKind::Bytes))
        {
            return Err(refused(format!(
                "`concat` joins lists or bytes, but input {position} is {}",
                noun(inputs[position].kind)
            )));
        }
        let bytes_count = inputs
            .iter()
            .filter(|input| input.kind == PayloadKind::Bytes)
            .count();
        if bytes_count == 0 {
            Ok(Payload::new(PayloadKind::Value, join_values(inputs)))
        } else if bytes_count == inputs.len() {
            Ok(join_bytes(inputs))
        } else {
            Err(refused(format!(
                "`concat` joins values or bytes, but of {} inputs {bytes_count} are bytes",
                inputs.len()
            )))
        }
    }
}

/// The texts of the elements are joined as they are: values are compact JSON already.
fn join_values(inputs: &[Payload]) -> Vec<u8> {
    let mut joined = vec![b'['];
    for input in inputs {
        let text = contiguous(input);
        let text = text.trim_ascii();
        let elements = match text
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_suffix(b"]"))
        {
            Some(elements) => elements.trim_ascii(),
            None => text,
        };
        if elements.is_empty() {
            continue;
        }
        if joined.len() > 1 {
            joined.push(b',');
        }
        joined.extend_from_slice(elements);
    }
    joined.push(b']');
    joined
}

fn join_bytes(inputs: &[Payload]) -> Payload {
    let parts: Vec<Bytes> = inputs
        .iter()
        .flat_map(|input| input.parts.iter().filter(|part| !part.is_empty()).cloned())
        .collect();
    let joined = Payload {
        kind: PayloadKind::Bytes,
        parts,
    };
    let parts_count = joined.parts.len();
    if parts_count > PARTS_MAX && joined.len() / (parts_count as u64) < LARGE_PART_BYTES {
        return Payload::new(PayloadKind::Bytes, contiguous(&joined));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::PARTS_MAX;
    use crate::Body;
    use crate::operations::contiguous;
    use crate::operations::testing::{bytes, failure, run, table, text, value};
    use oxidask_store::PayloadKind;

    #[tokio::test]
    async fn joins_lists_and_takes_other_values_as_elements() {
        for (inputs, expected) in [
            (&[][..], "[]"),
            (&["[]", "[]"], "[]"),
            (&["[1]", "[]", "[2,[3]]"], "[1,2,[3]]"),
            (
                &["1", "null", "\"[a]\"", "{\"b\":[1]}", "[[]]"],
                "[1,null,\"[a]\",{\"b\":[1]},[]]",
            ),
            (&["[\"]\",\"[\"]", "\"]\""], "[\"]\",\"[\",\"]\"]"),
        ] {
            assert_eq!(text("concat", inputs).await, expected, "{inputs:?}");
        }
    }

    #[tokio::test]
    async fn joins_bytes_without_copying() {
        let inputs = [bytes(b"ab"), bytes(b""), bytes(b"\xff"), bytes(b"ab")];
        let joined = run(Body::new("concat"), &inputs).await.unwrap();
        assert_eq!(joined.kind, PayloadKind::Bytes);
        assert_eq!(&contiguous(&joined)[..], b"ab\xffab");
        assert_eq!(joined.parts[0].as_ptr(), inputs[0].parts[0].as_ptr());
    }

    #[tokio::test]
    async fn many_small_parts_become_one() {
        let inputs: Vec<_> = (0..=PARTS_MAX).map(|_| bytes(b"xyz")).collect();
        let joined = run(Body::new("concat"), &inputs).await.unwrap();
        assert_eq!(
            (joined.parts.len(), joined.len()),
            (1, 3 * (PARTS_MAX as u64 + 1))
        );
    }

    #[tokio::test]
    async fn refuses_mixtures_and_tables() {
        assert_eq!(
            failure("concat", &[value("[1]"), bytes(b"a")]).await,
            "`concat` joins values or bytes, but of 2 inputs 1 are bytes"
        );
        assert_eq!(
            failure("concat", &[value("[1]"), table()]).await,
            "`concat` joins lists or bytes, but input 1 is a table"
        );
    }
}

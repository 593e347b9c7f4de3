//! `sha256`: a digest over the inputs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use oxidask_store::{Payload, PayloadKind};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Compute, contiguous, noun, refused};
use crate::{TaskContext, TaskError};

/// Hashes bytes as they are and values as compact JSON with sorted keys, one behind the other.
pub(crate) struct Digest;

impl Compute for Digest {
    fn compute(&self, inputs: &[Payload], _: &TaskContext) -> Result<Payload, TaskError> {
        let mut hasher = Sha256::new();
        for (position, input) in inputs.iter().enumerate() {
            match input.kind {
                PayloadKind::Bytes => input.parts.iter().for_each(|part| hasher.update(part)),
                PayloadKind::Value => {
                    let unreadable = |error: &dyn std::error::Error| {
                        refused(format!(
                            "input {position} of `sha256` is unreadable: {error}"
                        ))
                    };
                    let value: Value = serde_json::from_slice(&contiguous(input))
                        .map_err(|error| unreadable(&error))?;
                    write_sorted(&value, &mut hasher).map_err(|error| unreadable(&error))?;
                }
                kind => {
                    return Err(refused(format!(
                        "`sha256` takes values and bytes, but input {position} is {}",
                        noun(kind)
                    )));
                }
            }
        }
        let mut text = String::with_capacity(66);
        text.push('"');
        for byte in hasher.finalize() {
            // Writing into a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push('"');
        Ok(Payload::new(PayloadKind::Value, text))
    }
}

/// Compact JSON with the keys of each object in the order of their bytes. The depth is bounded by
/// the reader.
fn write_sorted(value: &Value, to: &mut impl Write) -> io::Result<()> {
    match value {
        Value::Array(items) => {
            to.write_all(b"[")?;
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    to.write_all(b",")?;
                }
                write_sorted(item, to)?;
            }
            to.write_all(b"]")
        }
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            to.write_all(b"{")?;
            for (position, (name, field)) in sorted.into_iter().enumerate() {
                if position > 0 {
                    to.write_all(b",")?;
                }
                serde_json::to_writer(&mut *to, name)?;
                to.write_all(b":")?;
                write_sorted(field, to)?;
            }
            to.write_all(b"}")
        }
        scalar => Ok(serde_json::to_writer(to, scalar)?),
    }
}

#[cfg(test)]
mod tests {
    use crate::Body;
    use crate::operations::testing::{bytes, failure, run, table, text, value};

    #[tokio::test]
    async fn hashes_bytes_as_they_are() {
        assert_eq!(
            text("sha256", &[]).await,
            "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\""
        );
        let abc = "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"";
        for inputs in [
            vec![bytes(b"abc")],
            vec![bytes(b"a"), bytes(b""), bytes(b"bc")],
        ] {
            assert_eq!(run(Body::new("sha256"), &inputs).await.unwrap(), value(abc));
        }
    }

    #[tokio::test]
    async fn hashes_values_with_sorted_keys() {
        let sorted = run(
            Body::new("sha256"),
            &[bytes(b"{\"a\":[{\"b\":2,\"c\":null}],\"z\":1.0}")],
        )
        .await
        .unwrap();
        let json = "{\"z\":1.0,\"a\":[{\"c\":null,\"b\":2}]}";
        assert_eq!(
            run(Body::new("sha256"), &[value(json)]).await.unwrap(),
            sorted
        );
        let text = run(Body::new("sha256"), &["\"gr\u{fc}n\""].map(value))
            .await
            .unwrap();
        assert_eq!(
            text,
            run(Body::new("sha256"), &[bytes(b"\"gr\xc3\xbcn\"")])
                .await
                .unwrap()
        );
    }

    #[tokio::test]
    async fn refuses_tables() {
        assert_eq!(
            failure("sha256", &[bytes(b""), table()]).await,
            "`sha256` takes values and bytes, but input 1 is a table"
        );
    }
}

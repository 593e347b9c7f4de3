//! A task's body: the operation and its arguments, as compact JSON.

use bytes::Bytes;
use oxidask_diagnostic::{Code, Coded};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a task does, apart from its inputs. Tasks that do the same share one body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// The operation's name.
    pub op: String,
    /// The operation's arguments by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub args: Map<String, Value>,
    /// What the operation reads by itself; bodies that have it have no arguments.
    #[serde(skip)]
    pub content: Bytes,
}

/// The first byte of a body with content: no JSON begins with it. The length of the operation's name
/// in a byte, the name and the content follow.
const WITH_CONTENT: u8 = 0;

/// The bytes are not a body: their sender and this program do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is no JSON, or not what it should be.
    #[error("the body of a task cannot be read")]
    Json(#[from] serde_json::Error),
    /// It should name an operation before its content.
    #[error("the body of a task cannot be read: it names no operation")]
    Content,
}

impl Coded for BodyError {
    fn code(&self) -> Code {
        Code::GraphSyntax
    }
}

impl Body {
    /// A body without arguments.
    pub fn new(op: impl Into<String>) -> Self {
        Self {
            op: op.into(),
            args: Map::new(),
            content: Bytes::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.args.insert(name.into(), value.into());
        self
    }

    /// The body as compact JSON. Equal bodies give equal bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(64);
        encode_into(&self.op, &self.args, &mut bytes);
        bytes.into()
    }

    /// Reads what [`Body::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, BodyError> {
        if let Some((&WITH_CONTENT, rest)) = bytes.split_first() {
            return Self::decode_with_content(rest).ok_or(BodyError::Content);
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    fn decode_with_content(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first()?;
        let (op, content) = rest.split_at_checked(usize::from(*length))?;
        Some(Self {
            op: std::str::from_utf8(op).ok()?.to_owned(),
            args: Map::new(),
            content: Bytes::copy_from_slice(content),
        })
    }
}

/// Appends what [`Body::encode`] gives, without taking the parts apart first.
pub fn encode_into(op: &str, args: &Map<String, Value>, bytes: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Parts<'a> {
        op: &'a str,
        #[serde(skip_serializing_if = "Map::is_empty")]
        args: &'a Map<String, Value>,
    }
    // Writing JSON values with text keys into memory cannot fail.
    let written = serde_json::to_writer(bytes, &Parts { op, args });
    debug_assert!(written.is_ok(), "a JSON value can always be written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn is_compact_and_survives_the_way_back() {
        let body =
            Body::new("value").with("value", json!({"ä": [1, 2.5, null, u64::MAX, "\u{0}"]}));
        let bytes = body.encode();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            r#"{"op":"value","args":{"value":{"ä":[1,2.5,null,18446744073709551615,"\u0000"]}}}"#
        );
        assert_eq!(Body::decode(&bytes).unwrap(), body);
        assert_eq!(&Body::new("noop").encode()[..], br#"{"op":"noop"}"#);
    }

    #[test]
    fn content_follows_the_name() {
        let body = Body::decode(b"\0\x06python\x80\x05.").unwrap();
        assert_eq!(
            (body.op.as_str(), &body.content[..]),
            ("python", &b"\x80\x05."[..])
        );
        for cut in [&b"\0"[..], b"\0\x07python", b"\0\x01\xff"] {
            assert!(Body::decode(cut).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_body() {
        for bytes in [
            &b""[..],
            b"{}",
            b"[]",
            b"\xff",
            br#"{"op":1}"#,
            br#"{"op":"a","x":1}"#,
        ] {
            assert!(Body::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}

//! `sum`, `min`, `max` and `count`.
//!
//! Values are read as a stream of numbers, so a long list costs no memory. Integers are added
//! exactly and before floats: neither the order of the inputs nor a passing overflow matters.

use std::fmt;

use oxidask_store::{Payload, PayloadKind};
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Compute, contiguous, noun, refused};
use crate::{TaskContext, TaskError};

/// Which aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AggregateKind {
    Sum,
    Min,
    Max,
    Count,
}

impl AggregateKind {
    fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Count => "count",
        }
    }
}

/// One of the aggregates.
pub(crate) struct Aggregate {
    kind: AggregateKind,
}

impl Aggregate {
    pub(crate) fn new(kind: AggregateKind) -> Self {
        Self { kind }
    }
}

impl Compute for Aggregate {
    fn compute(&self, inputs: &[Payload], _: &TaskContext) -> Result<Payload, TaskError> {
        let text = if self.kind == AggregateKind::Count {
            count(inputs)?.to_string()
        } else {
            self.fold(inputs)?
        };
        Ok(Payload::new(PayloadKind::Value, text))
    }
}

impl Aggregate {
    fn fold(&self, inputs: &[Payload]) -> Result<String, TaskError> {
        let name = self.kind.name();
        let mut tally = Tally::default();
        for (position, input) in inputs.iter().enumerate() {
            let wrong = |found: &str| {
                refused(format!(
                    "`{name}` takes numbers and lists of them, but input {position} {found}"
                ))
            };
            if input.kind != PayloadKind::Value {
                return Err(wrong(&format!("is {}", noun(input.kind))));
            }
            let bytes = contiguous(input);
            let mut reader = serde_json::Deserializer::from_slice(&bytes);
            if let Err(error) = Numbers(&mut tally).deserialize(&mut reader) {
                return Err(match tally.found {
                    Some(Found::Other(what)) => wrong(&format!("has {what}")),
                    Some(Found::TooLarge(number)) => refused(format!(
                        "`{name}` takes integers of 64 bits, but input {position} has `{number}`"
                    )),
                    None => refused(format!(
                        "input {position} of `{name}` is unreadable: {error}"
                    )),
                });
            }
        }
        self.result(&tally)
    }

    fn result(&self, tally: &Tally) -> Result<String, TaskError> {
        let overflow = || refused("`sum` overflows: the result does not fit 64 bits");
        match self.kind {
            AggregateKind::Sum if tally.floats_count == 0 => i64::try_from(tally.integers_sum)
                .map(|sum| sum.to_string())
                .map_err(|_| overflow()),
            AggregateKind::Sum => {
                let sum = to_float(tally.integers_sum) + tally.floats_sum;
                if sum.is_finite() {
                    Ok(float_text(sum))
                } else {
                    Err(overflow())
                }
            }
            AggregateKind::Min => Ok(extreme(tally.integer_min, tally.float_min, f64::min)),
            AggregateKind::Max => Ok(extreme(tally.integer_max, tally.float_max, f64::max)),
            AggregateKind::Count => Ok(String::new()),
        }
    }
}

fn extreme(integer: Option<i64>, float: Option<f64>, pick: fn(f64, f64) -> f64) -> String {
    match (integer, float) {
        (None, None) => "null".to_owned(),
        (Some(integer), None) => integer.to_string(),
        (None, Some(float)) => float_text(float),
        (Some(integer), Some(float)) => float_text(pick(to_float(integer.into()), float)),
    }
}

fn float_text(number: f64) -> String {
    serde_json::Value::from(number).to_string()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a float among the numbers makes a float"
)]
fn to_float(integer: i128) -> f64 {
    integer as f64
}

fn count(inputs: &[Payload]) -> Result<u64, TaskError> {
    let mut total = 0;
    for (position, input) in inputs.iter().enumerate() {
        let bytes = if input.kind == PayloadKind::Value {
            contiguous(input)
        } else {
            "0".into()
        };
        total += if bytes.trim_ascii_start().starts_with(b"[") {
            // `IgnoredAny` has no size: the list is walked, not kept.
            let elements: Vec<IgnoredAny> = serde_json::from_slice(&bytes).map_err(|error| {
                refused(format!(
                    "input {position} of `count` is unreadable: {error}"
                ))
            })?;
            elements.len() as u64
        } else {
            1
        };
    }
    Ok(total)
}

/// What was seen of the numbers so far.
#[derive(Debug, Default)]
struct Tally {
    integers_sum: i128,
    integer_min: Option<i64>,
    integer_max: Option<i64>,
    floats_count: u64,
    floats_sum: f64,
    float_min: Option<f64>,
    float_max: Option<f64>,
    found: Option<Found>,
}

/// Something that is not a number of 64 bits.
#[derive(Debug)]
enum Found {
    Other(&'static str),
    TooLarge(u64),
}

impl Tally {
    fn add_integer(&mut self, number: i64) {
        self.integers_sum += i128::from(number);
        self.integer_min = Some(self.integer_min.map_or(number, |least| least.min(number)));
        self.integer_max = Some(self.integer_max.map_or(number, |most| most.max(number)));
    }

    fn add_float(&mut self, number: f64) {
        self.floats_count += 1;
        self.floats_sum += number;
        self.float_min = Some(self.float_min.map_or(number, |least| least.min(number)));
        self.float_max = Some(self.float_max.map_or(number, |most| most.max(number)));
    }

    fn refuse<E: serde::de::Error>(&mut self, found: Found) -> E {
        self.found = Some(found);
        E::custom("not a number")
    }
}

/// Adds every number of a value, lists flattened, to the tally.
struct Numbers<'a>(&'a mut Tally);

impl<'de> DeserializeSeed<'de> for Numbers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Numbers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.0.add_integer(number);
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(self.0.refuse(Found::TooLarge(number))),
        }
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.0.add_float(number);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Numbers(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Err(self.0.refuse(Found::Other("a boolean")))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(self.0.refuse(Found::Other("a string")))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Err(self.0.refuse(Found::Other("a null")))
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.0.found = Some(Found::Other("an object"));
        Err(A::Error::custom("not a number"))
    }
}

#[cfg(test)]
mod tests {
    use crate::operations::testing::{bytes, context, failure, table, text, value};
    use crate::{Body, Builtin, Executor};

    #[tokio::test]
    async fn adds_numbers_with_lists_flattened() {
        for (inputs, expected) in [
            (&[][..], "0"),
            (&["[]", "[[],[[]]]"], "0"),
            (&["1", "2", "[3,[4,[5]]]"], "15"),
            (&["-9223372036854775808", "9223372036854775807"], "-1"),
            (&["1", "0.5"], "1.5"),
            (&["1", "2.0"], "3.0"),
            (&["[0.1,0.2]"], "0.30000000000000004"),
            (&["1e308", "-1e308", "3"], "3.0"),
        ] {
            assert_eq!(text("sum", inputs).await, expected, "{inputs:?}");
        }
    }

    #[tokio::test]
    async fn a_passing_overflow_is_none() {
        let inputs = [
            "9223372036854775807",
            "9223372036854775807",
            "-9223372036854775807",
        ];
        assert_eq!(text("sum", &inputs).await, "9223372036854775807");
    }

    #[tokio::test]
    async fn an_overflow_is_an_error() {
        for inputs in [
            ["9223372036854775807", "1"],
            ["-9223372036854775808", "-1"],
            ["1e308"; 2],
        ] {
            assert_eq!(
                failure("sum", &inputs.map(value)).await,
                "`sum` overflows: the result does not fit 64 bits"
            );
        }
        assert_eq!(
            failure("max", &[value("1"), value("[18446744073709551615]")]).await,
            "`max` takes integers of 64 bits, but input 1 has `18446744073709551615`"
        );
    }

    #[tokio::test]
    async fn finds_the_least_and_the_most() {
        for (inputs, least, most) in [
            (&[][..], "null", "null"),
            (&["[]"], "null", "null"),
            (&["3", "[1,[2]]", "2"], "1", "3"),
            (&["3", "1.5"], "1.5", "3.0"),
            (&["1", "2.5"], "1.0", "2.5"),
            (
                &["-9223372036854775808", "9223372036854775807"],
                "-9223372036854775808",
                "9223372036854775807",
            ),
        ] {
            assert_eq!(text("min", inputs).await, least, "{inputs:?}");
            assert_eq!(text("max", inputs).await, most, "{inputs:?}");
        }
    }

    #[tokio::test]
    async fn other_types_are_errors() {
        for (json, what) in [
            ("\"1\"", "a string"),
            ("[1,[\"a\\n\"]]", "a string"),
            ("null", "a null"),
            ("[true]", "a boolean"),
            ("{\"a\":1}", "an object"),
            ("{}", "an object"),
        ] {
            for op in ["sum", "min", "max"] {
                assert_eq!(
                    failure(op, &[value("1"), value(json)]).await,
                    format!("`{op}` takes numbers and lists of them, but input 1 has {what}")
                );
            }
        }
        assert_eq!(
            failure("sum", &[bytes(b"1")]).await,
            "`sum` takes numbers and lists of them, but input 0 is bytes"
        );
        assert_eq!(
            failure("min", &[table()]).await,
            "`min` takes numbers and lists of them, but input 0 is a table"
        );
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        assert!(
            failure("sum", &[value(&deep)])
                .await
                .contains("recursion limit")
        );
    }

    #[tokio::test]
    async fn counts_inputs_and_elements_of_lists() {
        assert_eq!(text("count", &[]).await, "0");
        assert_eq!(
            text("count", &["1", "[]", "[1,[2,3]]", "null", "{\"a\":[]}"]).await,
            "5"
        );
        let inputs = [bytes(b"[1,2,3]"), table(), value("[1,2]")];
        let program = Builtin::new().prepare(&Body::new("count")).unwrap();
        assert_eq!(
            program.run_now(&inputs, &context()).unwrap().unwrap(),
            value("4")
        );
    }

    #[tokio::test]
    async fn large_inputs_do_not_run_at_once() {
        let list = format!("[{}1]", "1,".repeat(99_999));
        let program = Builtin::new().prepare(&Body::new("sum")).unwrap();
        assert!(program.run_now(&[value(&list)], &context()).is_none());
        assert_eq!(
            program.run(vec![value(&list)], context()).await.unwrap(),
            value("100000")
        );
    }
}

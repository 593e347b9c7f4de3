//! A tree to the manifest types, collecting every unknown field on the way.
//!
//! Owns the serde `Deserializer` over a tree: serde's derived code names the fields of each
//! struct, so unknown ones are found, with their nearest known name, without a list of our own.
//!
//! Invariants: an error carries the path and the place of the innermost value that caused it; a
//! field of a struct that is null counts as absent, as it does for Kubernetes.

use std::cell::RefCell;
use std::fmt;

use oxidask_diagnostic::nearest;
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};

use crate::document::{Content, Field, Node};
use crate::error::{ManifestError, Place, UnknownField, listed};

/// Unknown fields that are remembered.
const UNKNOWN_FIELDS_MAX: usize = 1000;

/// Characters of a found value that a message shows.
const FOUND_CHARS_MAX: usize = 60;

/// Reads one object.
pub(crate) fn read<'a, T: de::Deserialize<'a>>(
    node: &'a Node,
    origin: &str,
) -> Result<T, ManifestError> {
    let unknown = RefCell::new(Vec::new());
    let read = T::deserialize(Reader {
        node,
        trail: &Trail::Root,
        unknown: &unknown,
    });
    let mut fields = unknown.into_inner();
    if !fields.is_empty() {
        fields.sort_by_key(|field: &UnknownField| field.place);
        return Err(ManifestError::Fields {
            origin: origin.to_owned(),
            fields,
        });
    }
    read.map_err(|error| ManifestError::Value {
        origin: origin.to_owned(),
        path: error.path.unwrap_or_default(),
        place: error.place,
        problem: error.problem,
    })
}

/// The way from the root to a value, kept on the stack.
enum Trail<'a> {
    Root,
    Field(&'a Trail<'a>, &'a str),
    Item(&'a Trail<'a>, usize),
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// What the visitors complain about; path and place are added where the complaint arises.
#[derive(Debug)]
struct ReadError {
    path: Option<String>,
    place: Option<Place>,
    problem: String,
}

impl ReadError {
    fn new(problem: String) -> Self {
        Self {
            path: None,
            place: None,
            problem,
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(format!("is not allowed: {message}"))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let mut problem = format!("is {}, but must be {}", said(&found), wanted(expected));
        if expected.to_string() == "a string" && !matches!(found, Unexpected::Map | Unexpected::Seq)
        {
            problem.push_str("; put it into quotes");
        }
        Self::new(problem)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!(
            "is {}, but must be {}",
            said(&found),
            wanted(expected)
        ))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let meant = nearest(found, known.iter().copied());
        let meant = meant
            .map(|name| format!("; did you mean `{name}`?"))
            .unwrap_or_default();
        Self::new(format!(
            "is `{found}`, but must be one of {}{meant}",
            listed(known)
        ))
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            path: None,
            place: None,
            problem: format!("lacks the field `{field}`"),
        }
    }
}

fn said(found: &Unexpected<'_>) -> String {
    let value = match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => {
            let mut short: String = text.chars().take(FOUND_CHARS_MAX).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            return format!("the text `{short}`");
        }
        Unexpected::Map => return "an object".to_owned(),
        Unexpected::Seq => return "a list".to_owned(),
        Unexpected::Unit | Unexpected::Option => return "nothing".to_owned(),
        other => return other.to_string(),
    };
    format!("`{value}`")
}

/// Rust's names for types in plain words.
fn wanted(expected: &dyn Expected) -> String {
    let name = expected.to_string();
    match name.as_str() {
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "u64" => "a whole number, 0 or more".to_owned(),
        "i32" | "i64" => "a whole number".to_owned(),
        "a string" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a map" => "an object".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ if name.starts_with("struct ") => "an object".to_owned(),
        _ => name,
    }
}

#[derive(Clone, Copy)]
struct Reader<'a, 't> {
    node: &'a Node,
    trail: &'t Trail<'t>,
    unknown: &'t RefCell<Vec<UnknownField>>,
}

impl<'a> Reader<'a, '_> {
    /// Adds path and place to an error that has none yet.
    fn located<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        result.map_err(|mut error| {
            if error.path.is_none() {
                error.path = Some(self.trail.to_string());
                error.place = Some(self.node.place);
            }
            error
        })
    }

    fn visit<V: Visitor<'a>>(&self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.content {
            Content::Null => visitor.visit_unit(),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Signed(value) => match u64::try_from(*value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => visitor.visit_i64(*value),
            },
            Content::Unsigned(value) => visitor.visit_u64(*value),
            Content::Float(value) => visitor.visit_f64(*value),
            Content::Text(text) => visitor.visit_borrowed_str(text),
            Content::List(items) => visitor.visit_seq(Items {
                reader: *self,
                list: items,
                next: 0,
            }),
            Content::Object(fields) => {
                let fields = fields.iter().collect();
                visitor.visit_map(Fields {
                    reader: *self,
                    kept: fields,
                    next: 0,
                })
            }
        }
    }

    fn note_unknown(&self, field: &'a Field, known: &'static [&'static str]) {
        let mut unknown = self.unknown.borrow_mut();
        if unknown.len() < UNKNOWN_FIELDS_MAX {
            unknown.push(UnknownField {
                path: Trail::Field(self.trail, &field.name).to_string(),
                place: field.place,
                nearest: nearest(&field.name, known.iter().copied()),
                known,
            });
        }
    }
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.located(self.visit(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.content {
            Content::Null => self.located(visitor.visit_none()),
            _ => self.located(visitor.visit_some(self)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let Content::Object(fields) = &self.node.content else {
            return self.deserialize_any(visitor);
        };
        let mut kept = Vec::with_capacity(fields.len());
        for field in fields {
            if !known.contains(&field.name.as_str()) {
                self.note_unknown(field, known);
            } else if !matches!(field.value.content, Content::Null) {
                kept.push(field);
            }
        }
        self.located(visitor.visit_map(Fields {
            reader: self,
            kept,
            next: 0,
        }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.node.text() {
            Some(text) => {
                let text: StrDeserializer<'_, ReadError> = text.into_deserializer();
                self.located(visitor.visit_enum(text))
            }
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.located(visitor.visit_newtype_struct(self))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a, 't> {
    reader: Reader<'a, 't>,
    list: &'a [Node],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some(node) = self.list.get(self.next) else {
            return Ok(None);
        };
        let trail = Trail::Item(self.reader.trail, self.next);
        self.next += 1;
        seed.deserialize(Reader {
            node,
            trail: &trail,
            unknown: self.reader.unknown,
        })
        .map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.list.len() - self.next)
    }
}

struct Fields<'a, 't> {
    reader: Reader<'a, 't>,
    kept: Vec<&'a Field>,
    next: usize,
}

impl<'de> de::MapAccess<'de> for Fields<'de, '_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let Some(field) = self.kept.get(self.next) else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, ReadError> = field.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some(field) = self.kept.get(self.next) else {
            return Err(ReadError::new("has a name without a value".to_owned()));
        };
        self.next += 1;
        let trail = Trail::Field(self.reader.trail, &field.name);
        seed.deserialize(Reader {
            node: &field.value,
            trail: &trail,
            unknown: self.reader.unknown,
        })
    }
}

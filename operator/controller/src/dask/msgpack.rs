//! The few kinds of values that Dask's messages are made of.
//!
//! Owns writing and reading them. Invariant: whatever bytes come, reading ends, never takes more
//! memory than the bytes suggest, and never goes deeper than [`DEPTH_MAX`].

/// Values within values.
const DEPTH_MAX: usize = 32;

/// A value. Keys of maps may be anything: Dask has pairs as keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Bytes and extensions, which nobody here reads.
    Opaque,
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

impl Value {
    /// A map with texts as keys.
    pub(super) fn map<const N: usize>(fields: [(&str, Self); N]) -> Self {
        let fields = fields.map(|(key, value)| (Self::text(key), value));
        Self::Map(fields.into())
    }

    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// The field of a map.
    pub(super) fn get(&self, field: &str) -> Option<&Self> {
        let mut fields = self.fields().iter();
        let found = fields.find(|(key, _)| matches!(key, Self::Text(key) if key == field));
        found.map(|(_, value)| value)
    }

    /// Everything in a map.
    pub(super) fn fields(&self) -> &[(Self, Self)] {
        match self {
            Self::Map(fields) => fields,
            _ => &[],
        }
    }

    /// A number that counts something.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "casts of floats saturate"
            )]
            Self::Float(number) if *number >= 0.0 => Some(*number as u64),
            _ => None,
        }
    }

    /// A time in seconds.
    pub(super) fn seconds(&self) -> Option<f64> {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "times are far smaller")]
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) if number.is_finite() => Some(*number),
            _ => None,
        }
    }

    /// A text or a number: workers may be named by their index.
    pub(super) fn name(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

/// The value as bytes. Lists and texts beyond four gigabytes do not occur.
pub(super) fn write(value: &Value, bytes: &mut Vec<u8>) {
    let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
    match value {
        Value::Nil | Value::Opaque => bytes.push(0xc0),
        Value::Bool(is_true) => bytes.push(if *is_true { 0xc3 } else { 0xc2 }),
        Value::Int(number) => {
            bytes.push(0xd3);
            bytes.extend(number.to_be_bytes());
        }
        Value::Float(number) => {
            bytes.push(0xcb);
            bytes.extend(number.to_be_bytes());
        }
        Value::Text(text) => {
            bytes.push(0xdb);
            bytes.extend(length(text.len()));
            bytes.extend(text.as_bytes());
        }
        Value::List(values) => {
            bytes.push(0xdd);
            bytes.extend(length(values.len()));
            for value in values {
                write(value, bytes);
            }
        }
        Value::Map(fields) => {
            bytes.push(0xdf);
            bytes.extend(length(fields.len()));
            for (key, value) in fields {
                write(key, bytes);
                write(value, bytes);
            }
        }
    }
}

/// Reads one value; what stands behind it is left out of account.
pub(super) fn read(bytes: &[u8]) -> Option<Value> {
    Reader(bytes).value(DEPTH_MAX)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A length in that many bytes.
    fn length(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        let length = taken
            .iter()
            .fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
        usize::try_from(length).ok()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        let [kind] = self.fixed()?;
        Some(match kind {
            0x00..=0x7f => Value::Int(i64::from(kind)),
            0x80..=0x8f => self.map(usize::from(kind & 0x0f), depth)?,
            0x90..=0x9f => self.list(usize::from(kind & 0x0f), depth)?,
            0xa0..=0xbf => self.text(usize::from(kind & 0x1f))?,
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let length = self.length(1 << (kind - 0xc4))?;
                self.opaque(length)?
            }
            0xc7..=0xc9 => {
                let length = self.length(1 << (kind - 0xc7))?;
                self.opaque(length.checked_add(1)?)?
            }
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.fixed()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.fixed()?)),
            0xcc => Value::Int(i64::from(u8::from_be_bytes(self.fixed()?))),
            0xcd => Value::Int(i64::from(u16::from_be_bytes(self.fixed()?))),
            0xce => Value::Int(i64::from(u32::from_be_bytes(self.fixed()?))),
            0xcf => {
                let number = u64::from_be_bytes(self.fixed()?);
                Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
            }
            0xd0 => Value::Int(i64::from(i8::from_be_bytes(self.fixed()?))),
            0xd1 => Value::Int(i64::from(i16::from_be_bytes(self.fixed()?))),
            0xd2 => Value::Int(i64::from(i32::from_be_bytes(self.fixed()?))),
            0xd3 => Value::Int(i64::from_be_bytes(self.fixed()?)),
            0xd4..=0xd8 => self.opaque((1 << (kind - 0xd4)) + 1)?,
            0xd9..=0xdb => {
                let length = self.length(1 << (kind - 0xd9))?;
                self.text(length)?
            }
            0xdc | 0xdd => {
                let length = self.length(if kind == 0xdc { 2 } else { 4 })?;
                self.list(length, depth)?
            }
            0xde | 0xdf => {
                let length = self.length(if kind == 0xde { 2 } else { 4 })?;
                self.map(length, depth)?
            }
            0xe0..=0xff => Value::Int(i64::from(kind.cast_signed())),
            0xc1 => return None,
        })
    }

    fn opaque(&mut self, length: usize) -> Option<Value> {
        self.take(length).map(|_| Value::Opaque)
    }

    fn text(&mut self, length: usize) -> Option<Value> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        Some(Value::text(text))
    }

    fn list(&mut self, length: usize, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        // Each value takes a byte at least.
        let mut values = Vec::with_capacity(length.min(self.0.len()).min(1024));
        for _ in 0..length {
            values.push(self.value(depth)?);
        }
        Some(Value::List(values))
    }

    fn map(&mut self, length: usize, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let mut fields = Vec::with_capacity(length.min(self.0.len()).min(1024));
        for _ in 0..length {
            fields.push((self.value(depth)?, self.value(depth)?));
        }
        Some(Value::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let value = Value::map([
            ("op", Value::text("retire_workers")),
            (
                "workers",
                Value::List(vec![Value::text("tcp://10.0.0.1:1")]),
            ),
            ("reply", Value::Bool(true)),
            ("none", Value::Nil),
            ("number", Value::Int(-5)),
            ("half", Value::Float(0.5)),
        ]);
        let mut bytes = Vec::new();
        write(&value, &mut bytes);
        assert_eq!(read(&bytes), Some(value));
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), None);
        }
    }

    #[test]
    fn what_python_writes_can_be_read() {
        // {"a": (1, 255, -1), ("x", 2): 0.5, "b": b"..", "c": None}
        let bytes = b"\x84\xa1a\x93\x01\xcc\xff\xff\x92\xa1x\x02\xcb\x3f\xe0\0\0\0\0\0\0\
                      \xa1b\xc4\x02..\xa1c\xc0";
        let value = read(bytes).unwrap();
        let list = vec![Value::Int(1), Value::Int(255), Value::Int(-1)];
        assert_eq!(value.get("a"), Some(&Value::List(list)));
        assert_eq!(value.fields()[1].1.seconds(), Some(0.5));
        assert_eq!(value.get("b"), Some(&Value::Opaque));
        assert_eq!(value.get("c"), Some(&Value::Nil));
    }

    #[test]
    fn nonsense_ends() {
        assert_eq!(read(&[0x91; 100]), None, "too deep");
        assert_eq!(read(b"\xdd\xff\xff\xff\xff\x01"), None, "too short");
        assert_eq!(read(b"\xc1"), None);
    }
}

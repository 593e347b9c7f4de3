//! What can be wrong with a message.

use oxidask_diagnostic::{Code, Coded};

/// A message that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// A field that every sender sets is absent.
    #[error("a `{message}` came without its `{field}`")]
    FieldMissing {
        /// The message's name in the protocol.
        message: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// Columns of a chunk do not fit each other.
    #[error("column `{column}` of a graph chunk has `{found}` entries instead of `{expected}`")]
    ColumnLength {
        /// The column's name.
        column: &'static str,
        /// Its entries.
        found: u64,
        /// The entries that the other columns ask for.
        expected: u64,
    },
    /// A key's length does not fit the text of all keys.
    #[error("key number `{position}` of a graph chunk does not end between two characters")]
    KeyBoundary {
        /// The task's position in its chunk.
        position: usize,
    },
    /// A key is empty.
    #[error("key number `{position}` of a graph chunk is empty")]
    KeyEmpty {
        /// The task's position in its chunk.
        position: usize,
    },
    /// A task reads more inputs while it runs than it has.
    #[error("task number `{position}` of a graph chunk streams `{streamed}` of `{inputs}` inputs")]
    StreamedInputs {
        /// The task's position in its chunk.
        position: usize,
        /// Inputs that it is said to read while it runs.
        streamed: u32,
        /// Inputs that it has.
        inputs: u32,
    },
    /// A requirement asks for no slot at all.
    #[error("a requirement of a graph chunk asks for `0` slots")]
    SlotsZero,
    /// More of something than is allowed.
    #[error("a graph chunk has `{found}` {what}, more than `{limit}`")]
    LimitPassed {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much may be.
        limit: u64,
    },
    /// The columns of an inventory do not fit each other.
    #[error("the columns of an inventory have different lengths")]
    InventoryColumns,
    /// An inventory is too long.
    #[error("an inventory has more than `{limit}` entries")]
    InventoryLimit {
        /// How many it may have.
        limit: usize,
    },
    /// The peer's version is too far from ours.
    #[error(
        "the peer (build `{build}`) speaks protocol version `{theirs}`, this program speaks \
         `{ours}`"
    )]
    Version {
        /// The peer's version.
        theirs: u32,
        /// Our version.
        ours: u32,
        /// The peer's build.
        build: String,
    },
}

impl Coded for ProtoError {
    fn code(&self) -> Code {
        match self {
            Self::LimitPassed { .. } | Self::InventoryLimit { .. } => Code::LimitPassed,
            Self::FieldMissing { .. }
            | Self::ColumnLength { .. }
            | Self::KeyBoundary { .. }
            | Self::KeyEmpty { .. }
            | Self::StreamedInputs { .. }
            | Self::SlotsZero
            | Self::InventoryColumns
            | Self::Version { .. } => Code::ProtocolMismatch,
        }
    }
}

/// The first characters of a text that a peer chose, for use in a message.
pub(crate) fn excerpt(text: &str) -> String {
    const CHARACTERS_MAX: usize = 300;
    text.chars().take(CHARACTERS_MAX).collect()
}

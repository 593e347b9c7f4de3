//! What can be wrong with a manifest.
//!
//! Owns the messages: each names the file, the place in it, what was found and what is expected.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use oxidask_diagnostic::{Code, Coded};

/// Unknown fields that one message names; it counts the others.
const UNKNOWN_FIELDS_SHOWN_MAX: usize = 8;

/// A place in a file, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A field that no manifest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    /// The full path, such as `spec.cluster.spec.worker.replcas`.
    pub path: String,
    /// Where its name stands.
    pub place: Place,
    /// The known field that it resembles.
    pub nearest: Option<&'static str>,
    /// All fields that may stand there.
    pub known: &'static [&'static str],
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file, or a file that it names, cannot be opened or read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder was given.
    #[error("`{}` is a folder, not a file", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// More bytes than any manifest needs.
    #[error("`{}` is larger than {} MiB", path.display(), bytes_max >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: usize,
    },
    /// Bytes that are no text.
    #[error("`{}` is not UTF-8 text: byte {offset} does not fit", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// How many good bytes come before.
        offset: usize,
    },
    /// The text is not YAML, or uses parts of it that manifests do not need.
    #[error("{origin}:{place}: {problem}{}", quoted(line))]
    Syntax {
        /// The file.
        origin: String,
        /// Where.
        place: Place,
        /// What is wrong.
        problem: String,
        /// The line itself.
        line: String,
    },
    /// No object, several, or one of another kind.
    #[error("{origin}: {problem}")]
    Kind {
        /// The file, with a place when there is one.
        origin: String,
        /// What is wrong.
        problem: String,
        /// What to do, when that is known better than the code's hint.
        advice: Option<String>,
    },
    /// Fields that do not exist.
    #[error("{}", unknown_fields(origin, fields))]
    Fields {
        /// The file.
        origin: String,
        /// At least one.
        fields: Vec<UnknownField>,
    },
    /// A value that is not allowed.
    #[error("{origin}{}: {} {problem}", placed(*place), subject(path))]
    Value {
        /// The file.
        origin: String,
        /// The field; empty for the object as a whole.
        path: String,
        /// Where its value stands, or where it is missing.
        place: Option<Place>,
        /// What was found and what is expected.
        problem: String,
    },
    /// Not exactly one kind of work from exactly one source.
    #[error("{origin}{}: {problem}", placed(*place))]
    Work {
        /// The file.
        origin: String,
        /// Where.
        place: Option<Place>,
        /// What is wrong.
        problem: String,
    },
    /// A good manifest that only a Kubernetes cluster can run.
    #[error("{origin}: {problem}")]
    Unavailable {
        /// The file.
        origin: String,
        /// Why not here.
        problem: String,
    },
}

impl Coded for ManifestError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. }
            | Self::Folder { .. }
            | Self::TooLarge { .. }
            | Self::NotText { .. } => Code::ManifestUnreadable,
            Self::Syntax { .. } => Code::ManifestSyntax,
            Self::Kind { .. } => Code::ManifestKind,
            Self::Fields { .. } => Code::ManifestField,
            Self::Value { .. } => Code::ManifestValue,
            Self::Work { .. } => Code::ManifestWork,
            Self::Unavailable { .. } => Code::WorkUnavailable,
        }
    }

    fn hint(&self) -> Cow<'static, str> {
        match self {
            Self::Folder { path } => {
                format!("name a file in it, such as `{}/job.yaml`", path.display()).into()
            }
            Self::TooLarge { .. } => "put large graphs into a file of their own and name it with \
                                      `graph: {file: …}`; is this the right file?"
                .into(),
            Self::Kind {
                advice: Some(advice),
                ..
            } => advice.clone().into(),
            Self::Fields { fields, .. } => match fields.as_slice() {
                [
                    UnknownField {
                        nearest: None,
                        known,
                        ..
                    },
                ] => format!("the fields that may stand there are {}", listed(known)).into(),
                _ => self.code().hint().into(),
            },
            _ => self.code().hint().into(),
        }
    }
}

/// The names in backticks, with commas.
pub(crate) fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn quoted(line: &str) -> String {
    if line.is_empty() {
        String::new()
    } else {
        format!(": `{line}`")
    }
}

fn subject(path: &str) -> String {
    if path.is_empty() {
        "the object".to_owned()
    } else {
        format!("`{path}`")
    }
}

fn placed(place: Option<Place>) -> String {
    place.map(|place| format!(":{place}")).unwrap_or_default()
}

fn unknown_fields(origin: &str, fields: &[UnknownField]) -> String {
    let described = |field: &UnknownField| match field.nearest {
        Some(nearest) => format!("`{}`; did you mean `{nearest}`?", field.path),
        None => format!("`{}`", field.path),
    };
    if let [field] = fields {
        return format!(
            "{origin}:{}: unknown field {}",
            field.place,
            described(field)
        );
    }
    let mut lines = vec![format!("{origin}: {} unknown fields", fields.len())];
    let shown = fields.iter().take(UNKNOWN_FIELDS_SHOWN_MAX);
    lines.extend(shown.map(|field| format!("  at {}: {}", field.place, described(field))));
    if fields.len() > UNKNOWN_FIELDS_SHOWN_MAX {
        lines.push(format!(
            "  and {} more",
            fields.len() - UNKNOWN_FIELDS_SHOWN_MAX
        ));
    }
    lines.join("\n")
}

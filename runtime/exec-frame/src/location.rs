//! Where tables are: paths, patterns and object-store URLs.
//!
//! Owns how a location in a text or an argument is understood: relative to the task's base folder,
//! or a URL of a known scheme. Touches no file.

use std::path::{Component, Path, PathBuf};

use url::Url;

use crate::FrameError;

/// Schemes of object stores.
const REMOTE_SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "adl", "abfs", "abfss", "azure"];

/// Characters that make a path a pattern.
const PATTERN_CHARS: [char; 3] = ['*', '?', '['];

/// A location that has been understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A file, a folder or a pattern on this machine.
    Local {
        /// Absolute, without a slash at the end.
        path: PathBuf,
        /// Whether it was written with a slash at the end.
        has_slash: bool,
    },
    /// In an object store.
    Remote(Url),
}

impl Location {
    /// Understands a location.
    pub(crate) fn parse(text: &str, base_dir: &Path) -> Result<Self, FrameError> {
        if text.trim().is_empty() {
            return Err(FrameError::Argument {
                what: "the location is empty".to_owned(),
            });
        }
        if text.contains('\0') {
            let what = "a location cannot hold a zero byte".to_owned();
            return Err(FrameError::Argument { what });
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Self::parse_url(text, scheme, rest);
        }
        Ok(Self::local(text, base_dir))
    }

    fn parse_url(text: &str, scheme: &str, rest: &str) -> Result<Self, FrameError> {
        let scheme = scheme.to_lowercase();
        if scheme == "file" {
            // A pattern is no valid URL path once it is escaped, so the path is taken as it is.
            return Ok(Self::local(rest, Path::new("/")));
        }
        if !REMOTE_SCHEMES.contains(&scheme.as_str()) {
            return Err(FrameError::Unsupported {
                what: format!("locations with `{scheme}://` are not supported"),
                hint: "use a path, or an s3://, gs:// or az:// URL".into(),
            });
        }
        let url = Url::parse(text).map_err(|error| FrameError::Argument {
            what: format!("the location `{text}` is not a URL: {error}"),
        })?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(FrameError::Unsupported {
                what: format!("a location of `{scheme}://` may hold no user, password or query"),
                hint: "credentials come from the environment or the service account".into(),
            });
        }
        match url.host_str() {
            Some(host) if !host.is_empty() => Ok(Self::Remote(url)),
            _ => Err(FrameError::Argument {
                what: format!("the location `{text}` names no bucket"),
            }),
        }
    }

    fn local(text: &str, base_dir: &Path) -> Self {
        Self::Local {
            path: normal(&base_dir.join(text)),
            has_slash: text.ends_with('/'),
        }
    }

    /// Whether it names many files by a pattern.
    pub(crate) fn is_pattern(&self) -> bool {
        match self {
            Self::Local { path, .. } => path.to_string_lossy().contains(PATTERN_CHARS),
            Self::Remote(url) => url.path().contains(['*', '[']),
        }
    }

    /// A file's name in messages, by its path inside the store.
    pub(crate) fn file(&self, path: &str) -> String {
        match self {
            Self::Local { .. } => format!("/{path}"),
            Self::Remote(url) => format!("{}/{path}", &url[..url::Position::BeforePath]),
        }
    }

    /// As the engine takes it.
    pub(crate) fn to_engine(&self) -> String {
        match self {
            Self::Local {
                path,
                has_slash: false,
            } => path.to_string_lossy().into_owned(),
            Self::Local {
                path,
                has_slash: true,
            } => format!("{}/", path.to_string_lossy()),
            Self::Remote(url) => url.to_string(),
        }
    }
}

/// Without `.` and `..`; a symbolic link before a `..` is taken as a plain folder.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

/// The format and compression that a file's name tells.
pub(crate) fn by_name(name: &str) -> (Option<Format>, Option<&'static str>) {
    let lower = name.to_lowercase();
    let (stem, compression) = COMPRESSIONS
        .iter()
        .find_map(|(ending, compression)| Some((lower.strip_suffix(ending)?, Some(*compression))))
        .unwrap_or((lower.as_str(), None));
    let format = Format::ALL
        .into_iter()
        .find(|format| format.endings().iter().any(|ending| stem.ends_with(ending)));
    (format, compression)
}

/// Endings of compressed files, and the engine's names of the compressions.
pub(crate) const COMPRESSIONS: [(&str, &str); 4] = [
    (".gz", "gzip"),
    (".bz2", "bzip2"),
    (".xz", "xz"),
    (".zst", "zstd"),
];

/// The formats that tables are read from and written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    Parquet,
    Csv,
    Json,
}

impl Format {
    pub(crate) const ALL: [Self; 3] = [Self::Parquet, Self::Csv, Self::Json];

    /// By the name in `STORED AS` or in `format`.
    pub(crate) fn parse(name: &str) -> Result<Self, FrameError> {
        match name.to_lowercase().as_str() {
            "parquet" => Ok(Self::Parquet),
            "csv" => Ok(Self::Csv),
            "json" | "ndjson" | "jsonl" => Ok(Self::Json),
            _ => Err(FrameError::Unsupported {
                what: format!("the format `{name}` is not supported"),
                hint: "use PARQUET, CSV or JSON".into(),
            }),
        }
    }

    /// The engine's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Parquet => "PARQUET",
            Self::Csv => "CSV",
            Self::Json => "JSON",
        }
    }

    /// Endings of its files, the usual one first.
    pub(crate) fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Parquet => &[".parquet", ".parq", ".pq"],
            Self::Csv => &[".csv", ".tsv"],
            Self::Json => &[".json", ".jsonl", ".ndjson"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(text: &str) -> String {
        Location::parse(text, Path::new("/base/dir"))
            .unwrap()
            .to_engine()
    }

    #[test]
    fn relative_locations_start_at_the_base_folder() {
        assert_eq!(local("data/a.csv"), "/base/dir/data/a.csv");
        assert_eq!(local("./data/../b/"), "/base/dir/b/");
        assert_eq!(local("/abs/c.csv"), "/abs/c.csv");
        assert_eq!(local("file:///abs/ä b/*.csv"), "/abs/ä b/*.csv");
        assert!(
            Location::parse("data/*.csv", Path::new("/"))
                .unwrap()
                .is_pattern()
        );
    }

    #[test]
    fn urls_of_known_stores_only_and_without_credentials() {
        assert_eq!(local("s3://bucket/a/"), "s3://bucket/a/");
        for text in [
            "http://host/a.csv",
            "s3://user:secret@bucket/a",
            "s3://bucket/a?sig=x",
            "s3://",
            "",
            " ",
        ] {
            assert!(Location::parse(text, Path::new("/")).is_err(), "{text}");
        }
    }

    #[test]
    fn names_tell_format_and_compression() {
        assert_eq!(by_name("a.CSV.gz"), (Some(Format::Csv), Some("gzip")));
        assert_eq!(by_name("a.jsonl"), (Some(Format::Json), None));
        assert_eq!(by_name("a.parquet"), (Some(Format::Parquet), None));
        assert_eq!(by_name("a.txt.zst"), (None, Some("zstd")));
    }
}

//! What can go wrong when the data are made or an answer is read.

use std::path::PathBuf;

use thiserror::Error;

/// Why there are no data, or no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TpchError {
    /// A file or folder cannot be made, read or renamed.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A Parquet file cannot be written.
    #[error("cannot write Parquet to `{}`", path.display())]
    Parquet {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// Batches do not fit their schema.
    #[error("cannot make a batch of rows")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The marker file cannot be written.
    #[error("cannot write the marker file")]
    Marker(#[source] serde_json::Error),
    /// The folder is there and holds something else.
    #[error("`{}` holds other data: `{found}`, wanted `{wanted}`", path.display())]
    OtherData {
        /// The folder.
        path: PathBuf,
        /// What its marker says, or that it has none.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A scale that is not a number above zero, or no file at all.
    #[error("cannot make data of scale `{scale}` in `{files_per_table}` files a table")]
    Arguments {
        /// The scale.
        scale: f64,
        /// Files of each table.
        files_per_table: usize,
    },
    /// The folder for caches is unknown.
    #[error("neither `XDG_CACHE_HOME` nor `HOME` is set")]
    NoCache,
    /// A thread that wrote a table ended early.
    #[error("the writer of a table did not finish")]
    Writer,
}

impl TpchError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn parquet(
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(parquet::errors::ParquetError) -> Self {
        let path = path.into();
        move |source| Self::Parquet { path, source }
    }
}

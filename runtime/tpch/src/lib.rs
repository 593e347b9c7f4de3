//! TPC-H for tests and benchmarks.
//!
//! Owns the tables as Parquet files, the 22 queries with the specification's validation parameters
//! and limits, and the rule by which two answers of a query are equal. Never runs a query.
//!
//! Invariants: a data folder is whole or absent, and names the scale and the files that it was made
//! with; the same scale and number of files give the same rows in the same files.

mod answer;
mod data;
mod error;
mod queries;
mod tables;

pub use answer::{Answer, Difference, Kind, Strictness, compare};
pub use data::{GenerationProgress, cache_folder, cache_root, create_tables, generate, made_once};
pub use error::TpchError;
pub use queries::{Order, QUERY_COUNT, order, queries, query};
pub use tables::TABLES;

//! SQL, table reads and table writes by `DataFusion`, and how tables are shown.
//!
//! Owns everything that knows `DataFusion`: the split of SQL texts into statements and tasks
//! ([`script`]), the executor of the operations `read`, `sql`, `write` and `statement`
//! ([`FrameExecutor`]), the form of a table result (an Arrow IPC stream), and its rendering
//! ([`render`]). Knows no scheduler and no network but object stores.
//!
//! Invariants: an output is invisible until it is whole; an existing output is replaced only where
//! the statement says so; credentials come from the environment, never from a text; memory and
//! temporary files stay within what the task is given; a worker that runs no SQL pays for none.

mod csv_check;
mod damage;
mod error;
mod executor;
mod explain;
mod freshness;
mod join_fallback;
mod known_files;
mod local_store;
mod location;
mod memory;
mod read_memory;
mod remote_store;
mod remote_table;
mod remote_write;
pub mod render;
pub mod script;
mod session;
mod sink;
mod source;
mod stage;
mod staging;
mod stores;
mod table;

pub use error::FrameError;
pub use executor::FrameExecutor;
pub use explain::explain;
pub use render::CsvTables;
pub use sink::discard;

//! Task bodies, the executor trait and the built-in operations.
//!
//! Owns what a body looks like ([`Body`]), which operations there are and what they take
//! ([`catalogue`]), which executor runs which ([`Registry`]), and the operations that need no
//! table ([`Builtin`]), and the list of the programs that `exec` tasks run ([`Programs`]). Knows no
//! scheduler and no network, and never reads a table itself.
//!
//! Invariants: a body is checked before it runs; an operation is deterministic apart from `exec`;
//! whatever waits can be cancelled; no process outlives the task that started it.

mod body;
mod builtin;
pub mod catalogue;
mod executor;
pub mod guard;
mod operations;
mod programs;
mod registry;
mod streams;

pub use body::{Body, BodyError, encode_into};
pub use builtin::{Builtin, TableToCsv};
pub use executor::{Command, Executor, OwnSlot, Program, Slot, TaskContext, TaskError};
pub use programs::{
    Entry, MemoryEnd, OutOfMemoryCounter, ProgramId, Programs, RunningProgram, TaskName,
};
pub use registry::Registry;
pub use streams::{
    Memory, MemoryRefused, NoStreams, OwnMemory, Piece, PieceRequest, RunProgress, StreamedInputs,
    WHOLE,
};

//! Results on standard output.
//!
//! Owns the form of every line of data and the one writer that puts them there. Knows no task and
//! no cluster: it is given results one after the other, in the order in which they are printed.

mod limit;
mod render;
mod writer;

use std::io::IsTerminal;

pub(crate) use limit::Limits;
pub(crate) use writer::{Item, Sending, Writer, failure};

use crate::arguments::OutputForm;

/// What a result is printed as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Label {
    /// The output of a graph, with its key.
    Key(String),
    /// The rows of a query, alone.
    Rows,
    /// A number of rows that a statement wrote: a line for people, no data.
    Written(String),
    /// Nothing.
    Silent,
}

/// The form that was asked for; without a wish it depends on who reads.
pub(crate) fn form(asked: Option<OutputForm>) -> OutputForm {
    let is_terminal = std::io::stdout().is_terminal();
    asked.unwrap_or(if is_terminal {
        OutputForm::Table
    } else {
        OutputForm::Json
    })
}

//! What is in a record.
//!
//! Owns the kinds and their payloads. A kind is never used for anything else, and a payload only
//! grows in ways that older records can be read: otherwise [`SCHEMA`] grows, and what wrote the
//! version before is still read.

use std::sync::Arc;

use oxidask_core::{GraphId, Restored, TaskIndex, TaskRef, WorkerId};
use oxidask_diagnostic::Diagnostic;
use oxidask_journal::Schema;
use oxidask_proto::graph::PlacedChunk;
use oxidask_proto::wire;
use prost::Message;

use super::columns::{ColumnsReader, Malformed};

/// The versions of the records.
pub(crate) const SCHEMA: Schema = Schema {
    current: 1,
    oldest: 1,
};

/// The worker of results whose worker is gone. No worker has this number.
pub(crate) const NOBODY: WorkerId = WorkerId(0);

/// What a record is about. Numbers of graphs, tasks and workers before a text or a message have
/// four bytes, the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub(crate) enum Kind {
    /// Numbers that are used up: the last graph's, the last worker's.
    Numbers = 1,
    /// A graph was opened: its number, its name.
    GraphOpened,
    /// A chunk was accepted: its graph, the message.
    Chunk,
    /// Results: columns of task, bytes, rows.
    Finished,
    /// Copies of results: columns.
    Copies,
    /// A task failed for good: graph, task, the message of the fault.
    Failed,
    /// The client no longer wants results: columns.
    Released,
    /// The graph was cancelled: its number.
    Cancelled,
    /// The graph has failed with a chunk: its number, the message of the fault.
    Refused,
    /// Everything of the graph is gone: its number.
    Closed,
    /// A worker has joined: its number, its hello.
    WorkerJoined,
    /// A worker is gone: its number.
    WorkerGone,
    /// A graph was opened that is open-ended: its number, its name.
    OpenEndedGraphOpened,
    /// A command stands: the length of its name, its name, the message. It takes the place of one
    /// of the same name, unless that is empty.
    Command,
    /// A command stands no longer: zero, its number.
    CommandEnded,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Numbers,
        Self::GraphOpened,
        Self::Chunk,
        Self::Finished,
        Self::Copies,
        Self::Failed,
        Self::Released,
        Self::Cancelled,
        Self::Refused,
        Self::Closed,
        Self::WorkerJoined,
        Self::WorkerGone,
        Self::OpenEndedGraphOpened,
        Self::Command,
        Self::CommandEnded,
    ];

    /// The kind of this number.
    pub(crate) fn new(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// What a record says.
pub(crate) enum Said {
    /// Something that the core takes in.
    Core(Restored),
    /// A chunk, with what the core does not see of it.
    Chunk(Box<PlacedChunk>),
    /// A worker, with what the core does not see of it.
    WorkerJoined(WorkerId, Box<wire::WorkerHello>),
    /// Numbers that are used up.
    Numbers(GraphId, WorkerId),
    /// A command stands: its name, itself.
    Command(String, Box<wire::WorkerCommand>),
    /// A command stands no longer: its number.
    CommandEnded(u64),
}

/// The number at the beginning of a payload, and the rest.
pub(crate) fn number(payload: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (number, rest) = payload.split_first_chunk().ok_or(Malformed)?;
    Ok((u32::from_le_bytes(*number), rest))
}

/// A command that stands, and its name.
pub(crate) fn command(payload: &[u8]) -> Result<(String, wire::WorkerCommand), Malformed> {
    let (length, rest) = number(payload)?;
    let length = usize::try_from(length).map_err(|_| Malformed)?;
    let (name, message) = rest.split_at_checked(length).ok_or(Malformed)?;
    let name = std::str::from_utf8(name).map_err(|_| Malformed)?;
    let command = wire::WorkerCommand::decode(message).map_err(|_| Malformed)?;
    Ok((name.to_owned(), command))
}

/// The number of a command that stands no longer.
pub(crate) fn command_ended(payload: &[u8]) -> Result<u64, Malformed> {
    let (_, rest) = number(payload)?;
    Ok(u64::from_le_bytes(rest.try_into().map_err(|_| Malformed)?))
}

/// Reads a record, and hands over what it says, in parts if it is long.
pub(crate) fn read(
    kind: Kind,
    payload: &[u8],
    take: &mut impl FnMut(Said),
) -> Result<(), Malformed> {
    if matches!(kind, Kind::Finished | Kind::Copies | Kind::Released) {
        return read_columns(kind, payload, take);
    }
    let (first, rest) = number(payload)?;
    let graph = GraphId(first);
    let worker = WorkerId(first);
    take(match kind {
        Kind::Chunk => {
            let chunk = wire::GraphChunk::decode(rest).map_err(|_| Malformed)?;
            Said::Chunk(Box::new(chunk.try_into().map_err(|_| Malformed)?))
        }
        Kind::Numbers => Said::Numbers(graph, WorkerId(number(rest)?.0)),
        Kind::GraphOpened | Kind::OpenEndedGraphOpened => {
            let name = std::str::from_utf8(rest).map_err(|_| Malformed)?;
            let name = Arc::from(name);
            Said::Core(Restored::GraphOpened {
                graph,
                name,
                is_open_ended: kind == Kind::OpenEndedGraphOpened,
            })
        }
        Kind::Failed => {
            let (task, rest) = number(rest)?;
            let task = TaskIndex(task);
            let task = TaskRef { graph, task };
            let error = fault(rest)?;
            Said::Core(Restored::Failed { task, error })
        }
        Kind::Cancelled => Said::Core(Restored::Cancelled { graph }),
        Kind::Refused => {
            let error = fault(rest)?;
            Said::Core(Restored::Refused { graph, error })
        }
        Kind::Closed => Said::Core(Restored::Closed { graph }),
        Kind::WorkerJoined => {
            let hello = wire::WorkerHello::decode(rest).map_err(|_| Malformed)?;
            Said::WorkerJoined(worker, Box::new(hello))
        }
        Kind::WorkerGone => Said::Core(Restored::WorkerGone { worker }),
        Kind::Command => {
            let (name, command) = command(payload)?;
            Said::Command(name, Box::new(command))
        }
        Kind::CommandEnded => Said::CommandEnded(command_ended(payload)?),
        // Read above.
        Kind::Finished | Kind::Copies | Kind::Released => return Ok(()),
    });
    Ok(())
}

fn fault(bytes: &[u8]) -> Result<Arc<Diagnostic>, Malformed> {
    let fault = wire::Fault::decode(bytes).map_err(|_| Malformed)?;
    Ok(Arc::new(Diagnostic::from(fault)))
}

/// Hands over one item for each run of tasks of the same worker.
fn read_columns(kind: Kind, payload: &[u8], take: &mut impl FnMut(Said)) -> Result<(), Malformed> {
    let mut reader = ColumnsReader::new(payload);
    let mut run: Vec<(TaskRef, u64, u64)> = Vec::new();
    let mut of = NOBODY;
    loop {
        let entry = reader.task()?;
        if !run.is_empty() && entry.is_none_or(|(worker, _)| worker != of) {
            take(Said::Core(item(kind, of, std::mem::take(&mut run))));
        }
        let Some((worker, task)) = entry else {
            return Ok(());
        };
        of = worker;
        run.push(match kind {
            Kind::Finished => (task, reader.number()?, reader.number()?),
            _ => (task, 0, 0),
        });
    }
}

fn item(kind: Kind, worker: WorkerId, results: Vec<(TaskRef, u64, u64)>) -> Restored {
    let tasks = |results: Vec<(TaskRef, u64, u64)>| results.into_iter().map(|(task, ..)| task);
    match kind {
        Kind::Finished => Restored::Finished { worker, results },
        Kind::Copies => Restored::CopiesAdded {
            worker,
            tasks: tasks(results).collect(),
        },
        _ => Restored::Released {
            tasks: tasks(results).collect(),
        },
    }
}

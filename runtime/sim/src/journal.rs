//! The scheduler's journal: a log that takes its time, of which a crash keeps what was durable.
//!
//! Owns the order of records, when they become durable, and the messages that wait for that.
//! Invariant: what the core of a new scheduler is given is a beginning of what was written.

use std::collections::{BTreeMap, VecDeque};

use oxidask_core::{GraphChunk, GraphId, Restored, WorkerId};

use crate::network::{Happening, Link, Note};
use crate::world::World;

/// Records gather this long.
const LINGER_MICROS: u64 = 10_000;
/// Longest write of a good disk.
const WRITE_MICROS_MAX: u64 = 2_000;
/// Longest write of a slow disk.
const SLOW_WRITE_MICROS_MAX: u64 = 400_000;

/// What a scheduler leaves behind.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) durable: Vec<Restored>,
    /// Written, but lost in a crash.
    pending: VecDeque<Restored>,
    /// Of `pending`, what the write under way is about.
    in_flight: usize,
    is_writing: bool,
    /// Messages that promise what is not durable yet, with the number of records they wait for.
    promises: VecDeque<(u64, Link, Note)>,
    /// Chunks written of each graph.
    chunks: BTreeMap<GraphId, u32>,
    /// Records that were ever durable, in this life of the scheduler.
    durable_count: u64,
    pub(crate) slow_until: u64,
    pub(crate) full_until: u64,
    /// Counts the lives of the scheduler: writes of an earlier one end nowhere.
    life: u32,
}

impl Journal {
    pub(crate) fn write(&mut self, record: Restored) {
        self.pending.push_back(record);
    }

    /// A chunk was accepted, perhaps again.
    pub(crate) fn write_chunk(&mut self, graph: GraphId, number: u32, chunk: &GraphChunk) {
        let written = self.chunks.entry(graph).or_default();
        if *written == number {
            *written += 1;
            self.pending.push_back(Restored::Chunk {
                graph,
                number,
                chunk: Box::new(chunk.clone()),
            });
        }
    }

    fn written(&self) -> u64 {
        self.durable_count + self.pending.len() as u64
    }

    /// A message that promises all that is written now; nothing if it may leave at once.
    pub(crate) fn promise(&mut self, link: Link, note: Note) -> Option<Note> {
        let is_behind = self.promises.iter().any(|(_, other, _)| *other == link);
        if self.pending.is_empty() && !is_behind {
            return Some(note);
        }
        self.promises.push_back((self.written(), link, note));
        None
    }

    /// A message that promises nothing, but must not overtake the number of its graph.
    pub(crate) fn follow(&mut self, link: Link, note: Note) -> Option<Note> {
        let is_number = |(_, other, note): &&(u64, Link, Note)| {
            *other == link && matches!(note, Note::Attached(..))
        };
        let last = self.promises.iter().rev().find(is_number);
        let Some((number, ..)) = last else {
            return Some(note);
        };
        let number = *number;
        self.promises.push_back((number, link, note));
        None
    }

    /// The scheduler is gone: of what was being written, only a part is there.
    pub(crate) fn crash(&mut self, kept: u64) {
        let kept = usize::try_from(kept).unwrap_or(0).min(self.in_flight);
        self.durable.extend(self.pending.drain(..kept));
        self.pending.clear();
        self.promises.clear();
        self.in_flight = 0;
        self.is_writing = false;
        self.life += 1;
        self.chunks.clear();
        for record in &self.durable {
            if let Restored::Chunk { graph, number, .. } = record {
                self.chunks.insert(*graph, number + 1);
            }
        }
    }

    /// Records that a crash may lose or keep.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight as u64
    }

    /// The largest numbers that are known.
    pub(crate) fn last_numbers(&self) -> (GraphId, WorkerId) {
        let mut last = (GraphId(0), WorkerId(0));
        for record in &self.durable {
            match record {
                Restored::GraphOpened { graph, .. } => last.0 = last.0.max(*graph),
                Restored::WorkerJoined { worker, .. } => last.1 = last.1.max(*worker),
                _ => {}
            }
        }
        last
    }
}

impl World {
    /// Begins to write what has gathered, if nothing is being written.
    pub(crate) fn journal_writes(&mut self) {
        if self.journal.is_writing || self.journal.pending.is_empty() {
            return;
        }
        let most = if self.now < self.journal.slow_until {
            SLOW_WRITE_MICROS_MAX
        } else {
            WRITE_MICROS_MAX
        };
        // Placement is measured without a disk.
        let time = match self.network_delay {
            Some(_) => 0,
            None => LINGER_MICROS + self.random.below(most),
        };
        self.journal.is_writing = true;
        self.journal.in_flight = self.journal.pending.len();
        let at = (self.now + time).max(self.journal.full_until);
        self.at(at, Happening::Written(self.journal.life));
    }

    /// A write is over.
    pub(crate) fn journal_has_written(&mut self, life: u32) {
        let journal = &mut self.journal;
        if journal.life != life {
            return;
        }
        let count = std::mem::take(&mut journal.in_flight);
        journal.durable.extend(journal.pending.drain(..count));
        journal.durable_count += count as u64;
        journal.is_writing = false;
        let mut kept = Vec::new();
        while let Some((number, link, note)) = journal.promises.pop_front() {
            if number > journal.durable_count {
                journal.promises.push_front((number, link, note));
                break;
            }
            kept.push((link, note));
        }
        for (link, note) in kept {
            self.send_down(link, |link| Happening::ToClient(link, vec![note]));
        }
        self.journal_writes();
    }
}

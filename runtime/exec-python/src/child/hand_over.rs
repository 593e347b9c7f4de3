//! How runs come to a process and into its line, and out of that again.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use oxidask_exec::TaskContext;

use super::Child;
use crate::executor::Table;
use crate::frame::{self, HEADER_LENGTH_BYTES, Writer, to_child};
use crate::send::{self, Message};
use crate::socket::Socket;
use crate::turn::{Answer, Handed, Waiting};

/// Runs in line wait no longer than this behind one and the same run.
pub(crate) const STALL: Duration = Duration::from_millis(10);

/// After so many new tables, those that nobody needs any more are dropped in the process.
const TABLES_BETWEEN_DROPS: usize = 64;

/// The tables that the process has.
#[derive(Debug, Default)]
pub(super) struct SentTables {
    by_number: HashMap<u32, Weak<Table>>,
    since_drop: usize,
}

/// A process is ended if what was to be written is not written whole.
pub(super) struct Whole<'a>(pub(super) &'a Child, pub(super) bool);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.kill();
        }
    }
}

impl Child {
    /// A run that nobody waits for any more ends: it leaves the line, or the process ends with it and
    /// gets no other run from here on, since the end would be blamed on that.
    pub(crate) fn give_up(&self, run: u64) {
        {
            let mut state = self.lock();
            let Some(first) = state.waiting.front() else {
                return;
            };
            if first.run != run {
                drop(state);
                return self.clear_line();
            }
            state.has_ended = true;
            state.is_doomed = true;
        }
        self.kill();
    }

    /// Clears the line if the process has been at the same run for long.
    pub(crate) fn clear_stalled_line(&self) {
        let last_end = self.lock().last_end;
        if last_end.is_none_or(|at| at.elapsed() >= STALL) {
            self.clear_line();
        }
    }

    /// Runs that wait in line and have not begun are given back.
    pub(super) fn clear_line(&self) {
        let mut state = self.lock();
        let mut given_back = Vec::new();
        let cleared = self.line.take_out(|packet| {
            let run = frame::run_of_task(packet);
            let is_it = |waiting: &Waiting| Some(waiting.run) == run && waiting.is_in_line();
            let position = state.waiting.iter().position(is_it);
            let waiting = position.and_then(|position| state.waiting.remove(position));
            let is_taken_out = waiting.is_some();
            given_back.extend(waiting);
            is_taken_out
        });
        drop(state);
        for waiting in given_back {
            waiting.end(Answer::NotBegun);
        }
        if cleared.is_err() {
            self.kill();
        }
    }

    /// Hands a task over. The answer comes through what is returned.
    pub(crate) async fn hand_over(
        &self,
        (run, table): (u64, &Arc<Table>),
        message: Message,
        context: &TaskContext,
    ) -> Handed {
        let (mut waiting, handed) = Waiting::new(run, context);
        let mut sent = self.writing.lock().await;
        {
            let mut state = self.lock();
            if state.has_ended {
                drop(state);
                waiting.end(Answer::NotBegun);
                return handed;
            }
            if state.waiting.is_empty() {
                state.last_end = Some(Instant::now());
                waiting.begin();
            }
            state.waiting.push_back(waiting);
        }
        let mut whole = Whole(self, false);
        let written = tokio::select! {
            written = self.write_task(&mut sent, table, &message) => written.is_ok(),
            () = self.ended.cancelled() => false,
        };
        whole.1 = written;
        if !written {
            // It had ended before: the task is not to blame.
            self.take_back(run);
        }
        handed
    }

    /// The task never came to the process.
    fn take_back(&self, run: u64) {
        let waiting = {
            let mut state = self.lock();
            let position = state.waiting.iter().position(|waiting| waiting.run == run);
            position.and_then(|position| state.waiting.remove(position))
        };
        if let Some(waiting) = waiting {
            waiting.end(Answer::NotBegun);
        }
    }

    async fn write_task(
        &self,
        sent: &mut SentTables,
        table: &Arc<Table>,
        message: &Message,
    ) -> std::io::Result<()> {
        if !sent.by_number.contains_key(&table.number) {
            sent.since_drop += 1;
            if sent.since_drop >= TABLES_BETWEEN_DROPS {
                sent.since_drop = 0;
                let is_gone = |_: &u32, table: &mut Weak<Table>| table.strong_count() == 0;
                for (number, _) in sent.by_number.extract_if(is_gone) {
                    let mut writer = Writer::new(to_child::DROP_TABLE);
                    writer.u32(number);
                    self.line
                        .put(&writer.finish()[HEADER_LENGTH_BYTES..])
                        .await?;
                }
            }
            let content = send::table(&self.segments, table.number, &table.content).await?;
            self.write_frame(&content).await?;
            sent.by_number.insert(table.number, Arc::downgrade(table));
        }
        self.write_frame(message).await
    }

    /// In line if it fits there, else on the stream.
    async fn write_frame(&self, message: &Message) -> std::io::Result<()> {
        if message.fits_line() {
            return self.line.put(message.packet()).await;
        }
        // Said before: the stream may hold less than the frame, and the process must be reading.
        self.line.put(&[to_child::STREAM]).await?;
        write(&self.tasks, message).await
    }
}

pub(super) async fn write(socket: &Socket, message: &Message) -> std::io::Result<()> {
    let mut groups: Vec<_> = message.file_groups().collect();
    let last = groups.pop().unwrap_or_default();
    for group in groups {
        socket
            .send(&Writer::new(to_child::FILES).finish(), &group)
            .await?;
    }
    socket.send(&message.frame, &last).await
}

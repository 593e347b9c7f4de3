//! What a client has said and the scheduler may still lose.
//!
//! Owns the numbers of commands, their order, and what must be said again after a break. Opens no
//! connection. Invariants: releases keep their place among the other commands, however late they
//! become one; no more than [`WAITING_BYTES_MAX`] wait, except of one command alone.

use std::collections::{HashSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire::futures_command::Command;
use oxidask_proto::{CHUNK_BYTES_TARGET, MESSAGE_BYTES_MAX, wire};
use prost::Message;
use tokio::sync::Notify;

use super::closed;

/// Bytes of commands that the scheduler has not acknowledged; whoever says more waits.
pub(super) const WAITING_BYTES_MAX: usize = 256 << 20;

/// Bytes of one command.
const COMMAND_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (1 << 20);

/// Bytes of all keys in the first message after a break.
const WANTED_BYTES_MAX: usize = COMMAND_BYTES_MAX;

/// How long releases wait for others, and how many at most.
const RELEASE_PAUSE: Duration = Duration::from_millis(5);
const RELEASES_MAX: usize = 10_000;

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    At(Instant),
    Nothing,
    /// Nothing, and nothing will come: the session is being closed.
    End,
}

#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    room: Condvar,
    pub(super) changed: Notify,
}

#[derive(Default)]
struct State {
    /// Not acknowledged, in order, with their bytes.
    commands: VecDeque<(wire::FuturesCommand, usize)>,
    bytes: usize,
    /// How many of them this connection has been given.
    sent: usize,
    last_number: u64,
    releasing: Vec<String>,
    releasing_since: Option<Instant>,
    wanted: HashSet<Box<str>>,
    /// Keys of commands that are said again: the scheduler may not know them yet.
    said_again: HashSet<Box<str>>,
    /// Those of them that it has called lost.
    doubtful: HashSet<Box<str>>,
    is_closing: bool,
    is_over: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn submit(&self, submission: wire::Submission) -> Result<(), Diagnostic> {
        self.push(Command::Submit(submission))
    }

    pub(super) fn want(&self, keys: Vec<String>) -> Result<(), Diagnostic> {
        self.push(Command::Want(wire::Keys { keys }))
    }

    /// Waits until there is room.
    pub(super) fn push(&self, command: Command) -> Result<(), Diagnostic> {
        let command = wire::FuturesCommand {
            number: u64::MAX,
            command: Some(command),
        };
        let bytes = command.encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(too_large(bytes));
        }
        let mut state = self.lock();
        while state.bytes > 0 && state.bytes + bytes > WAITING_BYTES_MAX && !state.is_ended() {
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_ended() {
            return Err(closed());
        }
        state.flush_releases();
        state.append(command, bytes);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    pub(super) fn release(&self, keys: Vec<String>) {
        let mut state = self.lock();
        if state.is_ended() {
            return;
        }
        let is_first = state.releasing.is_empty();
        for key in &keys {
            state.wanted.remove(key.as_str());
        }
        state.releasing.extend(keys);
        if is_first {
            state.releasing_since = Some(Instant::now());
        }
        let is_news = is_first || state.releasing.len() >= RELEASES_MAX;
        drop(state);
        if is_news {
            self.changed.notify_one();
        }
    }

    /// Says that nothing is wanted any more, and takes nothing more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        if !state.is_ended() {
            let wanted: Vec<String> = state.wanted.drain().map(String::from).collect();
            state.releasing.extend(wanted);
            state.flush_releases();
            state.is_closing = true;
        }
        drop(state);
        self.room.notify_all();
        self.changed.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().is_ended()
    }

    /// Nothing is sent any more.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        *state = State {
            is_over: true,
            ..State::default()
        };
        drop(state);
        self.room.notify_all();
    }

    pub(super) fn due(&self) -> Due {
        let state = self.lock();
        if state.sent < state.commands.len() || state.releasing.len() >= RELEASES_MAX {
            return Due::Now;
        }
        match state.releasing_since {
            Some(since) if since.elapsed() >= RELEASE_PAUSE => Due::Now,
            Some(since) => Due::At(since + RELEASE_PAUSE),
            None if state.is_ended() => Due::End,
            None => Due::Nothing,
        }
    }

    /// The next commands for this connection.
    pub(super) fn next_batch(&self) -> Vec<wire::FuturesCommand> {
        let mut state = self.lock();
        state.flush_releases();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((command, length)) = state.commands.get(state.sent) {
            if !batch.is_empty() && bytes + length > CHUNK_BYTES_TARGET {
                break;
            }
            bytes += length;
            batch.push(command.clone());
            state.sent += 1;
        }
        batch
    }

    /// A new connection: everything is said again, and this is what is wanted.
    pub(super) fn begin(&self) -> Vec<String> {
        let mut state = self.lock();
        state.flush_releases();
        state.sent = 0;
        state.doubtful.clear();
        let said_again = state.commands.iter();
        let said_again = said_again.flat_map(|(command, _)| wanted_by(command));
        state.said_again = said_again.map(Box::from).collect();
        let mut bytes = 0;
        let wanted = state.wanted.iter().map(|key| &**key);
        let within = wanted.take_while(|key| {
            bytes += key.len() + 8;
            bytes <= WANTED_BYTES_MAX
        });
        within.map(str::to_owned).collect()
    }

    /// Commands up to this number will not be lost.
    pub(super) fn acknowledge(&self, number: u64) {
        let mut state = self.lock();
        let mut doubtful = Vec::new();
        while let Some((command, bytes)) = state
            .commands
            .pop_front_if(|(command, _)| command.number <= number)
        {
            state.bytes = state.bytes.saturating_sub(bytes);
            state.sent = state.sent.saturating_sub(1);
            if state.said_again.is_empty() {
                continue;
            }
            for key in wanted_by(&command) {
                state.said_again.remove(key);
                if state.doubtful.remove(key) && state.wanted.contains(key) {
                    doubtful.push(key.to_owned());
                }
            }
        }
        if !doubtful.is_empty() && !state.is_ended() {
            // If they are really lost, the scheduler says so once more.
            let keys = wire::Keys { keys: doubtful };
            state.append_new(Command::Want(keys));
            self.changed.notify_one();
        }
        drop(state);
        self.room.notify_all();
    }

    /// Whether a key that the scheduler calls lost may be in a command that is still on its way.
    pub(super) fn is_on_its_way(&self, key: &str) -> bool {
        let mut state = self.lock();
        let is_on_its_way = state.said_again.contains(key);
        if is_on_its_way {
            state.doubtful.insert(key.into());
        }
        is_on_its_way
    }

    /// The scheduler has dropped all keys that it knew.
    pub(super) fn restarted(&self) {
        let mut state = self.lock();
        let wanted = state.commands.iter();
        let wanted = wanted.flat_map(|(command, _)| wanted_by(command));
        state.wanted = wanted.map(Box::from).collect();
    }
}

impl State {
    fn is_ended(&self) -> bool {
        self.is_closing || self.is_over
    }

    fn flush_releases(&mut self) {
        self.releasing_since = None;
        if !self.releasing.is_empty() {
            let mut keys = std::mem::take(&mut self.releasing);
            while !keys.is_empty() {
                let rest = keys.split_off(keys.len().min(RELEASES_MAX));
                self.append_new(Command::Release(wire::Keys { keys }));
                keys = rest;
            }
        }
    }

    fn append_new(&mut self, command: Command) {
        let command = wire::FuturesCommand {
            number: u64::MAX,
            command: Some(command),
        };
        let bytes = command.encoded_len();
        self.append(command, bytes);
    }

    fn append(&mut self, mut command: wire::FuturesCommand, bytes: usize) {
        self.last_number += 1;
        command.number = self.last_number;
        for key in wanted_by(&command) {
            if !self.wanted.contains(key) {
                self.wanted.insert(key.into());
            }
        }
        self.bytes += bytes;
        self.commands.push_back((command, bytes));
    }
}

/// The keys that a command makes wanted.
fn wanted_by(command: &wire::FuturesCommand) -> Vec<&str> {
    match &command.command {
        Some(Command::Submit(submission)) => wanted_of(submission),
        Some(Command::Want(keys)) => keys.keys.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

fn wanted_of(submission: &wire::Submission) -> Vec<&str> {
    let mut ends = Vec::with_capacity(submission.key_lengths.len() + 1);
    let mut end = 0_usize;
    ends.push(end);
    for length in &submission.key_lengths {
        end += *length as usize;
        ends.push(end);
    }
    let key = |task: &u32| {
        let task = *task as usize;
        submission
            .keys
            .get(*ends.get(task)?..*ends.get(task.checked_add(1)?)?)
    };
    submission.wanted.iter().filter_map(key).collect()
}

fn too_large(bytes: usize) -> Diagnostic {
    let mebibytes = bytes >> 20;
    let largest = COMMAND_BYTES_MAX >> 20;
    let message = format!(
        "the tasks of one call take {mebibytes} MiB to describe; at most {largest} MiB are possible"
    );
    Diagnostic::new(Code::LimitPassed, message).with_hint(
        "data does not belong into tasks: put it into the cluster with `client.scatter`, or let \
         the tasks read it themselves",
    )
}

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "tests have few and short keys"
)]
mod tests {
    use super::*;

    fn submission(keys: &[&str], wanted: &[u32]) -> wire::Submission {
        wire::Submission {
            keys: keys.concat(),
            key_lengths: keys.iter().map(|key| key.len() as u32).collect(),
            wanted: wanted.to_vec(),
            ..wire::Submission::default()
        }
    }

    fn names(commands: &[wire::FuturesCommand]) -> Vec<String> {
        let name = |command: &wire::FuturesCommand| {
            let what = match command.command.as_ref().unwrap() {
                Command::Submit(submission) => submission.keys.clone(),
                Command::Want(keys) => format!("+{}", keys.keys.join("+")),
                Command::Release(keys) => format!("-{}", keys.keys.join("-")),
                Command::Cancel(_) => "cancel".to_owned(),
                Command::Retry(_) => "retry".to_owned(),
            };
            format!("{} {what}", command.number)
        };
        commands.iter().map(name).collect()
    }

    #[test]
    fn releases_become_one_and_keep_their_place() {
        let outbox = Outbox::default();
        outbox.submit(submission(&["ä", "b"], &[0, 1])).unwrap();
        for key in ["ä", "b"] {
            outbox.release(vec![key.to_owned()]);
        }
        outbox.want(vec!["ä".to_owned()]).unwrap();
        assert_eq!(outbox.due(), Due::Now);
        assert_eq!(names(&outbox.next_batch()), ["1 äb", "2 -ä-b", "3 +ä"]);
        assert_eq!(outbox.due(), Due::Nothing);
        outbox.release(vec!["ä".to_owned()]);
        assert!(matches!(outbox.due(), Due::At(_)));
        std::thread::sleep(RELEASE_PAUSE);
        assert_eq!(outbox.due(), Due::Now);
        assert_eq!(names(&outbox.next_batch()), ["4 -ä"]);
    }

    #[test]
    fn what_is_not_acknowledged_is_said_again() {
        let outbox = Outbox::default();
        outbox.submit(submission(&["a"], &[0])).unwrap();
        outbox.submit(submission(&["b", "c"], &[1])).unwrap();
        assert_eq!(outbox.next_batch().len(), 2);
        outbox.acknowledge(1);
        let mut wanted = outbox.begin();
        wanted.sort();
        assert_eq!(wanted, ["a", "c"]);
        // The scheduler may not have heard of `c`; of `a` it has.
        assert!(outbox.is_on_its_way("c"));
        assert!(!outbox.is_on_its_way("a"));
        assert_eq!(names(&outbox.next_batch()), ["2 bc"]);
        outbox.acknowledge(2);
        assert_eq!(names(&outbox.next_batch()), ["3 +c"]);
        assert!(!outbox.is_on_its_way("c"));
    }

    #[test]
    fn closing_releases_everything_and_takes_nothing_more() {
        let outbox = Outbox::default();
        outbox.submit(submission(&["a"], &[0])).unwrap();
        assert_eq!(outbox.next_batch().len(), 1);
        outbox.close();
        assert_eq!(names(&outbox.next_batch()), ["2 -a"]);
        assert_eq!(outbox.due(), Due::End);
        let refused = outbox.want(vec!["b".to_owned()]).unwrap_err();
        assert_eq!(refused.code, Code::SchedulerEnded);
    }

    #[test]
    fn whoever_says_too_much_waits() {
        let outbox = std::sync::Arc::new(Outbox::default());
        let large = || wire::Submission {
            body: vec![0; 60 << 20].into(),
            ..submission(&["a"], &[0])
        };
        for _ in 0..4 {
            outbox.submit(large()).unwrap();
        }
        let other = std::sync::Arc::clone(&outbox);
        let waiting = std::thread::spawn(move || other.submit(large()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        outbox.acknowledge(1);
        waiting.join().unwrap().unwrap();
        let mut larger = large();
        larger.body = vec![0; MESSAGE_BYTES_MAX].into();
        assert_eq!(outbox.submit(larger).unwrap_err().code, Code::LimitPassed);
    }
}

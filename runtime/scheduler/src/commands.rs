//! Commands for workers: what an asker wants done in their processes, beside tasks.
//!
//! Owns the commands that are under way, the standing ones that every worker gets, and which worker
//! has not answered which. Standing ones are put on record. Never opens a command or an answer.
//!
//! Invariants: a worker gets commands in the order of their numbers, standing ones before its first
//! assignment; one that could not be heard gets them when it is heard again; an asker has exactly one
//! answer of each worker that was there when it asked, at the latest at its own deadline; number and
//! bytes of all that is kept have bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use oxidask_core::WorkerId;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_proto::wire;
use tokio::sync::oneshot;

use crate::main_loop::MainLoop;

/// Before the address of a worker's data plane, as Dask clients see it.
pub(crate) const SCHEME: &str = "oxidask://";

/// Bytes of one command.
pub(crate) const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Standing commands, and their bytes.
const STANDING_MAX: usize = 1_024;
const STANDING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Commands that wait for answers, and their bytes.
const ASKED_MAX: usize = 1_024;
const ASKED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of answers that wait for the last ones of the same command, all commands together.
const ANSWERS_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The longest time that an asker may wait.
const ASK_TIME_MAX: Duration = Duration::from_hours(24);

/// Bytes counted for a command besides its content.
const COMMAND_BYTES: usize = 48;

/// Numbers begin anew with each epoch, above all those before.
const EPOCH_SHIFT: u32 = 32;

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommandWorkers {
    /// Every worker that is there.
    All,
    /// These, by name or by the address of their data plane, with or without its scheme.
    Named(Vec<String>),
}

/// A command, and who wants to know what becomes of it.
#[derive(Debug)]
pub(crate) struct CommandInput {
    /// Who is asked.
    pub(crate) workers: CommandWorkers,
    /// The operation whose executor carries it out.
    pub(crate) executor: String,
    /// Opaque.
    pub(crate) content: Bytes,
    /// It stands: workers that join later get it too. A later one takes the place of an earlier one
    /// of the same name; an empty name is no name.
    pub(crate) standing: Option<String>,
    /// How long the asker waits.
    pub(crate) time_max: Duration,
    /// Where the answers go.
    pub(crate) reply: oneshot::Sender<CommandReply>,
}

/// What an asker gets: an answer of each worker, in no order; or why nobody was asked.
pub(crate) type CommandReply = Result<Vec<CommandAnswer>, Box<Diagnostic>>;

/// What one worker has answered.
#[derive(Debug)]
pub(crate) struct CommandAnswer {
    /// The worker's name; for one that is not there, what it was called by.
    pub(crate) name: String,
    /// Its data plane; empty for one that is not there.
    pub(crate) address: Arc<str>,
    /// What the command gave there.
    pub(crate) answer: Result<Bytes, Box<Diagnostic>>,
}

/// Workers that have not answered, with name and address.
type Waiting = BTreeMap<WorkerId, (String, Arc<str>)>;

/// All commands.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    last: u64,
    standing: BTreeMap<u64, Standing>,
    standing_bytes: usize,
    asked: BTreeMap<u64, Asked>,
    asked_bytes: usize,
    answer_bytes: usize,
    /// What each worker has not answered.
    unanswered: BTreeMap<WorkerId, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Standing {
    name: String,
    command: wire::WorkerCommand,
}

#[derive(Debug)]
struct Asked {
    command: wire::WorkerCommand,
    deadline: Instant,
    time_max: Duration,
    waiting: Waiting,
    answers: Vec<CommandAnswer>,
    answer_bytes: usize,
    reply: oneshot::Sender<CommandReply>,
}

impl Commands {
    /// Goes on with the standing commands that were kept; those that are given now come later.
    pub(crate) fn restore(
        &mut self,
        epoch: u32,
        kept: impl IntoIterator<Item = (String, wire::WorkerCommand)>,
    ) {
        self.last = u64::from(epoch) << EPOCH_SHIFT;
        for (name, command) in kept {
            self.last = self.last.max(command.command);
            self.stand(name, command);
        }
    }

    /// A worker has to be given all standing commands.
    pub(crate) fn owe_standing(&mut self, worker: WorkerId) {
        let numbers = self.standing.keys().copied().collect();
        self.unanswered.insert(worker, numbers);
    }

    fn check(&self, input: &CommandInput) -> Result<(), Box<Diagnostic>> {
        let bytes = input.content.len();
        let refusal = |text: String| {
            let refused = Diagnostic::new(Code::WorkerCommandFailed, text);
            Err(Box::new(refused.with_hint(
                "wait until earlier ones are done, or give smaller ones",
            )))
        };
        if bytes > COMMAND_BYTES_MAX {
            return refusal(format!(
                "the command has `{bytes}` bytes, more than `{COMMAND_BYTES_MAX}`"
            ));
        }
        if self.asked.len() >= ASKED_MAX || self.asked_bytes + bytes > ASKED_BYTES_MAX {
            return refusal(format!(
                "`{}` commands wait for workers already",
                self.asked.len()
            ));
        }
        let Some(name) = &input.standing else {
            return Ok(());
        };
        let replaced = self
            .named(name)
            .and_then(|number| self.standing.get(&number));
        let (count, freed) = replaced.map_or((0, 0), |old| (1, old.command.content.len()));
        if self.standing.len() - count >= STANDING_MAX
            || self.standing_bytes - freed + bytes > STANDING_BYTES_MAX
        {
            return refusal(format!("`{}` commands stand already", self.standing.len()));
        }
        Ok(())
    }

    fn named(&self, name: &str) -> Option<u64> {
        let same = |(_, standing): &(&u64, &Standing)| !name.is_empty() && standing.name == name;
        self.standing.iter().find(same).map(|(number, _)| *number)
    }

    fn stand(&mut self, name: String, command: wire::WorkerCommand) {
        if let Some(earlier) = self.named(&name) {
            self.remove_standing(earlier);
        }
        self.standing_bytes += command.content.len();
        self.standing
            .insert(command.command, Standing { name, command });
    }

    fn remove_standing(&mut self, number: u64) -> bool {
        let removed = self.standing.remove(&number);
        if let Some(removed) = &removed {
            self.standing_bytes -= removed.command.content.len();
        }
        self.drop_if_done(number);
        removed.is_some()
    }

    /// Nobody is sent a command again that neither stands nor is waited for.
    fn drop_if_done(&mut self, number: u64) {
        if !self.standing.contains_key(&number) && !self.asked.contains_key(&number) {
            for numbers in self.unanswered.values_mut() {
                numbers.remove(&number);
            }
        }
    }

    fn command(&self, number: u64) -> Option<&wire::WorkerCommand> {
        let asked = self.asked.get(&number).map(|asked| &asked.command);
        asked.or_else(|| Some(&self.standing.get(&number)?.command))
    }

    /// Commands that a worker has not answered, in order.
    fn unanswered(&self, worker: WorkerId) -> Vec<wire::WorkerCommand> {
        let numbers = self.unanswered.get(&worker).into_iter().flatten();
        numbers
            .filter_map(|number| self.command(*number).cloned())
            .collect()
    }

    fn begin(&mut self, asked: Asked) {
        let number = asked.command.command;
        for worker in asked.waiting.keys() {
            self.unanswered.entry(*worker).or_default().insert(number);
        }
        self.asked_bytes += asked.command.content.len();
        self.asked.insert(number, asked);
        self.settle(number);
    }

    /// A worker has answered, or never will.
    fn answered(&mut self, worker: WorkerId, number: u64, answer: Result<Bytes, Box<Diagnostic>>) {
        if let Some(numbers) = self.unanswered.get_mut(&worker) {
            numbers.remove(&number);
        }
        let asked = self.asked.get_mut(&number);
        let waiting = asked.and_then(|asked| Some((asked.waiting.remove(&worker)?, asked)));
        let Some(((name, address), asked)) = waiting else {
            if let Err(error) = answer {
                let message = error.message;
                tracing::warn!(%worker, message, "a worker did not carry out a command");
            }
            return;
        };
        let bytes = answer.as_ref().map_or(0, Bytes::len);
        let answer = if self.answer_bytes + bytes > ANSWERS_BYTES_MAX {
            failed(format!(
                "the answer of worker `{name}` found no room: the answers are too large together"
            ))
        } else {
            self.answer_bytes += bytes;
            asked.answer_bytes += bytes;
            answer
        };
        asked.answers.push(CommandAnswer {
            name,
            address,
            answer,
        });
        self.settle(number);
    }

    /// Hands the answers over once they are all there.
    fn settle(&mut self, number: u64) {
        if self
            .asked
            .get(&number)
            .is_none_or(|asked| !asked.waiting.is_empty())
        {
            return;
        }
        let Some(asked) = self.asked.remove(&number) else {
            return;
        };
        self.asked_bytes -= asked.command.content.len();
        self.answer_bytes -= asked.answer_bytes;
        self.drop_if_done(number);
        // An asker that has gone away needs no answer.
        let _ = asked.reply.send(Ok(asked.answers));
    }

    /// A worker will answer nothing more.
    pub(crate) fn lose(&mut self, worker: WorkerId) {
        let numbers = self.unanswered.remove(&worker).unwrap_or_default();
        for number in numbers {
            let asked = self.asked.get(&number);
            let Some((name, _)) = asked.and_then(|asked| asked.waiting.get(&worker)) else {
                continue;
            };
            let text = format!("worker `{name}` died or left before it answered");
            self.answered(worker, number, failed(text));
        }
    }

    /// Answers for workers that are too slow, and forgets commands whose askers have gone.
    pub(crate) fn tick(&mut self, now: Instant) {
        let is_late = |asked: &Asked| asked.deadline <= now || asked.reply.is_closed();
        let late: Vec<(u64, WorkerId, String)> = self
            .asked
            .iter()
            .filter(|(_, asked)| is_late(asked))
            .flat_map(|(number, asked)| {
                let seconds = asked.time_max.as_secs_f64();
                asked.waiting.iter().map(move |(worker, (name, _))| {
                    let text = format!("worker `{name}` did not answer within {seconds} s");
                    (*number, *worker, text)
                })
            })
            .collect();
        for (number, worker, text) in late {
            let is_owed = self.standing.contains_key(&number);
            self.answered(worker, number, failed(text));
            // It may not have it yet.
            if is_owed && let Some(numbers) = self.unanswered.get_mut(&worker) {
                numbers.insert(number);
            }
        }
    }
}

fn failed<T>(text: String) -> Result<T, Box<Diagnostic>> {
    Err(Box::new(Diagnostic::new(Code::WorkerCommandFailed, text)))
}

impl MainLoop {
    /// Asks workers to do something.
    pub(crate) fn command(&mut self, input: CommandInput) {
        if let Err(refusal) = self.commands.check(&input) {
            let _ = input.reply.send(Err(refusal));
            return;
        }
        let CommandInput {
            workers,
            executor,
            content,
            standing,
            time_max,
            reply,
        } = input;
        self.commands.last += 1;
        let command = wire::WorkerCommand {
            command: self.commands.last,
            executor,
            // A part of a larger message, which would live as long.
            content: Bytes::copy_from_slice(&content),
            is_standing: standing.is_some(),
        };
        if let Some(name) = standing {
            if let Some(keeper) = &mut self.journal {
                keeper.command(&name, &command);
            }
            self.commands.stand(name, command.clone());
        }
        let (waiting, answers) = self.asked_workers(&workers);
        let asked: Vec<WorkerId> = waiting.keys().copied().collect();
        let time_max = time_max.min(ASK_TIME_MAX);
        let wanted = Asked {
            command: command.clone(),
            deadline: Instant::now() + time_max,
            time_max,
            waiting,
            answers,
            answer_bytes: 0,
            reply,
        };
        self.commands.begin(wanted);
        for worker in asked {
            self.give_commands(worker, vec![command.clone()]);
        }
    }

    /// A standing command stands no longer. True if there was one of this name.
    pub(crate) fn end_command(&mut self, name: &str) -> bool {
        let Some(number) = self.commands.named(name) else {
            return false;
        };
        if let Some(keeper) = &mut self.journal {
            keeper.command_ended(number);
        }
        self.commands.remove_standing(number)
    }

    /// Everything that a worker has not answered, in order: all standing commands for a new one.
    pub(crate) fn give_unanswered(&mut self, worker: WorkerId) {
        let commands = self.commands.unanswered(worker);
        if !commands.is_empty() {
            self.give_commands(worker, commands);
        }
    }

    /// What a worker says of commands.
    pub(crate) fn take_answers(&mut self, worker: WorkerId, answers: Vec<wire::CommandResult>) {
        for answer in answers {
            let outcome = match answer.fault {
                Some(fault) => Err(Box::new(fault.into())),
                None => Ok(answer.content),
            };
            self.commands.answered(worker, answer.command, outcome);
        }
    }

    fn give_commands(&mut self, worker: WorkerId, commands: Vec<wire::WorkerCommand>) {
        for command in commands {
            let bytes = COMMAND_BYTES + command.executor.len() + command.content.len();
            self.tell_worker(worker, bytes, |batch| batch.commands.push(command));
        }
    }

    /// The workers that are asked, and answers for those that are not there.
    fn asked_workers(&self, asked: &CommandWorkers) -> (Waiting, Vec<CommandAnswer>) {
        let mut found = BTreeMap::new();
        let mut unknown = Vec::new();
        let all = self.workers.iter();
        match asked {
            CommandWorkers::All => found.extend(all.map(|(worker, link)| {
                let (name, address) = (link.hello.name.clone(), Arc::clone(&link.address));
                (*worker, (name, address))
            })),
            CommandWorkers::Named(names) => {
                let mut by_name = BTreeMap::new();
                for (worker, link) in all {
                    by_name.insert(link.hello.name.as_str(), (*worker, link));
                    by_name.insert(&*link.address, (*worker, link));
                }
                for asked in names {
                    let bare = asked.strip_prefix(SCHEME).unwrap_or(asked);
                    let Some((worker, link)) = by_name.get(bare) else {
                        unknown.push(CommandAnswer {
                            name: asked.clone(),
                            address: Arc::from(""),
                            answer: failed(format!("there is no worker `{asked}`")),
                        });
                        continue;
                    };
                    let (name, address) = (link.hello.name.clone(), Arc::clone(&link.address));
                    found.insert(*worker, (name, address));
                }
            }
        }
        (found, unknown)
    }
}

#[cfg(test)]
mod tests;

//! Messages of Dask clients <-> the values of the pure state.

use std::sync::Arc;

use oxidask_core::Requirement;
use oxidask_diagnostic::Diagnostic;
use oxidask_futures::keys::{Cancel, Command, KeyEvent, SmallValue, Submission};
use oxidask_proto::wire;
use oxidask_proto::wire::future_event::Event as WireEvent;
use oxidask_proto::wire::futures_command::Command as WireCommand;

/// Bytes counted for an event besides its texts.
const EVENT_BYTES: usize = 24;

/// A command; two kinds need a look into the core before the pure state can take them.
pub(super) enum SaidCommand {
    /// It can be taken.
    Plain(Command),
    /// What depends on the keys is not known yet.
    Cancel(Box<Cancel>),
    /// What failed is not known yet.
    Retry(Vec<String>),
}

/// A command with its number.
pub(super) fn command(command: wire::FuturesCommand) -> (u64, SaidCommand) {
    let said = match command.command {
        Some(WireCommand::Submit(submission)) => {
            SaidCommand::Plain(match self::submission(submission) {
                Ok(submission) => Command::Submit(Box::new(submission)),
                Err(error) => Command::Refused(error),
            })
        }
        Some(WireCommand::Want(keys)) => SaidCommand::Plain(Command::Want(keys.keys)),
        Some(WireCommand::Release(keys)) => SaidCommand::Plain(Command::Release(keys.keys)),
        Some(WireCommand::Cancel(cancel)) => SaidCommand::Cancel(Box::new(Cancel {
            keys: cancel.keys,
            is_forced: cancel.is_forced,
            reason: cancel.reason,
            message: cancel.message,
            dependents: Vec::new(),
        })),
        Some(WireCommand::Retry(keys)) => SaidCommand::Retry(keys.keys),
        // A command of a newer client: its number is taken, so that it is not said for ever.
        None => SaidCommand::Plain(Command::Want(Vec::new())),
    };
    (command.number, said)
}

fn submission(said: wire::Submission) -> Result<Submission, Arc<Diagnostic>> {
    let requirements: Result<Vec<Requirement>, _> = said
        .requirements
        .into_iter()
        .map(TryInto::try_into)
        .collect();
    let requirements = requirements.map_err(|error| Arc::new(Diagnostic::from_error(&error)))?;
    Ok(Submission {
        keys: said.keys,
        key_lengths: said.key_lengths,
        body: said.body,
        arguments: said.arguments,
        group: said.group,
        groups: said.groups,
        priority: said.priority,
        retries: said.retries,
        requirement: said.requirement,
        requirements,
        input_counts: said.input_counts,
        inputs: said.inputs,
        external: said.external,
        wanted: said.wanted,
    })
}

/// What became of a key as a message, with its rough size.
pub(super) fn event(key: &str, event: KeyEvent) -> (wire::FutureEvent, usize) {
    let mut bytes = EVENT_BYTES + key.len();
    let event = match event {
        KeyEvent::Ready {
            task,
            bytes: size,
            value,
        } => {
            let value = value.map(|SmallValue { kind, data }| wire::SmallValue { kind, data });
            bytes += value.as_ref().map_or(0, |value| value.data.len());
            WireEvent::Ready(wire::FutureReady {
                task: Some(task.into()),
                bytes: size,
                value,
            })
        }
        KeyEvent::Failed(error) => {
            let fault = wire::Fault::from(&*error);
            let causes: usize = fault.causes.iter().map(String::len).sum();
            bytes += fault.message.len() + fault.hint.len() + causes + fault.attachment.len();
            WireEvent::Failed(fault)
        }
        KeyEvent::Lost => WireEvent::Lost(wire::Empty {}),
        KeyEvent::Cancelled { reason, message } => {
            bytes += reason.len() + message.len();
            WireEvent::Cancelled(wire::FutureCancelled {
                reason: reason.to_string(),
                message: message.to_string(),
            })
        }
        KeyEvent::Retried => WireEvent::Retried(wire::Empty {}),
    };
    let event = wire::FutureEvent {
        key: key.to_owned(),
        event: Some(event),
    };
    (event, bytes)
}

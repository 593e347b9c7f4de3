//! Answers questions about the cluster.
//!
//! The actor says which tasks keys have; the rest is read off the main loop on a task of its own, so
//! that a question that waits keeps nobody else waiting. Every wait has an end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oxidask_core::TaskRef;
use oxidask_diagnostic::Diagnostic;
use oxidask_futures::FuturesError;
use oxidask_futures::questions::{
    self, ClusterQuestion, KEYS_ANSWERED_MAX, KeysQuestion, LOG_LINES_MAX, LogsQuestion,
    RetireQuestion, RunQuestion, WAIT_SECONDS_MAX,
};
use oxidask_proto::fault::from_status;
use oxidask_proto::{BUILD, PROTOCOL_VERSION, wire};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tonic::Status;

use super::Asked;
use super::actor::Actor;
use super::fleet::{self, Keyed};
use super::service::{SCHEME, json, refusal};
use crate::commands::{CommandInput, CommandWorkers};
use crate::grpc::{Shared, shutting_down};
use crate::input::{Input, Question};
use crate::logs::OWN_NAME;
use crate::main_loop::MainLoop;

/// Log lines that are given of a process unless somebody asks for another number.
const LOG_LINES_DEFAULT: u32 = 1_000;

/// The executor of commands unless somebody names another.
const PYTHON: &str = "python";

/// Time that workers have to hand over what they hold unless somebody says otherwise.
const RETIRE_SECONDS_DEFAULT: f64 = 600.0;

/// Time between two looks whether workers are empty.
const RETIRE_PAUSE: Duration = Duration::from_millis(50);

/// Answers a question: at once, or from a task of its own.
pub(super) fn answer(actor: &Actor, asked: Asked) {
    let question = if questions::is_about_cluster(&asked.operation) {
        questions::read(&asked.content)
    } else {
        let operation = asked.operation.clone();
        Err(FuturesError::UnknownQuestion { operation })
    };
    let question = match question {
        Ok(question) => question,
        Err(error) => {
            // An asker that has gone away needs no answer.
            let _ = asked.reply.send(refusal(&Diagnostic::from_error(&error)));
            return;
        }
    };
    let shared = Arc::clone(&actor.shared);
    let mut known = Known::of(actor, &question);
    known.values = asked.values;
    tokio::spawn(async move {
        let mut reply = asked.reply;
        let answer = tokio::select! {
            answer = answer_with(&shared, known, question) => answer,
            () = reply.closed() => return,
        };
        let answer = answer.unwrap_or_else(|error| refusal(&error));
        let _ = reply.send(answer);
    });
}

/// What only the actor knows of a question.
struct Known {
    keys: Keyed,
    /// Keys that somebody asked for, with their tasks if they have one.
    asked: Vec<(String, Option<TaskRef>)>,
    clients: Value,
    values: Vec<Bytes>,
    dashboard_port: Option<u16>,
}

impl Known {
    fn of(actor: &Actor, question: &ClusterQuestion) -> Self {
        let mut known = Self {
            keys: Vec::new(),
            asked: Vec::new(),
            clients: Value::Null,
            values: Vec::new(),
            dashboard_port: actor.dashboard_port,
        };
        let named = |keys: &[String]| -> Vec<(String, Option<TaskRef>)> {
            let keys = keys.iter().take(KEYS_ANSWERED_MAX);
            keys.map(|key| (key.clone(), actor.futures.task_of(key)))
                .collect()
        };
        let all = || -> Keyed {
            let tasks = actor.futures.tasks().take(KEYS_ANSWERED_MAX);
            tasks.map(|(key, task)| (key.to_owned(), task)).collect()
        };
        match question {
            ClusterQuestion::WhoHas(KeysQuestion { keys })
            | ClusterQuestion::Nbytes(KeysQuestion { keys }) => {
                known.keys = match keys {
                    Some(keys) => named(keys)
                        .into_iter()
                        .filter_map(|(key, task)| Some((key, task?)))
                        .collect(),
                    None => all(),
                };
            }
            ClusterQuestion::HasWhat(_) => known.keys = all(),
            ClusterQuestion::TaskStatus(KeysQuestion { keys }) => {
                known.asked = match keys {
                    Some(keys) => named(keys),
                    None => all().into_iter().map(|(k, task)| (k, Some(task))).collect(),
                };
            }
            ClusterQuestion::Versions {} => known.clients = client_versions(actor),
            _ => {}
        }
        known
    }
}

fn client_versions(actor: &Actor) -> Value {
    let clients = actor.versions.iter().map(|(client, versions)| {
        let versions = versions.iter();
        let versions = versions.map(|of| (of.name.clone(), json!(of.version)));
        (client.to_string(), Value::Object(versions.collect()))
    });
    Value::Object(clients.collect())
}

async fn answer_with(
    shared: &Shared,
    known: Known,
    question: ClusterQuestion,
) -> Result<wire::Answer, Diagnostic> {
    let value = match question {
        ClusterQuestion::WorkerLogs(question) => worker_logs(shared, question).await,
        ClusterQuestion::SchedulerLogs(question) => {
            let lines = log_lines(shared, OWN_NAME, question.n);
            Ok(json!({ "logs": lines }))
        }
        ClusterQuestion::RetireWorkers(question) => return retire(shared, question).await,
        ClusterQuestion::Restart {} => Ok(json!({})),
        ClusterQuestion::Versions {} => Ok(json!({
            "scheduler": { "oxidask": BUILD, "protocol": PROTOCOL_VERSION },
            "clients": known.clients,
        })),
        ClusterQuestion::Run(question) => return run(shared, known.values, question).await,
        ClusterQuestion::RunEnded { name } => {
            let look = move |main_loop: &mut MainLoop| main_loop.end_command(&name);
            let ended = shared.inputs.look(look).await;
            ended.map(|was_known| json!({ "was_known": was_known }))
        }
        question => {
            shared
                .inputs
                .look(move |main_loop| read(main_loop, known, question))
                .await
        }
    };
    match value {
        Ok(value) => Ok(json(&value)),
        Err(status) => Err(from_status(&status)),
    }
}

/// Answers that are only read off the main loop.
fn read(main_loop: &MainLoop, known: Known, question: ClusterQuestion) -> Value {
    match question {
        ClusterQuestion::Identity {} => {
            let identity = fleet::identity(main_loop, known.dashboard_port);
            serde_json::to_value(identity).unwrap_or(Value::Null)
        }
        ClusterQuestion::WhoHas(_) => json!({ "who_has": fleet::who_has(main_loop, known.keys) }),
        ClusterQuestion::HasWhat(of) => {
            let held = fleet::has_what(main_loop, known.keys, of.workers.as_deref());
            json!({ "has_what": held })
        }
        ClusterQuestion::Nbytes(_) => json!({ "nbytes": fleet::nbytes(main_loop, known.keys) }),
        ClusterQuestion::Ncores(of) => {
            json!({ "ncores": fleet::slots(main_loop, of.workers.as_deref(), false) })
        }
        ClusterQuestion::NcoresRunning(of) => {
            json!({ "ncores": fleet::slots(main_loop, of.workers.as_deref(), true) })
        }
        ClusterQuestion::Processing(of) => {
            json!({ "processing": fleet::processing(main_loop, of.workers.as_deref()) })
        }
        ClusterQuestion::TaskStatus(_) => {
            json!({ "status": fleet::task_status(main_loop, known.asked) })
        }
        ClusterQuestion::Groups {} => json!({ "groups": fleet::groups(main_loop) }),
        ClusterQuestion::WorkerNames {} => json!({ "names": fleet::worker_names(main_loop) }),
        ClusterQuestion::AdaptiveTarget { target_seconds } => {
            json!({ "target": fleet::adaptive_target(main_loop, target_seconds) })
        }
        ClusterQuestion::WorkersToClose { count, target } => {
            json!({ "workers": fleet::closable(main_loop, count, target) })
        }
        _ => Value::Null,
    }
}

async fn worker_logs(shared: &Shared, question: LogsQuestion) -> Result<Value, Status> {
    let named = question.workers;
    let look = move |main_loop: &mut MainLoop| fleet::names(main_loop, named.as_deref());
    let workers = shared.inputs.look(look).await?;
    let logs = workers.into_iter().map(|(name, address)| {
        let lines = log_lines(shared, &name, question.n);
        (address, lines)
    });
    let logs: Map<String, Value> = logs.collect();
    Ok(json!({ "logs": logs }))
}

fn log_lines(shared: &Shared, process: &str, count: Option<u32>) -> Value {
    let most = u32::try_from(LOG_LINES_MAX).unwrap_or(u32::MAX);
    let request = wire::LogsRequest {
        worker: process.to_owned(),
        lines: count.unwrap_or(LOG_LINES_DEFAULT).clamp(1, most),
        ..wire::LogsRequest::default()
    };
    let (lines, _) = shared.logs.read(&request);
    let lines = lines.iter().map(|line| json!([line.level, line.text]));
    Value::Array(lines.collect())
}

async fn retire(shared: &Shared, question: RetireQuestion) -> Result<wire::Answer, Diagnostic> {
    let ended = |status: Status| from_status(&status);
    let named = question.workers.clone();
    let look = move |main_loop: &mut MainLoop| fleet::names(main_loop, named.as_deref());
    let known = shared.inputs.look(look).await.map_err(ended)?;
    let names = |asked: Vec<String>| -> Vec<String> {
        let name = |asked: String| {
            let found = known.iter().find(|(_, address)| *address == asked);
            found.map_or(asked, |(name, _)| name.clone())
        };
        asked.into_iter().map(name).collect()
    };
    let ends = question.ends.unwrap_or(true);
    let seconds = question.timeout_seconds.unwrap_or(RETIRE_SECONDS_DEFAULT);
    let seconds = seconds.clamp(0.0, WAIT_SECONDS_MAX);
    let request = wire::RetireRequest {
        workers: names(question.workers.unwrap_or_default()),
        group: question.group.unwrap_or_default(),
        count: question.count.unwrap_or(0),
        ends,
        ..wire::RetireRequest::default()
    };
    let request = Box::new(request);
    let asked = shared.inputs.ask(|reply| Question::Retire(request, reply));
    let reply = asked.await.map_err(ended)?.map_err(|error| *error)?;
    let all = shared
        .inputs
        .look(|main_loop| fleet::names(main_loop, None));
    let addresses = all.await.map_err(ended)?;
    let address = |name: &String| {
        let found = known
            .iter()
            .chain(&addresses)
            .find(|(other, _)| other == name);
        found.map_or_else(|| name.clone(), |(_, address)| address.clone())
    };
    if question.is_waited.unwrap_or(true) {
        let waiting = until_gone(shared, reply.accepted.clone(), ends);
        let time = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        if tokio::time::timeout(time, waiting).await.is_err() {
            let operation = "retire_workers".to_owned();
            let error = FuturesError::TimedOut { operation, seconds };
            return Err(Diagnostic::from_error(&error));
        }
    }
    let retired = reply
        .accepted
        .iter()
        .map(|name| (address(name), json!(name)));
    let retired: Map<String, Value> = retired.collect();
    let refused = reply.refused.iter();
    let refused: Map<String, Value> = refused
        .map(|of| (address(&of.worker), json!(of.reason)))
        .collect();
    Ok(json(&json!({ "retired": retired, "refused": refused })))
}

/// Has workers do something, and gathers what they answer.
async fn run(
    shared: &Shared,
    values: Vec<Bytes>,
    question: RunQuestion,
) -> Result<wire::Answer, Diagnostic> {
    let workers = match question.workers {
        None => CommandWorkers::All,
        Some(named) => {
            let named = named.into_iter();
            let named = named.map(|name| {
                let address = name.strip_prefix(SCHEME).map(str::to_owned);
                address.unwrap_or(name)
            });
            CommandWorkers::Named(named.collect())
        }
    };
    let seconds = question.timeout_seconds.unwrap_or(WAIT_SECONDS_MAX);
    let seconds = seconds.clamp(0.0, WAIT_SECONDS_MAX);
    let name = question.name.unwrap_or_default();
    let (reply, answer) = oneshot::channel();
    let input = CommandInput {
        workers,
        executor: question.executor.unwrap_or_else(|| PYTHON.to_owned()),
        content: values.into_iter().next().unwrap_or_default(),
        standing: question.is_standing.then_some(name),
        time_max: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
        reply,
    };
    shared.inputs.send(Input::Command(Box::new(input))).await;
    let answers = answer.await.map_err(|_| from_status(&shutting_down()))?;
    let answers = answers.map_err(|error| *error)?;
    let mut values = Vec::new();
    let mut keep = |value: Bytes| {
        values.push(value);
        values.len() - 1
    };
    let results: Vec<Value> = answers
        .into_iter()
        .map(|answer| {
            let address = match &*answer.address {
                "" => String::new(),
                address => format!("{SCHEME}{address}"),
            };
            let (value, fault) = match answer.answer {
                Ok(value) => (json!(keep(value)), Value::Null),
                Err(error) => {
                    let attachment = error.attachment.as_deref();
                    let attachment = attachment.map(|bytes| keep(Bytes::copy_from_slice(bytes)));
                    let fault = json!({
                        "code": error.code.to_string(), "message": error.message,
                        "hint": error.hint, "causes": error.causes, "attachment": attachment,
                    });
                    (Value::Null, fault)
                }
            };
            json!({ "address": address, "name": answer.name, "value": value, "fault": fault })
        })
        .collect();
    let content = json!({ "results": results }).to_string();
    Ok(wire::Answer {
        fault: None,
        content: Bytes::from(content),
        values,
    })
}

async fn until_gone(shared: &Shared, names: Vec<String>, ends: bool) {
    loop {
        let names = names.clone();
        let look = move |main_loop: &mut MainLoop| fleet::still_there(main_loop, &names, ends);
        if !shared.inputs.look(look).await.unwrap_or(false) {
            return;
        }
        sleep(RETIRE_PAUSE).await;
    }
}

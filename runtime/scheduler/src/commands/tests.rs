//! Commands on their way to workers of which the test decides every word.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::time::Duration;

use bytes::Bytes;
use oxidask_diagnostic::Code;
use oxidask_journal::MemoryDisk;
use oxidask_proto::wire;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{COMMAND_BYTES_MAX, CommandInput, CommandReply, CommandWorkers};
use crate::input::{Input, Said};
use crate::journal::{JournalConfig, JournalPlace};
use crate::rig::{Peer, Rig, one_task, texts};

const LONG: Duration = Duration::from_mins(1);

/// Gives a command, and hands out where the answers come.
async fn give(
    rig: &Rig,
    workers: CommandWorkers,
    content: &str,
    standing: Option<&str>,
    time_max: Duration,
) -> oneshot::Receiver<CommandReply> {
    let (reply, answers) = oneshot::channel();
    let input = CommandInput {
        workers,
        executor: "python".to_owned(),
        content: Bytes::copy_from_slice(content.as_bytes()),
        standing: standing.map(str::to_owned),
        time_max,
        reply,
    };
    rig.inputs.send(Input::Command(Box::new(input))).await;
    answers
}

/// The answers by worker: what it gave, or the code of the fault.
async fn told(answers: oneshot::Receiver<CommandReply>) -> Vec<(String, String)> {
    let answers = timeout(Duration::from_secs(20), answers).await;
    let answers = answers.expect("it is answered").unwrap().unwrap();
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let mut told: Vec<(String, String)> = answers
        .into_iter()
        .map(|one| {
            let answer = one.answer.map_or_else(|error| error.code.to_string(), text);
            (one.name, answer)
        })
        .collect();
    told.sort();
    told
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = of.iter();
    owned
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

fn only_texts(commands: Vec<(u64, String)>) -> Vec<String> {
    commands.into_iter().map(|command| command.1).collect()
}

async fn end(rig: &Rig, name: &'static str) -> bool {
    let ended = rig
        .inputs
        .look(move |main_loop| main_loop.end_command(name));
    ended.await.unwrap()
}

#[tokio::test]
async fn all_workers_are_asked_and_late_ones_get_what_stands() {
    let mut rig = Rig::start();
    let (mut one, mut two) = (rig.join("one").await, rig.join("two").await);
    let first = give(&rig, CommandWorkers::All, "plugin", Some("p"), LONG).await;
    let second = give(&rig, CommandWorkers::All, "run", None, LONG).await;
    for peer in [&mut one, &mut two] {
        let commands = peer.commands(2).await;
        assert_eq!(only_texts(commands.clone()), ["plugin", "run"]);
        assert!(commands[0].0 < commands[1].0);
        for (number, text) in commands {
            peer.answer(number, &format!("{text} done")).await;
        }
    }
    let both = |text| pairs(&[("one", text), ("two", text)]);
    assert_eq!(told(first).await, both("plugin done"));
    assert_eq!(told(second).await, both("run done"));

    let mut late = rig.join("late").await;
    assert_eq!(only_texts(late.commands(1).await), ["plugin"]);
    let third = give(&rig, CommandWorkers::All, "plugin 2", Some("p"), LONG).await;
    let fourth = give(&rig, CommandWorkers::All, "other", Some(""), LONG).await;
    drop((third, fourth));
    let mut later = rig.join("later").await;
    assert_eq!(only_texts(later.commands(2).await), ["plugin 2", "other"]);
    assert!(end(&rig, "p").await);
    assert!(!end(&rig, "p").await);
    let mut last = rig.join("last").await;
    assert_eq!(only_texts(last.commands(1).await), ["other"]);
    assert!(last.is_left_alone().await);
}

#[tokio::test]
async fn named_workers_are_asked_alone() {
    let mut rig = Rig::start();
    let (mut one, mut two) = (rig.join("one").await, rig.join("two").await);
    assert!(one.next().await.hello.is_some() && two.next().await.hello.is_some());
    let named = CommandWorkers::Named(vec!["oxidask://two:1".into(), "three".into()]);
    let answers = give(&rig, named, "run", None, LONG).await;
    let number = two.commands(1).await[0].0;
    two.answer(number, "x").await;
    assert_eq!(
        told(answers).await,
        pairs(&[("three", "OX347"), ("two", "x")])
    );
    assert!(one.is_left_alone().await);
    let nobody = CommandWorkers::Named(Vec::new());
    assert!(
        told(give(&rig, nobody, "run", None, LONG).await)
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn what_stands_comes_before_the_first_assignment() {
    let mut rig = Rig::start();
    drop(give(&rig, CommandWorkers::All, "plugin", Some("p"), LONG).await);
    let chunk = wire::GraphChunk {
        new_bodies: vec![Bytes::from_static(b"{}")],
        ..one_task()
    };
    rig.submit(chunk).await;
    let mut worker = rig.join("one").await;
    let mut has_command = false;
    loop {
        let batch = worker.next().await;
        // In one message commands count before orders.
        has_command |= !batch.commands.is_empty();
        if !batch.orders.is_empty() {
            assert!(has_command, "{batch:?}");
            return;
        }
    }
}

#[tokio::test]
async fn a_worker_that_dies_is_answered_for() {
    let mut rig = Rig::start();
    let (mut one, two) = (rig.join("one").await, rig.join("two").await);
    let answers = give(&rig, CommandWorkers::All, "run", None, LONG).await;
    let number = one.commands(1).await[0].0;
    one.answer(number, "x").await;
    two.die().await;
    assert_eq!(
        told(answers).await,
        pairs(&[("one", "x"), ("two", "OX347")])
    );
}

#[tokio::test]
async fn a_worker_that_is_not_heard_gets_commands_when_it_is_again() {
    let mut rig = Rig::start();
    let mut one = rig.join("one").await;
    one.next().await;
    one.fall_silent().await;
    let answers = give(&rig, CommandWorkers::All, "run", None, LONG).await;
    drop(give(&rig, CommandWorkers::All, "plugin", Some("p"), LONG).await);
    let brief = Duration::from_millis(20);
    let late = give(&rig, CommandWorkers::All, "late", None, brief).await;
    rig.wake_after(Duration::from_millis(200)).await;
    assert_eq!(told(late).await, pairs(&[("one", "OX347")]));
    assert!(one.is_left_alone().await);
    one.be_heard().await;
    let commands = one.commands(2).await;
    assert_eq!(only_texts(commands.clone()), ["run", "plugin"]);
    for (number, _) in &commands {
        one.answer(*number, "x").await;
    }
    assert_eq!(told(answers).await, pairs(&[("one", "x")]));
    // What is answered is not sent again.
    one.fall_silent().await;
    one.be_heard().await;
    assert!(one.is_left_alone().await);
}

#[tokio::test]
async fn an_asker_waits_no_longer_than_it_wants() {
    let mut rig = Rig::start();
    let mut one = rig.join("one").await;
    let brief = Duration::from_millis(20);
    let answers = give(&rig, CommandWorkers::All, "plugin", Some("p"), brief).await;
    let number = one.commands(1).await[0].0;
    rig.wake_after(Duration::from_millis(200)).await;
    let answers = timeout(LONG, answers).await.unwrap().unwrap().unwrap();
    let error = answers.into_iter().next().unwrap().answer.unwrap_err();
    assert_eq!(error.code, Code::WorkerCommandFailed);
    assert_eq!(error.message, "worker `one` did not answer within 0.02 s");
    // Too late, and nobody minds.
    one.answer(number, "x").await;
    one.say(Said::CommandResults(vec![wire::CommandResult::default()]))
        .await;
    let more = give(&rig, CommandWorkers::All, "run", None, LONG).await;
    let number = one.commands(1).await[0].0;
    one.answer(number, "y").await;
    assert_eq!(told(more).await, pairs(&[("one", "y")]));
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let mut rig = Rig::start();
    let _one = rig.join("one").await;
    let large = "x".repeat(COMMAND_BYTES_MAX + 1);
    let refused = give(&rig, CommandWorkers::All, &large, None, LONG).await;
    let refused = refused.await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::WorkerCommandFailed);
    let most = "x".repeat(COMMAND_BYTES_MAX);
    let none = || CommandWorkers::Named(Vec::new());
    for name in ["a", "b", "c", "d"] {
        assert!(
            told(give(&rig, none(), &most, Some(name), LONG).await)
                .await
                .is_empty()
        );
    }
    let fifth = give(&rig, none(), "x", Some("e"), LONG).await;
    assert!(fifth.await.unwrap().is_err());
    // In place of another of its name there is room, and when one has gone.
    assert!(
        told(give(&rig, none(), &most, Some("a"), LONG).await)
            .await
            .is_empty()
    );
    assert!(end(&rig, "b").await);
    assert!(
        told(give(&rig, none(), "x", Some("e"), LONG).await)
            .await
            .is_empty()
    );
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(give(&rig, CommandWorkers::All, &most, None, LONG).await);
    }
    let further = give(&rig, CommandWorkers::All, "x", None, LONG).await;
    assert!(further.await.unwrap().is_err());
    // Nobody waits for the answers any more.
    waiting.clear();
    rig.wake_after(Duration::from_millis(200)).await;
    let mut further = give(&rig, CommandWorkers::All, "x", None, LONG).await;
    assert!(further.try_recv().is_err(), "it waits for the worker");
}

/// What a worker that comes back after a restart of the scheduler is given.
async fn after_restart(rig: &mut Rig, peer: Peer, incarnation: u64) -> Vec<(u64, String)> {
    let mut back = rig.come_back(peer, incarnation).await;
    assert!(back.next().await.is_resumed);
    back.give_inventory().await;
    texts(back.next().await)
}

#[tokio::test]
async fn what_stands_outlives_the_scheduler() {
    let journal = JournalConfig::new(JournalPlace::Memory(MemoryDisk::new(1)));
    let mut rig = Rig::start_kept(Some(&journal));
    let mut one = rig.join("one").await;
    let incarnation = one.next().await.hello.unwrap().incarnation;
    for (text, name) in [("a", "a"), ("b", "b"), ("a 2", "a"), ("c", ""), ("d", "d")] {
        drop(give(&rig, CommandWorkers::All, text, Some(name), LONG).await);
    }
    drop(give(&rig, CommandWorkers::All, "run", None, LONG).await);
    assert!(end(&rig, "d").await);
    let before = one.commands(6).await;
    rig.stop().await;

    let mut rig = Rig::start_kept(Some(&journal));
    let mut late = rig.join("late").await;
    let stand = ["b", "a 2", "c"];
    assert_eq!(only_texts(late.commands(3).await), stand);
    let again = after_restart(&mut rig, one, incarnation).await;
    assert!(
        again.iter().all(|command| before.contains(command)),
        "the same numbers"
    );
    assert_eq!(only_texts(again), stand);
    drop(give(&rig, CommandWorkers::All, "e", Some("b"), LONG).await);
    let number = late.commands(1).await[0].0;
    assert!(before.iter().all(|command| command.0 < number));
    rig.stop().await;
}

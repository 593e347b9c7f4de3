//! Sessions of clients of Dask against a scheduler that breaks off, over real TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "tests"
)]

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use oxidask_client::futures::{
    FetchSink, FuturesConfig, FuturesEvent, FuturesSession, FuturesSink, LargeSink, PutSource,
    Runtimes,
};
use oxidask_comm::{
    BulkFound, BulkObject, BulkPieceRequest, BulkRead, BulkSource, Credentials, incoming,
    install_crypto_provider, serve_bulk, server,
};
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_identity::Role;
use oxidask_pki::Authority;
use oxidask_proto::wire::future_event::Event;
use oxidask_proto::wire::futures_command::Command;
use oxidask_proto::wire::futures_server::{Futures, FuturesServer};
use oxidask_proto::wire::scheduler_server::{Scheduler, SchedulerServer};
use oxidask_proto::{hello, wire};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);
const LARGE_BYTES: usize = 3 << 20;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the scheduler was told, and when it breaks off.
#[derive(Default)]
struct Heard {
    hellos: Vec<wire::FuturesHello>,
    commands: Vec<wire::FuturesCommand>,
    put: Vec<u8>,
    breaks_left: u32,
}

#[derive(Clone, Default)]
struct Fake {
    heard: Arc<Mutex<Heard>>,
    fetches: Arc<AtomicUsize>,
    /// Whether places were wanted, of each request.
    asked: Arc<Mutex<Vec<bool>>>,
    /// Where large results are said to be.
    place: Arc<Mutex<Option<String>>>,
    waiting: Arc<AtomicUsize>,
}

impl Fake {
    /// An answer to a batch; `None` breaks the stream off.
    fn answer(&self, batch: wire::FuturesBatch) -> Option<wire::FuturesReply> {
        let mut heard = self.heard.lock().unwrap();
        let mut reply = wire::FuturesReply::default();
        if let Some(hello) = batch.hello {
            if hello.client == "unwelcome" {
                let why = Diagnostic::new(Code::ProtocolMismatch, "go away");
                reply.refused = Some(why.into());
            }
            heard.hellos.push(hello);
            reply.hello = Some(hello::hello());
        }
        for command in batch.commands {
            let number = command.number;
            if heard.breaks_left > 0 {
                heard.breaks_left -= 1;
                return None;
            }
            if heard.commands.iter().any(|other| other.number == number) {
                reply.acknowledged = number;
                continue;
            }
            if let Some(Command::Submit(submission)) = &command.command {
                reply.events = vec![wire::FutureEvent {
                    key: submission.keys.clone(),
                    event: Some(Event::Ready(wire::FutureReady {
                        task: Some(wire::TaskId { graph: 1, task: 2 }),
                        bytes: 3,
                        value: Some(wire::SmallValue {
                            kind: 5,
                            data: Bytes::from_static(b"abc"),
                        }),
                    })),
                }];
            }
            heard.commands.push(command);
            reply.acknowledged = number;
        }
        Some(reply)
    }
}

#[tonic::async_trait]
impl Futures for Fake {
    type ExchangeStream = Answers<wire::FuturesReply>;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::FuturesBatch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let fake = self.clone();
        let batches = request.into_inner();
        let answers = futures::stream::unfold(Some(batches), move |batches| {
            let fake = fake.clone();
            async move {
                let mut batches = batches?;
                let batch = batches.message().await.ok()??;
                match fake.answer(batch) {
                    Some(reply) => Some((Ok(reply), Some(batches))),
                    None => Some((Err(Status::unavailable("broken off")), None)),
                }
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn ask(
        &self,
        request: Request<wire::Question>,
    ) -> Result<Response<wire::Answer>, Status> {
        let question = request.into_inner();
        if question.content.as_ref() == b"wait" {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        let fault = (question.content.as_ref() == b"no")
            .then(|| Diagnostic::new(Code::LimitPassed, "not so many").into());
        Ok(Response::new(wire::Answer {
            fault,
            content: question.content,
            values: question.values,
        }))
    }

    async fn put(
        &self,
        request: Request<Streaming<wire::PutPart>>,
    ) -> Result<Response<wire::PutReply>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.unwrap();
        let mut data = Vec::new();
        while let Some(part) = parts.message().await? {
            data.extend_from_slice(&part.data);
        }
        assert_eq!(first.total_bytes, data.len() as u64);
        self.heard.lock().unwrap().put = data;
        Ok(Response::new(wire::PutReply::default()))
    }
}

fn part(byte: u8) -> Bytes {
    vec![byte; LARGE_BYTES / 3].into()
}

/// Task 0 is small, task 1 large, of others there is nothing.
fn chunks(tasks: &[wire::TaskId], is_broken: bool) -> Vec<Result<wire::FetchChunk, Status>> {
    let mut chunks = Vec::new();
    for task in tasks {
        let task = Some(*task);
        match task.map(|task| task.task) {
            Some(0) => chunks.push(Ok(wire::FetchChunk {
                small: vec![wire::SmallResult {
                    task,
                    kind: 5,
                    data: Bytes::from_static(b"small"),
                }],
                ..Default::default()
            })),
            Some(1) => {
                chunks.push(Ok(wire::FetchChunk {
                    task,
                    is_start: true,
                    kind: 2,
                    total_bytes: LARGE_BYTES as u64,
                    data: part(1),
                    ..Default::default()
                }));
                if is_broken {
                    chunks.push(Err(Status::unavailable("broken off")));
                    return chunks;
                }
                for (byte, is_end) in [(2, false), (3, true)] {
                    chunks.push(Ok(wire::FetchChunk {
                        data: part(byte),
                        is_end,
                        ..Default::default()
                    }));
                }
            }
            _ => chunks.push(Ok(wire::FetchChunk {
                task,
                fault: Some(Diagnostic::new(Code::ResultUnavailable, "gone").into()),
                ..Default::default()
            })),
        }
    }
    chunks
}

/// As [`chunks`], but large results are to be read where they are.
fn places(tasks: &[wire::TaskId], address: &str) -> Vec<Result<wire::FetchChunk, Status>> {
    let place = |task: &wire::TaskId| match task.task {
        1 => vec![Ok(wire::FetchChunk {
            task: Some(*task),
            total_bytes: LARGE_BYTES as u64,
            data_address: address.to_owned(),
            ..Default::default()
        })],
        _ => chunks(&[*task], false),
    };
    tasks.iter().flat_map(place).collect()
}

#[tonic::async_trait]
impl Scheduler for Fake {
    type WorkStream = Answers<wire::WorkBatch>;
    type SessionStream = Answers<wire::SessionBatch>;
    type FetchStream = Answers<wire::FetchChunk>;
    type TelemetryStream = Answers<wire::TelemetryReply>;
    type LogsStream = Answers<wire::LogsReply>;

    async fn work(
        &self,
        _: Request<Streaming<wire::WorkerBatch>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        Err(Status::unimplemented("work"))
    }
    async fn session(
        &self,
        _: Request<Streaming<wire::ClientBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("session"))
    }
    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let is_first = self.fetches.fetch_add(1, Ordering::SeqCst) == 0;
        let request = request.into_inner();
        self.asked.lock().unwrap().push(request.places_wanted);
        let place = self.place.lock().unwrap().clone();
        let chunks = match place.filter(|_| request.places_wanted) {
            Some(address) => places(&request.tasks, &address),
            None => chunks(&request.tasks, is_first),
        };
        Ok(Response::new(futures::stream::iter(chunks).boxed()))
    }
    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusReply>, Status> {
        Err(Status::unimplemented("status"))
    }
    async fn retire(
        &self,
        _: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireReply>, Status> {
        Err(Status::unimplemented("retire"))
    }
    async fn worker_ended(
        &self,
        _: Request<wire::WorkerEndedRequest>,
    ) -> Result<Response<wire::WorkerEndedReply>, Status> {
        Err(Status::unimplemented("worker ended"))
    }
    async fn telemetry(
        &self,
        _: Request<wire::TelemetryRequest>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        Err(Status::unimplemented("telemetry"))
    }
    async fn explain(
        &self,
        _: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        Err(Status::unimplemented("explain"))
    }
    async fn logs(
        &self,
        _: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        Err(Status::unimplemented("logs"))
    }
}

struct Sink(mpsc::Sender<FuturesEvent>);

impl FuturesSink for Sink {
    fn take(&self, events: Vec<FuturesEvent>) {
        for event in events {
            let _ = self.0.send(event);
        }
    }
}

struct Rig {
    fake: Fake,
    runtime: Runtime,
    authority: Authority,
    address: String,
}

impl Rig {
    fn new() -> Self {
        install_crypto_provider();
        let runtime = Runtime::new().unwrap();
        let authority = Authority::new("local", "test").unwrap();
        let fake = Fake::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("oxidask://{}", listener.local_addr().unwrap());
        let credentials = credentials(&authority, Role::Scheduler);
        let services = fake.clone();
        runtime.spawn(async move {
            let connections = incoming(listener, credentials, CancellationToken::new());
            server()
                .add_service(FuturesServer::new(services.clone()))
                .add_service(SchedulerServer::new(services))
                .serve_with_incoming(connections)
                .await
        });
        Self {
            fake,
            runtime,
            authority,
            address,
        }
    }

    fn session(
        &self,
        client: &str,
        address: &str,
    ) -> (FuturesSession, mpsc::Receiver<FuturesEvent>) {
        let (sender, events) = mpsc::channel();
        let config = FuturesConfig {
            address: address.to_owned(),
            credentials: credentials(&self.authority, Role::Client),
            client: client.to_owned(),
            versions: vec![("python".to_owned(), "3.11.7".to_owned())],
            reconnect_time: Duration::from_secs(1),
        };
        let runtimes = Runtimes {
            session: self.runtime.handle().clone(),
            values: self.runtime.handle().clone(),
        };
        let session = FuturesSession::start(runtimes, config, Box::new(Sink(sender)));
        (session, events)
    }
}

fn credentials(authority: &Authority, role: Role) -> Credentials {
    let leaf = authority.issue(role, Duration::from_hours(1)).unwrap();
    Credentials::from_pem(&authority.ca_pem(), &leaf.cert_pem, &leaf.key_pem).unwrap()
}

fn submission(key: &str) -> wire::Submission {
    wire::Submission {
        keys: key.to_owned(),
        key_lengths: vec![key.len() as u32],
        wanted: vec![0],
        ..Default::default()
    }
}

fn next(events: &mpsc::Receiver<FuturesEvent>) -> FuturesEvent {
    events.recv_timeout(PATIENCE).unwrap()
}

fn ready(key: &str) -> FuturesEvent {
    FuturesEvent::Ready {
        key: key.to_owned(),
        task: (1, 2),
        bytes: 3,
        value: Some((5, Bytes::from_static(b"abc"))),
    }
}

#[test]
fn commands_survive_a_break_and_are_heard_once() {
    let rig = Rig::new();
    let (session, events) = rig.session("c", &rig.address);
    assert_eq!(next(&events), FuturesEvent::Connected);
    session.submit(submission("ä")).unwrap();
    assert_eq!(next(&events), ready("ä"));
    rig.fake.heard.lock().unwrap().breaks_left = 2;
    session.submit(submission("b")).unwrap();
    session.release(vec!["ä".to_owned()]);
    loop {
        match next(&events) {
            FuturesEvent::Reconnecting(_) | FuturesEvent::Connected => {}
            event => break assert_eq!(event, ready("b")),
        }
    }
    session.close();
    let heard = rig.fake.heard.lock().unwrap();
    let numbers: Vec<u64> = heard
        .commands
        .iter()
        .map(|command| command.number)
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4], "the last releases `b`");
    let first = &heard.hellos[0];
    assert!(!first.is_back && first.wanted.is_empty() && first.versions[0].name == "python");
    let last = heard.hellos.last().unwrap();
    assert!(heard.hellos.len() == 3 && last.is_back);
    assert_eq!(last.wanted, ["b"]);
    drop(heard);
    assert_eq!(next(&events), FuturesEvent::Closed(String::new()));
    drop(session);
    assert!(
        events.recv_timeout(PATIENCE).is_err(),
        "nothing comes after it"
    );
}

#[test]
fn a_refusal_and_an_absent_scheduler_end_the_session() {
    let rig = Rig::new();
    let (session, events) = rig.session("unwelcome", &rig.address);
    let FuturesEvent::Refused(why) = next(&events) else {
        panic!("it is welcome");
    };
    assert_eq!(
        (why.code, why.message.as_str()),
        (Code::ProtocolMismatch, "go away")
    );
    assert!(session.submit(submission("a")).is_err());

    let (session, events) = rig.session("c", "oxidask://127.0.0.1:1");
    let (sender, answer) = mpsc::channel();
    session.ask(Bytes::new(), vec![], move |answer| {
        sender.send(answer).unwrap();
    });
    assert!(matches!(next(&events), FuturesEvent::Reconnecting(_)));
    let FuturesEvent::Refused(why) = next(&events) else {
        panic!("somebody listens there");
    };
    assert_eq!(why.code, Code::SchedulerUnreachable);
    let refused = answer.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(refused.code, Code::SchedulerUnreachable);
}

#[test]
fn questions_that_wait_do_not_keep_others_from_being_asked() {
    let rig = Rig::new();
    let (session, _events) = rig.session("c", &rig.address);
    for _ in 0..450 {
        session.ask(Bytes::from_static(b"wait"), vec![], |_| {});
    }
    let (sender, answers) = mpsc::channel();
    for content in [&b"echo"[..], b"no"] {
        let sender = sender.clone();
        let values = vec![Bytes::from_static(b"1"), Bytes::new()];
        session.ask(content.into(), values, move |answer| {
            sender.send(answer).unwrap();
        });
    }
    let mut answers: Vec<_> = (0..2)
        .map(|_| answers.recv_timeout(PATIENCE).unwrap())
        .collect();
    answers.sort_by_key(Result::is_err);
    let (content, values) = answers[0].clone().unwrap();
    assert_eq!((content.as_ref(), values.len()), (&b"echo"[..], 2));
    assert_eq!(answers[1].clone().unwrap_err().message, "not so many");
    assert!(rig.fake.waiting.load(Ordering::SeqCst) <= 450);
}

/// Lines and large results in the order in which they came.
#[derive(Default)]
struct Collected {
    lines: Vec<String>,
    large: Vec<Vec<u8>>,
}

struct Collect(Arc<Mutex<Collected>>, mpsc::Sender<()>);

struct Large(Arc<Mutex<Collected>>, Vec<u8>, mpsc::Sender<()>);

impl FetchSink for Collect {
    fn whole(&self, results: Vec<(usize, u32, Bytes)>) {
        for (index, kind, data) in results {
            let line = format!("{index} {kind} {}", data.len());
            self.0.lock().unwrap().lines.push(line);
            let _ = self.1.send(());
        }
    }
    fn start(&self, index: usize, kind: u32, bytes: u64) -> Box<dyn LargeSink> {
        let line = format!("{index} {kind} {bytes} starts");
        self.0.lock().unwrap().lines.push(line);
        Box::new(Large(Arc::clone(&self.0), Vec::new(), self.1.clone()))
    }
    fn fault(&self, index: usize, why: Diagnostic) {
        let line = format!("{index} {}", why.message);
        self.0.lock().unwrap().lines.push(line);
        let _ = self.1.send(());
    }
}

impl LargeSink for Large {
    fn part(&mut self, data: Bytes) {
        self.1.extend_from_slice(&data);
    }
    fn end(self: Box<Self>) {
        let mut collected = self.0.lock().unwrap();
        collected.lines.push("ends".to_owned());
        collected.large.push(self.1);
        let _ = self.2.send(());
    }
}

/// All that is fetched of these tasks, once each of them is answered.
fn fetched(session: &FuturesSession, tasks: &[u32]) -> Collected {
    let collected = Arc::new(Mutex::new(Collected::default()));
    let (sender, done) = mpsc::channel();
    let sink = Arc::new(Collect(Arc::clone(&collected), sender));
    session.fetch(tasks.iter().map(|task| (1, *task)).collect(), sink);
    for _ in tasks {
        done.recv_timeout(PATIENCE).unwrap();
    }
    std::mem::take(&mut *collected.lock().unwrap())
}

fn ends(large: &[u8]) -> (usize, u8, u8) {
    (large.len(), large[0], large[large.len() - 1])
}

#[test]
fn a_large_result_that_broke_off_begins_again() {
    let rig = Rig::new();
    let (session, _events) = rig.session("c", &rig.address);
    let collected = fetched(&session, &[0, 1, 7]);
    let starts = format!("1 2 {LARGE_BYTES} starts");
    let expected = ["0 5 5", &starts, &starts, "ends", "2 gone"];
    assert_eq!(collected.lines, expected);
    assert_eq!(collected.large.len(), 1);
    assert_eq!(ends(&collected.large[0]), (LARGE_BYTES, 1, 3));
}

/// The data plane of a worker that has task 1 of graph 1, or nothing.
struct Held(Option<Bytes>);

impl BulkSource for Held {
    fn find(&self, key: u64) -> BulkFound {
        let data = self.0.clone().filter(|_| key == 1 << 32 | 1);
        BulkFound::from(data.map(|data| BulkObject {
            kind: 2,
            parts: vec![data],
        }))
    }
    fn read(&self, _: BulkPieceRequest) -> BoxFuture<'_, BulkRead> {
        Box::pin(std::future::ready(BulkRead::Missing))
    }
    fn free(&self, _: &[(u64, u32)]) {}
}

impl Rig {
    fn worker(&self, held: Option<Bytes>) -> String {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let credentials = credentials(&self.authority, Role::Worker);
        let source = Arc::new(Held(held));
        let serving = serve_bulk(listener, credentials, source, CancellationToken::new());
        self.runtime.spawn(serving);
        address
    }

    fn said_to_be_at(&self, address: String) {
        *self.fake.place.lock().unwrap() = Some(address);
    }

    fn asked(&self) -> Vec<bool> {
        std::mem::take(&mut *self.fake.asked.lock().unwrap())
    }
}

#[test]
fn large_results_are_read_from_their_worker() {
    let rig = Rig::new();
    let (session, _events) = rig.session("c", &rig.address);
    let data = Bytes::from(vec![9; LARGE_BYTES]);
    rig.said_to_be_at(rig.worker(Some(data)));
    let collected = fetched(&session, &[1, 0, 1, 1]);
    assert_eq!(collected.large.len(), 3);
    for large in &collected.large {
        assert_eq!(ends(large), (LARGE_BYTES, 9, 9));
    }
    assert_eq!(rig.asked(), [true], "nothing came through the scheduler");
}

#[test]
fn what_a_worker_does_not_have_comes_through_the_scheduler() {
    let rig = Rig::new();
    let (session, _events) = rig.session("c", &rig.address);
    rig.fake.fetches.store(1, Ordering::SeqCst);
    rig.said_to_be_at(rig.worker(None));
    for _ in 0..2 {
        let collected = fetched(&session, &[1, 7]);
        assert_eq!(ends(&collected.large[0]), (LARGE_BYTES, 1, 3));
        assert!(collected.lines.contains(&"1 gone".to_owned()));
        assert_eq!(rig.asked(), [true, false], "it can be reached");
    }
}

#[test]
fn a_client_that_reaches_no_worker_fetches_all_the_same_and_does_not_try_again() {
    for is_silent in [false, true] {
        let rig = Rig::new();
        let (session, _events) = rig.session("c", &rig.address);
        rig.fake.fetches.store(1, Ordering::SeqCst);
        // As behind a firewall: it takes connections and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let silent = is_silent.then_some(silent);
        rig.said_to_be_at(address);
        let began = Instant::now();
        let collected = fetched(&session, &[1, 1, 1, 1, 1, 1]);
        assert!(began.elapsed() < Duration::from_secs(5), "one wait for all");
        assert_eq!(collected.large.len(), 6);
        assert_eq!(ends(&collected.large[5]), (LARGE_BYTES, 1, 3));
        assert_eq!(rig.asked(), [true, false]);
        fetched(&session, &[1]);
        assert_eq!(rig.asked(), [false]);
        drop(silent);
    }
}

struct Numbers;

impl PutSource for Numbers {
    fn read(&self, offset: u64, bytes: usize) -> Result<Bytes, String> {
        let bytes = bytes as u64;
        Ok((offset..offset + bytes)
            .map(|at| (at % 251) as u8)
            .collect())
    }
}

#[test]
fn a_value_arrives_whole() {
    let rig = Rig::new();
    let (session, _events) = rig.session("c", &rig.address);
    for total in [0, LARGE_BYTES + 1] {
        let first = wire::PutPart {
            key: "k".to_owned(),
            kind: 5,
            total_bytes: total as u64,
            ..Default::default()
        };
        let (sender, done) = mpsc::channel();
        session.put(first, Arc::new(Numbers), move |done| {
            sender.send(done).unwrap();
        });
        done.recv_timeout(PATIENCE).unwrap().unwrap();
        let heard = rig.fake.heard.lock().unwrap();
        assert_eq!(heard.put.len(), total);
        assert!(
            heard
                .put
                .iter()
                .zip(0..)
                .all(|(byte, at)| *byte == (at % 251) as u8)
        );
    }
}

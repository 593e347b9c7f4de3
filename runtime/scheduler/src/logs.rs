//! The latest log lines of each worker and of the scheduler itself.
//!
//! Owns the rings, their bounds and who follows them. Workers ship lines with their beats; the
//! scheduler's own come through [`LogTap`]. Lines of a worker stay when it has gone, until newer
//! ones need the room. Never waits: whoever follows too slowly misses lines and is told how many.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{Stream, StreamExt};
use oxidask_proto::wire;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::grpc::shutting_down;

/// Lines kept of one worker.
pub(crate) const WORKER_LINES_MAX: usize = 512;
/// Bytes kept of one worker.
pub(crate) const WORKER_BYTES_MAX: usize = 128 * 1024;
/// Lines kept of the scheduler itself.
const OWN_LINES_MAX: usize = 2_048;
/// Bytes kept of the scheduler itself.
const OWN_BYTES_MAX: usize = 512 * 1024;
/// Bytes kept in all.
pub(crate) const ALL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Down to this they are thinned out when they are too many.
const ALL_BYTES_TARGET: usize = ALL_BYTES_MAX - 512 * 1024;
/// Workers of which lines are kept, those that are gone included.
const WORKERS_MAX: usize = 8_192;
/// Graphs whose names are kept.
const GRAPHS_MAX: usize = 4_096;
/// Bytes of one text; longer ones are cut.
const TEXT_BYTES_MAX: usize = 4 * 1024;
/// Bytes counted for a line besides its texts.
const LINE_BYTES: usize = 96;
/// Lines that may wait for somebody who follows.
const FOLLOWED_LINES_MAX: usize = 1_024;
/// Lines in one message.
const REPLY_LINES_MAX: usize = 1_000;
/// Lines that are answered unless somebody asks for another number.
const LINES_DEFAULT: usize = 1_000;
/// How the scheduler is called where a worker's name is expected.
pub(crate) const OWN_NAME: &str = "scheduler";

/// The rings.
#[derive(Debug)]
pub(crate) struct Logs {
    state: Mutex<State>,
    news: broadcast::Sender<Arc<wire::LogLine>>,
}

#[derive(Debug, Default)]
struct State {
    /// By the worker's name; that of the scheduler is empty.
    rings: HashMap<String, Ring>,
    bytes: usize,
    /// The number of the next line.
    next: u64,
    /// The newest graphs: workers know their numbers only.
    graphs: BTreeMap<u32, Arc<str>>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Kept>,
    bytes: usize,
    /// Lines that the worker could not keep, or we could not.
    dropped: u64,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    line: Arc<wire::LogLine>,
    bytes: usize,
}

impl Ring {
    fn pop(&mut self) -> usize {
        let Some(oldest) = self.lines.pop_front() else {
            return 0;
        };
        self.bytes -= oldest.bytes;
        self.dropped += 1;
        oldest.bytes
    }

    fn newest(&self) -> u64 {
        self.lines.back().map_or(0, |kept| kept.number)
    }
}

impl State {
    fn push(&mut self, worker: &str, line: Arc<wire::LogLine>) {
        let (lines_max, bytes_max) = match worker {
            "" => (OWN_LINES_MAX, OWN_BYTES_MAX),
            _ => (WORKER_LINES_MAX, WORKER_BYTES_MAX),
        };
        let bytes = LINE_BYTES
            + line.text.len()
            + line.target.len()
            + line.graph.len()
            + line.key.len()
            + line.worker.len();
        let number = self.next;
        self.next += 1;
        let ring = self.ring(worker);
        ring.lines.push_back(Kept {
            number,
            line,
            bytes,
        });
        ring.bytes += bytes;
        let mut freed = 0;
        while ring.lines.len() > lines_max || ring.bytes > bytes_max {
            freed += ring.pop();
        }
        self.bytes = self.bytes + bytes - freed;
        if self.bytes > ALL_BYTES_MAX {
            self.thin_out();
        }
    }

    fn ring(&mut self, worker: &str) -> &mut Ring {
        if !self.rings.contains_key(worker) {
            if self.rings.len() >= WORKERS_MAX {
                self.forget_one();
            }
            self.rings.insert(worker.to_owned(), Ring::default());
        }
        self.rings.entry(worker.to_owned()).or_default()
    }

    /// The worker that said nothing for the longest goes.
    fn forget_one(&mut self) {
        let rings = self.rings.iter().filter(|(name, _)| !name.is_empty());
        let quietest = rings.min_by_key(|(_, ring)| ring.newest());
        if let Some(name) = quietest.map(|(name, _)| name.clone())
            && let Some(ring) = self.rings.remove(&name)
        {
            self.bytes -= ring.bytes;
        }
    }

    /// The longest rings are halved: whoever says much loses first.
    fn thin_out(&mut self) {
        while self.bytes > ALL_BYTES_TARGET {
            let Some(ring) = self.rings.values_mut().max_by_key(|ring| ring.bytes) else {
                return;
            };
            let goal = ring.bytes / 2;
            let mut freed = 0;
            while ring.bytes > goal {
                freed += ring.pop();
            }
            if freed == 0 {
                return;
            }
            self.bytes -= freed;
        }
    }

    /// The newest lines that are asked for, oldest first, and how many are not kept any more.
    fn read(&self, request: &wire::LogsRequest) -> (Vec<Arc<wire::LogLine>>, u64) {
        let limit = match request.lines {
            0 => LINES_DEFAULT,
            lines => lines as usize,
        };
        let mut found: Vec<&Kept> = Vec::new();
        let mut dropped = 0;
        for (name, ring) in &self.rings {
            if !is_of(name, &request.worker) {
                continue;
            }
            dropped += ring.dropped;
            let newest = ring.lines.iter().rev();
            found.extend(newest.filter(|kept| fits(&kept.line, request)).take(limit));
        }
        found.sort_unstable_by_key(|kept| (kept.line.time_micros, kept.number));
        let skipped = found.len().saturating_sub(limit);
        let lines = found.into_iter().skip(skipped);
        (lines.map(|kept| Arc::clone(&kept.line)).collect(), dropped)
    }
}

fn is_of(ring: &str, asked: &str) -> bool {
    asked.is_empty() || ring == asked || (ring.is_empty() && asked == OWN_NAME)
}

fn fits(line: &wire::LogLine, request: &wire::LogsRequest) -> bool {
    (request.graph.is_empty() || line.graph == request.graph)
        && (request.key.is_empty() || line.key == request.key)
        && is_of(&line.worker, &request.worker)
}

impl Default for Logs {
    fn default() -> Self {
        let (news, _) = broadcast::channel(FOLLOWED_LINES_MAX);
        let state = Mutex::default();
        Self { state, news }
    }
}

impl Logs {
    /// Lines that name this graph by its number are of the graph with this name.
    pub(crate) fn name_graph(&self, graph: u32, name: &Arc<str>) {
        let mut state = self.state();
        state.graphs.insert(graph, Arc::clone(name));
        if state.graphs.len() > GRAPHS_MAX {
            state.graphs.pop_first();
        }
    }

    /// Takes lines of a worker, and how many it had no room for.
    pub(crate) fn take(&self, worker: &str, lines: Vec<wire::LogLine>, dropped: u64) {
        if lines.is_empty() && dropped == 0 {
            return;
        }
        let mut state = self.state();
        for mut line in lines {
            worker.clone_into(&mut line.worker);
            let number = line.graph.parse().ok();
            let name = number.and_then(|number: u32| state.graphs.get(&number));
            if let Some(name) = name {
                line.graph = name.to_string();
            }
            self.keep(&mut state, line);
        }
        if dropped > 0 {
            state.ring(worker).dropped += dropped;
        }
    }

    fn keep(&self, state: &mut State, mut line: wire::LogLine) {
        cut(&mut line.text, TEXT_BYTES_MAX);
        let line = Arc::new(line);
        state.push(&line.worker.clone(), Arc::clone(&line));
        // An error means that nobody follows.
        let _ = self.news.send(line);
    }

    /// The last lines of a worker, as they are shown in errors, oldest first.
    pub(crate) fn last_lines(&self, worker: &str, count: usize) -> Vec<String> {
        let state = self.state();
        let Some(ring) = state.rings.get(worker) else {
            return Vec::new();
        };
        let skipped = ring.lines.len().saturating_sub(count);
        let lines = ring.lines.iter().skip(skipped);
        lines.map(|kept| text(&kept.line)).collect()
    }

    /// The lines that are kept; for whoever does not follow.
    pub(crate) fn read(&self, request: &wire::LogsRequest) -> (Vec<Arc<wire::LogLine>>, u64) {
        self.state().read(request)
    }

    /// Lines that are kept, then, if that is asked for, new ones until the token fires.
    pub(crate) fn open(
        &self,
        request: wire::LogsRequest,
        shutdown: CancellationToken,
    ) -> impl Stream<Item = Result<wire::LogsReply, Status>> + Send + use<> {
        let state = self.state();
        let news = request.is_followed.then(|| self.news.subscribe());
        let (lines, dropped) = state.read(&request);
        drop(state);
        let mut replies: Vec<wire::LogsReply> = lines
            .chunks(REPLY_LINES_MAX)
            .map(|lines| wire::LogsReply {
                lines: lines.iter().map(|line| (**line).clone()).collect(),
                dropped: 0,
            })
            .collect();
        if replies.is_empty() {
            replies.push(wire::LogsReply::default());
        }
        replies[0].dropped = dropped;
        let kept = futures::stream::iter(replies.into_iter().map(Ok));
        let followed = futures::stream::unfold(
            news.map(|news| (news, request, shutdown)),
            |state| async move {
                let (mut news, request, shutdown) = state?;
                match next_lines(&mut news, &request, &shutdown).await {
                    Some(reply) => Some((Ok(reply), Some((news, request, shutdown)))),
                    None => Some((Err(shutting_down()), None)),
                }
            },
        );
        kept.chain(followed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next_lines(
    news: &mut broadcast::Receiver<Arc<wire::LogLine>>,
    request: &wire::LogsRequest,
    shutdown: &CancellationToken,
) -> Option<wire::LogsReply> {
    let mut reply = wire::LogsReply::default();
    while reply.lines.is_empty() && reply.dropped == 0 {
        let received = tokio::select! {
            () = shutdown.cancelled() => return None,
            received = news.recv() => received,
        };
        let mut next = Some(received);
        while let Some(received) = next.take() {
            match received {
                Ok(line) if fits(&line, request) => reply.lines.push((*line).clone()),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => reply.dropped += missed,
                Err(RecvError::Closed) => return None,
            }
            if reply.lines.len() < REPLY_LINES_MAX {
                next = news.try_recv().ok().map(Ok);
            }
        }
    }
    Some(reply)
}

/// A line as it is read by people, without its time.
fn text(line: &wire::LogLine) -> String {
    match line.level.as_str() {
        "" | "OUT" | "ERR" => line.text.clone(),
        level => format!("{level} {}", line.text),
    }
}

/// Cuts at a character boundary.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = text.floor_char_boundary(bytes_max);
        text.truncate(end);
        text.push('…');
    }
}

/// Takes the log lines of this process, so that they can be asked of the scheduler. A layer for
/// `tracing_subscriber`; clones share the lines.
#[derive(Debug, Clone, Default)]
pub struct LogTap(pub(crate) Arc<Logs>);

impl<S: Subscriber> Layer<S> for LogTap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = wire::LogLine {
            time_micros: now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX)),
            level: metadata.level().to_string(),
            target: metadata.target().to_owned(),
            text: fields.text(),
            graph: fields.graph,
            key: fields.key,
            attempt: fields.attempt,
            worker: String::new(),
        };
        self.0.keep(&mut self.0.state(), line);
    }
}

/// The fields of an event: some have a place of their own in a line.
#[derive(Default)]
struct Fields {
    message: String,
    graph: String,
    key: String,
    attempt: u32,
    others: String,
}

impl Fields {
    fn text(&mut self) -> String {
        let mut text = std::mem::take(&mut self.message);
        text.push_str(&self.others);
        text
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "attempt" => self.attempt = u32::try_from(value).unwrap_or(u32::MAX),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "graph" => value.clone_into(&mut self.graph),
            "key" => value.clone_into(&mut self.key),
            "message" => value.clone_into(&mut self.message),
            name => {
                let _ = write!(self.others, " {name}={value}");
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => {
                let _ = write!(self.others, " {name}={value:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, key: &str) -> wire::LogLine {
        wire::LogLine {
            level: "INFO".to_owned(),
            text: text.to_owned(),
            key: key.to_owned(),
            ..Default::default()
        }
    }

    fn all() -> wire::LogsRequest {
        wire::LogsRequest::default()
    }

    #[test]
    fn a_worker_that_says_much_loses_its_oldest_lines_and_no_other() {
        let logs = Logs::default();
        logs.take("quiet", vec![line("still here", "")], 0);
        let many = (0..WORKER_LINES_MAX + 10).map(|n| line(&n.to_string(), ""));
        logs.take("loud", many.collect(), 3);
        let of = |worker: &str| wire::LogsRequest {
            worker: worker.to_owned(),
            lines: 10_000,
            ..all()
        };
        let (lines, dropped) = logs.read(&of("loud"));
        assert_eq!((lines.len(), dropped), (WORKER_LINES_MAX, 13));
        assert_eq!(lines[0].text, "10");
        let (lines, dropped) = logs.read(&of("quiet"));
        assert_eq!((lines.len(), dropped), (1, 0));
        assert_eq!(logs.last_lines("loud", 2), ["INFO 520", "INFO 521"]);
        assert!(logs.last_lines("nobody", 2).is_empty());
    }

    #[test]
    fn all_workers_together_stay_within_their_bound() {
        let logs = Logs::default();
        let text = "x".repeat(TEXT_BYTES_MAX);
        for worker in 0..200 {
            let lines = (0..40).map(|_| line(&text, "")).collect();
            logs.take(&format!("worker-{worker}"), lines, 0);
        }
        let state = logs.state();
        let counted: usize = state.rings.values().map(|ring| ring.bytes).sum();
        assert_eq!(state.bytes, counted);
        assert!(
            counted <= ALL_BYTES_MAX && counted > ALL_BYTES_MAX / 2,
            "{counted}"
        );
        let kept = state.rings.values().filter(|ring| !ring.lines.is_empty());
        assert_eq!(kept.count(), 200, "each still has its newest");
    }

    #[tokio::test]
    async fn whoever_follows_gets_what_was_kept_and_then_what_comes() {
        let logs = Logs::default();
        logs.take("a", vec![line("one", "x"), line("two", "y")], 0);
        let request = wire::LogsRequest {
            key: "x".to_owned(),
            is_followed: true,
            ..all()
        };
        let stop = CancellationToken::new();
        let mut stream = Box::pin(logs.open(request, stop.clone()));
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!(first.lines.len(), 1);
        assert_eq!(
            (first.lines[0].text.as_str(), first.lines[0].worker.as_str()),
            ("one", "a")
        );
        logs.take("b", vec![line("three", "y"), line("four", "x")], 0);
        let next = stream.next().await.unwrap().unwrap();
        assert_eq!(next.lines[0].text, "four");
        stop.cancel();
        assert!(stream.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn whoever_follows_too_slowly_is_told_how_much_is_missing() {
        let logs = Logs::default();
        let request = wire::LogsRequest {
            is_followed: true,
            ..all()
        };
        let mut stream = Box::pin(logs.open(request, CancellationToken::new()));
        stream.next().await.unwrap().unwrap();
        let lines = (0..FOLLOWED_LINES_MAX + 5).map(|n| line(&n.to_string(), ""));
        logs.take("a", lines.collect(), 0);
        let mut dropped = 0;
        let mut seen = 0;
        while seen < FOLLOWED_LINES_MAX {
            let reply = stream.next().await.unwrap().unwrap();
            dropped += reply.dropped;
            seen += reply.lines.len();
        }
        assert_eq!((dropped, seen), (5, FOLLOWED_LINES_MAX));
    }

    #[test]
    fn lines_of_this_process_have_their_fields() {
        use tracing_subscriber::layer::SubscriberExt;
        let tap = LogTap::default();
        let subscriber = tracing_subscriber::registry().with(tap.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(graph = "g", key = "k", attempt = 2_u64, bytes = 7, "did it");
        });
        let request = wire::LogsRequest {
            worker: OWN_NAME.to_owned(),
            ..all()
        };
        let (lines, _) = tap.0.read(&request);
        let line = &lines[0];
        assert_eq!(line.text, "did it bytes=7");
        assert_eq!(
            (line.graph.as_str(), line.key.as_str(), line.attempt),
            ("g", "k", 2)
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut text = "é".repeat(10);
        cut(&mut text, 5);
        assert_eq!(text, "éé…");
    }
}

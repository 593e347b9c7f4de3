//! Inputs that one run reads by itself: from the own store if they are there, else from peers.
//!
//! Owns who delivers which input of the run, who failed to, and which slices it has consumed.
//! Decides nothing about the task: what nobody delivers is told when the run has ended.
//!
//! Invariants: a holder that failed or lacks an input is not asked for it again; a slice is read
//! from one version of one holder from its first byte to its last; each read ends, since each
//! round of it answers a request or rules a holder out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use oxidask_comm::{BulkPieceRequest, BulkRead, CommError};
use oxidask_core::WorkerId;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_exec::{Piece, PieceRequest, StreamedInputs, TaskError};
use oxidask_store::ResultKey;
use tokio_util::sync::CancellationToken;

use crate::pieces::{ANSWER_BYTES_MAX, Reader};
use oxidask_worker_machine::Input;

/// Consumed slices that are noted; those beyond are freed with their graph.
const CONSUMED_MAX: usize = 1 << 20;

/// So much may be asked for of an input, however small it is said to be.
const ASKED_BYTES_MIN: u64 = 64 * 1024;

/// The streamed inputs of a run.
pub(crate) struct RunStreams {
    reader: Arc<Reader>,
    /// The task's name.
    task: Arc<str>,
    inputs: Vec<Input>,
    cancelled: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who does not have an input, or not as it was.
    ruled_out: BTreeSet<(u32, WorkerId)>,
    /// Peers that did not answer.
    silent: BTreeSet<WorkerId>,
    /// Who lacks which result.
    lacking: BTreeSet<(ResultKey, WorkerId)>,
    /// Inputs that nobody delivers, with those who were to.
    lost: BTreeMap<u32, Vec<WorkerId>>,
    /// Slices of which the first bytes were read and the last were not.
    begun: HashMap<(u32, u32), Begun>,
    consumed: Vec<(u32, u32)>,
}

/// Whom a slice is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Begun {
    from: WorkerId,
    version: u64,
}

/// What the worker wants to know when the run has ended.
#[derive(Debug, Default)]
pub(crate) struct StreamsEnd {
    /// Whether an input was lost.
    pub(crate) is_lost: bool,
    /// The inputs that were lost, with each holder that did not deliver. May be empty although
    /// one was lost: then it was made anew while it was read.
    pub(crate) lost: Vec<(ResultKey, WorkerId)>,
    /// Who lacks what he was said to hold.
    pub(crate) lacking: Vec<(ResultKey, WorkerId)>,
    /// Slices that nobody else will read, with all who may hold them.
    pub(crate) consumed: Vec<(ResultKey, u32, Vec<WorkerId>)>,
}

/// Requests of one read that go to one holder: their places among all.
type Plan = BTreeMap<WorkerId, Vec<usize>>;

/// What became of one request.
type Answer = (usize, BulkRead);

/// What a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The program wants these pieces: it ends with the first that nobody delivers.
    Pieces,
    /// To find out what is lost.
    Look,
}

impl RunStreams {
    pub(crate) fn new(
        reader: Arc<Reader>,
        task: Arc<str>,
        inputs: Vec<Input>,
        cancelled: CancellationToken,
    ) -> Self {
        Self {
            reader,
            task,
            inputs,
            cancelled,
            state: Mutex::default(),
        }
    }

    /// What is to be told, once the run has ended.
    pub(crate) fn end(&self) -> StreamsEnd {
        let mut state = self.lock();
        let key_of = |input: u32| self.input(input).map(|input| input.key);
        let lost = state.lost.iter().filter_map(|(input, peers)| {
            let key = key_of(*input)?;
            Some(peers.iter().map(move |peer| (key, *peer)))
        });
        let lost = lost.flatten().collect();
        let is_lost = !state.lost.is_empty();
        let consumed = std::mem::take(&mut state.consumed);
        let consumed = consumed.into_iter().filter_map(|(input, slice)| {
            let input = self.input(input)?;
            Some((input.key, slice, holders(input).collect()))
        });
        StreamsEnd {
            is_lost,
            lost,
            consumed: consumed.collect(),
            lacking: std::mem::take(&mut state.lacking).into_iter().collect(),
        }
    }

    async fn read_all(&self, requests: &[PieceRequest]) -> Result<Vec<Piece>, TaskError> {
        if let Some(request) = requests
            .iter()
            .find(|request| self.input(request.input).is_none())
        {
            return Err(self.no_such_input(request.input));
        }
        let (pieces, lost) = self.read_rounds(requests, Purpose::Pieces).await;
        let Some(lost) = lost else {
            return Ok(pieces.into_iter().flatten().collect());
        };
        // All that is lost is told at once: otherwise each new attempt would find one more. If
        // this slice of one input was freed, that of the others most likely was, too.
        let looks = (0..self.count()).map(|input| PieceRequest {
            input,
            slice: lost.slice,
            offset: 0,
            bytes_max: 0,
        });
        let looks: Vec<_> = looks.collect();
        self.read_rounds(&looks, Purpose::Look).await;
        Err(self.is_lost(lost.input))
    }

    /// Asks one holder after the other for what is not there yet. Ends with the first request that
    /// nobody answers, or goes on with the others.
    async fn read_rounds(
        &self,
        requests: &[PieceRequest],
        purpose: Purpose,
    ) -> (Vec<Option<Piece>>, Option<PieceRequest>) {
        let mut pieces: Vec<Option<Piece>> = requests.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..requests.len()).collect();
        let mut first_lost = None;
        while !open.is_empty() {
            let (plan, lost) = self.plan(requests, &open);
            first_lost = first_lost.or(lost);
            if first_lost.is_some() && purpose == Purpose::Pieces {
                break;
            }
            let reads = plan
                .into_iter()
                .map(|(holder, places)| self.read_from(holder, places, requests));
            let answers = join_all(reads).await;
            open.clear();
            let mut state = self.lock();
            for (holder, answers) in answers {
                for (place, found) in answers {
                    if purpose == Purpose::Look && found == BulkRead::NoSuchSlice {
                        continue;
                    }
                    let request = &requests[place];
                    pieces[place] = self.take_in(&mut state, holder, request, found);
                    if pieces[place].is_none() {
                        open.push(place);
                    }
                }
            }
        }
        (pieces, first_lost)
    }

    /// Whom to ask for what, and the first request that nobody can be asked for.
    fn plan(&self, requests: &[PieceRequest], open: &[usize]) -> (Plan, Option<PieceRequest>) {
        let (mut plan, mut lost) = (Plan::new(), None);
        let mut state = self.lock();
        for place in open {
            let request = &requests[*place];
            let number = request.input;
            let Some(input) = self.input(number) else {
                continue;
            };
            if let Some(holder) = self.source(&state, request, input) {
                plan.entry(holder).or_default().push(*place);
                continue;
            }
            let who = self.who_failed(&state, number, input);
            state.lost.insert(number, who);
            lost = lost.or(Some(*request));
        }
        (plan, lost)
    }

    fn source(&self, state: &State, request: &PieceRequest, input: &Input) -> Option<WorkerId> {
        let can_deliver = |holder: &WorkerId| {
            let is_ruled_out = state.ruled_out.contains(&(request.input, *holder));
            !is_ruled_out && !state.silent.contains(holder)
        };
        let begun = state.begun.get(&(request.input, request.slice));
        if let Some(begun) = begun.filter(|_| request.offset > 0) {
            return Some(begun.from).filter(can_deliver);
        }
        let own = self.reader.own;
        if can_deliver(&own) && self.reader.store.contains(input.key) {
            return Some(own);
        }
        let is_peer = |holder: &WorkerId| *holder != own && self.reader.peers.is_known(*holder);
        holders(input).find(|holder| is_peer(holder) && can_deliver(holder))
    }

    /// Holders of which nothing more is to be expected.
    fn who_failed(&self, state: &State, number: u32, input: &Input) -> Vec<WorkerId> {
        let own = self.reader.own;
        let has_failed = |holder: &WorkerId| {
            state.lacking.contains(&(input.key, *holder))
                || state.silent.contains(holder)
                || (*holder == own && !self.reader.store.contains(input.key))
                || (*holder != own && !self.reader.peers.is_known(*holder))
        };
        let ruled_out = state
            .ruled_out
            .range((number, WorkerId(0))..=(number, WorkerId(u32::MAX)));
        let others = ruled_out.map(|(_, holder)| *holder);
        let all: BTreeSet<WorkerId> = holders(input).chain(others).collect();
        all.into_iter().filter(has_failed).collect()
    }

    async fn read_from(
        &self,
        holder: WorkerId,
        places: Vec<usize>,
        requests: &[PieceRequest],
    ) -> (WorkerId, Vec<Answer>) {
        let asked = places.iter().filter_map(|place| {
            let request = &requests[*place];
            let input = self.input(request.input)?;
            Some(BulkPieceRequest {
                key: input.key.0,
                slice: request.slice,
                offset: request.offset,
                // The size is that of an attempt that may have been replaced.
                bytes_max: request.bytes_max.min(input.bytes.max(ASKED_BYTES_MIN)),
            })
        });
        let asked: Vec<_> = asked.collect();
        if holder == self.reader.own {
            return (holder, self.read_own(places, asked).await);
        }
        let read = self.reader.read_peer(holder, &asked).await;
        let found = read.unwrap_or_else(|error| {
            self.note_silent(holder, &error);
            Vec::new()
        });
        let missing = std::iter::repeat_with(|| BulkRead::Missing);
        let found = found.into_iter().chain(missing);
        (holder, places.into_iter().zip(found).collect())
    }

    /// What is in memory is shared; what is on the disk is read, so there is a bound here, too.
    async fn read_own(&self, places: Vec<usize>, asked: Vec<BulkPieceRequest>) -> Vec<Answer> {
        let mut room = ANSWER_BYTES_MAX;
        let mut answers = Vec::with_capacity(places.len());
        for (place, mut request) in places.into_iter().zip(asked) {
            request.bytes_max = request.bytes_max.min(room);
            let found = self.reader.read_own(request).await;
            if let BulkRead::Found(piece) = &found {
                room = room.saturating_sub(piece.len());
            }
            answers.push((place, found));
        }
        answers
    }

    /// A piece for the program; none if the holder does not have it, or not as before.
    fn take_in(
        &self,
        state: &mut State,
        from: WorkerId,
        request: &PieceRequest,
        found: BulkRead,
    ) -> Option<Piece> {
        let place = (request.input, request.slice);
        let Some(found) = found.piece() else {
            state.ruled_out.insert((request.input, from));
            let key = self.input(request.input)?.key;
            if !state.silent.contains(&from) {
                state.lacking.insert((key, from));
            }
            return None;
        };
        let version = found.version;
        let begun = Begun { from, version };
        if request.offset > 0
            && state
                .begun
                .get(&place)
                .is_some_and(|before| *before != begun)
        {
            // It was made anew. The bytes that the program has are of another result.
            state.ruled_out.insert((request.input, from));
            return None;
        }
        let end = request.offset.saturating_add(found.len());
        if end >= found.total_bytes {
            state.begun.remove(&place);
        } else {
            state.begun.insert(place, begun);
        }
        Some(Piece {
            slice_bytes: found.total_bytes,
            parts: found.parts,
        })
    }

    fn note_silent(&self, peer: WorkerId, error: &CommError) {
        let source = std::error::Error::source(error)
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::warn!(task = %self.task, %peer, %error, %source, "a peer delivered no pieces");
        self.lock().silent.insert(peer);
    }

    fn input(&self, input: u32) -> Option<&Input> {
        self.inputs.get(usize::try_from(input).ok()?)
    }

    fn no_such_input(&self, input: u32) -> TaskError {
        let (task, count) = (&self.task, self.inputs.len());
        let message =
            format!("task `{task}` has `{count}` streamed inputs and asked for `{input}`");
        TaskError::permanent(Diagnostic::new(Code::TaskFailed, message))
    }

    fn is_lost(&self, input: u32) -> TaskError {
        let message = format!("streamed input `{input}` of task `{}` is lost", self.task);
        TaskError::retryable(Diagnostic::new(Code::ResultUnavailable, message))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn holders(input: &Input) -> impl Iterator<Item = WorkerId> {
    std::iter::once(input.holder).chain(input.alternates.iter().copied())
}

impl fmt::Debug for RunStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunStreams")
            .field("task", &self.task)
            .field("inputs", &self.inputs.len())
            .finish_non_exhaustive()
    }
}

impl StreamedInputs for RunStreams {
    fn count(&self) -> u32 {
        u32::try_from(self.inputs.len()).unwrap_or(u32::MAX)
    }

    fn input_bytes(&self, input: u32) -> u64 {
        self.input(input).map_or(0, |input| input.bytes)
    }

    fn read(&self, requests: Vec<PieceRequest>) -> BoxFuture<'_, Result<Vec<Piece>, TaskError>> {
        async move {
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => {
                    let message = format!("task `{}` was cancelled", self.task);
                    Err(TaskError::retryable(Diagnostic::new(Code::TaskFailed, message)))
                }
                pieces = self.read_all(&requests) => pieces,
            }
        }
        .boxed()
    }

    fn consumed(&self, input: u32, slice: u32) {
        let mut state = self.lock();
        if state.consumed.len() < CONSUMED_MAX {
            state.consumed.push((input, slice));
        }
    }
}

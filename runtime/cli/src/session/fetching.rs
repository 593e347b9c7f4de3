//! Results on their way here: one window of bounded size, asked for again when something is lost.
//!
//! Invariant: each place is either waited for by the window, delivered once, or given back as lost.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use oxidask_client::GraphRun;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_store::Payload;
use tokio::time::Instant;

/// Results of one window.
pub(super) const WINDOW_RESULTS_MAX: usize = 4_096;
/// Bytes of one window, unless its first result alone has more.
pub(super) const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// Pause before a result that could not be fetched is asked for again.
const REFETCH_PAUSE: Duration = Duration::from_millis(200);
/// Failed fetches in a row, while nothing is being computed, after which a result is given up. A
/// scheduler that has come back waits 10 s for workers that have not; these are 15 s.
const REFETCHES_MAX: u32 = 75;

type Window = Pin<Box<dyn Stream<Item = (u32, Result<Payload, Diagnostic>)> + Send>>;

/// What a window delivers; nothing at its end.
pub(super) type Delivery = Option<(u32, Result<Payload, Diagnostic>)>;

/// What has come of a delivery.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A result of this task, for this place.
    Got(usize, u32, Payload),
    /// The window is over. These places got nothing; the first of them is the one that failed.
    Over(VecDeque<usize>, Option<Diagnostic>),
}

/// Results of one graph at a time, for places that the caller numbers.
#[derive(Default)]
pub(super) struct Fetching {
    window: Option<Window>,
    /// The graph that the window reads from.
    graph: usize,
    /// Who waits for what the window delivers, in order.
    expected: VecDeque<usize>,
    refetch_at: Option<Instant>,
    refetches: u32,
}

impl Fetching {
    /// Whether results are on their way.
    pub(super) fn is_open(&self) -> bool {
        self.window.is_some()
    }

    /// Whether another window may be opened now.
    pub(super) fn is_idle(&self) -> bool {
        self.window.is_none() && self.refetch_at.is_none()
    }

    /// When the pause after a loss ends.
    pub(super) fn refetch_at(&self) -> Option<Instant> {
        self.refetch_at
    }

    /// The graph that the window reads from.
    pub(super) fn graph(&self) -> usize {
        self.graph
    }

    /// Asks for results of tasks, each for a place.
    pub(super) fn open(&mut self, graph: (usize, &GraphRun), asked: Vec<(u32, usize)>) {
        let (tasks, places): (Vec<u32>, VecDeque<usize>) = asked.into_iter().unzip();
        self.graph = graph.0;
        self.expected = places;
        self.window = Some(graph.1.fetch(tasks));
    }

    /// The next delivery; waits for it. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Delivery {
        match &mut self.window {
            Some(window) => window.next().await,
            None => None,
        }
    }

    /// Takes what was delivered.
    pub(super) fn take(&mut self, delivery: Delivery) -> Outcome {
        let error = match delivery {
            Some((task, Ok(payload))) => {
                if let Some(place) = self.expected.pop_front() {
                    self.refetches = 0;
                    return Outcome::Got(place, task, payload);
                }
                None
            }
            Some((_, Err(error))) => Some(error),
            None => None,
        };
        self.window = None;
        Outcome::Over(std::mem::take(&mut self.expected), error)
    }

    /// A result was lost on the way, most likely with its worker: it is computed again, and may be
    /// asked for again after a pause. An error if that does not help.
    pub(super) fn pause(&mut self, error: Option<Diagnostic>) -> Result<(), Diagnostic> {
        self.refetches += 1;
        if self.refetches > REFETCHES_MAX {
            let message = "the results stopped coming";
            let missing = || Diagnostic::new(Code::ResultUnavailable, message);
            return Err(error.unwrap_or_else(missing));
        }
        self.refetch_at = Some(Instant::now() + REFETCH_PAUSE);
        Ok(())
    }

    /// The pause is over.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.refetch_at = self.refetch_at.filter(|at| *at > now);
    }

    /// Something is being computed: the losses before it do not count.
    pub(super) fn has_hope(&mut self) {
        self.refetches = 0;
    }

    /// Nothing more is asked for.
    pub(super) fn give_up(&mut self) {
        *self = Self::default();
    }
}

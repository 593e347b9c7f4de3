//! What tasks did lately: a ring of spans.
//!
//! Fed from the reports of workers; a span is made of numbers and two shared names, so that keeping
//! one allocates nothing once the ring is full. Never keeps more than [`SPANS_MAX`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use oxidask_core::{Attempt, Core, GraphId, TaskRef, TaskReport, WorkerId};

/// Spans that are kept, the newest.
pub(crate) const SPANS_MAX: usize = 100_000;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanEnd {
    /// With a result.
    Finished,
    /// With an error.
    Failed,
    /// Its inputs did not come.
    InputsLost,
}

impl SpanEnd {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::InputsLost => "inputs-lost",
        }
    }
}

/// One run of a task.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// Grows by one with each span.
    pub(crate) number: u64,
    pub(crate) task: TaskRef,
    /// The name of the task's group.
    pub(crate) group: Arc<str>,
    pub(crate) worker: WorkerId,
    pub(crate) attempt: u32,
    /// When the scheduler heard of it, since 1970.
    pub(crate) end_micros: u64,
    /// 0 if the worker did not say.
    pub(crate) duration_micros: u64,
    pub(crate) end: SpanEnd,
}

/// The ring.
#[derive(Default)]
pub(crate) struct Spans {
    kept: VecDeque<Span>,
    next: u64,
}

/// What to read of the ring.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanFilter {
    /// Only those of this graph.
    pub(crate) graph: Option<GraphId>,
    /// Only those of this worker.
    pub(crate) worker: Option<WorkerId>,
    /// Only those with this number or a later one.
    pub(crate) since: u64,
    /// The newest, at most so many.
    pub(crate) limit: usize,
}

impl Spans {
    /// Notes the ends among the reports; returns the time that tasks ran.
    pub(crate) fn note(
        &mut self,
        worker: WorkerId,
        reports: &[(TaskRef, Attempt, TaskReport)],
        core: &Core,
    ) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let end_micros = now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
        let mut sum = 0_u64;
        for (task, attempt, report) in reports {
            let (duration_micros, end) = match report {
                TaskReport::Finished {
                    duration_micros, ..
                } => (*duration_micros, SpanEnd::Finished),
                TaskReport::Failed { .. } => (0, SpanEnd::Failed),
                TaskReport::InputsLost { .. } => (0, SpanEnd::InputsLost),
                TaskReport::Started
                | TaskReport::Retracted
                | TaskReport::Seceded
                | TaskReport::Rejoined => continue,
            };
            // Of a graph that is gone nobody asks any more.
            let Some(group) = core.group_name(*task) else {
                continue;
            };
            sum = sum.saturating_add(duration_micros);
            if self.kept.len() == SPANS_MAX {
                self.kept.pop_front();
            }
            self.kept.push_back(Span {
                number: self.next,
                task: *task,
                group: Arc::clone(group),
                worker,
                attempt: attempt.number,
                end_micros,
                duration_micros,
                end,
            });
            self.next += 1;
        }
        sum
    }

    /// Spans that are kept.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// The number of the next span.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The newest that fit, oldest of them first.
    pub(crate) fn read(&self, filter: &SpanFilter) -> Vec<Span> {
        let fits = |span: &&Span| {
            filter.graph.is_none_or(|graph| graph == span.task.graph)
                && filter.worker.is_none_or(|worker| worker == span.worker)
        };
        let newest = self.kept.iter().rev();
        let mut spans: Vec<Span> = newest
            .take_while(|span| span.number >= filter.since)
            .filter(fits)
            .take(filter.limit)
            .cloned()
            .collect();
        spans.reverse();
        spans
    }
}

#[cfg(test)]
mod tests {
    use oxidask_core::{ClientId, CoreConfig, Event, GraphChunk, TaskIndex, Timestamp};

    use super::*;

    fn core() -> Core {
        let mut core = Core::new(CoreConfig::default());
        let client = ClientId(1);
        let name = Arc::from("g");
        let opened = Event::GraphOpened {
            client,
            name,
            is_open_ended: false,
        };
        let arrived = Event::ChunkArrived {
            client,
            graph: GraphId(1),
            number: 0,
            chunk: Box::new(GraphChunk {
                keys: "sum-1".to_owned(),
                key_lengths: vec![5],
                body: vec![0],
                group: vec![0],
                wanted: vec![TaskIndex(0)],
                new_groups: vec!["sum".to_owned()],
                new_bodies_count: 1,
                is_last: true,
                ..GraphChunk::default()
            }),
        };
        for event in [opened, arrived] {
            core.react(event, Timestamp(0), &mut Vec::new());
        }
        core
    }

    #[test]
    fn the_newest_spans_are_kept_and_read_with_bounds() {
        let core = core();
        let task = |graph| TaskRef {
            graph: GraphId(graph),
            task: TaskIndex(0),
        };
        let attempt = Attempt {
            epoch: 1,
            number: 2,
        };
        let finished = TaskReport::Finished {
            bytes: 1,
            duration_micros: 3,
            rows: 0,
        };
        let done = (task(1), attempt, finished.clone());
        let mut spans = Spans::default();
        let others = [
            (task(1), attempt, TaskReport::Started),
            (task(9), attempt, finished),
        ];
        assert_eq!(spans.note(WorkerId(7), &others, &core), 0);
        assert_eq!(spans.len(), 0, "no end, and a graph that is gone");
        let many = vec![done; SPANS_MAX / 2];
        for worker in [5, 6, 7] {
            let micros = spans.note(WorkerId(worker), &many, &core);
            assert_eq!(micros, many.len() as u64 * 3);
        }
        assert_eq!(
            (spans.len(), spans.next()),
            (SPANS_MAX, SPANS_MAX as u64 * 3 / 2)
        );
        let all = SpanFilter {
            limit: usize::MAX,
            ..SpanFilter::default()
        };
        let kept = spans.read(&all);
        assert_eq!((kept.len(), kept[0].worker), (SPANS_MAX, WorkerId(6)));
        assert_eq!((&*kept[0].group, kept[0].attempt), ("sum", 2));
        let of_last = SpanFilter {
            worker: Some(WorkerId(7)),
            since: spans.next() - 10,
            limit: 3,
            ..SpanFilter::default()
        };
        let numbers: Vec<u64> = spans
            .read(&of_last)
            .iter()
            .map(|span| span.number)
            .collect();
        assert_eq!(
            numbers,
            [spans.next() - 3, spans.next() - 2, spans.next() - 1]
        );
    }
}

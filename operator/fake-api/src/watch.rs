//! The stream of a watch, as it is and as faults twist it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::mpsc;

use crate::error::Refused;
use crate::fake::Shared;
use crate::faults::What;
use crate::http::{Body, Dropped};
use crate::kinds::KINDS;
use crate::request::Query;
use crate::selector::Selector;
use crate::store::{Change, Event, Store, Told, line};

/// How long a watch lasts that does not say.
const LASTS: Duration = Duration::from_mins(30);

/// What a watch is about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) kind: usize,
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) is_partial: bool,
}

struct Watch {
    subject: Subject,
    lines: VecDeque<Bytes>,
    receiver: mpsc::Receiver<Told>,
    ends: Instant,
    has_bookmarks: bool,
    twist: Option<What>,
    told: u64,
    is_over: bool,
}

/// Begins a watch.
pub(crate) fn begin(
    shared: &Shared,
    subject: Subject,
    query: &Query,
    twist: Option<What>,
) -> Result<Body, Refused> {
    let mut store = shared.lock();
    let after = query
        .number("resourceVersion")
        .filter(|version| *version > 0);
    let starts_anew = query.is_true("sendInitialEvents") || after.is_none();
    let mut lines = VecDeque::new();
    let start = if starts_anew {
        store.version
    } else {
        after.unwrap_or_default()
    };
    if starts_anew {
        lines.extend(initial(&store, &subject));
    }
    if query.is_true("sendInitialEvents") {
        lines.push_back(bookmark(&subject, start, true));
    }
    let (namespace, selector) = (subject.namespace.clone(), subject.selector.clone());
    let begun = store.watch(subject.kind, namespace, selector, start);
    drop(store);
    let lasts = query
        .number("timeoutSeconds")
        .map_or(LASTS, Duration::from_secs);
    let (missed, receiver) = begun.ok_or_else(Refused::expired)?;
    let mut watch = Watch {
        subject,
        lines,
        receiver,
        ends: Instant::now() + lasts,
        has_bookmarks: query.is_true("allowWatchBookmarks"),
        twist,
        told: 0,
        is_over: false,
    };
    for event in missed {
        watch.tell(&event);
    }
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, Dropped>(Frame::data(line)), watch))
    });
    Ok(StreamBody::new(lines).boxed_unsync())
}

fn initial(store: &Store, subject: &Subject) -> Vec<Bytes> {
    let namespace = subject.namespace.as_deref();
    let everything = (None, usize::MAX);
    let (objects, _) = store.list(subject.kind, namespace, &subject.selector, everything);
    let lines = objects
        .iter()
        .map(|it| line(Change::Added, it, subject.is_partial));
    lines.collect()
}

fn bookmark(subject: &Subject, version: u64, is_end_of_initial: bool) -> Bytes {
    let kind = &KINDS[subject.kind];
    let mut object = if subject.is_partial {
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"})
    } else {
        json!({"kind": kind.name, "apiVersion": kind.api_version()})
    };
    object["metadata"] = json!({"resourceVersion": version.to_string()});
    if is_end_of_initial {
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let line = json!({"type": "BOOKMARK", "object": object});
    Bytes::from(format!("{line}\n"))
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                if let Some(What::LateEvents(late)) = self.twist {
                    tokio::time::sleep(late).await;
                }
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            let told = tokio::select! {
                told = self.receiver.recv() => told,
                () = tokio::time::sleep_until(self.ends.into()) => None,
            };
            match told {
                Some(Told::Event(event)) => self.tell(&event),
                Some(Told::Bookmark(version)) if self.has_bookmarks => {
                    self.lines
                        .push_back(bookmark(&self.subject, version, false));
                }
                Some(Told::Bookmark(_)) => {}
                Some(Told::Expired) => self.expire(),
                None => self.is_over = true,
            }
        }
    }

    fn tell(&mut self, event: &Arc<Event>) {
        let Some(change) = event.seen_by(&self.subject.selector) else {
            return;
        };
        if self.is_over {
            return;
        }
        let told = self.told;
        self.told += 1;
        match self.twist {
            Some(What::CutWatch(after)) if told >= after => {
                self.is_over = true;
                return;
            }
            Some(What::ExpireWatch(after)) if told >= after => return self.expire(),
            Some(What::LoseEvents(count)) if told < count => return,
            Some(What::LoseEvents(_)) => return self.expire(),
            _ => {}
        }
        let line = event.line(change, self.subject.is_partial);
        if matches!(self.twist, Some(What::RepeatEvents)) {
            self.lines.push_back(line.clone());
        }
        self.lines.push_back(line);
    }

    fn expire(&mut self) {
        let line = json!({"type": "ERROR", "object": Refused::expired().status()});
        self.lines.push_back(Bytes::from(format!("{line}\n")));
        self.is_over = true;
    }
}

//! Multi-locks: some of several locks, taken together. A request stands in the queue of each of its locks and has those
//! where it is first; it is granted when it has as many as it needs, and then leaves the other queues.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::answer::{Answer, AskId, Refusal};
use super::bounds::{LIST_MAX, NAMES_MAX};
use super::desk::{Desk, Place, check_bound, check_name, check_values};
use super::error::CoordinationError;
use super::question::MultiLockQuestion;

#[derive(Debug)]
struct Request {
    client: String,
    locks: Vec<String>,
    /// Locks that it still needs.
    missing: usize,
    /// Waits for the locks; none: it was granted.
    ask: Option<AskId>,
}

#[derive(Debug, Default)]
pub(super) struct MultiLocks {
    /// Requests by lock; the first has the lock.
    queues: HashMap<String, VecDeque<String>>,
    requests: HashMap<String, Request>,
}

impl MultiLocks {
    pub(super) fn ask(
        &mut self,
        question: MultiLockQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_values(values, 0)?;
        match question {
            MultiLockQuestion::Acquire {
                names,
                id,
                count,
                timeout_ms,
            } => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                self.acquire(names, &id, count, timeout_ms, desk)
            }
            MultiLockQuestion::Release { id } => {
                let answer = if self.requests.contains_key(&id) {
                    self.end(&id, desk);
                    Answer::Done
                } else {
                    Answer::refused(Refusal::Unknown, id)
                };
                desk.answer(answer);
                Ok(())
            }
        }
    }

    /// A request that waited gives up.
    pub(super) fn leave(&mut self, id: &str, desk: &mut Desk<'_>) {
        self.end(id, desk);
    }

    /// Nobody could give back what a client has that is gone.
    pub(super) fn client_gone(&mut self, desk: &mut Desk<'_>) {
        let of_client = self
            .requests
            .iter()
            .filter(|(_, request)| request.client == desk.client);
        let ids: Vec<String> = of_client.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.end(&id, desk);
        }
    }

    fn acquire(
        &mut self,
        mut names: Vec<String>,
        id: &str,
        count: usize,
        timeout_ms: Option<u64>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_name(id)?;
        names.iter().try_for_each(|name| check_name(name))?;
        names.sort_unstable();
        names.dedup();
        check_bound(names.len(), LIST_MAX, "locks of one question")?;
        let new = names
            .iter()
            .filter(|name| !self.queues.contains_key(*name))
            .count();
        check_bound(self.queues.len() + new, NAMES_MAX, "locks of multi-locks")?;
        check_bound(
            self.requests.len() + 1,
            NAMES_MAX,
            "requests of multi-locks",
        )?;
        if count == 0 || count > names.len() || self.requests.contains_key(id) {
            let message = format!("`{count}` of {} locks cannot be acquired", names.len());
            desk.answer(Answer::refused(Refusal::Invalid, message));
            return Ok(());
        }
        // Free locks first, so that a request for some of them takes those.
        names.sort_by_key(|name| self.queues.get(name).map_or(0, VecDeque::len));
        let mut request = Request {
            client: desk.client.to_owned(),
            locks: Vec::new(),
            missing: count,
            ask: None,
        };
        for name in names {
            let queue = self.queues.entry(name.clone()).or_default();
            queue.push_back(id.to_owned());
            request.missing -= usize::from(queue.len() == 1);
            request.locks.push(name);
            if request.missing == 0 {
                break;
            }
        }
        let is_granted = request.missing == 0;
        self.requests.insert(id.to_owned(), request);
        if is_granted {
            desk.answer(Answer::truth(true));
            return Ok(());
        }
        let is_waiting = desk.wait(Place::MultiLock { id: id.to_owned() }, timeout_ms);
        if is_waiting == Ok(true) {
            if let Some(request) = self.requests.get_mut(id) {
                request.ask = Some(desk.ask);
            }
        } else {
            self.end(id, desk);
        }
        is_waiting.map(|_| ())
    }

    /// Ends a request; those that are first now may have all they need.
    fn end(&mut self, id: &str, desk: &mut Desk<'_>) {
        let Some(request) = self.requests.remove(id) else {
            return;
        };
        if let Some(ask) = request.ask {
            desk.answer_wait(ask, Answer::truth(false));
        }
        let mut granted = Vec::new();
        for lock in &request.locks {
            let Some(first) = self.leave_queue(lock, id) else {
                continue;
            };
            if let Some(next) = self.requests.get_mut(&first) {
                next.missing = next.missing.saturating_sub(1);
                if next.missing == 0
                    && let Some(ask) = next.ask.take()
                {
                    desk.answer_wait(ask, Answer::truth(true));
                    granted.push(first);
                }
            }
        }
        for id in granted {
            self.leave_other_queues(&id);
        }
    }

    /// Leaves the queue of a lock; who has the lock now if that changed.
    fn leave_queue(&mut self, lock: &str, id: &str) -> Option<String> {
        let queue = self.queues.get_mut(lock)?;
        let was_first = queue.front().is_some_and(|first| first == id);
        queue.retain(|other| other != id);
        let first = queue.front().cloned();
        if first.is_none() {
            self.queues.remove(lock);
        }
        first.filter(|_| was_first)
    }

    /// A request that was granted stands behind nobody.
    fn leave_other_queues(&mut self, id: &str) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (queues, locks) = (&mut self.queues, std::mem::take(&mut request.locks));
        let has = |lock: &String| {
            queues
                .get(lock)
                .and_then(VecDeque::front)
                .is_some_and(|first| first == id)
        };
        let (held, left): (Vec<String>, Vec<String>) = locks.into_iter().partition(has);
        request.locks = held;
        for lock in left {
            self.leave_queue(&lock, id);
        }
    }
}

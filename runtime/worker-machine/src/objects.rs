//! Objects: wanted, asked for, arrived, released.

use std::cmp::Reverse;

use oxidask_core::{Attempt, WorkerId};
use oxidask_store::ResultKey;

use crate::attempts::Loss;
use crate::event::{Effect, Input, Refusal, RequestId, RunId};
use crate::urgency::Urgency;
use crate::{
    IN_FLIGHT_BYTES_MAX, Machine, Object, QueuedFetch, REQUEST_BYTES_MAX, REQUEST_OBJECTS_MAX,
    REQUESTS_PER_PEER_MAX, Request, Source, State, Wanted, is_waiting,
};

/// What nobody delivers.
#[derive(Debug, Default)]
struct Undelivered {
    inputs: Vec<Loss>,
    copies: Vec<ResultKey>,
}

/// Where an attempt stands with one of its inputs.
pub(crate) enum Want {
    Held,
    Waits,
    /// The input repeats; the attempt is registered.
    AlreadyWaits,
    /// Nobody who is said to hold it can be asked.
    Lost(Vec<WorkerId>),
}

impl Machine {
    /// Registers an attempt with one of its inputs.
    pub(crate) fn want(&mut self, run: RunId, urgency: Urgency, input: Input) -> Want {
        let Input {
            key,
            bytes,
            holder,
            alternates,
        } = input;
        match self.objects.get_mut(key) {
            Some(Object::Held { .. }) => return Want::Held,
            Some(Object::Wanted(wanted)) => {
                if wanted.waiters.last() == Some(&run) {
                    return Want::AlreadyWaits;
                }
                wanted.waiters.push(run);
                wanted.is_released = false;
                for peer in std::iter::once(holder).chain(alternates) {
                    wanted.add_holder(peer);
                }
                if urgency > wanted.urgency {
                    wanted.urgency = urgency;
                    if let Source::Queued(peer) = wanted.source {
                        let bytes = wanted.bytes;
                        self.queue(peer, QueuedFetch::new(urgency, run, key, bytes));
                    }
                }
                return Want::Waits;
            }
            None => {}
        }
        let mut untried = alternates;
        untried.insert(0, holder);
        let mut tried = Vec::new();
        let Some(peer) = self.choose_holder(&mut untried, &mut tried) else {
            return Want::Lost(tried);
        };
        self.queue(peer, QueuedFetch::new(urgency, run, key, bytes));
        let wanted = Wanted {
            bytes,
            urgency,
            source: Source::Queued(peer),
            untried,
            tried,
            waiters: vec![run],
            is_ordered: false,
            is_released: false,
        };
        self.objects.insert(key, Object::Wanted(Box::new(wanted)));
        Want::Waits
    }

    /// A copy is to be fetched and kept.
    pub(crate) fn copy_ordered(
        &mut self,
        key: ResultKey,
        bytes: u64,
        from: WorkerId,
        effects: &mut Vec<Effect>,
    ) {
        match self.objects.get_mut(key) {
            Some(Object::Held { .. }) => {
                effects.push(Effect::CopyAdded { key });
                return;
            }
            Some(Object::Wanted(wanted)) => {
                wanted.is_ordered = true;
                wanted.is_released = false;
                wanted.add_holder(from);
                return;
            }
            None => {}
        }
        let (mut untried, mut tried) = (vec![from], Vec::new());
        let Some(peer) = self.choose_holder(&mut untried, &mut tried) else {
            effects.push(Effect::CopyFailed { key });
            return;
        };
        let place_in_line = RunId(self.next_run);
        self.queue(
            peer,
            QueuedFetch::new(Urgency::COPY, place_in_line, key, bytes),
        );
        let wanted = Wanted {
            bytes,
            urgency: Urgency::COPY,
            source: Source::Queued(peer),
            untried,
            tried,
            waiters: Vec::new(),
            is_ordered: true,
            is_released: false,
        };
        self.objects.insert(key, Object::Wanted(Box::new(wanted)));
    }

    /// The holder with the least to deliver. Holders that cannot be asked count as tried: unknown
    /// ones, and this worker itself, which is known not to have it.
    fn choose_holder(
        &self,
        untried: &mut Vec<WorkerId>,
        tried: &mut Vec<WorkerId>,
    ) -> Option<WorkerId> {
        untried.retain(|peer| {
            let can_be_asked = *peer != self.own && self.peers.contains_key(peer);
            if !can_be_asked && !tried.contains(peer) {
                tried.push(*peer);
            }
            can_be_asked
        });
        let load = |peer: &WorkerId| self.peers.get(peer).map_or(u64::MAX, |p| p.queued_bytes);
        let (position, _) = untried
            .iter()
            .enumerate()
            .min_by_key(|(_, peer)| load(peer))?;
        Some(untried.remove(position))
    }

    fn queue(&mut self, peer: WorkerId, fetch: QueuedFetch) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.queued_bytes = state.queued_bytes.saturating_add(fetch.bytes);
            state.queue.push(fetch);
        }
        self.list(peer);
    }

    /// Puts a peer in line to be asked, if there is something to ask and it may be asked.
    fn list(&mut self, peer: WorkerId) {
        if let Some(state) = self.peers.get_mut(&peer)
            && !state.is_listed
            && !state.queue.is_empty()
            && state.outstanding < REQUESTS_PER_PEER_MAX
        {
            state.is_listed = true;
            self.askable.push_back(peer);
        }
    }

    /// Sends requests, peer by peer in turn, while bounds allow.
    pub(crate) fn ask_peers(&mut self, effects: &mut Vec<Effect>) {
        while self.may_ask() {
            let Some(peer) = self.askable.pop_front() else {
                return;
            };
            if let Some(state) = self.peers.get_mut(&peer) {
                state.is_listed = false;
                self.ask(peer, effects);
                self.list(peer);
            }
        }
    }

    /// Without room, something is asked for only if nothing else would ever make room.
    fn may_ask(&self) -> bool {
        self.in_flight_bytes < IN_FLIGHT_BYTES_MAX.min(self.free_bytes)
            || (self.requests.is_empty() && self.running == self.seceded)
    }

    fn ask(&mut self, peer: WorkerId, effects: &mut Vec<Effect>) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let request = RequestId(self.next_request);
        let bytes_max = REQUEST_BYTES_MAX.min(self.free_bytes.saturating_sub(self.in_flight_bytes));
        let mut keys = Vec::new();
        let mut bytes = 0_u64;
        while let Some(fetch) = state.queue.peek() {
            let key = fetch.key.0;
            let is_full = keys.len() >= REQUEST_OBJECTS_MAX
                || (!keys.is_empty() && bytes.saturating_add(fetch.bytes) > bytes_max);
            if is_full {
                break;
            }
            state.queued_bytes = state.queued_bytes.saturating_sub(fetch.bytes);
            state.queue.pop();
            let Some(Object::Wanted(wanted)) = self.objects.get_mut(key) else {
                continue;
            };
            if wanted.source != Source::Queued(peer) {
                continue;
            }
            let attempts = &self.attempts;
            let is_waited_for = wanted.waiters.iter().any(|run| is_waiting(attempts, *run));
            if !is_waited_for && !wanted.is_ordered {
                self.objects.remove(key);
                continue;
            }
            wanted.source = Source::InFlight(request);
            bytes = bytes.saturating_add(wanted.bytes);
            keys.push(key);
        }
        if keys.is_empty() {
            return;
        }
        self.next_request += 1;
        state.outstanding += 1;
        self.in_flight_bytes = self.in_flight_bytes.saturating_add(bytes);
        self.requests.insert(
            request,
            Request {
                peer,
                keys: keys.clone(),
                bytes,
            },
        );
        effects.push(Effect::Fetch {
            request,
            peer,
            keys,
        });
    }

    pub(crate) fn fetch_done(
        &mut self,
        request: RequestId,
        kept: &[ResultKey],
        missing: &[ResultKey],
        refused: Vec<Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        for key in kept {
            self.arrive(*key, effects);
        }
        let Some(Request { peer, keys, .. }) = self.close_request(request) else {
            return;
        };
        for Refusal { key, failure } in refused {
            if let Some(Object::Wanted(_)) = self.objects.get(key)
                && let Some(Object::Wanted(wanted)) = self.objects.remove(key)
            {
                if wanted.is_ordered {
                    effects.push(Effect::CopyFailed { key });
                }
                for run in wanted.waiters {
                    if self.is_waiting(run) {
                        self.fail_waiting(run, &failure, effects);
                    }
                }
            }
        }
        let mut undelivered = Undelivered::default();
        for key in missing {
            if self.try_next_holder(*key, request, peer, &mut undelivered) {
                effects.push(Effect::CopyMissing { key: *key, peer });
            }
        }
        for key in keys {
            self.try_next_holder(key, request, peer, &mut undelivered);
        }
        self.report_undelivered(undelivered, effects);
    }

    pub(crate) fn fetch_failed(&mut self, request: RequestId, effects: &mut Vec<Effect>) {
        let Some(Request { peer, keys, .. }) = self.close_request(request) else {
            return;
        };
        let mut undelivered = Undelivered::default();
        for key in keys {
            self.try_next_holder(key, request, peer, &mut undelivered);
        }
        self.report_undelivered(undelivered, effects);
    }

    pub(crate) fn peer_gone(&mut self, peer: WorkerId, effects: &mut Vec<Effect>) {
        let Some(state) = self.peers.remove(&peer) else {
            return;
        };
        self.askable.retain(|listed| *listed != peer);
        let mut undelivered = Undelivered::default();
        for fetch in state.queue {
            self.try_next(fetch.key.0, Source::Queued(peer), peer, &mut undelivered);
        }
        self.report_undelivered(undelivered, effects);
    }

    fn report_undelivered(&mut self, undelivered: Undelivered, effects: &mut Vec<Effect>) {
        for key in undelivered.copies {
            effects.push(Effect::CopyFailed { key });
        }
        self.report_lost(undelivered.inputs, effects);
    }

    fn close_request(&mut self, request: RequestId) -> Option<Request> {
        let closed = self.requests.remove(&request)?;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(closed.bytes);
        if let Some(state) = self.peers.get_mut(&closed.peer) {
            state.outstanding = state.outstanding.saturating_sub(1);
        }
        self.list(closed.peer);
        Some(closed)
    }

    fn arrive(&mut self, key: ResultKey, effects: &mut Vec<Effect>) {
        match self.objects.get(key) {
            Some(Object::Held { .. }) => {}
            Some(Object::Wanted(wanted)) if !wanted.is_released && self.is_waited_for(wanted) => {
                let bytes = wanted.bytes;
                self.hold(key, None, bytes);
                effects.push(Effect::CopyAdded { key });
            }
            Some(Object::Wanted(_)) => {
                self.objects.remove(key);
                effects.push(Effect::Drop { key });
            }
            None => effects.push(Effect::Drop { key }),
        }
    }

    /// Something is in the store now; whoever waited for it goes on.
    pub(crate) fn hold(&mut self, key: ResultKey, made_by: Option<Attempt>, bytes: u64) {
        let before = self.note_held(key, made_by, bytes);
        let Some(Object::Wanted(wanted)) = before else {
            return;
        };
        for run in wanted.waiters {
            let Some(record) = self.attempts.get_mut(&run) else {
                continue;
            };
            let State::Waiting { missing } = &mut record.state else {
                continue;
            };
            *missing -= 1;
            if *missing == 0 {
                record.state = State::Ready;
                self.ready.push((record.urgency, Reverse(run)));
            }
        }
    }

    pub(crate) fn release(&mut self, key: ResultKey, effects: &mut Vec<Effect>) {
        match self.objects.get_mut(key) {
            None => {}
            Some(Object::Held { .. }) => {
                self.note_gone(key);
                effects.push(Effect::Drop { key });
            }
            Some(Object::Wanted(wanted)) => {
                let waiters = std::mem::take(&mut wanted.waiters);
                wanted.is_released = true;
                wanted.is_ordered = false;
                if matches!(wanted.source, Source::Queued(_)) {
                    self.objects.remove(key);
                }
                // The scheduler cancels attempts before it releases their inputs; any that are
                // left must not wait for what will never come.
                let waiters = waiters.into_iter().filter(|run| self.is_waiting(*run));
                let losses: Vec<Loss> = waiters.map(|run| (run, key, self.own)).collect();
                self.report_lost(losses, effects);
            }
        }
    }

    /// The store has lost it. Attempts that need it find out when they are to start.
    pub(super) fn object_gone(&mut self, key: ResultKey, effects: &mut Vec<Effect>) {
        if let Some(Object::Held { .. }) = self.objects.get(key) {
            self.note_gone(key);
            let peer = self.own;
            effects.push(Effect::CopyMissing { key, peer });
        }
    }

    fn try_next_holder(
        &mut self,
        key: ResultKey,
        request: RequestId,
        peer: WorkerId,
        undelivered: &mut Undelivered,
    ) -> bool {
        self.try_next(key, Source::InFlight(request), peer, undelivered)
    }

    /// `peer` did not deliver. Asks the next holder, or ends what waits. Whether the scheduler has
    /// yet to be told, by more than the losses, that the peer lacks it.
    fn try_next(
        &mut self,
        key: ResultKey,
        source: Source,
        peer: WorkerId,
        undelivered: &mut Undelivered,
    ) -> bool {
        let is_affected = matches!(self.objects.get(key),
            Some(Object::Wanted(wanted)) if wanted.source == source);
        if !is_affected {
            return false;
        }
        let Some(Object::Wanted(mut wanted)) = self.objects.remove(key) else {
            return false;
        };
        wanted
            .waiters
            .retain(|run| is_waiting(&self.attempts, *run));
        let first_waiter = wanted.waiters.first().copied();
        if first_waiter.is_none() && !wanted.is_ordered {
            return false;
        }
        let first_waiter = first_waiter.unwrap_or(RunId(self.next_run));
        wanted.untried.retain(|holder| *holder != peer);
        wanted.tried.push(peer);
        if let Some(next) = self.choose_holder(&mut wanted.untried, &mut wanted.tried) {
            wanted.source = Source::Queued(next);
            self.queue(
                next,
                QueuedFetch::new(wanted.urgency, first_waiter, key, wanted.bytes),
            );
            self.objects.insert(key, Object::Wanted(wanted));
            return true;
        }
        if wanted.is_ordered {
            undelivered.copies.push(key);
        }
        let is_told = !wanted.waiters.is_empty();
        for run in wanted.waiters {
            let losses = wanted.tried.iter().map(|peer| (run, key, *peer));
            undelivered.inputs.extend(losses);
        }
        !is_told
    }
}

impl Wanted {
    /// One more that can be asked.
    fn add_holder(&mut self, peer: WorkerId) {
        let is_asked = self.source == Source::Queued(peer);
        if !is_asked && !self.tried.contains(&peer) && !self.untried.contains(&peer) {
            self.untried.push(peer);
        }
    }
}

impl QueuedFetch {
    fn new(urgency: Urgency, first_waiter: RunId, key: ResultKey, bytes: u64) -> Self {
        Self {
            urgency,
            first_waiter: Reverse(first_waiter),
            key: Reverse(key),
            bytes,
        }
    }
}

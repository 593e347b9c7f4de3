//! Semaphores, and so locks. A lease that is not refreshed in time goes to who waits first; its holder hears of it with
//! its next refresh, and has it back if there is room.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use oxidask_core::Timestamp;

use super::answer::{Answer, AskId, Refusal};
use super::bounds::{LEASES_MAX, LIST_MAX, NAMES_MAX};
use super::desk::{Deadline, Desk, Place, check_bound, check_name, check_values};
use super::error::CoordinationError;
use super::question::SemaphoreQuestion;

/// Leases remembered after their release: a refresh that was on its way then must not take one again.
const RELEASED_MAX: usize = 10_000;

#[derive(Debug)]
struct Semaphore {
    max_leases: usize,
    timeout_micros: Option<u64>,
    /// When each ends, unless it is refreshed.
    leases: HashMap<String, Option<Timestamp>>,
    waiters: BTreeSet<AskId>,
}

impl Semaphore {
    fn has_room(&self, lease: &str) -> bool {
        self.leases.contains_key(lease) || self.leases.len() < self.max_leases
    }

    /// Takes a lease, or begins its time anew. True: it is a new one.
    fn take(&mut self, name: &str, lease: &str, desk: &mut Desk<'_>) -> bool {
        let due = || Deadline::Lease(name.to_owned(), lease.to_owned());
        let until = self
            .timeout_micros
            .map(|timeout| desk.now.plus_micros(timeout));
        let earlier = self.leases.insert(lease.to_owned(), until);
        if let Some(Some(at)) = earlier {
            desk.shared.clear_deadline(at, due());
        }
        if let Some(at) = until {
            desk.shared.set_deadline(at, due());
        }
        earlier.is_none()
    }

    /// Gives a lease back. True: it was held.
    fn give(&mut self, name: &str, lease: &str, desk: &mut Desk<'_>) -> bool {
        let held = self.leases.remove(lease);
        if let Some(Some(at)) = held {
            desk.shared
                .clear_deadline(at, Deadline::Lease(name.to_owned(), lease.to_owned()));
        }
        held.is_some()
    }
}

#[derive(Debug, Default)]
pub(super) struct Semaphores {
    by_name: HashMap<String, Semaphore>,
    lease_count: usize,
    released: VecDeque<String>,
    are_released: HashSet<String>,
}

impl Semaphores {
    pub(super) fn ask(
        &mut self,
        question: SemaphoreQuestion,
        values: &[Bytes],
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_values(values, 0)?;
        match question {
            SemaphoreQuestion::Register {
                name,
                max_leases,
                lease_timeout_ms,
            } => self.register(name, max_leases, lease_timeout_ms, desk),
            SemaphoreQuestion::Acquire {
                name,
                lease,
                timeout_ms,
            } => self.acquire(name, lease, timeout_ms, desk),
            SemaphoreQuestion::Release { name, lease } => {
                let is_held = self.end_lease(&name, &lease, desk);
                self.remember_released(lease);
                desk.answer(Answer::truth(is_held));
                Ok(())
            }
            SemaphoreQuestion::Refresh { name, leases } => self.refresh(&name, leases, desk),
            SemaphoreQuestion::Value { name } => {
                let count = self
                    .by_name
                    .get(&name)
                    .map_or(0, |semaphore| semaphore.leases.len());
                desk.answer(Answer::Count {
                    count: count as u64,
                });
                Ok(())
            }
            SemaphoreQuestion::Close { name } => {
                self.close(&name, desk);
                desk.answer(Answer::Done);
                Ok(())
            }
        }
    }

    pub(super) fn leave(&mut self, name: &str, ask: AskId) {
        if let Some(semaphore) = self.by_name.get_mut(name) {
            semaphore.waiters.remove(&ask);
        }
    }

    /// A lease was not refreshed in time.
    pub(super) fn expire(&mut self, name: &str, lease: &str, desk: &mut Desk<'_>) {
        self.end_lease(name, lease, desk);
    }

    fn register(
        &mut self,
        name: String,
        max_leases: u32,
        lease_timeout_ms: Option<u64>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_name(&name)?;
        let max_leases = usize::try_from(max_leases).unwrap_or(usize::MAX);
        if let Some(known) = self.by_name.get(&name) {
            let answer = if known.max_leases == max_leases {
                Answer::Done
            } else {
                let message = format!(
                    "Inconsistent max leases: {max_leases}, expected: {}",
                    known.max_leases
                );
                Answer::refused(Refusal::Inconsistent, message)
            };
            desk.answer(answer);
            return Ok(());
        }
        check_bound(self.by_name.len() + 1, NAMES_MAX, "semaphores")?;
        let timeout_micros = lease_timeout_ms.map(|timeout| timeout.saturating_mul(1000));
        let semaphore = Semaphore {
            max_leases,
            timeout_micros,
            leases: HashMap::new(),
            waiters: BTreeSet::new(),
        };
        self.by_name.insert(name, semaphore);
        desk.answer(Answer::Done);
        Ok(())
    }

    fn acquire(
        &mut self,
        name: String,
        lease: String,
        timeout_ms: Option<u64>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_name(&lease)?;
        check_bound(self.lease_count + 1, LEASES_MAX, "leases")?;
        let Some(semaphore) = self.by_name.get_mut(&name) else {
            desk.answer(unknown(&name));
            return Ok(());
        };
        if semaphore.has_room(&lease) {
            self.lease_count += usize::from(semaphore.take(&name, &lease, desk));
            desk.answer(Answer::truth(true));
        } else if desk.wait(Place::Semaphore { name, lease }, timeout_ms)? {
            semaphore.waiters.insert(desk.ask);
        }
        Ok(())
    }

    fn refresh(
        &mut self,
        name: &str,
        leases: Vec<String>,
        desk: &mut Desk<'_>,
    ) -> Result<(), CoordinationError> {
        check_bound(leases.len(), LIST_MAX, "leases of one question")?;
        let mut unknown = Vec::new();
        for lease in leases {
            if self.are_released.contains(&lease) {
                continue;
            }
            let Some(semaphore) = self.by_name.get_mut(name) else {
                unknown.push(lease);
                continue;
            };
            let is_known = semaphore.leases.contains_key(&lease);
            if is_known
                || (semaphore.has_room(&lease)
                    && self.lease_count < LEASES_MAX
                    && check_name(&lease).is_ok())
            {
                self.lease_count += usize::from(semaphore.take(name, &lease, desk));
            }
            if !is_known {
                unknown.push(lease);
            }
        }
        desk.answer(Answer::Refreshed { unknown });
        Ok(())
    }

    fn end_lease(&mut self, name: &str, lease: &str, desk: &mut Desk<'_>) -> bool {
        let Some(semaphore) = self.by_name.get_mut(name) else {
            return false;
        };
        let is_held = semaphore.give(name, lease, desk);
        self.lease_count -= usize::from(is_held);
        while let Some(&first) = semaphore.waiters.first() {
            let next = desk.shared.waits.get(&first).map(|wait| &wait.place);
            let Some(Place::Semaphore { lease: next, .. }) = next.cloned() else {
                semaphore.waiters.remove(&first);
                continue;
            };
            if !semaphore.has_room(&next) {
                break;
            }
            semaphore.waiters.remove(&first);
            self.lease_count += usize::from(semaphore.take(name, &next, desk));
            desk.answer_wait(first, Answer::truth(true));
        }
        is_held
    }

    fn close(&mut self, name: &str, desk: &mut Desk<'_>) {
        let Some(mut semaphore) = self.by_name.remove(name) else {
            return;
        };
        let leases: Vec<String> = semaphore.leases.keys().cloned().collect();
        for lease in leases {
            self.lease_count -= usize::from(semaphore.give(name, &lease, desk));
        }
        for ask in semaphore.waiters {
            desk.answer_wait(ask, unknown(name));
        }
    }

    fn remember_released(&mut self, lease: String) {
        if check_name(&lease).is_err() || !self.are_released.insert(lease.clone()) {
            return;
        }
        self.released.push_back(lease);
        if self.released.len() > RELEASED_MAX
            && let Some(oldest) = self.released.pop_front()
        {
            self.are_released.remove(&oldest);
        }
    }
}

fn unknown(name: &str) -> Answer {
    Answer::refused(
        Refusal::Unknown,
        format!("Semaphore or Lock `{name}` not known."),
    )
}

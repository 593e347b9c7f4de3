//! What is always true of the machine. Tests check it after each event.

use std::collections::BTreeSet;
use std::fmt;

use oxidask_core::Digest;

use crate::{Machine, Object, REQUESTS_PER_PEER_MAX, Source, State, task_ref};

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(holds: bool, rule: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(rule()))
    }
}

impl Machine {
    /// Checks every rule; costs a look at everything.
    pub fn invariants(&self) -> Result<(), Violation> {
        self.check_slots()?;
        self.check_attempts()?;
        self.check_objects()?;
        self.check_digest()?;
        self.check_requests()
    }

    fn check_slots(&self) -> Result<(), Violation> {
        let started = self
            .attempts
            .values()
            .filter(|record| matches!(record.state, State::Running | State::Ending));
        let (mut count, mut seceded, mut slots) = (0, 0, 0);
        for record in started {
            count += 1;
            seceded += u32::from(record.has_seceded);
            slots += if record.has_seceded { 0 } else { record.slots };
        }
        let in_line = self.attempts.values();
        let in_line = in_line.filter(|record| record.state == State::Ahead);
        let in_line = in_line.count();
        check(self.line.count as usize == in_line, || {
            format!("{in_line} wait in line, {} counted", self.line.count)
        })?;
        check(self.seceded == seceded, || {
            format!("{seceded} have seceded, {} counted", self.seceded)
        })?;
        check(self.running == count, || {
            format!("{count} run, {} counted", self.running)
        })?;
        check(self.taken_slots == slots, || {
            format!("{slots} slots taken, {} counted", self.taken_slots)
        })
    }

    fn check_attempts(&self) -> Result<(), Violation> {
        let queue: BTreeSet<_> = self.ready.iter().map(|(_, run)| run.0).collect();
        for (run, record) in &self.attempts {
            let is_current = self.current.get(record.task) == Some(run);
            let counts = record.state != State::Ending;
            check(is_current == counts, || {
                format!("{run:?} is {record:?} but current or not")
            })?;
            check(record.state != State::Ready || queue.contains(run), || {
                format!("{run:?} is ready but not in line")
            })?;
            let State::Waiting { missing } = record.state else {
                continue;
            };
            let waits_for: BTreeSet<_> = record
                .inputs
                .iter()
                .filter(|key| match self.objects.get(**key) {
                    Some(Object::Wanted(wanted)) => wanted.waiters.contains(run),
                    _ => false,
                })
                .collect();
            check(missing > 0 && waits_for.len() == missing, || {
                format!("{run:?} waits for {missing}, registered with {waits_for:?}")
            })?;
        }
        for (task, run) in self.current.iter() {
            check(
                self.attempts
                    .get(run)
                    .is_some_and(|record| record.task == task),
                || format!("{task} is current as {run:?}, which is not there"),
            )?;
        }
        Ok(())
    }

    fn check_objects(&self) -> Result<(), Violation> {
        for (key, object) in self.objects.iter() {
            let Object::Wanted(wanted) = object else {
                continue;
            };
            match wanted.source {
                Source::Queued(peer) => {
                    let state = self.peers.get(&peer);
                    let is_queued =
                        state.is_some_and(|peer| peer.queue.iter().any(|fetch| fetch.key.0 == key));
                    check(is_queued && !wanted.is_released, || {
                        format!("{key} waits in the line of {peer}, which does not have it")
                    })?;
                }
                Source::InFlight(request) => {
                    let request = self.requests.get(&request);
                    check(
                        request.is_some_and(|request| request.keys.contains(&key)),
                        || format!("{key} is in flight in a request that is over"),
                    )?;
                }
            }
        }
        Ok(())
    }

    fn check_digest(&self) -> Result<(), Violation> {
        let mut digest = Digest::default();
        self.held().for_each(|key| digest.add_held(task_ref(key)));
        check(digest == self.held_digest, || {
            format!("held {digest:?}, kept {:?}", self.held_digest)
        })
    }

    fn check_requests(&self) -> Result<(), Violation> {
        let bytes: u64 = self.requests.values().map(|request| request.bytes).sum();
        check(bytes == self.in_flight_bytes, || {
            format!("{bytes} bytes in flight, {} counted", self.in_flight_bytes)
        })?;
        for (id, peer) in &self.peers {
            let outstanding = self
                .requests
                .values()
                .filter(|request| request.peer == *id)
                .count();
            check(peer.outstanding as usize == outstanding, || {
                format!(
                    "{outstanding} requests to {id}, {} counted",
                    peer.outstanding
                )
            })?;
            check(peer.outstanding <= REQUESTS_PER_PEER_MAX, || {
                format!("{id} is overwhelmed")
            })?;
            let listed = self.askable.iter().filter(|listed| *listed == id).count();
            check(listed == usize::from(peer.is_listed), || {
                format!("{id} is in line {listed} times")
            })?;
            let must_be_listed = !peer.queue.is_empty() && outstanding < 2;
            check(!must_be_listed || peer.is_listed, || {
                format!("{id} is never asked")
            })?;
        }
        Ok(())
    }
}

//! What all kinds of coordination share: waits, deadlines, keys that are wanted, and the account of bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use oxidask_core::Timestamp;

use super::answer::{Answer, AskId, Told};
use super::bounds::{
    HANDOVER_MICROS_MAX, HELD_BYTES_MAX, LINGER_MICROS, NAME_BYTES_MAX, WAIT_MICROS_MAX, WAITS_MAX,
    WANTS_MAX,
};
use super::error::CoordinationError;

/// Where a question waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Semaphore { name: String, lease: String },
    Event { name: String },
    QueueGet { name: String },
    QueuePut { name: String },
    Variable { name: String },
    MultiLock { id: String },
}

/// A question that waits.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) client: String,
    pub(super) place: Place,
    deadline: Timestamp,
    /// The bound of all waits ends it, not its own time.
    is_cut: bool,
}

impl Wait {
    /// The answer when its time is over.
    pub(super) fn late_answer(&self) -> Answer {
        late_answer(&self.place, self.is_cut)
    }
}

fn late_answer(place: &Place, is_cut: bool) -> Answer {
    match place {
        _ if is_cut => Answer::Again,
        Place::Semaphore { .. } | Place::Event { .. } | Place::MultiLock { .. } => {
            Answer::truth(false)
        }
        Place::QueueGet { .. } | Place::QueuePut { .. } | Place::Variable { .. } => {
            Answer::TimedOut
        }
    }
}

/// What happens at some time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deadline {
    Wait(AskId),
    /// Names of a semaphore and a lease.
    Lease(String, String),
    /// A key that nobody names here any more.
    Key(String),
    /// A client and a key that it was handed.
    Handover(String, String),
}

#[derive(Debug, Default)]
struct Want {
    count: usize,
    lingers_until: Option<Timestamp>,
}

#[derive(Debug)]
struct Handover {
    count: usize,
    deadline: Timestamp,
}

/// State behind all kinds of coordination.
#[derive(Debug, Default)]
pub(super) struct Shared {
    last_ask: u64,
    pub(super) waits: BTreeMap<AskId, Wait>,
    deadlines: BTreeSet<(Timestamp, Deadline)>,
    wants: HashMap<String, Want>,
    want_count: usize,
    /// By client and key.
    handovers: BTreeMap<(String, String), Handover>,
    bytes: usize,
}

impl Shared {
    pub(super) fn number(&mut self) -> AskId {
        self.last_ask += 1;
        AskId(self.last_ask)
    }

    pub(super) fn waits_of(&self, client: &str) -> Vec<AskId> {
        let waits = self.waits.iter().filter(|(_, wait)| wait.client == client);
        waits.map(|(ask, _)| *ask).collect()
    }

    pub(super) fn take_wait(&mut self, ask: AskId) -> Option<Wait> {
        let wait = self.waits.remove(&ask)?;
        self.deadlines.remove(&(wait.deadline, Deadline::Wait(ask)));
        Some(wait)
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The first deadline that is not after `now`. That of a wait stays until the wait ends.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<Deadline> {
        if self.next_deadline()? > now {
            return None;
        }
        self.deadlines.pop_first().map(|(_, due)| due)
    }

    pub(super) fn set_deadline(&mut self, at: Timestamp, due: Deadline) {
        self.deadlines.insert((at, due));
    }

    pub(super) fn clear_deadline(&mut self, at: Timestamp, due: Deadline) {
        self.deadlines.remove(&(at, due));
    }

    /// A key that lingered is named no more.
    pub(super) fn unwant(&mut self, key: &str, told: &mut Vec<Told>) {
        if self.wants.get(key).is_some_and(|want| want.count == 0) {
            self.wants.remove(key);
            told.push(Told::Release {
                key: key.to_owned(),
            });
        }
    }

    /// A client did not say in time that it wants the keys it was handed.
    pub(super) fn end_handover(&mut self, client: &str, key: &str, now: Timestamp) {
        let Some(handover) = self.handovers.remove(&(client.to_owned(), key.to_owned())) else {
            return;
        };
        self.clear_deadline(
            handover.deadline,
            Deadline::Handover(client.to_owned(), key.to_owned()),
        );
        self.unname(key, handover.count, now);
    }

    fn unname(&mut self, key: &str, count: usize, now: Timestamp) {
        let Some(want) = self.wants.get_mut(key) else {
            return;
        };
        let count = count.min(want.count);
        want.count -= count;
        self.want_count -= count;
        if want.count == 0 && want.lingers_until.is_none() {
            let until = now.plus_micros(LINGER_MICROS);
            want.lingers_until = Some(until);
            self.set_deadline(until, Deadline::Key(key.to_owned()));
        }
    }
}

/// One question at the desk: the shared state, the time, and where answers go.
pub(super) struct Desk<'a> {
    pub(super) shared: &'a mut Shared,
    pub(super) now: Timestamp,
    pub(super) told: &'a mut Vec<Told>,
    pub(super) ask: AskId,
    pub(super) client: &'a str,
}

impl Desk<'_> {
    pub(super) fn answer(&mut self, answer: Answer) {
        self.answer_with(answer, Vec::new());
    }

    pub(super) fn answer_with(&mut self, answer: Answer, values: Vec<Bytes>) {
        self.told.push(Told::Answer {
            ask: self.ask,
            answer,
            values,
        });
    }

    /// Answers a question that waited; who asked it, if it still waits.
    pub(super) fn answer_wait(&mut self, ask: AskId, answer: Answer) {
        if self.shared.take_wait(ask).is_some() {
            self.told.push(Told::Answer {
                ask,
                answer,
                values: Vec::new(),
            });
        }
    }

    /// Lets the question wait. False: it has no time to wait, and is answered.
    pub(super) fn wait(
        &mut self,
        place: Place,
        timeout_ms: Option<u64>,
    ) -> Result<bool, CoordinationError> {
        if timeout_ms == Some(0) {
            self.answer(late_answer(&place, false));
            return Ok(false);
        }
        check_bound(
            self.shared.waits.len() + 1,
            WAITS_MAX,
            "questions that wait",
        )?;
        let timeout_micros = timeout_ms.map_or(u64::MAX, |timeout| timeout.saturating_mul(1000));
        let deadline = self.now.plus_micros(timeout_micros.min(WAIT_MICROS_MAX));
        let wait = Wait {
            client: self.client.to_owned(),
            place,
            deadline,
            is_cut: timeout_micros > WAIT_MICROS_MAX,
        };
        self.shared.set_deadline(deadline, Deadline::Wait(self.ask));
        self.shared.waits.insert(self.ask, wait);
        Ok(true)
    }

    /// Names a key once more.
    pub(super) fn name_key(&mut self, key: &str) -> Result<(), CoordinationError> {
        check_name(key)?;
        check_bound(
            self.shared.want_count + 1,
            WANTS_MAX,
            "keys that coordination names",
        )?;
        self.shared.want_count += 1;
        if let Some(want) = self.shared.wants.get_mut(key) {
            want.count += 1;
            if let Some(until) = want.lingers_until.take() {
                self.shared
                    .clear_deadline(until, Deadline::Key(key.to_owned()));
            }
        } else {
            self.shared.wants.insert(
                key.to_owned(),
                Want {
                    count: 1,
                    lingers_until: None,
                },
            );
            self.told.push(Told::Want {
                key: key.to_owned(),
            });
        }
        Ok(())
    }

    /// Names keys, all or none.
    pub(super) fn name_keys(&mut self, keys: &[String]) -> Result<(), CoordinationError> {
        for (index, key) in keys.iter().enumerate() {
            if let Err(error) = self.name_key(key) {
                self.unname_keys(keys.get(..index).unwrap_or_default());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Names keys once less. A key that is named no more stays wanted for a little while.
    pub(super) fn unname_keys(&mut self, keys: &[String]) {
        for key in keys {
            self.shared.unname(key, 1, self.now);
        }
    }

    /// A key goes to a client. It keeps its name here until that client wants it itself.
    pub(super) fn hand_over(&mut self, client: &str, key: &str) {
        let deadline = self.now.plus_micros(HANDOVER_MICROS_MAX);
        let due = || Deadline::Handover(client.to_owned(), key.to_owned());
        let place = (client.to_owned(), key.to_owned());
        let handover = self
            .shared
            .handovers
            .entry(place)
            .or_insert(Handover { count: 0, deadline });
        let earlier = std::mem::replace(&mut handover.deadline, deadline);
        handover.count += 1;
        self.shared.clear_deadline(earlier, due());
        self.shared.set_deadline(deadline, due());
    }

    /// The asking client wants a key itself that it was handed.
    pub(super) fn confirm_handover(&mut self, key: &str) {
        let place = (self.client.to_owned(), key.to_owned());
        let Some(handover) = self.shared.handovers.get_mut(&place) else {
            return;
        };
        if handover.count > 1 {
            handover.count -= 1;
            self.shared.unname(key, 1, self.now);
        } else {
            self.shared.end_handover(self.client, key, self.now);
        }
    }

    /// Ends all handovers to the client, which is gone.
    pub(super) fn end_handovers(&mut self) {
        let first = (self.client.to_owned(), String::new());
        let of_client = self
            .shared
            .handovers
            .range(first..)
            .take_while(|((client, _), _)| client == self.client);
        let keys: Vec<String> = of_client.map(|((_, key), _)| key.clone()).collect();
        for key in keys {
            self.shared.end_handover(self.client, &key, self.now);
        }
    }

    pub(super) fn take_bytes(&mut self, bytes: usize) -> Result<(), CoordinationError> {
        check_bound(
            self.shared.bytes + bytes,
            HELD_BYTES_MAX,
            "the bytes that coordination holds",
        )?;
        self.shared.bytes += bytes;
        Ok(())
    }

    pub(super) fn give_bytes(&mut self, bytes: usize) {
        self.shared.bytes = self.shared.bytes.saturating_sub(bytes);
    }
}

pub(super) fn check_bound(
    count: usize,
    limit: usize,
    what: &'static str,
) -> Result<(), CoordinationError> {
    if count > limit {
        Err(CoordinationError::Full { what, limit })
    } else {
        Ok(())
    }
}

pub(super) fn check_name(name: &str) -> Result<(), CoordinationError> {
    check_bound(name.len(), NAME_BYTES_MAX, "the bytes of a name")
}

pub(super) fn check_values(values: &[Bytes], expected: usize) -> Result<(), CoordinationError> {
    let found = values.len();
    if found == expected {
        Ok(())
    } else {
        Err(CoordinationError::Values { expected, found })
    }
}

/// The one value that a question brings.
pub(super) fn one_value(values: &[Bytes]) -> Result<Bytes, CoordinationError> {
    match values {
        [value] => Ok(value.clone()),
        _ => Err(CoordinationError::Values {
            expected: 1,
            found: values.len(),
        }),
    }
}

//! Questions to the scheduler, many at a time.
//!
//! Owns the connections they use: a question may wait for as long as a lock is held, and a server
//! serves a bounded number of calls on each connection, so questions that wait must never keep
//! others from being asked. Invariant: a question that may have been heard is never asked twice.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oxidask_comm::CommError;
use oxidask_diagnostic::{Code, Diagnostic};
use oxidask_identity::Role;
use oxidask_proto::wire;
use tokio::time::sleep;
use tonic::Status;
use tonic::transport::Channel;

use super::keeping::{CALL_PAUSE, client};
use super::{Answered, Shared};
use crate::error::ClientError;

/// Questions on one connection, and further connections.
const QUESTIONS_PER_CHANNEL_MAX: usize = 100;
const CHANNELS_MAX: usize = 20;
/// Questions at a time.
const QUESTIONS_MAX: usize = QUESTIONS_PER_CHANNEL_MAX * CHANNELS_MAX;
/// How often a question that could not be sent is tried.
const TRIES_MAX: usize = 100;

/// The connections for questions.
#[derive(Default)]
pub(super) struct Channels {
    asked: Arc<AtomicUsize>,
    /// The first place is the session's own connection, of which no other is kept here.
    places: Mutex<Vec<Place>>,
}

#[derive(Default)]
struct Place {
    asked: Arc<AtomicUsize>,
    channel: Option<Channel>,
}

/// One question fewer when it is dropped.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Channels {
    /// Room for one question more.
    pub(super) fn admit(&self) -> Result<Counted, Diagnostic> {
        if self.asked.load(Ordering::Relaxed) < QUESTIONS_MAX {
            return Ok(Counted::new(&self.asked));
        }
        let message = format!("{QUESTIONS_MAX} questions to the scheduler wait already");
        Err(Diagnostic::new(Code::LimitPassed, message))
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first place with room: its position, and its connection if it has one of its own.
    fn find(&self) -> (usize, Counted, Option<Channel>) {
        let mut places = self.places();
        let has_room =
            |place: &Place| place.asked.load(Ordering::Relaxed) < QUESTIONS_PER_CHANNEL_MAX;
        let position = places.iter().position(has_room).unwrap_or(places.len());
        if position == places.len() {
            places.push(Place::default());
        }
        let place = &places[position];
        (position, Counted::new(&place.asked), place.channel.clone())
    }

    fn keep(&self, position: usize, channel: &Channel) {
        if let Some(place) = self.places().get_mut(position) {
            place.channel.get_or_insert_with(|| channel.clone());
        }
    }
}

impl Shared {
    /// Asks, once there is a session.
    pub(super) async fn ask(&self, question: wire::Question, _admitted: Counted) -> Answered {
        let (position, _counted, mut own) = self.channels.find();
        let mut tries = 0;
        loop {
            let main = self.connected().await?;
            let channel = match &own {
                Some(own) => own.clone(),
                None if position == 0 => main,
                None => {
                    let channel = self.connect().await.map_err(|error| error.diagnostic())?;
                    self.channels.keep(position, &channel);
                    own = Some(channel.clone());
                    channel
                }
            };
            let status = match client(channel).ask(question.clone()).await {
                Ok(answer) => return answered(answer.into_inner()),
                Err(status) => status,
            };
            tries += 1;
            if tries >= TRIES_MAX || !was_not_sent(&status) {
                return Err(ClientError::from(status).diagnostic());
            }
            sleep(CALL_PAUSE).await;
        }
    }

    async fn connect(&self) -> Result<Channel, ClientError> {
        let (address, credentials) = (&self.config.address, &self.config.credentials);
        let connecting = oxidask_comm::connect(address, credentials, Role::Scheduler);
        connecting.await.map_err(|source| ClientError::Connect {
            address: address.clone(),
            source,
        })
    }
}

fn answered(answer: wire::Answer) -> Answered {
    match answer.fault {
        Some(fault) => Err(fault.into()),
        None => Ok((answer.content, answer.values)),
    }
}

/// Whether there was no connection for the call, and there may be one later.
pub(super) fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<CommError>() {
            return error.may_pass();
        }
        source = error.source();
    }
    false
}

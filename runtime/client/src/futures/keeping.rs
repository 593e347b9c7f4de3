//! The stream of commands and events, made again whenever it breaks.
//!
//! Owns when to connect, how long to wait between tries, and when to give up. Never decides what is
//! said: the outbox does.

use std::sync::Arc;
use std::time::Duration;

use oxidask_diagnostic::Diagnostic;
use oxidask_identity::Role;
use oxidask_proto::wire::future_event::Event;
use oxidask_proto::wire::futures_client::FuturesClient;
use oxidask_proto::{MESSAGE_BYTES_MAX, hello, wire};
use tokio::sync::mpsc::{self, Sender};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Streaming;
use tonic::transport::Channel;

use super::outbox::Due;
use super::{CLOSE_TIME_MAX, EVENTS_PER_BATCH_MAX, FuturesEvent, Shared, Standing, closed};
use crate::error::{ClientError, session_ended};
use crate::link::{Patience, gave_up};
use crate::session::answered;

/// Batches on their way from the outbox to the transport.
const BATCHES_MAX: usize = 4;

/// A stream that the scheduler has taken.
struct Exchange {
    outbound: Sender<wire::FuturesBatch>,
    inbound: Streaming<wire::FuturesReply>,
    /// What came with the scheduler's hello.
    first: wire::FuturesReply,
    channel: Channel,
}

/// Connects, and connects again, until the session is over for good.
pub(super) async fn keep(shared: Arc<Shared>) {
    let over = shared.keep().await;
    let why = over.clone().unwrap_or_else(closed);
    shared.outbox.end();
    shared.standing.send_replace(Standing::Over(why));
    let event = match over {
        None => FuturesEvent::Closed(String::new()),
        Some(why) => FuturesEvent::Refused(why),
    };
    shared.sink.take(vec![event]);
}

impl Shared {
    /// The answer is why it is over; `None` if it was closed.
    async fn keep(&self) -> Option<Diagnostic> {
        let time = self.config.reconnect_time;
        let mut patience = Patience::new(time);
        let mut channel = None;
        let mut is_back = false;
        let mut told = String::new();
        loop {
            let error = match self.dial(&mut channel, is_back).await {
                Ok(exchange) => {
                    is_back = true;
                    let since = Instant::now();
                    let error = self.serve(exchange).await;
                    patience.broke(since);
                    told.clear();
                    error
                }
                Err(error) => error,
            };
            if self.outbox.is_closing() {
                return None;
            }
            let why = error.diagnostic();
            if !error.may_pass() || time.is_zero() {
                return Some(why);
            }
            self.standing.send_replace(Standing::Connecting);
            if told != why.message {
                told.clone_from(&why.message);
                let event = FuturesEvent::Reconnecting(told.clone());
                self.sink.take(vec![event]);
            }
            let Some(pause) = patience.next_pause() else {
                return Some(gave_up(time, &why));
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.closing() => return None,
            }
        }
    }

    async fn closing(&self) {
        while !self.outbox.is_closing() {
            self.outbox.changed.notified().await;
        }
    }

    async fn dial(
        &self,
        known: &mut Option<Channel>,
        is_back: bool,
    ) -> Result<Exchange, ClientError> {
        let config = &self.config;
        let channel = if let Some(channel) = known {
            channel.clone()
        } else {
            let (address, credentials) = (&config.address, &config.credentials);
            let connecting =
                oxidask_comm::connect_with_tries(address, credentials, Role::Scheduler, 1);
            let channel = connecting.await.map_err(|source| ClientError::Connect {
                address: address.clone(),
                source,
            })?;
            known.insert(channel).clone()
        };
        let mut wanted = self.outbox.begin();
        if !is_back {
            wanted.clear();
        }
        let versions = config.versions.iter();
        let versions = versions.map(|(name, version)| wire::Version {
            name: name.clone(),
            version: version.clone(),
        });
        let first = wire::FuturesBatch {
            hello: Some(wire::FuturesHello {
                hello: Some(hello::hello()),
                client: config.client.clone(),
                is_back,
                wanted,
                versions: versions.collect(),
            }),
            commands: Vec::new(),
        };
        let (outbound, mut receiver) = mpsc::channel(BATCHES_MAX);
        // The channel was just made and has room.
        let _ = outbound.try_send(first);
        let outgoing = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut client = client(channel.clone());
        let inbound = answered(client.exchange(outgoing)).await?.into_inner();
        let (inbound, first) = answered(first_reply(inbound)).await??;
        Ok(Exchange {
            outbound,
            inbound,
            first,
            channel,
        })
    }

    /// Speaks and listens until the stream breaks, or the session is closed and all is said.
    async fn serve(&self, exchange: Exchange) -> ClientError {
        let Exchange {
            outbound,
            mut inbound,
            first,
            channel,
        } = exchange;
        self.standing.send_replace(Standing::Connected(channel));
        self.sink.take(vec![FuturesEvent::Connected]);
        if let Some(refused) = self.take(first) {
            return refused;
        }
        loop {
            let due = self.outbox.due();
            let when = match due {
                Due::At(when) => when.into(),
                Due::Now | Due::Nothing | Due::End => Instant::now(),
            };
            if due == Due::End {
                drop(outbound);
                let _ = timeout(CLOSE_TIME_MAX, self.drain(&mut inbound)).await;
                return refused(closed());
            }
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(reply)) => if let Some(refused) = self.take(reply) {
                        return refused;
                    },
                    Ok(None) => return refused(session_ended(None)),
                    Err(status) => return refused(session_ended(Some(&status))),
                },
                permit = outbound.reserve(), if due == Due::Now => match permit {
                    Ok(permit) => permit.send(wire::FuturesBatch {
                        hello: None,
                        commands: self.outbox.next_batch(),
                    }),
                    // The transport has ended; what it says comes from the other side.
                    Err(_) => return self.last_words(&mut inbound).await,
                },
                () = sleep_until(when), if matches!(due, Due::At(_)) => {}
                () = self.outbox.changed.notified(), if due != Due::Now => {}
            }
        }
    }

    async fn drain(&self, inbound: &mut Streaming<wire::FuturesReply>) {
        while let Ok(Some(reply)) = inbound.message().await {
            self.take(reply);
        }
    }

    async fn last_words(&self, inbound: &mut Streaming<wire::FuturesReply>) -> ClientError {
        loop {
            match timeout(CLOSE_TIME_MAX, inbound.message()).await {
                Ok(Ok(Some(reply))) => {
                    if let Some(refused) = self.take(reply) {
                        return refused;
                    }
                }
                Ok(Err(status)) => return refused(session_ended(Some(&status))),
                Ok(Ok(None)) | Err(_) => return refused(session_ended(None)),
            }
        }
    }

    /// Passes on what the scheduler says; the answer is its refusal, if it is one.
    fn take(&self, reply: wire::FuturesReply) -> Option<ClientError> {
        if reply.acknowledged > 0 {
            self.outbox.acknowledge(reply.acknowledged);
        }
        if let Some(fault) = reply.refused {
            return Some(refused(fault.into()));
        }
        let mut events = Vec::new();
        if reply.is_restarted {
            self.outbox.restarted();
            events.push(FuturesEvent::Restarted);
        }
        let notices = reply.notices.into_iter();
        events.extend(notices.map(|notice| FuturesEvent::Notice(notice.text)));
        for event in reply.events {
            if let Some(event) = self.event(event) {
                events.push(event);
            }
        }
        events.extend(reply.topics.into_iter().map(|topic| FuturesEvent::Topic {
            topic: topic.topic,
            time_micros: topic.time_micros,
            content: topic.content,
        }));
        while !events.is_empty() {
            let rest = events.split_off(events.len().min(EVENTS_PER_BATCH_MAX));
            self.sink.take(events);
            events = rest;
        }
        None
    }

    fn event(&self, event: wire::FutureEvent) -> Option<FuturesEvent> {
        let key = event.key;
        Some(match event.event? {
            Event::Ready(ready) => {
                let task = ready.task.unwrap_or_default();
                FuturesEvent::Ready {
                    key,
                    task: (task.graph, task.task),
                    bytes: ready.bytes,
                    value: ready.value.map(|value| (value.kind, value.data)),
                }
            }
            Event::Failed(fault) => FuturesEvent::Failed { key, fault },
            Event::Lost(_) if self.outbox.is_on_its_way(&key) => return None,
            Event::Lost(_) => FuturesEvent::Lost { key },
            Event::Cancelled(cancelled) => FuturesEvent::Cancelled {
                key,
                reason: cancelled.reason,
                message: cancelled.message,
            },
            Event::Retried(_) => FuturesEvent::Retried { key },
        })
    }
}

/// A client of the service with this crate's limits.
pub(super) fn client(channel: Channel) -> FuturesClient<Channel> {
    FuturesClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn first_reply(
    mut inbound: Streaming<wire::FuturesReply>,
) -> Result<Result<(Streaming<wire::FuturesReply>, wire::FuturesReply), ClientError>, tonic::Status>
{
    let Some(mut reply) = inbound.message().await? else {
        return Ok(Err(refused(session_ended(None))));
    };
    if let Some(fault) = reply.refused.take() {
        return Ok(Err(refused(fault.into())));
    }
    Ok(match hello::check(reply.hello.take()) {
        Ok(_) => Ok((inbound, reply)),
        Err(error) => Err(error.into()),
    })
}

fn refused(why: Diagnostic) -> ClientError {
    ClientError::Refused(Box::new(why))
}

/// How long a call that could not be made waits before it looks again.
pub(super) const CALL_PAUSE: Duration = Duration::from_millis(50);

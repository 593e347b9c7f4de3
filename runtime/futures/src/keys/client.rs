//! Clients, their streams and what each wants.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use oxidask_core::Timestamp;

use super::event::Connection;
use super::table::{Fixed, KeyId, Slot};

/// Somebody who may come back after a restart and want what was wanted before.
pub(super) const UNKNOWN: Slot = Slot(0);

/// What clients coordinate by: it wants the keys that are named there, and never goes.
pub(super) const NAMED: Slot = Slot(u32::MAX);

/// A client.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) name: Arc<str>,
    /// Its stream; nothing while it is away.
    pub(super) connection: Option<Connection>,
    /// When it went away.
    pub(super) gone_at: Timestamp,
    /// The last command that was taken.
    pub(super) last_command: u64,
    /// The last command that was acknowledged.
    pub(super) acknowledged: u64,
    pub(super) wanted: HashSet<KeyId, Fixed>,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    all: HashMap<Slot, Client, Fixed>,
    by_name: HashMap<Arc<str>, Slot, Fixed>,
    by_connection: HashMap<Connection, Slot, Fixed>,
    last: u32,
}

impl Clients {
    pub(super) fn get(&self, slot: Slot) -> Option<&Client> {
        self.all.get(&slot)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Client> {
        self.all.get_mut(&slot)
    }

    pub(super) fn of(&self, connection: Connection) -> Option<Slot> {
        self.by_connection.get(&connection).copied()
    }

    pub(super) fn named(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    pub(super) fn connected(&self) -> usize {
        self.by_connection.len()
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// All, in order of joining.
    pub(super) fn slots(&self) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self.all.keys().copied().collect();
        slots.sort_unstable();
        slots
    }

    /// A client that is not there, without a stream.
    pub(super) fn add(&mut self, name: &str) -> Slot {
        self.last = self.last.saturating_add(1);
        let (slot, name) = (Slot(self.last), Arc::<str>::from(name));
        self.by_name.insert(Arc::clone(&name), slot);
        let client = Client {
            name,
            ..Client::default()
        };
        self.all.insert(slot, client);
        slot
    }

    /// Somebody who wants what a journal has kept, until the grace time is over.
    pub(super) fn add_unknown(&mut self, now: Timestamp) {
        let client = self.all.entry(UNKNOWN).or_default();
        client.gone_at = now;
    }

    /// What clients coordinate by names a key.
    pub(super) fn add_named(&mut self) {
        self.all.entry(NAMED).or_default();
    }

    /// The client has this stream from now on; the one before, if there was one.
    pub(super) fn connect(&mut self, slot: Slot, connection: Connection) -> Option<Connection> {
        let client = self.all.get_mut(&slot)?;
        let before = client.connection.replace(connection);
        if let Some(before) = before {
            self.by_connection.remove(&before);
        }
        self.by_connection.insert(connection, slot);
        before
    }

    /// The stream is over. Its client, unless that has another one.
    pub(super) fn disconnect(&mut self, connection: Connection, now: Timestamp) -> Option<Slot> {
        let slot = self.by_connection.remove(&connection)?;
        let client = self.all.get_mut(&slot)?;
        client.connection = None;
        client.gone_at = now;
        Some(slot)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Client> {
        let client = self.all.remove(&slot)?;
        if !client.name.is_empty() {
            self.by_name.remove(&client.name);
        }
        if let Some(connection) = client.connection {
            self.by_connection.remove(&connection);
        }
        Some(client)
    }
}

//! Copies that attempts wait for, kept in memory until they start.
//!
//! The store drops copies when memory is short, since a peer has them, too. One that was fetched
//! for an attempt would be fetched again and again if it went before the attempt starts. Invariant:
//! a copy that nobody waits for is kept no longer than until the next sweep.

use std::sync::Arc;

use oxidask_store::{KeyMap, Pins, ResultKey, Store};

/// The pins of the copies that are waited for.
#[derive(Debug)]
pub(crate) struct AwaitedCopies {
    store: Arc<Store>,
    pins: KeyMap<Pins>,
    count: usize,
}

impl AwaitedCopies {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            pins: KeyMap::default(),
            count: 0,
        }
    }

    /// An attempt will be given this copy, which is here already.
    pub(crate) fn keep(&mut self, copy: ResultKey) {
        if !self.pins.contains(copy) {
            let pins = self.store.pin(&[copy]);
            self.add(copy, pins);
        }
    }

    /// The same for a copy that has just come.
    pub(crate) fn add(&mut self, copy: ResultKey, pins: Pins) {
        self.count += usize::from(self.pins.insert(copy, pins).is_none());
    }

    /// Lets go of those that are not awaited any more. `awaited` is asked only if there are any.
    pub(crate) fn sweep(&mut self, awaited: impl FnOnce() -> KeyMap<()>) {
        if self.count == 0 {
            return;
        }
        let awaited = awaited();
        let idle = self.pins.iter().map(|(key, _)| key);
        let idle: Vec<_> = idle.filter(|key| !awaited.contains(*key)).collect();
        for key in idle {
            self.forget(key);
        }
    }

    /// The copy goes.
    pub(crate) fn forget(&mut self, copy: ResultKey) {
        self.count -= usize::from(self.pins.remove(copy).is_some());
    }

    pub(crate) fn forget_graph(&mut self, graph: u32) {
        let forgotten = self.pins.remove_graph(graph).count();
        self.count -= forgotten;
    }
}

#[cfg(test)]
mod tests {
    use oxidask_store::{Payload, PayloadKind};

    use super::*;

    #[test]
    fn copies_are_pinned_while_somebody_waits_for_them() {
        let store = Arc::new(Store::new(1_000));
        let keys = [
            ResultKey::new(1, 1),
            ResultKey::new(1, 2),
            ResultKey::new(2, 1),
        ];
        for key in keys {
            let payload = Payload::new(PayloadKind::Bytes, vec![1; 100]);
            store.insert_copy(key, payload).unwrap();
        }
        let pinned = || store.held().pinned_bytes;
        let mut copies = AwaitedCopies::new(Arc::clone(&store));
        copies.sweep(|| unreachable!("nothing is kept"));
        for key in keys {
            copies.keep(key);
            copies.keep(key);
        }
        assert_eq!(pinned(), 300);
        let mut awaited = KeyMap::default();
        awaited.insert(keys[1], ());
        awaited.insert(keys[2], ());
        copies.sweep(|| awaited);
        assert_eq!(pinned(), 200);
        copies.forget(keys[0]);
        copies.forget(keys[1]);
        assert_eq!(pinned(), 100);
        copies.forget_graph(2);
        assert_eq!(pinned(), 0);
        copies.sweep(|| unreachable!("nothing is kept"));
    }
}
